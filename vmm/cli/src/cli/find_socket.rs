//! Where the control socket is.
//!
//! | who | looks at, in this order |
//! |---|---|
//! | all | `--socket`, also before the command's name; `$MKVMM_SOCKET` |
//! | clients | `mkvmm.sock` in the runtime directory if it is there; `/run/mkvmm.sock` |
//! | `serve` | `mkvmm.sock` in the runtime directory if there is such a directory; `/run/mkvmm.sock` |
//!
//! The runtime directory is `$XDG_RUNTIME_DIR`, or `/run/user/UID` where nobody has set
//! that, except for root.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::geteuid;

/// The variable that names the socket.
pub const VARIABLE: &str = "MKVMM_SOCKET";
/// The socket of a service.
const OF_SERVICE: &str = "/run/mkvmm.sock";

/// The socket that was named before the command's name.
static NAMED: OnceLock<PathBuf> = OnceLock::new();

/// Remembers the socket that was named before the command's name.
pub fn remember(named: Option<PathBuf>) {
    if let Some(path) = named {
        // There is one command line for each process.
        let _ = NAMED.set(path);
    }
}

/// Returns the path at which a client connects if it names none itself.
pub fn of_clients() -> PathBuf {
    if let Some(path) = named() {
        return path;
    }
    let places = places();
    let found = places.iter().find(|path| path.exists());
    found.or(places.first()).cloned().unwrap_or_default()
}

/// Returns the path at which `serve` listens if it is given none.
pub fn of_serve() -> PathBuf {
    named().unwrap_or_else(|| places().into_iter().next().unwrap_or_default())
}

/// Returns what a client that named no socket has looked at, for people.
pub fn looked_at() -> String {
    let places = places();
    let places: Vec<String> = places
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    places.join(" and ")
}

/// Returns whether a socket was named.
pub fn is_named() -> bool {
    named().is_some()
}

fn named() -> Option<PathBuf> {
    let variable = || env::var_os(VARIABLE).filter(|path| !path.is_empty());
    NAMED
        .get()
        .cloned()
        .or_else(|| variable().map(PathBuf::from))
}

/// Returns the places of sockets that nobody has named.
fn places() -> Vec<PathBuf> {
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

/// Returns a sentence about a socket where a connection has failed.
pub fn advice(path: &Path, error: &std::io::Error) -> String {
    use std::io::ErrorKind::{ConnectionRefused, PermissionDenied};
    match error.kind() {
        PermissionDenied => "only its user and root may connect: run this as that user, or have \
                             `serve --socket-group` let a group in"
            .to_owned(),
        ConnectionRefused => "its `mkvmm serve` has ended; start it again".to_owned(),
        _ if is_named() || !places().iter().any(|place| place == path) => {
            format!("start `mkvmm serve`, or name its socket with --socket or {VARIABLE}")
        }
        _ => format!(
            "start `mkvmm serve`, or name its socket with --socket or {VARIABLE}; there is none \
             at {}",
            looked_at()
        ),
    }
}
