//! Verified load: every sector that is written names itself and the number of
//! the write, and the driver remembers what must survive.

use mkvmm_test_power::Dice;

use crate::disk::{Disk, OK};
use crate::driver::Done;

const SECTOR: usize = 512;
/// The size of the disk in sectors.
pub const SECTORS: usize = 1024;
/// The unit of writes in sectors: one write at a time is in flight for each.
const BLOCK: usize = 8;

/// What is known of each sector.
#[derive(Debug, Clone)]
pub struct Record {
    /// The last write that was begun, of which nothing may be on the disk.
    begun: Vec<u64>,
    /// The last write that was completed.
    pub completed: Vec<u64>,
    /// The last write that a flush has covered.
    flushed: Vec<u64>,
}

/// The contents of a sector after write `number`.
fn contents(sector: usize, number: u64) -> [u8; SECTOR] {
    let mut bytes = [number.to_le_bytes()[0]; SECTOR];
    bytes[..8].copy_from_slice(&(sector as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Returns the number of the write that a sector has, 0 if it was never
/// written.
fn number_of(sector: usize, bytes: &[u8]) -> Result<u64, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    match bytes == contents(sector, number) {
        true => Ok(number),
        false => Err(format!("sector {sector} is torn or another's")),
    }
}

impl Record {
    /// Returns the record of a disk whose contents are all on stable storage.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        let sectors = bytes.chunks(SECTOR).enumerate();
        let numbers = sectors.map(|(sector, bytes)| number_of(sector, bytes));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            begun: numbers.clone(),
            completed: numbers.clone(),
            flushed: numbers,
        })
    }

    /// Checks what a power cut has left.
    pub fn check_after_cut(&self, bytes: &[u8]) -> Result<(), String> {
        self.check(bytes, &self.flushed, "flushed")
    }

    /// Checks what the end of the process has left.
    pub fn check_after_kill(&self, bytes: &[u8]) -> Result<(), String> {
        self.check(bytes, &self.completed, "completed")
    }

    fn check(&self, bytes: &[u8], least: &[u64], what: &str) -> Result<(), String> {
        for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
            let found = number_of(sector, bytes)?;
            let (least, most) = (least[sector], self.begun[sector]);
            if !(least..=most).contains(&found) {
                return Err(format!(
                    "sector {sector} has {found}; {least} was {what}, {most} begun"
                ));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Flying {
    Write { sector: usize, number: u64 },
    Flush { covered: Vec<u64> },
}

/// A driver that writes and flushes without end.
#[derive(Debug)]
pub struct Load {
    pub record: Record,
    next: u64,
    /// By queue and slot.
    flying: Vec<Vec<Option<Flying>>>,
    busy: Vec<bool>,
    /// Whether a completed write is as good as a flushed one.
    is_durable: bool,
}

impl Load {
    pub fn new(record: Record) -> Self {
        let next = record.begun.iter().max().unwrap() + 1;
        Self {
            record,
            next,
            flying: vec![vec![None; 64]; 2],
            busy: vec![false; SECTORS / BLOCK],
            is_durable: false,
        }
    }

    /// Expects each write to survive when it is completed.
    pub fn with_durable_writes(mut self) -> Self {
        self.is_durable = true;
        self
    }

    /// Keeps up to 16 requests in flight on each queue until `count` were
    /// completed; `tell` is told of each completed write.
    pub fn run(
        &mut self,
        disk: &mut Disk,
        dice: &mut Dice,
        count: usize,
        mut tell: impl FnMut(usize, u64),
    ) {
        let mut ended = 0;
        loop {
            for queue in 0..2 {
                while let Some(done) = disk.drivers[queue].done() {
                    ended += 1;
                    self.end(queue, done, &mut tell);
                }
            }
            if ended >= count {
                return;
            }
            for queue in 0..2_u16 {
                let flying = self.flying[usize::from(queue)].iter().flatten().count();
                for _ in flying..16 {
                    self.begin(disk, queue.into(), dice);
                }
                disk.kick(queue);
            }
            disk.wait();
        }
    }

    fn begin(&mut self, disk: &mut Disk, queue: usize, dice: &mut Dice) {
        let driver = &mut disk.drivers[queue];
        if dice.below(8) == 0 {
            let slot = driver.offer(4, 0, &[], 0);
            let covered = self.record.completed.clone();
            self.flying[queue][usize::from(slot)] = Some(Flying::Flush { covered });
            return;
        }
        let block = usize::try_from(dice.below((SECTORS / BLOCK) as u64)).unwrap();
        if std::mem::replace(&mut self.busy[block], true) {
            return;
        }
        let (sector, number) = (block * BLOCK, self.next);
        self.next += 1;
        let sectors = sector..sector + BLOCK;
        self.record.begun[sectors.clone()].fill(number);
        let data: Vec<u8> = sectors
            .flat_map(|sector| contents(sector, number))
            .collect();
        let slot = driver.offer(1, sector as u64, &data, 0);
        self.flying[queue][usize::from(slot)] = Some(Flying::Write { sector, number });
    }

    fn end(&mut self, queue: usize, done: Done, tell: &mut impl FnMut(usize, u64)) {
        assert_eq!(done.status, OK);
        match self.flying[queue][usize::from(done.slot)].take().unwrap() {
            Flying::Write { sector, number } => {
                self.busy[sector / BLOCK] = false;
                self.record.completed[sector..sector + BLOCK].fill(number);
                if self.is_durable {
                    self.record.flushed[sector..sector + BLOCK].fill(number);
                }
                tell(sector, number);
            }
            Flying::Flush { covered } => {
                for (flushed, covered) in self.record.flushed.iter_mut().zip(covered) {
                    *flushed = covered.max(*flushed);
                }
            }
        }
    }
}

/// Adds what another process has told of its writes.
pub fn add_told(record: &mut Record, sector: usize, number: u64) {
    record.completed[sector..sector + BLOCK].fill(number);
}

/// Allows any later write to be found.
pub fn forget_begun(record: &mut Record) {
    record.begun.fill(u64::MAX);
}
