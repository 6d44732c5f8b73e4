//! What a child says that breaks down.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

/// The first panic's words.
static WORDS: OnceLock<String> = OnceLock::new();

/// Has every panic of this process kept and said.
///
/// The default hook reads files for a backtrace, which a confined process may
/// not: it would end before it could say what happened.
pub fn keep() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        say(&text);
        // The first one is the cause of others.
        let _ = WORDS.set(text);
    }));
}

/// Says why this process ends: to the manager, where the channel has a logger,
/// and to whoever debugs it.
pub fn say(text: &str) {
    log::error!("{text}");
    eprintln!("{text}");
}

/// Does `work`, and keeps what it says when it panics.
///
/// # Errors
/// What it said when it panicked.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let result = std::panic::catch_unwind(AssertUnwindSafe(work));
    result.map_err(|_panic| WORDS.get().cloned().unwrap_or_default())
}
