//! Guests launched together from one pool: all of them or none, each deleted
//! when it has ended. This is how `mkvmm run` uses a [`Manager`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkpool::range::RangeError;
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::Timeline;
use mkvmm_base::{InstanceName, chain};

use crate::audit::{self, Findings};
use crate::guest::Guest;
use crate::life::LifeError;
use crate::manager::Manager;
pub use crate::resolve::GuestConfig;
use crate::stream::Stream;
use crate::transaction::Transaction;

/// The end of a guest.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The name of the guest.
    pub name: InstanceName,
    /// The reason of its end.
    pub reason: EndReason,
    /// The number of accesses to memory that the guest does not own.
    pub violations: u64,
    /// The time from the start of its vCPUs to its end, in its last run.
    pub lifetime: Duration,
    /// The times at which it reached its stages.
    pub timeline: Arc<Timeline>,
    /// The number of its boots.
    pub boots: u32,
    /// The CPU time of its processes in all of them, nearly all of it its vCPUs'.
    pub cpu_time: Duration,
    /// The last bytes of its output, as many as its console keeps.
    pub console_tail: Vec<u8>,
}

/// The guests of one launch.
#[derive(Debug)]
pub struct Fleet {
    manager: Rc<Manager>,
    /// The launch, until all guests run.
    launch: Option<Transaction>,
    stream: Stream,
    outcomes: Vec<Outcome>,
}

impl Fleet {
    /// Builds every guest of `configs`, without running any. Their output goes
    /// to `stream`.
    ///
    /// # Errors
    /// Returns a [`LifeError`] for the first that cannot be built; the others
    /// are undone.
    pub async fn build(
        manager: Rc<Manager>,
        stream: Stream,
        configs: Vec<GuestConfig>,
    ) -> Result<Self, LifeError> {
        let mut launch = Transaction::begin(Rc::clone(&manager), Arc::default());
        let new = configs.into_iter();
        let new = new.map(|config| (config.instance, Some(config.images)));
        if let Err(error) = launch.create(new.collect()).await {
            give_up(launch).await;
            return Err(error);
        }
        for guest in manager.registry().guests() {
            stream.add(guest.name(), guest.console());
        }
        Ok(Self {
            manager,
            launch: Some(launch),
            stream,
            outcomes: Vec::new(),
        })
    }

    /// Starts all guests: first every one is prepared, then every one runs.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; all guests are undone then.
    pub async fn start(&mut self) -> Result<(), LifeError> {
        let Some(mut launch) = self.launch.take() else {
            return Ok(());
        };
        let names = self.names();
        let started = async {
            launch.prepare(names.clone()).await?;
            launch.run().await
        };
        let started = started.await;
        if started.is_err() {
            for name in &names {
                self.stream.end(name);
            }
            give_up(launch).await;
        }
        started
    }

    /// Waits until every guest has permanently ended, and deletes each as soon
    /// as it has. Does not wait for those that were killed and that somebody
    /// holds.
    pub async fn finish(&mut self) {
        loop {
            // Register first, so that no end between two checks is missed.
            let manager = Rc::clone(&self.manager);
            let changed = manager.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.collect().await;
            if self.manager.registry().guests().all(Guest::is_held) {
                return;
            }
            changed.await;
        }
    }

    /// Records the guests that have ended, and deletes them.
    async fn collect(&mut self) {
        let ended = |guest: &&Guest| guest.reason().is_some() && !guest.is_restarting();
        let names: Vec<InstanceName> = {
            let registry = self.manager.registry();
            let ended = registry.guests().filter(ended);
            ended.map(|guest| guest.name().clone()).collect()
        };
        for name in names {
            let noted = self.manager.registry().find(&name).map(outcome);
            if let Ok(noted) = noted {
                self.stream.end(&name);
                self.outcomes.push(noted);
            }
            if let Err(error) = self.manager.delete(&name).await {
                log::error!("freeing a guest's memory failed: {}", chain(&error));
            }
        }
    }

    /// Kills all guests at once.
    pub async fn end_all(&mut self) {
        self.manager.end_all(Duration::ZERO).await;
        // Those that never ran have no end to report.
        self.collect().await;
        self.undo().await;
    }

    async fn undo(&mut self) {
        for name in self.names() {
            self.stream.end(&name);
            if let Err(error) = self.manager.delete(&name).await {
                log::error!("freeing a guest's memory failed: {}", chain(&error));
            }
        }
    }

    fn names(&self) -> Vec<InstanceName> {
        let registry = self.manager.registry();
        registry
            .guests()
            .map(|guest| guest.name().clone())
            .collect()
    }

    /// Returns the manager.
    pub fn manager(&self) -> &Rc<Manager> {
        &self.manager
    }

    /// Returns how guests ended, in the order of their ends.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Audits the ledger; see [`audit::audit`].
    pub fn audit(&self) -> Findings {
        audit::audit(&self.manager.registry())
    }

    /// Returns the outcomes and the stream, which must still be closed.
    pub fn into_parts(self) -> (Vec<Outcome>, Stream) {
        (self.outcomes, self.stream)
    }

    /// Returns the resource tree and every guest's e820, for people and tests.
    ///
    /// # Errors
    /// Returns the errors of [`mkvmm_memory::e820::build`].
    pub fn report(&self) -> Result<String, RangeError> {
        let registry = self.manager.registry();
        let mut text = registry.pool().to_string();
        for guest in registry.guests() {
            for entry in guest.e820(registry.pool())? {
                text.push_str(&format!("{}: {entry}\n", guest.name()));
            }
        }
        Ok(text)
    }
}

/// Undoes a launch that has failed.
async fn give_up(launch: Transaction) {
    for problem in launch.roll_back().await.problems {
        log::error!("undoing the launch: {problem}");
    }
}

fn outcome(guest: &Guest) -> Outcome {
    Outcome {
        name: guest.name().clone(),
        // Without a reason it never ran.
        reason: guest.reason().unwrap_or(EndReason::Killed),
        violations: guest.status().violations(),
        lifetime: guest.timeline().lifetime(),
        timeline: Arc::clone(guest.timeline()),
        boots: guest.epoch,
        cpu_time: Duration::from_nanos(guest.meter.ended()),
        console_tail: guest.console().bytes(),
    }
}
