//! Makes the pool be what a fleet says: what differs is changed, all of it or
//! nothing, and what does not differ is not touched.
//!
//! ```text
//!   compare ──► read images ──► plan on a copy ──► carry out ──► run
//!   (what differs)  (kernels)    (does it fit?)     │ a step fails
//!                                                   ▼
//!                                                undo the others
//! ```
//!
//! New channels and instances come before any guest is ended, if there is room for
//! both; else what has to go goes first.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_api::apply::{Applied, Difference, FleetAction, FleetChange};
use mkvmm_api::plan::Plan;
use mkvmm_api::{ImagesSpec, InstanceSpec, Size, SpecError};
use mkvmm_base::state::{State, Verb};
use mkvmm_base::{Class, Diagnose, InstanceName};
use serde_json::{Map, Value};

use crate::channels::ChannelConfig;
use crate::config::InstanceConfig;
use crate::control::apply_channels::{self, ChannelSteps};
use crate::control::apply_error::ApplyError;
use crate::control::error::ControlError;
use crate::control::plan::{Books, PlanStep, Planned};
use crate::guest::Guest;
use crate::images::Images;
use crate::life::LifeError;
use crate::manager::Manager;
use crate::registry::Registry;
use crate::transaction::{Transaction, TransactionError, Undone};

/// Keys of a specification that do not make an instance another one.
const INDIFFERENT: [&str; 1] = ["autostart"];
/// Keys whose values are sizes.
const SIZES: [&str; 2] = ["memory", "memory-limit"];

/// What the pool is to be.
#[derive(Debug)]
pub struct Fleet {
    /// The channels, which are created before the instances.
    pub channels: Vec<ChannelConfig>,
    /// The instances, in the order in which they are created; nothing is opened for
    /// them yet.
    pub instances: Vec<(InstanceConfig, Option<ImagesSpec>)>,
    /// True to delete all other instances and channels.
    pub prune: bool,
    /// The time that guests have to shut down, where one must end.
    pub grace: Duration,
    /// The directories to which console logs are restricted.
    pub log_dirs: Arc<[PathBuf]>,
}

/// A fleet that was compared with what is there, and whose images were read.
#[derive(Debug)]
pub struct Prepared {
    changes: Changes,
    channels: ChannelSteps,
    /// The instances to create, in their order.
    new: Vec<New>,
    /// The names of the instances to boot that are there.
    starts: Vec<InstanceName>,
    /// The names of the instances to delete, those to be replaced among them.
    removes: Vec<InstanceName>,
    /// True if what goes has to make room for what is new.
    is_gone_first: bool,
    fleet: Fleet,
}

/// What is to happen to each channel and to each instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Changes {
    channels: Vec<FleetChange>,
    instances: Vec<FleetChange>,
}

/// An instance to create.
#[derive(Debug)]
struct New {
    planned: Planned,
    starts: bool,
    /// True if an instance of this name is there, and goes.
    replaces: bool,
}

impl New {
    fn name(&self) -> &InstanceName {
        &self.planned.config.name
    }
}

