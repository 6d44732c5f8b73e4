//! A file that loses power: what is written to it stays only if it was
//! synchronised, like on a disk of a host whose plug is pulled.
//!
//! ```text
//!   writer ─► page cache ─► FUSE ─► contents ──┐
//!                            │      pending    ├─ cut: stable, and some of the
//!                            └ fsync ─► stable ┘   pending sectors
//! ```
//!
//! Killing a process is no power cut: the page cache survives it. Here every
//! write arrives at once (FUSE without its write-back cache), and is pending
//! until an `fsync` that began later was answered. [`PowerFile::cut`] then keeps
//! any subset of the pending sectors: a write may be lost, torn between sectors,
//! or overtaken by a later one.
//!
//! The file can also fail, or stand still ([`PowerFile::set_trouble`]).

#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a failure here is a failed test"
)]

mod dice;
mod file_system;
mod state;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::mount::{UnmountFlags, unmount};

pub use dice::Dice;
pub use state::{Counts, Trouble};

use file_system::OneFile;
use state::Shared;

/// The unit that is written as a whole or not at all, in bytes.
pub const SECTOR: usize = 512;

/// The name of the file in its directory.
const NAME: &str = "disk";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The file, on a file system of its own, which is unmounted when this is
/// dropped.
#[derive(Debug)]
pub struct PowerFile {
    directory: PathBuf,
    shared: Arc<Shared>,
    /// `None` only while it is being dropped.
    session: Option<BackgroundSession>,
}

/// Returns why there can be no such file here, for a test that is skipped then;
/// `MKVMM_REQUIRE_FUSE=1` makes it fail instead.
pub fn missing() -> Option<io::Error> {
    let error = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .err()?;
    let is_required = std::env::var_os("MKVMM_REQUIRE_FUSE").is_some_and(|value| value == "1");
    assert!(!is_required, "/dev/fuse: {error}");
    eprintln!("/dev/fuse: {error}; power cuts are not tested");
    Some(error)
}

impl PowerFile {
    /// Creates a file of `size` bytes, all 0, on stable storage.
    ///
    /// # Errors
    /// Returns the error of mounting.
    pub fn new(size: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(vec![0; size]));
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mkvmm-power-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("mkvmm-power".to_owned())];
        // A worker has another user.
        config.acl = SessionACL::All;
        config.n_threads = Some(2);
        let files = OneFile::new(Arc::clone(&shared));
        match fuser::spawn_mount(files, &directory, &config) {
            Ok(session) => Ok(Self {
                directory,
                shared,
                session: Some(session),
            }),
            Err(error) => {
                fs::remove_dir(&directory)?;
                Err(error)
            }
        }
    }

    /// Returns the path of the file. Each open sees the present contents.
    pub fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Cuts the power: of what is pending, `dice` decide which sectors stay.
    /// Returns the contents that are left. Writers that go on write to them.
    pub fn cut(&self, dice: &mut Dice) -> Vec<u8> {
        let mut state = self.shared.lock();
        state.cut(dice);
        state.contents().to_vec()
    }

    /// Replaces the contents; they are on stable storage. Those who have it open
    /// see them as well.
    ///
    /// # Errors
    /// Returns the error of opening it.
    pub fn refill(&self, contents: &[u8]) -> io::Result<()> {
        self.shared.lock().refill(contents);
        // The kernel forgets at each open what it had read.
        File::open(self.path()).map(drop)
    }

    /// Returns the present contents, as a reader sees them.
    pub fn contents(&self) -> Vec<u8> {
        self.shared.lock().contents().to_vec()
    }

    /// Copies the present contents to another file.
    ///
    /// # Errors
    /// Returns the error of writing it.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        fs::write(path, self.contents())
    }

    /// Makes what the kernel asks for fail, or stand still until the next call.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.shared.set_trouble(trouble);
    }

    /// Returns what was asked for so far.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts()
    }
}

impl Drop for PowerFile {
    fn drop(&mut self) {
        self.set_trouble(Trouble::None);
        // The kernel lets go of the file some time after the last user has, as a
        // ring is taken down in the background: so the directory is unmounted
        // now, and the file system ends when it is not in use any more.
        let unmounted = unmount(&self.directory, UnmountFlags::DETACH);
        drop(self.session.take());
        let removed = fs::remove_dir(&self.directory);
        if !std::thread::panicking() {
            unmounted.unwrap();
            removed.unwrap();
        }
    }
}
