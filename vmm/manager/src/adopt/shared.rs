//! Opens what the workers share with the manager: their consoles and boards. That
//! takes as long as everything else together, and another thread does it meanwhile.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mkvmm_keeper::client::{Held, Inventory};
use mkvmm_wire::keeping::Key;
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::board::Board;
use tokio::task::JoinHandle;

use super::{AdoptError, contradiction, take};
use crate::console::GuestConsole;
use crate::journal::record::InstanceRecord;

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

#[derive(Debug)]
enum Files {
    Console(u32, [OwnedFd; 3]),
    Board(u32, u32, OwnedFd),
}

/// The consoles of instances, by their numbers, and the boards of boots.
#[derive(Debug, Default)]
pub(super) struct Opened {
    consoles: BTreeMap<u32, Result<Arc<GuestConsole>, SharedError>>,
    boards: BTreeMap<(u32, u32), Result<Board, SharedError>>,
}

/// The files that are being opened.
#[derive(Debug)]
pub(super) struct Opening {
    files: Sender<Files>,
    opened: JoinHandle<Opened>,
}

impl Opening {
    /// Begins with no files. To be called in a runtime.
    pub fn begin() -> Self {
        let (files, queue) = channel();
        let opened = tokio::task::spawn_blocking(|| Opened::of(queue));
        Self { files, opened }
    }

    /// Takes the files held for `key` out of `descriptors`, and has them opened, if
    /// they are a console or a board.
    pub fn take(&self, key: Key, descriptors: &mut Vec<OwnedFd>) {
        let files = match key {
            Key::Console(id) => match <[OwnedFd; 3]>::try_from(std::mem::take(descriptors)) {
                Ok(parts) => Files::Console(id, parts),
                Err(others) => {
                    *descriptors = others;
                    return;
                }
            },
            Key::Board(id, epoch) if descriptors.len() == 1 => match descriptors.pop() {
                Some(file) => Files::Board(id, epoch, file),
                None => return,
            },
            _ => return,
        };
        // If the thread is lost, `end` tells it.
        let _ = self.files.send(files);
    }

    /// Waits until all are opened.
    ///
    /// # Errors
    /// Returns an [`AdoptError`] if the thread was lost.
    pub async fn end(self) -> Result<Opened, AdoptError> {
        drop(self.files);
        let opened = self.opened.await;
        opened.map_err(|lost| contradiction(lost.to_string()))
    }
}

impl Opened {
    fn of(queue: Receiver<Files>) -> Self {
        let mut opened = Self::default();
        for files in queue {
            match files {
                Files::Console(id, parts) => {
                    opened.consoles.insert(id, GuestConsole::adopt(parts));
                }
                Files::Board(id, epoch, file) => {
                    opened.boards.insert((id, epoch), Board::open(file));
                }
            }
        }
        opened
    }

    /// Returns what the worker of an instance shares.
    ///
    /// # Errors
    /// Returns an [`AdoptError`] if the keeper does not hold it.
    pub fn remove(
        &mut self,
        record: &InstanceRecord,
        inventory: &mut Inventory,
    ) -> Result<Shared, AdoptError> {
        let id = record.sub_pool.id;
        let (_, console_held) = take(inventory, Key::Console(id))?;
        let console = self.consoles.remove(&id);
        let console = console.ok_or_else(|| contradiction("a console without its doorbells"))?;
        let board_held = inventory.held.remove(&Key::Board(id, record.epoch));
        let board_held = board_held.map(|(_, held)| held);
        let board = self.boards.remove(&(id, record.epoch));
        if board.is_some() != board_held.is_some() {
            return Err(contradiction("a board that is not one file"));
        }
        Ok(Shared {
            console,
            console_held,
            board,
            board_held,
        })
    }
}
