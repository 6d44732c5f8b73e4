//! How `serve` gets its manager: a new one, or one that continues for another
//! with what that has left to the keeper.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mkvmm_api::pool::KeeperVersion;
use mkvmm_base::{chain, timeline};
use mkvmm_keeper::cgroup;
use mkvmm_keeper::client::{Inventory, Keeper};
use mkvmm_machine::kvm::host::Host as KvmHost;
use mkvmm_manager::adopt::{AdoptError, Arrival, memory_of, record_of};
use mkvmm_manager::journal::Left;
use mkvmm_manager::journal::contents::Contents;
use mkvmm_manager::journal::file::Binding;
use mkvmm_manager::journal::record::ManagerRecord;
use mkvmm_manager::upgrade::Continuity;
use mkvmm_manager::{Children, Manager};
use rustix::process::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;

use crate::cli::HostIoError;
use crate::cli::founding::{Treatment, found, prepare};
use crate::cli::last_fleet::LastFleet;
use crate::cli::pool_setup::{CheckedPool, PoolSetupError};
use crate::cli::signals::Signals;
use crate::cli::state_dir::{OnManagerExit, StateDir, StateDirError};
use crate::cli::{last_fleet, successor};
use crate::error::CliError;

/// How long a keeper is asked again that does not take this manager at once, and how
/// often.
const KEEPER_WAIT: Duration = Duration::from_secs(10);
const KEEPER_LOOK: Duration = Duration::from_millis(5);

/// What a manager is created from.
#[derive(Debug)]
pub struct Founding {
    /// The options of the pool.
    pub request: CheckedPool,
    /// How the guests' processes are started.
    pub children: Children,
    /// The manager's settings.
    pub treatment: Treatment,
    /// What happens to the guests if the manager ends without ending them.
    pub on_manager_exit: OnManagerExit,
    /// True if the instances from before a crash are created again.
    pub recreate: bool,
}

/// A manager, with its keeper if it has one.
#[derive(Debug)]
pub struct Founded {
    /// The manager itself.
    pub manager: Rc<Manager>,
    /// Its keeper, if its guests outlive it.
    pub kept: Option<Kept>,
}

/// What a manager with a keeper has.
#[derive(Debug)]
pub struct Kept {
    keeper: Keeper,
    last_fleet: LastFleet,
    version: KeeperVersion,
    ordinal: u32,
    /// What belongs to steps that were never recorded.
    leftover: Inventory,
}

/// The signals that a manager with a keeper gets, from before it has one: none of them
/// is to end it unheard.
#[derive(Debug)]
pub struct Served<'a> {
    /// Those that end it, with its guests.
    pub end: &'a Signals,
    /// Those on which it leaves its guests to the next one.
    pub leave: Signal,
}

impl<'a> Served<'a> {
    /// Listens to them beside `end`. Must be called in a runtime.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn listen(end: &'a Signals) -> io::Result<Self> {
        let leave = signal(SignalKind::user_defined1())?;
        Ok(Self { end, leave })
    }
}

/// What ends when `serve` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guests, too.
    Guests,
    /// The manager only.
    Manager,
    /// The keeper has ended, and the guests with it.
    Keeper,
}

impl Founding {
    /// Creates a manager that is the parent of its guests' processes.
    ///
    /// # Errors
    /// Returns a [`CliError`]; nothing is left behind.
    pub fn alone(self, stop: &AtomicBool) -> Result<Founded, CliError> {
        let ground = self.request.reserve(stop)?;
        Ok(Founded {
            manager: found(ground, self.children, self.treatment)?,
            kept: None,
        })
    }

