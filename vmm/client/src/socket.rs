//! Where the control socket is, unless a program is told.
//!
//! The first of these: `$MKVMM_SOCKET`; `mkvmm.sock` in the runtime directory, if it is
//! there; `/run/mkvmm.sock`. The runtime directory is `$XDG_RUNTIME_DIR`, or
//! `/run/user/UID` where nobody has set that, except for root.

use std::env;
use std::io;
use std::path::PathBuf;

use rustix::process::geteuid;

/// The variable that names the socket.
pub const VARIABLE: &str = "MKVMM_SOCKET";
/// The socket of a service.
const OF_SERVICE: &str = "/run/mkvmm.sock";

/// Returns the path at which a client connects that is told none.
#[must_use]
pub fn find() -> PathBuf {
    if let Some(path) = named() {
        return path;
    }
    let places = places();
    let found = places.iter().find(|path| path.exists());
    found.or(places.first()).cloned().unwrap_or_default()
}

/// Returns the path that the environment names.
#[must_use]
pub fn named() -> Option<PathBuf> {
    let variable = env::var_os(VARIABLE).filter(|path| !path.is_empty());
    variable.map(PathBuf::from)
}

/// Returns the places of sockets that nobody has named, best first.
#[must_use]
pub fn places() -> Vec<PathBuf> {
    let set = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let user = geteuid();
    let usual = || {
        let dir = PathBuf::from(format!("/run/user/{}", user.as_raw()));
        (!user.is_root() && dir.is_dir()).then_some(dir)
    };
    let dir = set.map(PathBuf::from).or_else(usual);
    let own = dir.map(|dir| dir.join("mkvmm.sock"));
    own.into_iter().chain([PathBuf::from(OF_SERVICE)]).collect()
}

/// Returns what to do about a socket where a connection has failed.
#[must_use]
pub fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind::{ConnectionRefused, PermissionDenied};
    match error.kind() {
        PermissionDenied => {
            "only its user and root may connect: run this as that user, or have `serve \
             --socket-group` let a group in"
        }
        ConnectionRefused => "its `mkvmm serve` has ended; start it again",
        _ => "start `mkvmm serve`, or name its socket with MKVMM_SOCKET",
    }
}
