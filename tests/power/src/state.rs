//! What is written, and what of it is on stable storage.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::SECTOR;
use crate::dice::Dice;

/// What the file does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It carries out what it is asked for.
    None,
    /// Reads fail with this error number.
    Reads(i32),
    /// Writes fail with this error number.
    Writes(i32),
    /// Synchronisations fail with this error number, and lose what was pending,
    /// as a disk that cannot write its cache.
    Syncs(i32),
    /// Nothing is answered.
    StandStill,
}

/// How much was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of reads.
    pub reads: u64,
    /// The number of writes.
    pub writes: u64,
    /// The number of synchronisations.
    pub syncs: u64,
}

/// The file's state, of which requests of several threads have one.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    trouble: Mutex<Trouble>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    stable: Vec<u8>,
    contents: Vec<u8>,
    /// What was written since, in order.
    pending: Vec<(usize, Vec<u8>)>,
    counts: Counts,
}

impl Shared {
    pub fn new(stable: Vec<u8>) -> Self {
        Self {
            state: Mutex::new(State {
                contents: stable.clone(),
                stable,
                pending: Vec::new(),
                counts: Counts::default(),
            }),
            trouble: Mutex::new(Trouble::None),
            changed: Condvar::new(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap() = trouble;
        self.changed.notify_all();
    }

    /// Returns the present trouble, once the file does not stand still.
    pub fn trouble(&self) -> Trouble {
        let trouble = self.trouble.lock().unwrap();
        let stands = |trouble: &mut Trouble| *trouble == Trouble::StandStill;
        *self.changed.wait_while(trouble, stands).unwrap()
    }
}

impl State {
    pub fn contents(&self) -> &[u8] {
        &self.contents
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn read(&mut self, at: usize, len: usize) -> &[u8] {
        self.counts.reads += 1;
        let start = at.min(self.contents.len());
        let end = start.saturating_add(len).min(self.contents.len());
        &self.contents[start..end]
    }

    pub fn write(&mut self, at: usize, data: &[u8]) {
        self.counts.writes += 1;
        put(&mut self.contents, at, data);
        self.pending.push((at, data.to_vec()));
    }

    pub fn sync(&mut self) {
        self.counts.syncs += 1;
        for (at, data) in self.pending.drain(..) {
            put(&mut self.stable, at, &data);
        }
    }

    pub fn resize(&mut self, size: usize) {
        self.contents.resize(size, 0);
        self.stable.resize(size, 0);
        self.pending.retain(|(at, data)| at + data.len() <= size);
    }

    /// Forgets what is pending, as a disk that could not write it.
    pub fn lose(&mut self) {
        self.counts.syncs += 1;
        self.pending.clear();
        self.contents.clone_from(&self.stable);
    }

    pub fn cut(&mut self, dice: &mut Dice) {
        for (at, data) in self.pending.drain(..) {
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if dice.coin() {
                    put(&mut self.stable, at + index * SECTOR, sector);
                }
            }
        }
        self.contents.clone_from(&self.stable);
    }

    pub fn refill(&mut self, contents: &[u8]) {
        self.stable = contents.to_vec();
        self.contents = contents.to_vec();
        self.pending.clear();
    }
}

/// Copies `data`, and makes the file longer where that is necessary.
fn put(file: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> State {
        let shared = Shared::new(vec![0; 8 * SECTOR]);
        let mut state = shared.state.into_inner().unwrap();
        state.write(0, &[1; 4 * SECTOR]);
        state.sync();
        state.write(2 * SECTOR, &[2; 4 * SECTOR]);
        state
    }

    #[test]
    fn what_was_synchronised_survives_every_cut() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut state = written();
            state.cut(&mut Dice::new(seed));
            assert_eq!(&state.contents[..2 * SECTOR], &[1; 2 * SECTOR]);
            let of_sector = |sector: &[u8]| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "torn inside");
                sector[0]
            };
            seen.insert(
                state
                    .contents
                    .chunks(SECTOR)
                    .map(of_sector)
                    .collect::<Vec<_>>(),
            );
        }
        // Four sectors were pending, and each of them may stay or not.
        assert_eq!(seen.len(), 16);
    }

    #[test]
    fn readers_see_what_is_pending() {
        let mut state = written();
        assert_eq!(state.read(2 * SECTOR, 1), [2]);
        assert_eq!(state.read(100 * SECTOR, 1), []);
        state.lose();
        assert_eq!(state.read(2 * SECTOR, 1), [1]);
    }
}
