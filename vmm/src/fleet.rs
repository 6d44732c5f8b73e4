//! Guests launched together out of one pool: all of them or none, each gone
//! when it has ended. What `run` makes of a [`Manager`].

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mkpool::range::RangeError;

use crate::audit::{self, Findings};
use crate::builder::{BuildError, GuestConfig};
use crate::devices::console::ConsoleQueue;
use crate::event_loop::{EventReceiver, EventSender, Supervisor, VmmEvent, event_channel};
use crate::guest::Guest;
use crate::host_pool::HostPool;
use crate::instance::state::EndReason;
use crate::instance::timeline::Timeline;
use crate::instance::{InstanceId, InstanceName, RunId};
use crate::kvm::Host;
use crate::manager::{ConsolePlan, Manager, ManagerError};

/// Bytes of a guest's output that stay readable after its end.
const TAIL_MAX: usize = 64 << 10;

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// One guest could not be built; the others were undone.
    #[error("guest {name}")]
    Guest {
        /// Which one.
        name: InstanceName,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// A guest could not be made.
    #[error(transparent)]
    Manager(ManagerError),
    /// The host has no descriptor left.
    #[error("the event channel cannot be made")]
    Events(#[from] io::Error),
}

impl From<ManagerError> for LaunchError {
    fn from(error: ManagerError) -> Self {
        match error {
            ManagerError::Build { name, source } => Self::Guest { name, source },
            other => Self::Manager(other),
        }
    }
}

/// How a guest ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its name.
    pub name: InstanceName,
    /// Why it ended.
    pub reason: EndReason,
    /// Accesses to what was not its own.
    pub violations: u64,
    /// From the start of its vCPUs to its end; the last run's.
    pub lifetime: Duration,
    /// When it reached which stage.
    pub timeline: Arc<Timeline>,
    /// The last 64 KiB that it printed.
    pub console_tail: Vec<u8>,
}

/// The guests of one pool.
#[derive(Debug)]
pub struct Fleet {
    manager: Manager,
    events: EventSender,
    console: Arc<ConsoleQueue>,
    outcomes: Vec<Outcome>,
    console_error: Option<io::Error>,
    interrupted: bool,
}

impl Fleet {
    /// Builds every guest of `configs`; none runs yet.
    ///
    /// # Errors
    /// [`LaunchError`] for the first that cannot be built; those before it
    /// are undone.
    pub fn build(
        host: Host,
        pool: HostPool,
        configs: &[GuestConfig],
    ) -> Result<(Self, EventReceiver), LaunchError> {
        let (events, receiver) = event_channel()?;
        let console = ConsoleQueue::new();
        let consoles = ConsolePlan {
            queue: Some(Arc::clone(&console)),
            ring: TAIL_MAX,
        };
        let mut fleet = Self {
            manager: Manager::new(host, pool, events.clone(), consoles),
            events,
            console,
            outcomes: Vec::new(),
            console_error: None,
            interrupted: false,
        };
        for config in configs {
            // On failure the fleet is dropped, and with it what was built.
            let instance = config.instance.clone();
            fleet.manager.create(instance, Some(&config.images))?;
        }
        Ok((fleet, receiver))
    }

    /// Starts all guests: first every one is prepared, then every one runs.
    ///
    /// # Errors
    /// [`LaunchError`]; no guest has run then.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        let names: Vec<InstanceName> = self.guests().map(|guest| guest.name().clone()).collect();
        for name in &names {
            self.manager.prepare(name)?;
        }
        for name in &names {
            self.manager.run(name)?;
        }
        Ok(())
    }

    /// The consoles of all guests.
    pub fn console(&self) -> &Arc<ConsoleQueue> {
        &self.console
    }

    /// A sender of events into this fleet's loop.
    pub fn events(&self) -> EventSender {
        self.events.clone()
    }

    /// The pool.
    pub fn pool(&self) -> &HostPool {
        self.manager.pool()
    }

    /// Guests that are there, running or about to.
    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.manager.guests()
    }

    /// How guests ended, in order of their ends.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Whether an interrupt ended the guests.
    pub fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Why the consoles could not be written, if they could not.
    pub fn take_console_error(&mut self) -> Option<io::Error> {
        self.console_error.take()
    }

    /// What the books say now; see [`audit::audit`].
    pub fn audit(&self) -> Findings {
        audit::audit(&self.manager)
    }

    /// The resource tree and every guest's e820, for people and tests.
    ///
    /// # Errors
    /// See [`crate::boot::e820::build`].
    pub fn report(&self) -> Result<String, RangeError> {
        let mut text = self.pool().to_string();
        for guest in self.guests() {
            for entry in guest.e820(self.pool())? {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{}: {entry}", guest.name());
            }
        }
        Ok(text)
    }

    /// Ends all guests; they report as they go.
    pub fn kill_all(&mut self) {
        // A guest that waits for room on its console would not hear.
        self.console.close();
        for id in self.manager.kill_all() {
            self.finish(id);
        }
    }

    fn on_end(&mut self, run: RunId, reason: EndReason) {
        if let Some(id) = self.manager.on_ended(run, reason) {
            self.finish(id);
        }
    }

    /// Takes note of an instance that has ended for good, and gives back what
    /// it had.
    fn finish(&mut self, id: InstanceId) {
        let Some(guest) = self.manager.guest(id) else {
            return;
        };
        // Without a reason it never ran.
        let reason = guest.reason().unwrap_or(EndReason::Killed);
        self.outcomes.push(outcome(guest, reason));
        let name = guest.name().clone();
        if let Err(error) = self.manager.delete(&name) {
            log::error!("giving back a guest's memory failed: {error}");
        }
        if self.manager.is_empty() {
            self.console.close();
        }
    }
}

fn outcome(guest: &Guest, reason: EndReason) -> Outcome {
    Outcome {
        name: guest.name().clone(),
        reason,
        violations: guest.violations(),
        lifetime: guest.timeline().lifetime(),
        timeline: Arc::clone(guest.timeline()),
        console_tail: guest.console().bytes(),
    }
}

impl Supervisor for Fleet {
    fn on_event(&mut self, event: VmmEvent) {
        match event {
            VmmEvent::Ended { run, reason } => self.on_end(run, reason),
            VmmEvent::Violation {
                id,
                violation,
                last_reported,
            } => self.manager.on_violation(id, violation, last_reported),
            VmmEvent::ConsoleFailed(error) => {
                self.console_error.get_or_insert(error);
                self.kill_all();
            }
            VmmEvent::LogFailed { id, path, error } => {
                self.manager.on_log_failed(id, &path, &error);
            }
            VmmEvent::Typed(id) => self.manager.on_typed(id),
            // Dropped unanswered, which its sender sees: `run` has no socket.
            VmmEvent::Request(_) => {}
        }
    }

    fn on_interrupt(&mut self) {
        self.interrupted = true;
        self.kill_all();
    }

    fn on_tick(&mut self) {
        for id in self.manager.on_tick() {
            self.finish(id);
        }
    }

    fn is_done(&self) -> bool {
        self.manager.is_empty()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // The manager gives the memory back; no guest may wait meanwhile.
        self.console.close();
    }
}