/// One step, in the order in which they are carried out.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Remove(&'a InstanceName),
    Create(&'a New),
    RemoveChannel(&'a InstanceName),
    CreateChannel(&'a ChannelConfig),
    /// Everything that an instance needs to run, without running it.
    Prepare(&'a InstanceName),
}

impl Step<'_> {
    /// True if it may happen beside the steps before and after it that are alike.
    fn is_of_new(self) -> bool {
        matches!(self, Self::Create(_) | Self::Prepare(_))
    }
}

/// Compares `fleet` with what is there, and reads the images that are needed.
/// Changes nothing.
///
/// # Errors
/// Returns a [`ControlError`] for a fleet that cannot be applied.
pub async fn prepare(manager: &Rc<Manager>, fleet: Fleet) -> Result<Prepared, ControlError> {
    check_names(&fleet)?;
    let changes = compare(&manager.registry(), &fleet)?;
    let channels = ChannelSteps::of(&changes.channels, &fleet.channels);
    let is_gone_first = channels.check(manager)?;
    let mut prepared = Prepared {
        changes,
        channels,
        new: Vec::new(),
        starts: Vec::new(),
        removes: Vec::new(),
        is_gone_first,
        fleet,
    };
    // Those of the fleet come first in both.
    let wanted = prepared.fleet.instances.iter();
    for ((config, images), change) in wanted.zip(&prepared.changes.instances) {
        let (name, images) = (&config.name, images.clone());
        match change.action {
            FleetAction::Create | FleetAction::Replace => {
                let images = read(manager, config, images).await?;
                prepared.new.push(New {
                    planned: Planned {
                        config: config.clone(),
                        images,
                    },
                    starts: change.starts,
                    replaces: change.action == FleetAction::Replace,
                });
            }
            FleetAction::Start => prepared.starts.push(name.clone()),
            FleetAction::Keep | FleetAction::Leave | FleetAction::Delete => {}
        }
    }
    for change in &prepared.changes.instances {
        let goes = matches!(change.action, FleetAction::Replace | FleetAction::Delete);
        if goes && let Ok(name) = change.name.parse() {
            prepared.removes.push(name);
        }
    }
    Ok(prepared)
}

async fn read(
    manager: &Rc<Manager>,
    config: &InstanceConfig,
    images: Option<ImagesSpec>,
) -> Result<Option<Images>, ControlError> {
    let (name, memory) = (&config.name, config.memory());
    Ok(match images {
        Some(spec) => Some(manager.read_images(name, spec, memory).await?),
        None => None,
    })
}

fn check_names(fleet: &Fleet) -> Result<(), SpecError> {
    let mut names = BTreeSet::new();
    for (config, _) in &fleet.instances {
        if !names.insert(&config.name) {
            let name = config.name.clone();
            return Err(SpecError::SameName { name });
        }
    }
    Ok(())
}

impl Prepared {
    /// Computes the placement of what is new on a copy of the books, and says
    /// what would be done.
    ///
    /// # Errors
    /// Returns the [`ControlError`] that carrying it out would return.
    pub async fn plan(mut self, manager: &Rc<Manager>) -> Result<(Self, Applied), ControlError> {
        // The semaphore is never closed.
        let _turn = manager.rehearsals.acquire().await.ok();
        let books = {
            let registry = manager.registry();
            (Books::copy_all(&registry)?, Books::copy_all(&registry)?)
        };
        let rehearse = move || {
            let (plan, is_gone_first) = self.rehearse(books)?;
            self.is_gone_first = is_gone_first;
            let applied = Applied {
                channels: self.changes.channels.clone(),
                changes: self.changes.instances.clone(),
                plan,
            };
            Ok((self, applied))
        };
        let rehearsed = tokio::task::spawn_blocking(rehearse).await;
        rehearsed.map_err(|_cancelled| ControlError::Ending)?
    }

    /// Returns the plan, and whether what goes has to go first.
    fn rehearse(&self, (books, others): (Books, Books)) -> Result<(Plan, bool), ControlError> {
        let goes = !self.removes.is_empty() || !self.channels.gone.is_empty();
        let can_go_first = goes && !self.is_gone_first;
        match books.plan_steps(&planned(&self.steps(self.is_gone_first))) {
            Err(error) if error.class() == Class::NoRoom && can_go_first => {
                Ok((others.plan_steps(&planned(&self.steps(true)))?, true))
            }
            plan => Ok((plan?, self.is_gone_first)),
        }
    }

    /// Returns the steps. Of those that create, the first replace nothing, unless
    /// what goes is to go first. Guests get the channels that are there when they are
    /// prepared, and a channel is not taken away from one that is.
    fn steps(&self, is_gone_first: bool) -> Vec<Step<'_>> {
        let prepares_last = !self.channels.gone.is_empty();
        let new = |is_late: bool| {
            let is_due = move |replaces: bool| (is_gone_first || replaces) == is_late;
            let channels = self.channels.new.iter();
            let channels = channels.filter(move |(_, replaces)| is_due(*replaces));
            let channels = channels.map(|(config, _)| Step::CreateChannel(config));
            let instances = self.new.iter().filter(move |new| is_due(new.replaces));
            let instances = instances.flat_map(move |new| {
                let prepare = (new.starts && !prepares_last).then_some(new.name());
                std::iter::once(Step::Create(new)).chain(prepare.map(Step::Prepare))
            });
            (channels, instances)
        };
        let starts = || self.starts.iter().map(Step::Prepare);
        let (channels, instances) = new(false);
        let mut steps: Vec<Step<'_>> = channels.collect();
        if !prepares_last {
            steps.extend(starts());
        }
        steps.extend(instances);
        steps.extend(self.removes.iter().map(Step::Remove));
        steps.extend(self.channels.gone.iter().map(Step::RemoveChannel));
        let (channels, instances) = new(true);
        steps.extend(channels.chain(instances));
        if prepares_last {
            let new = self.new.iter().filter(|new| new.starts);
            steps.extend(starts().chain(new.map(|new| Step::Prepare(new.name()))));
        }
        steps
    }

    /// Carries out what was planned: all of it or nothing.
    ///
    /// # Errors
    /// Returns a [`ControlError`]; everything is as before, unless it says what is
    /// not.
    pub async fn carry_out(self, manager: &Rc<Manager>) -> Result<Applied, ControlError> {
        // The semaphore is never closed.
        let _turn = manager.applying.acquire().await.ok();
        if compare(&manager.registry(), &self.fleet)? != self.changes {
            return Err(ApplyError::Changed.into());
        }
        let (prepared, applied) = self.plan(manager).await?;
        let log_dirs = Arc::clone(&prepared.fleet.log_dirs);
        let mut transaction = Transaction::begin(Rc::clone(manager), log_dirs);
        let done = prepared.take_steps(&mut transaction).await;
        let Err(error) = done else {
            return Ok(applied);
        };
        let Undone {
            rebooted,
            emptied,
            problems,
        } = transaction.roll_back().await;
        let source = Box::new(error);
        let error = match problems.is_empty() {
            true => ApplyError::RolledBack {
                rebooted,
                emptied,
                source,
            },
            false => ApplyError::Stuck { problems, source },
        };
        Err(error.into())
    }

    async fn take_steps(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        let steps = self.steps(self.is_gone_first);
        for together in steps.chunk_by(|one, next| one.is_of_new() && next.is_of_new()) {
            let (mut new, mut prepared) = (Vec::new(), Vec::new());
            for step in together {
                match *step {
                    Step::Remove(name) => transaction.remove(name, self.fleet.grace).await?,
                    Step::Create(one) => {
                        let Planned { config, images } = &one.planned;
                        new.push((transaction.open(config.clone()).await?, images.clone()));
                    }
                    Step::RemoveChannel(name) => transaction.remove_channel(name).await?,
                    Step::CreateChannel(config) => {
                        transaction.create_channel(config.clone()).await?;
                    }
                    Step::Prepare(name) => prepared.push(name.clone()),
                }
            }
            transaction.create(new).await?;
            transaction.prepare(prepared).await?;
        }
        Ok(transaction.run().await?)
    }
}

fn planned<'a>(steps: &[Step<'a>]) -> Vec<PlanStep<'a>> {
    let step = |step: &Step<'a>| match *step {
        Step::Remove(name) => Some(PlanStep::Delete(name)),
        Step::Create(new) => Some(PlanStep::Create(&new.planned)),
        Step::RemoveChannel(name) => Some(PlanStep::DeleteChannel(name)),
        Step::CreateChannel(config) => Some(PlanStep::CreateChannel(config)),
        // It takes nothing of the pool.
        Step::Prepare(_) => None,
    };
    steps.iter().filter_map(step).collect()
}

