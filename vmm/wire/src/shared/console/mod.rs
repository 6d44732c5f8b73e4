//! A guest's console in shared memory: what it printed, what is typed to it.
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
//! Positions are counts of bytes since the console was made; they only grow,
//! and a ring's index is a position masked by its capacity. Each word of page
//! 0 has one writer, except the three *awaited* flags: who is about to wait
//! sets one, who has something for it clears it and rings the bell, so that a
//! guest that prints a million bytes wakes a sleeping reader once.
//!
//! A wait does not get lost. The waiter sets its flag, passes a `SeqCst`
//! fence and looks at the position again; the other side publishes the
//! position, passes a `SeqCst` fence and looks at the flag. Whichever fence
//! comes first in their one order, one of the two sees the other's store.
//!
//! Output can be read by any number of [`Viewer`]s, each at its own pace; a
//! slow one loses the oldest bytes, as from any ring. With
//! [`Viewer::set_lossless`] the worker waits instead until the manager has
//! acknowledged enough.

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
    /// They go on where an earlier worker stopped.
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

    /// Returns the one that types, which rings `bell`. There must be one at a
    /// time: two would overwrite each other's bytes.
    pub fn typist(&self, bell: &Bell) -> Typist {
        Typist::new(self.clone(), bell.clone())
    }
}

#[cfg(test)]
mod tests;
