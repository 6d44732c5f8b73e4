//! Worker processes: started, given their memory, and scrubbed afterwards.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::{InstanceId, InstanceName, chain};
use mkvmm_keeper::process::Exit;
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::backing::Backing;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::channel::{DESCRIPTORS_MAX, VERSION};
use mkvmm_wire::keeping::Key;
use mkvmm_wire::messages::{CleanOrder, Cleaned, Extent, Identity, Order};
use mkvmm_wire::shared::board::Board;

use crate::begun::{Entry, Line};
use crate::child::{self, AskError, Question, Role};
use crate::console_log::LogFile;
use crate::guest::Guest;
use crate::harmless::harmless;
use crate::life::StepError;
use crate::life::attend::AT_WORK;
use crate::manager::Manager;
use crate::memory::clean_order;
use crate::worker::{Worker, WorkerError};

/// How long a cleaner may take, whatever the memory.
const CLEANING: Duration = Duration::from_secs(60);
/// Bytes that it cleans in each further second: 64 MiB, a fiftieth of what an
/// idle machine does.
const CLEANED_PER_SECOND: u64 = 64 << 20;

impl Manager {
    /// Gets a worker for a new boot of an instance, and gives it the memory, which
    /// must be scrubbed and have no other user. It comes from the stock if there is
    /// one and `stock` is given, where that is noted.
    pub(crate) async fn make_worker(
        self: &Rc<Self>,
        id: InstanceId,
        stock: Option<&Cell<bool>>,
    ) -> Result<Rc<Worker>, StepError> {
        let (board, board_file) = Board::create()?;
        let begun = self.begin_worker(id, stock.is_some()).await?;
        let epoch = self.registry().guest(id).map_or(0, |guest| guest.epoch + 1);
        let held = self.hold(Key::Board(id.0, epoch), &[board_file.as_fd()])?;
        let config = self.files.config();
        let (run, identity, console, files, meter) = {
            let mut registry = self.registry_mut();
            let Some(guest) = registry.guest_mut(id) else {
                return Err(StepError::Killed);
            };
            guest.epoch = epoch;
            (guest.serial, guest.wire) = (begun.serial, VERSION);
            guest.word = None;
            guest.held.board = held;
            let devices = guest.config.devices.len();
            let cpus = guest.config.cpus();
            guest.status.renew(cpus, devices, board.reader());
            // From here on it may write to the memory.
            guest.is_clean = false;
            let identity = Identity {
                id: id.0,
                name: guest.name().to_string(),
                page: config.backing.page_size(),
                huge_pages: config.backing == Backing::Thp,
            };
            let console = Rc::new(guest.console.clone());
            let (files, meter) = (guest.files.clone(), Arc::clone(&guest.meter));
            (guest.run_id(), identity, console, files, meter)
        };
        let child = begun.child.confirmed().await.map_err(WorkerError::from)?;
        let (channel, is_from_stock) = match begun.line {
            Line::Socket(socket) => (
                AsyncChannel::open(socket).map_err(WorkerError::from)?,
                false,
            ),
            Line::Channel(channel) => (*channel, true),
        };
        let worker = Worker::attach(run, child, channel, meter, Rc::clone(self));
        if is_from_stock {
            worker.comes_from_stock();
            if let Some(stock) = stock {
                stock.set(true);
            }
        }
        if begun.entry == Entry::Later {
            worker.stays_outside();
        }
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.worker = Some(Rc::clone(&worker));
        }
        self.move_worker(&worker, begun.leaf, begun.entry).await?;
        let [console, bell] = console.descriptors();
        let descriptors = [console, bell, board_file.as_fd()];
        let give = async {
            let identity = Order::Identity(identity);
            worker.tell(&identity, &descriptors).await?;
            for files in files.chunks(DESCRIPTORS_MAX) {
                let extent = |file: &MemoryFile| Extent {
                    start: file.range().start(),
                    len: file.range().size(),
                };
                let extents = files.iter().map(extent).collect();
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                worker.tell(&Order::Memory(extents), &files).await?;
            }
            Ok(())
        };
        match self.attend(&worker, AT_WORK, give).await {
            Ok(()) => Ok(worker),
            Err(error) => Err(why_not_executed(&worker, error.into()).await),
        }
    }

    /// Returns the worker of an instance.
    ///
    /// # Errors
    /// [`StepError::Lost`] where it is gone or going.
    pub(crate) fn living_worker(&self, id: InstanceId) -> Result<Rc<Worker>, StepError> {
        let worker = self.registry().guest(id).and_then(|g| g.worker.clone());
        worker.filter(|w| w.is_there()).ok_or(StepError::Lost)
    }

    /// Makes an instance's memory read as zero, except for allocations in it.
    /// No process may have access to it.
    pub(crate) async fn clean(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        let (is_clean, regions, kept, files) = match self.registry().guest(id) {
            Some(guest) => {
                let kept: Vec<_> = guest.sub_pool().withheld().collect();
                (
                    guest.is_clean,
                    guest.regions().to_vec(),
                    kept,
                    guest.files.clone(),
                )
            }
            None => return Ok(()),
        };
        if is_clean {
            return Ok(());
        }
        let is_populated = self.files.config().is_populated();
        if !is_populated && kept.is_empty() {
            // New files are zero, and quicker than scrubbing these.
            let fresh = self.take_memory(regions).await?;
            if let Some(guest) = self.registry_mut().guest_mut(id) {
                guest.files = fresh;
                guest.is_clean = true;
            }
            self.return_memory(files).await;
            return Ok(());
        }
        let is_all = kept.is_empty();
        let order = clean_order(&files, kept.into_iter(), is_populated);
        self.run_cleaner(id, &order, &files).await?;
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            // The next owner of an allocation must not read what is in it.
            guest.is_clean = is_all;
        }
        Ok(())
    }

    /// Takes an instance's files away, scrubbed for their next owner, including
    /// allocations.
    pub(crate) async fn clean_for_others(
        self: &Rc<Self>,
        id: InstanceId,
    ) -> Result<Vec<MemoryFile>, StepError> {
        let (is_clean, files) = match self.registry().guest(id) {
            Some(guest) => (guest.is_clean, guest.files.clone()),
            None => return Ok(Vec::new()),
        };
        // Lazy files are closed, and the next owner's are new.
        if !is_clean && self.files.config().is_populated() {
            let order = clean_order(&files, std::iter::empty(), true);
            self.run_cleaner(id, &order, &files).await?;
        }
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.files = Vec::new();
            guest.is_clean = true;
        }
        Ok(files)
    }

    /// Has a cleaner do what it is told, and another one where the first
    /// failed.
    async fn run_cleaner(
        self: &Rc<Self>,
        id: InstanceId,
        order: &CleanOrder,
        files: &[MemoryFile],
    ) -> Result<(), StepError> {
        let name = match self.registry().guest(id) {
            Some(guest) => guest.name().to_string(),
            None => String::new(),
        };
        let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let bytes = order.parts.iter().map(|part| part.extent.len).sum::<u64>();
        let question = Question {
            role: Role::Cleaner,
            label: &name,
            message: order,
            descriptors: &descriptors,
            limit: Some(CLEANING + Duration::from_secs(bytes / CLEANED_PER_SECOND)),
        };
        let mut cleaned = self.ask_cleaner(&question).await;
        if let Err(error) = &cleaned
            && !error.is_held()
        {
            log::warn!("{name}: its memory is cleaned once more: {}", chain(error));
            cleaned = self.ask_cleaner(&question).await;
        }
        if let Err(StepError::Child(AskError::Held { held, .. })) = &cleaned
            && let Some(guest) = self.registry_mut().guest_mut(id)
        {
            guest.unreaped.push(held.clone());
        }
        cleaned
    }

    async fn ask_cleaner(&self, question: &Question<'_, CleanOrder>) -> Result<(), StepError> {
        let cleaned: Cleaned = child::ask(&self.host.children, question).await?;
        cleaned.0.map_err(|text| StepError::Clean {
            text: harmless(&text),
        })
    }

    /// Starts an instance's console log, if it should have one and has not yet.
    pub(crate) fn start_log(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(id).filter(|g| g.log.is_none()) else {
            return Ok(());
        };
        let Some(file) = guest.config.console_log.clone() else {
            return Ok(());
        };
        let console = Arc::clone(&guest.console);
        let on_error = self.log_failure(guest.name(), &file);
        let log = self.with_logs(|logs| logs.follow(file, console, on_error))?;
        guest.log = Some(log);
        Ok(())
    }

    /// Continues an instance's console log, if an earlier manager had started it.
    pub(crate) fn resume_log(
        self: &Rc<Self>,
        id: InstanceId,
        has_log: bool,
    ) -> Result<(), StepError> {
        if !has_log {
            return Ok(());
        }
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(id) else {
            return Ok(());
        };
        let Some(file) = guest.config.console_log.clone() else {
            return Ok(());
        };
        let console = Arc::clone(&guest.console);
        let on_error = self.log_failure(guest.name(), &file);
        let log = self.with_logs(|logs| logs.resume(file, console, on_error))?;
        guest.log = Some(log);
        Ok(())
    }

    /// Opens the console logs again whose files were moved away or removed. What cannot
    /// be opened is only logged: the log goes on where it was.
    pub async fn open_logs_again(self: &Rc<Self>) {
        let logs: Vec<(InstanceId, InstanceName, Arc<LogFile>)> = {
            let registry = self.registry();
            let log = |guest: &Guest| {
                let file = guest.config.console_log.clone()?;
                Some((guest.id(), guest.name().clone(), file))
            };
            registry.guests().filter_map(log).collect()
        };
        for (id, name, file) in logs {
            let log = Arc::clone(&file);
            let opened = tokio::task::spawn_blocking(move || log.open_again()).await;
            let new = match opened {
                Ok(Ok(Some(new))) => new,
                Ok(Ok(None)) | Err(_) => continue,
                Ok(Err(error)) => {
                    log::error!("{name}: {}", chain(&error));
                    continue;
                }
            };
            let held = match self.hold(Key::Log(id.0), &[new.as_fd()]) {
                Ok(held) => held,
                Err(error) => {
                    log::error!("{name}: {}", chain(&error));
                    continue;
                }
            };
            file.replace(new);
            if let Some(guest) = self.registry_mut().guest_mut(id) {
                guest.held.log = held;
            }
            log::info!(
                "{name}: the console log {} is open again",
                file.path().display()
            );
        }
    }

    /// Returns what a console log calls when it cannot be written any more.
    fn log_failure(
        self: &Rc<Self>,
        name: &InstanceName,
        file: &LogFile,
    ) -> impl FnOnce(std::io::Error) + Send + 'static {
        let (path, name) = (file.path().to_owned(), name.clone());
        let (failed, failure) = tokio::sync::oneshot::channel();
        let manager = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            if let (Ok(error), Some(manager)) = (failure.await, manager.upgrade()) {
                manager.on_log_failed(&name, &path, &error);
            }
        });
        move |error| {
            // Without a manager nobody needs to know.
            let _ = failed.send(error);
        }
    }

    /// Requests the registers of a guest that is to be killed, and keeps those
    /// that arrive within `patience`.
    pub(crate) async fn keep_registers(self: &Rc<Self>, id: InstanceId, patience: Duration) {
        let Ok(Some(mut readings)) = self.ask_registers(id, None, None) else {
            return;
        };
        let gather = async {
            while let Some(reading) = readings.answers.recv().await {
                if let Some(guest) = self.registry_mut().guest_mut(id) {
                    guest.status.keep(reading.cpu, reading.registers);
                }
            }
        };
        // vCPUs that do not respond in time leave no registers.
        let _ = tokio::time::timeout(patience, gather).await;
    }
}

/// Returns the error of a worker that could not execute its program, in place of
/// that of its channel.
async fn why_not_executed(worker: &Worker, error: StepError) -> StepError {
    if error.is_loss()
        && let Ok(exit @ Exit::NotExecuted(_)) = worker.gone_soon().await
    {
        return WorkerError::gone(exit).into();
    }
    error
}
