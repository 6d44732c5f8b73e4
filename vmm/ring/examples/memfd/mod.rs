//! A ring's memory and doorbells for two processes on Linux: a sealed memory file, and datagram
//! sockets with abstract names.
//!
//! UNSAFETY: mmap returns a raw address; [`Mapping`] turns it into a slice of atomics and does not
//! expose it.
#![expect(unsafe_code, reason = "maps a shared file and lends it as atomics")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use mkvmm_ring::Word;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Creates a file of `words` zeroed words whose size is sealed. Returns it with a path by which
/// children can open it.
pub fn make_file(words: usize) -> io::Result<(OwnedFd, String)> {
    let file = rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, words as u64 * 8)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((file, path))
}

/// The whole of a file, mapped readable and writable; it is unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<Word>,
    words: usize,
}

impl Mapping {
    /// Opens and maps a file that [`make_file`] has created.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::new(File::options().read(true).write(true).open(path)?)
    }

    /// Maps a file. It fails if the file could become shorter, because accesses would fault then.
    pub fn new(file: impl AsFd) -> io::Result<Self> {
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("the file may shrink"));
        }
        let words = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0) / 8;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                words * 8,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, words })
    }
}

impl Deref for Mapping {
    type Target = [Word];

    fn deref(&self) -> &[Word] {
        // SAFETY: 1. the mapping starts at a page, and has this many words that stay mapped while
        // self is borrowed; 2. the size is sealed; 3. every content is a valid Word; 4. no exclusive
        // reference exists: other mappings are accessed as atomics or in other address spaces.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is the whole mapping of `new`, and all slices of it borrowed self.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.words * 8) };
    }
}

/// The doorbells of one side: its own, and the other side's, which may come and go.
#[derive(Debug)]
pub struct Bell {
    own: UnixDatagram,
    other: SocketAddr,
}

impl Bell {
    /// Returns the bell `own` with that of `other`. The names are those of sockets.
    pub fn new(own: &str, other: &str) -> io::Result<Self> {
        let own = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(own)?)?;
        // Nothing depends on it: a ring that is lost shows itself as a slow program.
        own.set_read_timeout(Some(Duration::from_secs(10)))?;
        let other = SocketAddr::from_abstract_name(other)?;
        Ok(Self { own, other })
    }

    /// Rings the other side. It never waits: if the other side is dead, its successor looks into the
    /// ring before it sleeps, and if it has not answered earlier rings, it has yet to look.
    pub fn ring(&self) {
        if self.own.set_nonblocking(true).is_ok() {
            let _ = self.own.send_to_addr(&[1], &self.other);
        }
    }

    /// Waits for a ring.
    ///
    /// # Errors
    /// Fails if nobody rings for ten seconds.
    pub fn wait(&self) -> io::Result<()> {
        self.own.set_nonblocking(false)?;
        self.own.recv(&mut [0]).map(drop)
    }
}
