//! Guests launched together out of one pool: all of them or none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mkpool::RangeError;

use crate::builder::{self, BuildError, GuestConfig, Surroundings};
use crate::devices::console::ConsoleQueue;
use crate::devices::violation::Violation;
use crate::error_chain::chain;
use crate::event_loop::{EventReceiver, EventSender, Supervisor, VmmEvent, event_channel};
use crate::guest::Guest;
use crate::host_pool::{HostPool, HostPoolError};
use crate::instance::state::{EndReason, OnEnd, State};
use crate::instance::timeline::{Stage, Timeline};
use crate::instance::{InstanceId, InstanceName, RunId};
use crate::kvm::Host;

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
    /// The host has no descriptor left.
    #[error("the event channel cannot be made")]
    Events(#[from] io::Error),
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
    guests: BTreeMap<InstanceId, Guest>,
    pool: HostPool,
    host: Host,
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
        let mut fleet = Self {
            guests: BTreeMap::new(),
            pool,
            host,
            events,
            console: ConsoleQueue::new(),
            outcomes: Vec::new(),
            console_error: None,
            interrupted: false,
        };
        for config in configs {
            // On failure the fleet is dropped, and with it what was built.
            let guest = fleet
                .build_one(config)
                .map_err(|source| LaunchError::Guest {
                    name: config.name.clone(),
                    source: Box::new(source),
                })?;
            fleet.guests.insert(guest.id(), guest);
        }
        Ok((fleet, receiver))
    }

    fn build_one(&mut self, config: &GuestConfig) -> Result<Guest, BuildError> {
        let around = Surroundings {
            host: &self.host,
            events: &self.events,
            console: &self.console,
        };
        builder::build(&around, &mut self.pool, config)
    }

    /// Starts all guests: first every one is prepared, then every one runs.
    ///
    /// # Errors
    /// [`LaunchError`]; no guest has run then.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        let around = Surroundings {
            host: &self.host,
            events: &self.events,
            console: &self.console,
        };
        for guest in self.guests.values_mut() {
            guest
                .prepare(&around, &self.pool)
                .map_err(|source| LaunchError::Guest {
                    name: guest.name().clone(),
                    source: Box::new(source),
                })?;
        }
        for guest in self.guests.values_mut() {
            guest.run();
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
        &self.pool
    }

    /// Guests that are there, running or about to.
    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
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

    /// The resource tree and every guest's e820, for people and tests.
    ///
    /// # Errors
    /// See [`crate::boot::e820::build`].
    pub fn report(&self) -> Result<String, RangeError> {
        let mut text = self.pool.to_string();
        for guest in self.guests() {
            for entry in guest.e820(&self.pool)? {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{}: {entry}", guest.name());
            }
        }
        Ok(text)
    }

    /// Ends all guests; they report as they go.
    pub fn kill_all(&self) {
        // A guest that waits for room on its console would not hear.
        self.console.close();
        for guest in self.guests() {
            guest.kill();
        }
    }

    fn on_end(&mut self, run: RunId, reason: EndReason) {
        let Some(mut guest) = self.guests.remove(&run.id) else {
            return; // another vCPU of the guest was first
        };
        if guest.run_id() != run {
            self.guests.insert(run.id, guest); // news of an earlier run
            return;
        }
        guest.stop(reason);
        let outcome = outcome(&guest, reason);
        log_outcome(&outcome);
        let restart = guest.on_end(reason) == OnEnd::Restart && !self.interrupted;
        if restart && self.restart(&mut guest) {
            self.guests.insert(run.id, guest);
            return;
        }
        self.outcomes.push(outcome);
        if let Err(error) = self.release(guest) {
            log::error!("giving back a guest's memory failed: {error}");
        }
        if self.guests.is_empty() {
            self.console.close();
        }
    }

    /// Boots a guest again from the images it was loaded with.
    fn restart(&self, guest: &mut Guest) -> bool {
        let around = Surroundings {
            host: &self.host,
            events: &self.events,
            console: &self.console,
        };
        match guest.prepare(&around, &self.pool) {
            Ok(()) => {
                guest.run();
                true
            }
            Err(error) => {
                log::error!(
                    "{}: cannot be started again: {}",
                    guest.name(),
                    chain(&error)
                );
                false
            }
        }
    }

    fn release(&mut self, guest: Guest) -> Result<(), HostPoolError> {
        self.pool.release(guest.into_sub_pool())
    }

    fn on_violation(&self, id: InstanceId, violation: Violation, last: bool) {
        let name = self
            .guests
            .get(&id)
            .map_or("a guest", |g| g.name().as_str());
        let Violation { addr, len, access } = violation;
        let owner = match self.pool.owner(addr) {
            Some(owner) => format!("in {owner}"),
            None => "outside the pool".to_owned(),
        };
        let rest = if last {
            "; further ones are only counted"
        } else {
            ""
        };
        log::warn!("{name}: violation: {access} of {len} bytes at {addr:#x}, {owner}{rest}");
    }
}

fn outcome(guest: &Guest, reason: EndReason) -> Outcome {
    let timeline = Arc::clone(guest.timeline());
    let span = timeline
        .at(Stage::Exec)
        .zip(timeline.at(Stage::Ended))
        .map_or(0, |(start, end)| end.saturating_sub(start));
    Outcome {
        name: guest.name().clone(),
        reason,
        violations: guest.violations(),
        lifetime: Duration::from_nanos(span),
        timeline,
        console_tail: guest.console_tail(),
    }
}

fn log_outcome(outcome: &Outcome) {
    let Outcome {
        name,
        reason,
        violations,
        lifetime,
        ..
    } = outcome;
    let text = format!(
        "{name}: {} ({reason}) after {:.3} s, {violations} violations",
        reason.state(),
        lifetime.as_secs_f64()
    );
    match reason.state() {
        State::Failed => log::error!("{text}"),
        _ => log::info!("{text}"),
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
            } => self.on_violation(id, violation, last_reported),
            VmmEvent::ConsoleFailed(error) => {
                self.console_error.get_or_insert(error);
                self.kill_all();
            }
        }
    }

    fn on_interrupt(&mut self) {
        self.interrupted = true;
        self.kill_all();
    }

    fn on_tick(&mut self) {
        let halted = self.guests.values_mut().filter_map(|guest| {
            let halted = guest.is_halted();
            halted.then(|| guest.run_id())
        });
        for run in halted.collect::<Vec<_>>() {
            self.on_end(run, EndReason::Halt);
        }
    }

    fn is_done(&self) -> bool {
        self.guests.is_empty()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.console.close();
        while let Some((_, guest)) = self.guests.pop_first() {
            if let Err(error) = self.release(guest) {
                log::error!("giving back a guest's memory failed: {error}");
            }
        }
    }
}
