//! The memory file that an unpacker writes, and its seals.
//!
//! ```text
//!  Unsealed::new ── GROW ──► written by the unpacker ── it has answered ──► seal
//!                                                              SHRINK, WRITE, SEAL
//! ```
//!
//! From the beginning it cannot grow beyond its limit, whatever an unpacker
//! does to it. After [`Unsealed::seal`] nobody can change it, not even through
//! a descriptor or a mapping that was created before: the kernel refuses the
//! seal while there is a writable mapping.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;

/// A reason why a file could not be created or sealed.
#[derive(Debug, thiserror::Error)]
pub enum MemfileError {
    /// A system call failed.
    #[error("a memory file for the image cannot be {what}")]
    Call {
        /// The operation that failed.
        what: &'static str,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The file is shorter than its unpacker reports.
    #[error("the memory file has {len} bytes, but its unpacker reports {stated}")]
    Short {
        /// The length in bytes.
        len: u64,
        /// The reported length in bytes.
        stated: u64,
    },
}

fn call(what: &'static str) -> impl FnOnce(Errno) -> MemfileError {
    move |errno| MemfileError::Call {
        what,
        source: errno.into(),
    }
}

/// A memory file that is still writable.
#[derive(Debug)]
pub struct Unsealed(OwnedFd);

impl Unsealed {
    /// Creates a file that can hold up to `limit` bytes; memory is used only
    /// for bytes that are written.
    ///
    /// # Errors
    /// Returns [`MemfileError::Call`] if it cannot be created.
    pub fn new(limit: u64) -> Result<Self, MemfileError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match memfd_create("mkvmm-image", flags | MemfdFlags::NOEXEC_SEAL) {
            // Linux before 6.3 does not know this flag.
            Err(Errno::INVAL) => memfd_create("mkvmm-image", flags),
            made => made,
        };
        let file = file.map_err(call("made"))?;
        ftruncate(&file, limit).map_err(call("extended"))?;
        fcntl_add_seals(&file, SealFlags::GROW).map_err(call("kept from growing"))?;
        Ok(Self(file))
    }

    /// Returns a descriptor for the process that writes it.
    ///
    /// # Errors
    /// Returns [`MemfileError::Call`] if it cannot be duplicated.
    pub fn writer(&self) -> Result<OwnedFd, MemfileError> {
        self.0.try_clone().map_err(|source| MemfileError::Call {
            what: "shared",
            source,
        })
    }

    /// Truncates the file to `len` bytes and seals it. A process that wrote it may
    /// still have it open, but a writable mapping is an error (EBUSY).
    ///
    /// Returns the file and its length as the kernel reports it afterwards.
    ///
    /// # Errors
    /// Returns a [`MemfileError`]; the file must not be trusted then.
    pub fn seal(self, len: u64) -> Result<(OwnedFd, u64), MemfileError> {
        let Self(file) = self;
        let found = length(&file)?;
        if found < len {
            return Err(MemfileError::Short {
                len: found,
                stated: len,
            });
        }
        if found > len {
            ftruncate(&file, len).map_err(call("truncated to its length"))?;
        }
        let seals = SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(call("sealed"))?;
        let sealed = length(&file)?;
        Ok((file, sealed))
    }
}

fn length(file: &OwnedFd) -> Result<u64, MemfileError> {
    let stat = fstat(file).map_err(call("examined"))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_takes_no_more_than_its_limit_and_is_cut_to_what_was_written() {
        let file = Unsealed::new(10).unwrap();
        let writer = File::from(file.writer().unwrap());
        writer.write_all_at(b"kernel", 0).unwrap();
        writer.write_all_at(b"more", 8).unwrap_err();
        writer.set_len(11).unwrap_err();
        let (sealed, len) = file.seal(6).unwrap();
        assert_eq!(len, 6);
        writer.write_all_at(b"K", 0).unwrap_err();
        writer.set_len(3).unwrap_err();
        let mut bytes = [0; 6];
        File::from(sealed).read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"kernel");
    }

    #[test]
    fn a_file_shorter_than_stated_is_refused() {
        let file = Unsealed::new(10).unwrap();
        File::from(file.writer().unwrap()).set_len(5).unwrap();
        assert!(matches!(
            file.seal(6),
            Err(MemfileError::Short { len: 5, stated: 6 })
        ));
    }

    #[test]
    fn a_file_that_its_unpacker_sealed_otherwise_is_refused() {
        for seals in [SealFlags::SEAL, SealFlags::SHRINK] {
            let file = Unsealed::new(10).unwrap();
            fcntl_add_seals(file.writer().unwrap(), seals).unwrap();
            let error = file.seal(6).unwrap_err();
            assert!(matches!(error, MemfileError::Call { .. }), "{error}");
        }
    }

    #[test]
    fn a_writable_mapping_that_lives_on_keeps_the_file_from_being_sealed() {
        let file = Unsealed::new(4096).unwrap();
        let writer = File::from(file.writer().unwrap());
        writer.write_all_at(&[1; 4096], 0).unwrap();
        let whole = vm_memory::FileOffset::new(writer, 0);
        let mapping = vm_memory::MmapRegion::<()>::from_file(whole, 4096).unwrap();
        let error = file.seal(4096).unwrap_err();
        assert!(matches!(
            &error,
            MemfileError::Call { what: "sealed", source }
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error())
        ));
        drop(mapping);
    }
}
