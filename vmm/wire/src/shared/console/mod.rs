//! A guest's console in shared memory: its output and its input.
//!
//! ```text
//!  worker                      console file                         manager
//!
//!  Printer ── print ──▶ [ output ring ] ── since(position) ──▶ Viewer, Viewer, …
//!     ▲                   begin  end                              │
//!     └──── waits for room if lossless ◀── read ◀── acknowledge ──┘
//!
//!  Input ◀── take ───── [ input ring ] ◀── type_in ──────────── Typist
//!                         taken  end  discard
//!
//!  Bell  ◀───────── "look again", if the other side said it waits ─────────▶ Bell
//! ```
//!
//! Positions count bytes since the console was created and only grow; the index
//! into a ring is the position masked by the capacity. Each word of page 0 has
//! one writer, except the three *awaited* flags: the side that is about to wait
//! sets one, and the other side clears it and rings the doorbell when it has
//! published something. So a guest that prints a million bytes wakes a sleeping
//! reader only once.
//!
//! Wake-ups are never lost. The waiter sets its flag, passes a `SeqCst` fence
//! and checks the position again; the other side publishes the position, passes
//! a `SeqCst` fence and checks the flag. Whichever fence comes first in their
//! total order, one of the two sees the other's store.
//!
//! Any number of [`Viewer`]s can read the output, each at its own pace; a slow
//! one loses the oldest bytes. With [`Viewer::set_lossless`] the worker instead
//! waits until the manager has acknowledged enough.

mod file;
mod input;
mod output;
mod ring;

pub use file::{CAPACITY_MAX, CAPACITY_MIN, Console, INPUT_CAPACITY};
pub use input::{Input, Typist};
pub use output::{Printer, Viewer};

use super::bell::Bell;

impl Console {
    /// Returns the worker's side: one printer and one input, which ring `bell`.
    /// They continue where an earlier worker stopped.
    pub fn worker(&self, bell: &Bell) -> (Printer, Input) {
        (
            Printer::new(self.clone(), bell.clone()),
            Input::new(self.clone(), bell.clone()),
        )
    }

    /// Returns a reader of the output. There may be many.
    pub fn viewer(&self) -> Viewer {
        Viewer::new(self.clone())
    }

    /// Returns the writer of the input, which rings `bell`. There must be only
    /// one at a time: two would overwrite each other's bytes.
    pub fn typist(&self, bell: &Bell) -> Typist {
        Typist::new(self.clone(), bell.clone())
    }
}

#[cfg(test)]
mod tests;
