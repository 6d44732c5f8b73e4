//! Which control socket a command is for.
//!
//! | who | looks at, in this order |
//! |---|---|
//! | all | `--socket`, also before the command's name; `$MKVMM_SOCKET` |
//! | clients | `mkvmm.sock` in the runtime directory if it is there; `/run/mkvmm.sock` |
//! | `serve` | `mkvmm.sock` in the runtime directory if there is such a directory; `/run/mkvmm.sock` |

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mkvmm_client::socket::{self, VARIABLE, places};

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
    named().unwrap_or_else(socket::find)
}

/// Returns the path at which `serve` listens if it is given none.
pub fn of_serve() -> PathBuf {
    named().unwrap_or_else(|| places().into_iter().next().unwrap_or_default())
}

fn named() -> Option<PathBuf> {
    NAMED.get().cloned().or_else(socket::named)
}

/// Returns what to do about a socket where a connection has failed: where this command
/// has looked, and by which option it looks elsewhere.
pub fn advice(path: &Path, error: &io::Error) -> String {
    if let ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused = error.kind() {
        return socket::advice(error).to_owned();
    }
    let advice = format!("start `mkvmm serve`, or name its socket with --socket or {VARIABLE}");
    let places = places();
    if named().is_some() || !places.iter().any(|place| place == path) {
        return advice;
    }
    let places: Vec<String> = places
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    format!("{advice}; there is none at {}", places.join(" and "))
}
