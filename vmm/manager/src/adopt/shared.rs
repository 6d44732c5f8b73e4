//! Opens what the workers share with the manager: their consoles and boards. That
//! takes longer than rebuilding the ledger, and is done meanwhile by another thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mkvmm_keeper::client::{Held, Inventory};
use mkvmm_wire::keeping::Key;
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::board::Board;
use tokio::task::JoinHandle;

use super::{AdoptError, contradiction, take, take_one};
use crate::console::GuestConsole;
use crate::journal::contents::Contents;

/// What the worker of an instance shares with the manager. An error is one of that
/// worker's making.
#[derive(Debug)]
pub(super) struct Shared {
    pub console: Result<Arc<GuestConsole>, SharedError>,
    pub console_held: Held,
    /// `None` before the first boot.
    pub board: Option<Result<Board, SharedError>>,
    pub board_held: Option<Held>,
}

type Opened = (
    Result<Arc<GuestConsole>, SharedError>,
    Option<Result<Board, SharedError>>,
);

/// The files of all instances, which are being opened.
#[derive(Debug)]
pub(super) struct Opening {
    opened: JoinHandle<Vec<Opened>>,
    held: Vec<(Held, Option<Held>)>,
}

impl Opening {
    /// Takes the files of all instances, in the order of `contents`, and begins to
    /// open them. To be called in a runtime.
    ///
    /// # Errors
    /// Returns an [`AdoptError`] if the keeper does not hold them.
    pub fn begin(contents: &Contents, inventory: &mut Inventory) -> Result<Self, AdoptError> {
        let count = contents.instances.len();
        let (mut files, mut held) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for record in contents.instances.values() {
            let id = record.sub_pool.id;
            let (console, console_held) = take(inventory, Key::Console(id))?;
            let console: [OwnedFd; 3] = console
                .try_into()
                .map_err(|_parts| contradiction("a console without its doorbells"))?;
            let key = Key::Board(id, record.epoch);
            let (board, board_held) = match inventory.held.contains_key(&key) {
                true => take_one(inventory, key).map(|(file, held)| (Some(file), Some(held)))?,
                false => (None, None),
            };
            files.push((console, board));
            held.push((console_held, board_held));
        }
        let opened = tokio::task::spawn_blocking(|| {
            let open = |(console, board): ([OwnedFd; 3], Option<OwnedFd>)| {
                (GuestConsole::adopt(console), board.map(Board::open))
            };
            files.into_iter().map(open).collect()
        });
        Ok(Self { opened, held })
    }

    /// Waits until all are opened.
    ///
    /// # Errors
    /// Returns an [`AdoptError`] if the thread was lost.
    pub async fn end(self) -> Result<Vec<Shared>, AdoptError> {
        let opened = self.opened.await;
        let opened = opened.map_err(|lost| contradiction(lost.to_string()))?;
        let both = opened.into_iter().zip(self.held);
        let shared = both.map(|((console, board), (console_held, board_held))| Shared {
            console,
            console_held,
            board,
            board_held,
        });
        Ok(shared.collect())
    }
}