/// Returns what is to happen to each channel and to each instance.
///
/// # Errors
/// Returns a [`ControlError`] for one that is to change and cannot now.
fn compare(registry: &Registry, fleet: &Fleet) -> Result<Changes, ControlError> {
    Ok(Changes {
        channels: apply_channels::compare(registry, &fleet.channels, fleet.prune)?,
        instances: compare_instances(registry, fleet)?,
    })
}

/// Returns what is to happen to each instance: those of the fleet first, in its
/// order, then all others.
fn compare_instances(registry: &Registry, fleet: &Fleet) -> Result<Vec<FleetChange>, ControlError> {
    let mut changes = Vec::new();
    for (config, images) in &fleet.instances {
        changes.push(match registry.find(&config.name) {
            Ok(guest) => change_of(registry, guest, config, images.as_ref())?,
            Err(_unknown) => FleetChange {
                name: config.name.to_string(),
                action: FleetAction::Create,
                differences: Vec::new(),
                starts: images.is_some() && config.spec.autostart,
                ends: false,
            },
        });
    }
    for guest in registry.guests() {
        let name = guest.name();
        if fleet.instances.iter().any(|(one, _)| one.name == *name) {
            continue;
        }
        if fleet.prune {
            check_removal(registry, guest)?;
        }
        changes.push(FleetChange {
            name: name.to_string(),
            action: match fleet.prune {
                true => FleetAction::Delete,
                false => FleetAction::Leave,
            },
            differences: Vec::new(),
            starts: false,
            ends: fleet.prune && guest.state().is_live(),
        });
    }
    Ok(changes)
}

