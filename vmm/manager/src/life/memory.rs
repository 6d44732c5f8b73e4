//! The memory of instances: taken, returned, and held by the keeper meanwhile.

use std::os::fd::AsFd;

use mkpool::AddrRange;
use mkvmm_keeper::client::{Held, KeeperError};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_wire::keeping::Key;

use crate::life::StepError;
use crate::manager::Manager;

impl Manager {
    /// Takes the memory of `regions`, and has the keeper hold it, if there is one.
    ///
    /// # Errors
    /// Returns a [`StepError`]; nothing was taken then.
    pub(crate) async fn take_memory(
        &self,
        regions: Vec<AddrRange>,
    ) -> Result<Vec<MemoryFile>, StepError> {
        let files = self.files.take(regions).await?;
        for file in &files {
            if let Err(error) = self.hold_memory(file) {
                self.return_memory(files).await;
                return Err(error.into());
            }
        }
        Ok(files)
    }

    /// Has the keeper hold a file, unless it does already.
    pub(crate) fn hold_memory(&self, file: &MemoryFile) -> Result<(), KeeperError> {
        let mut held = self.memory_held.borrow_mut();
        if held.contains_key(&file.number()) {
            return Ok(());
        }
        if let Some(new) = self.hold(memory_key(file), &[file.as_fd()])? {
            self.lock_held(&new)?;
            held.insert(file.number(), new);
        }
        Ok(())
    }

    /// Has the keeper lock the pages that a file has, if they are to be locked: they stay in memory between two managers.
    fn lock_held(&self, held: &Held) -> Result<(), KeeperError> {
        let config = self.files.config();
        let keeper = self.host.children.keeper.as_ref();
        // Pages of the hugetlb pool are never swapped out.
        let keeper = keeper.filter(|_| config.lock && !config.backing.is_hugetlb());
        if let Some(keeper) = keeper {
            // One of an earlier version cannot.
            keeper.lock(held)?;
        }
        Ok(())
    }

    /// Returns files that are scrubbed, or will not be used again.
    pub(crate) async fn return_memory(&self, files: Vec<MemoryFile>) {
        let numbers: Vec<u64> = files.iter().map(MemoryFile::number).collect();
        let returned: Vec<AddrRange> = files.iter().map(MemoryFile::range).collect();
        self.files.put_back(files).await;
        let at_home = self.files.at_home();
        let home: Vec<u64> = at_home.iter().map(MemoryFile::number).collect();
        let mut held = self.memory_held.borrow_mut();
        for number in numbers.iter().filter(|number| !home.contains(number)) {
            held.remove(number);
        }
        // What came back to a granule was populated again.
        let is_part = |file: &&MemoryFile| returned.iter().any(|part| part.overlaps(&file.range()));
        for file in at_home.iter().filter(is_part) {
            let locked = held.get(&file.number()).map(|held| self.lock_held(held));
            if let Some(Err(error)) = locked {
                log::error!("{}", mkvmm_base::chain(&error));
            }
        }
    }
}

/// Returns the key of a file at the keeper.
pub(crate) fn memory_key(file: &MemoryFile) -> Key {
    Key::Memory {
        number: file.number(),
        start: file.range().start(),
        size: file.range().size(),
    }
}
