//! Guests launched together out of one pool: all of them or none, each gone
//! when it has ended. What `mkvmm run` makes of a [`Manager`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkpool::range::RangeError;
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::Timeline;
use mkvmm_base::{InstanceName, chain};

use crate::audit::{self, Findings};
use crate::config::InstanceConfig;
use crate::guest::Guest;
use crate::images::Images;
use crate::life::LifeError;
use crate::manager::Manager;
use crate::stream::Stream;

/// A guest that can be launched: every value checked, every file read.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// What the instance is made of.
    pub instance: InstanceConfig,
    /// What is loaded into it.
    pub images: Images,
}

/// How a guest ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The name of the guest.
    pub name: InstanceName,
    /// Why it ended.
    pub reason: EndReason,
    /// The number of accesses to memory that was not its own.
    pub violations: u64,
    /// The time from the start of its vCPUs to its end, in its last run.
    pub lifetime: Duration,
    /// When it reached which stage.
    pub timeline: Arc<Timeline>,
    /// The last bytes that it printed, as many as its console keeps.
    pub console_tail: Vec<u8>,
}

/// The guests of one launch.
#[derive(Debug)]
pub struct Fleet {
    manager: Rc<Manager>,
    stream: Stream,
    outcomes: Vec<Outcome>,
}

impl Fleet {
    /// Builds every guest of `configs`; none runs yet. What they print goes to
    /// `stream`.
    ///
    /// # Errors
    /// [`LifeError`] for the first that cannot be built; the others are undone.
    pub async fn build(
        manager: Rc<Manager>,
        stream: Stream,
        configs: Vec<GuestConfig>,
    ) -> Result<Self, LifeError> {
        let mut fleet = Self {
            manager,
            stream,
            outcomes: Vec::new(),
        };
        for config in configs {
            let GuestConfig { instance, images } = config;
            let name = instance.name.clone();
            if let Err(error) = fleet.manager.create(instance, Some(images)).await {
                fleet.undo().await;
                return Err(error);
            }
            if let Ok(guest) = fleet.manager.registry().find(&name) {
                fleet.stream.add(&name, guest.console());
            }
        }
        Ok(fleet)
    }

    /// Starts all guests: first every one is prepared, then every one runs.
    ///
    /// # Errors
    /// [`LifeError`]; no guest has run then, and all are undone.
    pub async fn start(&mut self) -> Result<(), LifeError> {
        let mut prepared = Vec::new();
        for name in self.names() {
            match self.manager.prepare(&name).await {
                Ok(one) => prepared.push(one),
                Err(error) => {
                    drop(prepared);
                    self.undo().await;
                    return Err(error);
                }
            }
        }
        for one in prepared {
            self.manager.run(one).await?;
        }
        Ok(())
    }

    /// Waits until every guest has ended for good, and gives back what each
    /// had as it does.
    pub async fn finish(&mut self) {
        loop {
            // Registered first, so that no end between two looks is missed.
            let manager = Rc::clone(&self.manager);
            let changed = manager.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.collect().await;
            if self.manager.registry().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Takes note of guests that have ended, and deletes them.
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
                log::error!("giving back a guest's memory failed: {}", chain(&error));
            }
        }
    }

    /// Ends every guest at once.
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
                log::error!("giving back a guest's memory failed: {}", chain(&error));
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

    /// Returns what the ledger says now; see [`audit::audit`].
    pub fn audit(&self) -> Findings {
        audit::audit(&self.manager.registry())
    }

    /// Returns the outcomes and the stream, which is still to be closed.
    pub fn into_parts(self) -> (Vec<Outcome>, Stream) {
        (self.outcomes, self.stream)
    }

    /// Returns the resource tree and every guest's e820, for people and tests.
    ///
    /// # Errors
    /// See [`mkvmm_memory::e820::build`].
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

fn outcome(guest: &Guest) -> Outcome {
    Outcome {
        name: guest.name().clone(),
        // Without a reason it never ran.
        reason: guest.reason().unwrap_or(EndReason::Killed),
        violations: guest.status().violations(),
        lifetime: guest.timeline().lifetime(),
        timeline: Arc::clone(guest.timeline()),
        console_tail: guest.console().bytes(),
    }
}