fn check_removal(registry: &Registry, guest: &Guest) -> Result<(), LifeError> {
    let verb = match guest.state().is_live() {
        true => Verb::Kill,
        false => Verb::Delete,
    };
    registry.check(guest.name(), verb)?;
    Ok(())
}

/// Returns what is to happen to an instance that is there.
fn change_of(
    registry: &Registry,
    guest: &Guest,
    config: &InstanceConfig,
    images: Option<&ImagesSpec>,
) -> Result<FleetChange, ControlError> {
    if guest.state() == State::Cleaning {
        // It is going away, and nothing else can be done with it.
        check_removal(registry, guest).map_err(ControlError::from)?;
    }
    let present = guest.config().spec.clone();
    let present = present.with_images(guest.loaded().map(|loaded| loaded.images.spec()));
    let differences = differences(&present, &config.spec);
    let is_live = guest.state().is_live();
    let runs = is_live || guest.is_restarting();
    let wants_to_run = images.is_some() && config.spec.autostart;
    let action = if !differences.is_empty() {
        check_removal(registry, guest).map_err(ControlError::from)?;
        FleetAction::Replace
    } else if wants_to_run && !runs {
        let checked = registry.check(guest.name(), Verb::Start);
        checked.map_err(LifeError::from)?;
        FleetAction::Start
    } else {
        FleetAction::Keep
    };
    Ok(FleetChange {
        name: guest.name().to_string(),
        action,
        differences,
        starts: wants_to_run && action != FleetAction::Keep,
        ends: is_live && action == FleetAction::Replace,
    })
}

/// Returns the keys in which two specifications differ, with both values.
fn differences(present: &InstanceSpec, wanted: &InstanceSpec) -> Vec<Difference> {
    let (present, wanted) = (object(present), object(wanted));
    let keys: BTreeSet<&String> = present.keys().chain(wanted.keys()).collect();
    let differs = |key: &&String| {
        !INDIFFERENT.contains(&key.as_str()) && present.get(*key) != wanted.get(*key)
    };
    let difference = |key: &String| Difference {
        key: key.clone(),
        from: present.get(key).map(|value| text(key, value)),
        to: wanted.get(key).map(|value| text(key, value)),
    };
    keys.into_iter().filter(differs).map(difference).collect()
}

fn object(spec: &InstanceSpec) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(object)) => object,
        // A struct of ours is an object.
        _ => Map::new(),
    }
}

/// Returns a value as people write it.
fn text(key: &str, value: &Value) -> String {
    let size = || Size::try_from(value.as_u64()?).ok();
    match (size(), value) {
        (Some(size), _) if SIZES.contains(&key) => size.exact_text(),
        (_, Value::String(text)) => text.clone(),
        (_, value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> InstanceSpec {
        text.parse().unwrap()
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        let present = spec("name=a,memory=8M,kernel=probe,autostart=false");
        assert!(differences(&present, &spec("name=a,memory=8192K,kernel=probe")).is_empty());
        let wanted = spec("name=a,memory=16M,kernel=probe,cmdline=spin,initrd=/i,initrd=/j");
        let texts = differences(&present, &wanted).into_iter().map(|one| {
            let side = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            format!("{}: {} -> {}", one.key, side(one.from), side(one.to))
        });
        assert_eq!(
            texts.collect::<Vec<_>>(),
            [
                "cmdline: - -> spin",
                "initrd: - -> [\"/i\",\"/j\"]",
                "memory: 8M -> 16M"
            ]
        );
    }
}
