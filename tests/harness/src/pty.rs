//! Terminals without a window.

use std::fs::File;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

/// Opens a terminal: the master side, which sees what is printed and types, and
/// the slave side for a program. It controls no session.
///
/// # Panics
/// Panics if the system has no terminals left.
pub fn open() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let open = || {
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags | OpenptFlags::CLOEXEC)?;
        Ok::<_, rustix::io::Errno>((File::from(master), File::from(slave)))
    };
    open().expect("there are terminals left")
}
