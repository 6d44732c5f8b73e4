//! The memory of instances: taken, returned, and held by the keeper meanwhile.

use std::os::fd::AsFd;

use mkpool::AddrRange;
use mkvmm_keeper::client::KeeperError;
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
            held.insert(file.number(), new);
        }
        Ok(())
    }

    /// Returns files that are scrubbed, or will not be used again.
    pub(crate) async fn return_memory(&self, files: Vec<MemoryFile>) {
        let numbers: Vec<u64> = files.iter().map(MemoryFile::number).collect();
        self.files.put_back(files).await;
        let home = self.files.at_home();
        let home: Vec<u64> = home.iter().map(MemoryFile::number).collect();
        let mut held = self.memory_held.borrow_mut();
        for number in numbers.iter().filter(|number| !home.contains(number)) {
            held.remove(number);
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
