//! The status that a guest's workers leave in shared memory: counters and last
//! registers. None of it is trusted.

use std::collections::BTreeMap;

use mkvmm_base::ExitKind;
use mkvmm_base::registers::Registers;
use mkvmm_base::state::EndReason;
use mkvmm_wire::shared::board::{self, BoardReader, DeviceCounts};

/// The counters of an instance over all its boots.
#[derive(Debug, Default)]
pub struct Status {
    board: Option<BoardReader>,
    /// The exits of previous boots, by vCPU and kind.
    exits: Vec<[u64; ExitKind::ALL.len()]>,
    violations: u64,
    /// The counters of the devices in previous boots.
    devices: Vec<DeviceCounts>,
    /// The last registers of a killed guest, by vCPU.
    last_words: BTreeMap<u8, Registers>,
}

impl Status {
    /// Continues with the board of a new worker.
    pub(crate) fn renew(&mut self, cpus: u8, devices: usize, board: BoardReader) {
        self.devices = (0..devices).map(|index| self.device(index)).collect();
        let exits = (0..cpus).map(|cpu| self.exits(cpu)).collect();
        self.violations = self.violations();
        self.exits = exits;
        self.board = Some(board);
        self.last_words.clear();
    }

    /// Returns the exits and the violations of previous boots.
    pub(crate) fn earlier(&self) -> (&[[u64; ExitKind::ALL.len()]], u64) {
        (&self.exits, self.violations)
    }

    /// Returns the counters of the devices in previous boots.
    pub(crate) fn earlier_devices(&self) -> &[DeviceCounts] {
        &self.devices
    }

    /// Continues with the exits and the violations of previous boots, and the
    /// board of the last one.
    pub(crate) fn restored(
        exits: Vec<[u64; ExitKind::ALL.len()]>,
        violations: u64,
        devices: Vec<DeviceCounts>,
        board: Option<BoardReader>,
    ) -> Self {
        Self {
            board,
            exits,
            violations,
            devices,
            last_words: BTreeMap::new(),
        }
    }

    /// Keeps the registers that a vCPU reported before it was killed.
    pub(crate) fn keep(&mut self, cpu: u8, registers: Registers) {
        self.last_words.insert(cpu, registers);
    }

    /// Returns the number of accesses to memory that the guest does not own.
    pub fn violations(&self) -> u64 {
        let now = self.board.as_ref().map_or(0, BoardReader::violations);
        self.violations.saturating_add(now)
    }

    /// Returns the reason of the last boot's end, as its worker left it.
    pub(crate) fn ended(&self) -> Option<EndReason> {
        EndReason::from_number(self.board.as_ref()?.ended()?)
    }

    /// Returns the exits of one vCPU, by [`ExitKind`].
    pub fn exits(&self, cpu: u8) -> [u64; ExitKind::ALL.len()] {
        let mut sum = self
            .exits
            .get(usize::from(cpu))
            .copied()
            .unwrap_or_default();
        let board = self.board.as_ref();
        if let Some(now) = board.and_then(|board| board.exits(cpu.into())) {
            for (sum, now) in sum.iter_mut().zip(now) {
                *sum = sum.saturating_add(now);
            }
        }
        sum
    }

    /// Returns the counters of a device, by its position.
    pub fn device(&self, index: usize) -> DeviceCounts {
        let mut sum = self.devices.get(index).copied().unwrap_or_default();
        let board = self.board.as_ref();
        if let Some(now) = board.and_then(|board| board.device(index)) {
            sum.faults = sum.faults.saturating_add(now.faults);
            let counters = sum.queues.iter_mut().flatten().chain(&mut sum.own);
            for (sum, now) in counters.zip(now.queues.iter().flatten().chain(&now.own)) {
                *sum = sum.saturating_add(*now);
            }
        }
        sum
    }

    /// Returns a vCPU's registers at the end of its guest; `None` if the worker
    /// had no time to write them.
    pub fn last_registers(&self, cpu: u8) -> Option<Registers> {
        if let Some(words) = self.last_words.get(&cpu) {
            return Some(*words);
        }
        match self.board.as_ref()?.registers(cpu.into())? {
            board::Registers::Whole(words) => Some(Registers::from_words(&words[..])),
            board::Registers::None | board::Registers::Torn(_) => None,
        }
    }
}
