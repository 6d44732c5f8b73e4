//! The worker's side of a board.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::time::{ClockId, clock_gettime};

use super::file::{
    Board, DEVICES_MAX, EXIT_KINDS, OWN_COUNTERS, QUEUE_COUNTERS, QUEUES_MAX, REGISTER_WORDS,
    STAGES, VCPUS_MAX, device, slot, word,
};

/// Writes the status of the guest as a whole. Any thread may use it.
#[derive(Debug, Clone)]
pub struct BoardWriter {
    board: Board,
}

impl BoardWriter {
    pub(super) fn new(board: Board) -> Self {
        Self { board }
    }

    /// Returns the writer of a vCPU's slot, for its thread; `None` from
    /// [`VCPUS_MAX`] on. There must be only one for each vCPU.
    pub fn vcpu(&self, vcpu: usize) -> Option<VcpuWriter> {
        (vcpu < VCPUS_MAX).then(|| VcpuWriter {
            board: self.board.clone(),
            vcpu,
            generation: 0,
        })
    }

    /// Returns the writer of a device's counters; `None` from [`DEVICES_MAX`] on.
    /// There must be only one for each device.
    pub fn device(&self, device: usize) -> Option<DeviceWriter> {
        (device < DEVICES_MAX).then(|| DeviceWriter {
            board: self.board.clone(),
            device,
        })
    }

    /// Counts an access to memory that the guest does not own.
    pub fn count_violation(&self) {
        let violations = self.board.word(word::VIOLATIONS);
        violations.fetch_add(1, Ordering::Relaxed);
    }

    /// Records the time at which a stage was reached, unless it was recorded
    /// before. Returns whether this was the first time. Stages from [`STAGES`]
    /// on are ignored.
    pub fn stamp(&self, stage: usize) -> bool {
        stage < STAGES
            && set_once(
                self.board.word(word::STAMPS + stage),
                monotonic_nanoseconds(),
            )
    }

    /// Records the reason of the guest's end, unless one was recorded before:
    /// the first reason counts. Returns whether this was the first. `reason`
    /// must not be 0; 0 is recorded as 1.
    pub fn end(&self, reason: u64) -> bool {
        set_once(self.board.word(word::ENDED), reason)
    }
}

/// Writes the slot of one vCPU; used by one thread.
#[derive(Debug)]
pub struct VcpuWriter {
    board: Board,
    vcpu: usize,
    /// A private copy of the generation; even between two writes.
    generation: u64,
}

impl VcpuWriter {
    /// Counts an exit. Kinds from [`EXIT_KINDS`] on count as the last kind.
    pub fn count_exit(&mut self, kind: usize) {
        let index = slot::EXITS + kind.min(EXIT_KINDS - 1);
        let Some(count) = self.words().get(index) else {
            return;
        };
        // This is the only writer, so no locked instruction is needed.
        let next = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(next, Ordering::Relaxed);
    }

    /// Writes the registers. A reader that reads them meanwhile, or after the
    /// writer died while writing, sees that they are torn.
    pub fn set_registers(&mut self, registers: &[u64; REGISTER_WORDS]) {
        let (before, after) = (self.generation + 1, self.generation + 2);
        if let Some(generation) = self.words().get(slot::GENERATION) {
            generation.store(before, Ordering::Relaxed);
            // No register is stored before the odd generation is …
            fence(Ordering::Release);
            let words = self.words().iter().skip(slot::REGISTERS);
            for (word, register) in words.zip(registers) {
                word.store(*register, Ordering::Relaxed);
            }
            // … and none after the even one.
            generation.store(after, Ordering::Release);
        }
        self.generation = after;
    }

    fn words(&self) -> &[AtomicU64] {
        self.board.slot(self.vcpu).unwrap_or_default()
    }
}

/// Writes the counters of one device; used by one thread at a time.
#[derive(Debug)]
pub struct DeviceWriter {
    board: Board,
    device: usize,
}

impl DeviceWriter {
    /// Sets how often the device was stopped.
    pub fn set_faults(&self, faults: u64) {
        self.set(device::FAULTS, &[faults]);
    }

    /// Sets the counters that only its kind has.
    pub fn set_own(&self, counters: &[u64; OWN_COUNTERS]) {
        self.set(device::OWN, counters);
    }

    /// Sets the counters of a queue. Queues from [`QUEUES_MAX`] on are not
    /// counted.
    pub fn set_queue(&self, queue: usize, counters: &[u64; QUEUE_COUNTERS]) {
        if queue < QUEUES_MAX {
            self.set(device::QUEUES + queue * device::QUEUE, counters);
        }
    }

    fn set(&self, first: usize, values: &[u64]) {
        let words = self.board.device(self.device).unwrap_or_default();
        for (word, value) in words.iter().skip(first).zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
    }
}

/// Stores a value if there was none; 0 is stored as 1.
fn set_once(word: &AtomicU64, value: u64) -> bool {
    word.compare_exchange(0, value.max(1), Ordering::Release, Ordering::Relaxed)
        .is_ok()
}

/// Returns the host's monotonic clock, which all processes share.
fn monotonic_nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |n| u64::try_from(n).unwrap_or(0); // time since boot is never negative
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
