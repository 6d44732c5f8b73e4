//! Whether a device has more to do.

/// The result of a device's turn on the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Everything is done, until the next event.
    Done,
    /// There is more, and the device is to be called again after others had
    /// their turn.
    More,
}