    /// Creates a manager whose guests outlive it, or continues for one that has
    /// left its guests in `dir`.
    ///
    /// # Errors
    /// Returns a [`CliError`]; what was left in `dir` is still there.
    pub async fn in_state_dir(
        mut self,
        dir: &StateDir,
        stop: &AtomicBool,
    ) -> Result<Founded, CliError> {
        let boot = StateDir::boot()?;
        let end = Instant::now() + KEEPER_WAIT;
        let (keeper, mut inventory, mut arrival) = loop {
            let socket = match dir.find_keeper()? {
                Some(socket) => socket,
                None => dir.start_keeper(self.on_manager_exit)?,
            };
            let mut arrival = Arrival::new(boot);
            match dir.connect(socket, &mut arrival).await {
                Ok((keeper, inventory)) => break (keeper, inventory, arrival),
                Err(StateDirError::Keeper(error)) if error.is_passing() && Instant::now() < end => {
                    log::debug!("{}", chain(&error));
                    tokio::time::sleep(KEEPER_LOOK).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        if let Some(pid) = Pid::from_raw(inventory.pid) {
            cgroup::name_after(pid);
        }
        self.children.keeper = Some(keeper.clone());
        let is_kill = self.on_manager_exit == OnManagerExit::Kill;
        let version = KeeperVersion {
            version: inventory.version.clone(),
            pid: inventory.pid,
        };
        let binding = Binding {
            boot,
            keeper: inventory.identity,
        };
        let contents = arrival.contents().await?;
        let (has_guests, recreate) = (contents.is_some(), self.recreate);
        let (manager, record) = match contents {
            Some(contents) => {
                let left = (contents, &mut inventory, arrival);
                self.adopted(left, &keeper, binding).await?
            }
            None => match self.first(&mut inventory, &keeper, binding, stop).await {
                Ok(first) => first,
                Err(error) => {
                    // It has no guests, and nobody would look for it.
                    keeper.quit().await;
                    dir.clear();
                    return Err(error);
                }
            },
        };
        if !keeper
            .on_manager_exit(is_kill)
            .map_err(StateDirError::from)?
        {
            log::warn!("the keeper, of an earlier version, does what it was first told at an end");
        }
        if !has_guests {
            last_fleet::after_crash(&manager, dir, recreate).await?;
        }
        Ok(Founded {
            kept: Some(Kept {
                last_fleet: LastFleet::keep(&manager, dir),
                keeper,
                version,
                ordinal: record.ordinal,
                leftover: inventory,
            }),
            manager,
        })
    }

    /// Creates the first manager of a keeper.
    async fn first(
        self,
        inventory: &mut Inventory,
        keeper: &Keeper,
        binding: Binding,
        stop: &AtomicBool,
    ) -> Result<(Rc<Manager>, ManagerRecord), CliError> {
        let ground = self.request.reserve(stop)?;
        let record = record_of(ground.memory.config());
        let manager = found(ground, self.children, self.treatment)?;
        manager.take_over(inventory, &mut []).await?;
        manager.write_journal(keeper, binding, record.clone(), None)?;
        keeper.set_at_work(true);
        Ok((manager, record))
    }

    /// Continues for an earlier manager.
    async fn adopted(
        mut self,
        (contents, inventory, arrival): (Contents, &mut Inventory, Arrival),
        keeper: &Keeper,
        binding: Binding,
    ) -> Result<(Rc<Manager>, ManagerRecord), CliError> {
        let config = memory_of(&contents.manager).map_err(AdoptError::from)?;
        let area = contents.channel_area;
        self.request
            .check_same(contents.pool.range, area, &config)?;
        timeline::continue_from(contents.manager.start);
        if config.lock && !keeper.can_lock() {
            log::warn!("the keeper, of an earlier version, locks no memory between managers");
        }
        let mut record = contents.manager.clone();
        record.ordinal = record.ordinal.saturating_add(1);
        self.treatment.inherited = inventory.descriptors;
        let left = Left::take(&contents, inventory);
        let kvm = KvmHost::open().map_err(PoolSetupError::from)?;
        let (host, options) = prepare(kvm, self.children, self.treatment)?;
        let adopting = Manager::adopt(host, contents, inventory, arrival, options);
        let (manager, mut adopted) = adopting.await?;
        manager.take_over(inventory, &mut adopted).await?;
        manager.write_journal(keeper, binding, record.clone(), left)?;
        keeper.set_at_work(true);
        log::info!("{} instances were taken over", adopted.len());
        manager.complete(adopted);
        Ok((manager, record))
    }
}

impl Drop for Kept {
    /// What is dropped after this stays with the keeper, for the next manager.
    fn drop(&mut self) {
        self.keeper.set_at_work(false);
    }
}

impl Kept {
    /// Waits until `manager` is to end: by a signal, by an upgrade, or with its
    /// keeper.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub async fn serve(
        &mut self,
        manager: &Rc<Manager>,
        signals: &mut Served<'_>,
        control: &Path,
    ) -> Result<End, CliError> {
        self.leftover = Inventory::default();
        successor::stay();
        self.wait(manager, signals, control).await
    }

    async fn wait(
        &self,
        manager: &Rc<Manager>,
        signals: &mut Served<'_>,
        control: &Path,
    ) -> Result<End, CliError> {
        let Served { end, leave } = signals;
        let (upgrades, mut requests) = unbounded_channel();
        manager.set_continuity(Continuity {
            ordinal: self.ordinal,
            keeper: self.version.clone(),
            upgrades,
        });
        // One at a time, so that no other waits for it.
        let mut check: Option<successor::Check> = None;
        loop {
            let checked = async {
                match &mut check {
                    Some(check) => check.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                waited = end.wait() => {
                    waited.map_err(HostIoError::Signals)?;
                    return Ok(End::Guests);
                }
                _ = leave.recv() => {
                    log::info!("the guests run on without a manager");
                    // The next one does not use them.
                    manager.end_stock();
                    self.keeper.stay().map_err(StateDirError::from)?;
                    return Ok(End::Manager);
                }
                () = self.keeper.lost() => {
                    log::error!("the keeper process has ended, and with it all guests");
                    return Ok(End::Keeper);
                }
                successor = checked => {
                    check = None;
                    if let Some(successor) = successor {
                        successor.take_over(manager, &self.keeper, control, end).await;
                    }
                }
                Some(request) = requests.recv() => {
                    match check {
                        Some(_) => successor::refuse(request, "another program is being checked"),
                        None => check = Some(successor::check_journal_with(request, manager)),
                    }
                }
            }
        }
    }

    /// Has everything end with this manager, however that ends from now on.
    pub fn begin_end(&self, signals: &Signals) {
        // It is no crash if it ends before everything else has.
        self.last_fleet.clear();
        match self.keeper.on_manager_exit(true) {
            Ok(true) => signals.let_second_end(),
            // Guests of this one, of an earlier version, would be left behind.
            Ok(false) => {}
            Err(error) => log::error!("{}", chain(&error)),
        }
    }

    /// Ends the keeper, whose guests have ended.
    pub async fn end(&self, dir: &StateDir) {
        self.keeper.quit().await;
        dir.clear();
    }
}
