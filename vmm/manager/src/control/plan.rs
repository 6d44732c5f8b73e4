//! Plans: determines the result of a launch by a dry run of the code that a
//! launch uses.

use std::time::{Duration, Instant};

use mkpool::AddrRange;
use mkvmm_api::Instance;
use mkvmm_api::plan::{Piece, Plan, PlanProblem};
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceId, InstanceName};
use mkvmm_memory::host_pool::{HostPool, Rehearsal, SubPool, Wanted};
use mkvmm_memory::reservation::ReservationConfig;

use crate::channels::{ChannelConfig, ChannelError};
use crate::config::InstanceConfig;
use crate::control::error::ControlError;
use crate::control::objects;
use crate::guest::{self, Guest, Loaded};
use crate::images::Images;
use crate::life::place::place;
use crate::life::{LifeError, StepError};
use crate::registry::{Registry, RegistryError};

/// The maximum number of instances suggested for deletion.
const SUGGESTIONS: usize = 8;
/// The maximum number of instances that are tried for that.
const CANDIDATES: usize = 64;
/// The alignment of pieces of a larger pool: that of kernels, 2 MiB.
const PIECE: u64 = 2 << 20;
/// How long they are tried.
const SEARCH: Duration = Duration::from_secs(1);

/// An instance in a plan.
#[derive(Debug)]
pub struct Planned {
    /// The configuration of the instance.
    pub config: InstanceConfig,
    /// The images to load.
    pub images: Option<Images>,
}

/// An instance created in the dry run.
struct Rehearsed<'a> {
    id: InstanceId,
    planned: &'a Planned,
    loaded: Option<Loaded>,
}

/// What plans are made on: a copy of the books, to be rehearsed on where that
/// may take its time.
#[derive(Debug)]
pub struct Books {
    pool: HostPool,
    memory: ReservationConfig,
    instances: Vec<Owner>,
    channels: Vec<(InstanceName, AddrRange)>,
}

/// An instance that has some of the pool.
#[derive(Debug)]
struct Owner {
    name: InstanceName,
    regions: Vec<AddrRange>,
    size: u64,
}

/// A step of a plan.
#[derive(Debug, Clone, Copy)]
pub enum PlanStep<'a> {
    /// An instance that is there is deleted.
    Delete(&'a InstanceName),
    /// An instance is created.
    Create(&'a Planned),
    /// A channel that is there is deleted.
    DeleteChannel(&'a InstanceName),
    /// A channel is created.
    CreateChannel(&'a ChannelConfig),
}

/// A channel or an instance that does not fit.
struct NoRoom<'a> {
    name: InstanceName,
    error: ControlError,
    /// The instance, if it is one.
    planned: Option<&'a Planned>,
}

/// The result of a plan, and what does not fit.
type Outcome<'a> = (Plan, Vec<NoRoom<'a>>);

impl Books {
    /// Copies the books for a plan of `channels` and `wanted`.
    ///
    /// # Errors
    /// [`ControlError`] for a name that is taken, or given twice.
    pub fn copy(
        registry: &Registry,
        channels: &[ChannelConfig],
        wanted: &[Planned],
    ) -> Result<Self, ControlError> {
        check_channels(registry, channels)?;
        check_names(registry, wanted)?;
        Self::copy_all(registry)
    }

    /// Copies the books for a plan that also deletes.
    ///
    /// # Errors
    /// [`ControlError`]: bugs.
    pub fn copy_all(registry: &Registry) -> Result<Self, ControlError> {
        let owner = |guest: &Guest| Owner {
            name: guest.name().clone(),
            regions: guest.regions().to_vec(),
            size: guest.sub_pool().size(),
        };
        let pool = registry.pool().copy().map_err(RegistryError::from)?;
        Ok(Self {
            pool,
            memory: *registry.memory(),
            instances: registry.guests().map(owner).collect(),
            channels: registry
                .channels()
                .map(|channel| (channel.name().clone(), channel.range()))
                .collect(),
        })
    }

    /// Plans `channels` and then `wanted`, in this order.
    ///
    /// # Errors
    /// [`ControlError`] for what no room would help: a value that is wrong.
    pub fn plan(
        mut self,
        channels: &[ChannelConfig],
        wanted: &[Planned],
    ) -> Result<Plan, ControlError> {
        let first = channels.iter().map(PlanStep::CreateChannel);
        let steps: Vec<PlanStep<'_>> = first.chain(wanted.iter().map(PlanStep::Create)).collect();
        let (mut plan, refused) = self.rehearse(&steps)?;
        let problem = |one: &NoRoom<'_>| PlanProblem {
            name: one.name.to_string(),
            error: (&one.error).into(),
            delete_one_of: Vec::new(),
        };
        plan.problems = refused.iter().map(problem).collect();
        if let Some(first) = plan.problems.first_mut() {
            let made = plan.instances.iter().flat_map(|one| &one.chunks);
            let made: u64 = made.map(|chunk| chunk.size).sum();
            if channels.is_empty() {
                // Whether channels would fit is not tried.
                first.delete_one_of = self.makes_room(wanted, made + plan.pool.avail);
            }
            plan.problem = Some(first.clone());
            plan.pool_size = sufficient(&plan, &refused);
        }
        Ok(plan)
    }

    /// Plans `steps`, in this order: what is deleted is gone from this copy.
    ///
    /// # Errors
    /// The [`ControlError`] that carrying them out would return.
    pub fn plan_steps(mut self, steps: &[PlanStep<'_>]) -> Result<Plan, ControlError> {
        let (plan, refused) = self.rehearse(steps)?;
        match refused.into_iter().next() {
            None => Ok(plan),
            Some(one) => Err(one.error),
        }
    }

    fn rehearse<'a>(&mut self, steps: &[PlanStep<'a>]) -> Result<Outcome<'a>, ControlError> {
        let (memory, mut instances) = (self.memory, self.instances.len());
        let mut rehearsal = self.pool.rehearse();
        let (mut done, mut made_channels) = (Vec::new(), Vec::new());
        let mut refused: Vec<NoRoom<'a>> = Vec::new();
        for step in steps {
            match *step {
                PlanStep::Delete(name) => {
                    let owner = self.instances.iter().find(|owner| owner.name == *name);
                    let regions = owner.map_or(&[][..], |owner| &owner.regions);
                    rehearsal.forget(regions).map_err(RegistryError::from)?;
                    instances = instances.saturating_sub(1);
                }
                PlanStep::DeleteChannel(name) => {
                    let channel = self.channels.iter().find(|(one, _)| one == name);
                    let range = channel.map(|(_, range)| *range);
                    rehearsal
                        .forget(range.as_slice())
                        .map_err(RegistryError::from)?;
                }
                PlanStep::CreateChannel(config) => {
                    match rehearsal.carve_channel(&config.name, config.size) {
                        Ok((id, range)) => {
                            made_channels.push(objects::rehearsed_channel(config, id, range));
                        }
                        Err(error) => {
                            let error = ControlError::from(ChannelError::from(error));
                            let (name, error) = lacks_room(&config.name, error)?;
                            refused.push(NoRoom {
                                name,
                                error,
                                planned: None,
                            });
                            // What follows would be elsewhere with it.
                            break;
                        }
                    }
                }
                PlanStep::Create(planned) => match rehearse(&mut rehearsal, planned) {
                    Ok(one) => done.push(one),
                    Err(error) => {
                        let error = ControlError::from(error.of(&planned.config.name));
                        let (name, error) = lacks_room(&planned.config.name, error)?;
                        // What it got before it was refused.
                        rehearsal.truncate(done.len());
                        let planned = Some(planned);
                        refused.push(NoRoom {
                            name,
                            error,
                            planned,
                        });
                    }
                },
            }
        }
        let objects = done.iter().zip(rehearsal.made());
        let objects = objects.map(|(one, sub_pool)| object(&rehearsal, one, sub_pool));
        let plan = Plan {
            fits: refused.is_empty(),
            channels: made_channels,
            instances: objects.collect::<Result<_, _>>()?,
            pieces: done.iter().map(pieces).collect(),
            pool: objects::pool(rehearsal.pool(), &memory, instances + done.len()),
            problem: None,
            problems: Vec::new(),
            pool_size: None,
        };
        Ok((plan, refused))
    }

    /// The smallest instances of which deleting any one would make room for
    /// all of `wanted`, where `room` bytes are free or taken by those of them that
    /// fit.
    fn makes_room(&self, wanted: &[Planned], room: u64) -> Vec<String> {
        let wanted: Vec<Wanted> = wanted.iter().map(wish).collect();
        // Those that are too small for sure are not worth a try.
        let sizes = wanted.iter().map(|one| one.memory);
        let needed = sizes.fold(0_u64, u64::saturating_add);
        let enough = |owner: &&Owner| room + owner.size >= needed;
        let mut candidates: Vec<&Owner> = self.instances.iter().filter(enough).collect();
        candidates.sort_by_key(|owner| owner.size);
        let end = Instant::now() + SEARCH;
        let would_do = |owner: &&Owner| self.pool.would_fit(&owner.regions, &wanted);
        let tried = candidates.into_iter().take(CANDIDATES);
        let found = tried.take_while(|_| Instant::now() < end).filter(would_do);
        found
            .take(SUGGESTIONS)
            .map(|owner| owner.name.to_string())
            .collect()
    }
}

/// Returns the size of a pool in which those fit that were refused: this one, with
/// a piece at its end for each of them. `None` if no size is enough.
fn sufficient(plan: &Plan, refused: &[NoRoom<'_>]) -> Option<u64> {
    let mut size = plan.pool.range.size;
    for NoRoom { error, planned, .. } in refused {
        let planned = (*planned)?;
        // Images that do not fit into their instance fit into none of that size.
        error.room()?;
        let granule = (1_u64 << planned.config.order().min(62)).max(PIECE);
        let piece = planned.config.memory().checked_next_multiple_of(granule)?;
        size = size.checked_next_multiple_of(granule)?.checked_add(piece)?;
    }
    Some(size)
}

/// Describes the instance that `planned` would become.
///
/// # Errors
/// Returns the [`ControlError`] that its creation would return.
pub fn dry_create(registry: &mut Registry, planned: &Planned) -> Result<Instance, ControlError> {
    check_names(registry, std::slice::from_ref(planned))?;
    let mut rehearsal = registry.pool_mut().rehearse();
    let one = rehearse(&mut rehearsal, planned);
    let one = one.map_err(|error| error.of(&planned.config.name))?;
    match rehearsal.made().first() {
        Some(sub_pool) => object(&rehearsal, &one, sub_pool),
        // The instance was created in the dry run.
        None => Err(ControlError::Ending),
    }
}

/// Checks everything about channels that does not depend on the pool.
fn check_channels(registry: &Registry, channels: &[ChannelConfig]) -> Result<(), ControlError> {
    for (index, config) in channels.iter().enumerate() {
        config.check()?;
        let others = channels.get(..index).unwrap_or_default();
        registry.check_members(config, others, &[])?;
    }
    Ok(())
}

/// An instance or a channel that does not fit.
type Refused = (InstanceName, ControlError);

/// Returns what does not fit, unless the error is another one.
fn lacks_room(name: &InstanceName, error: ControlError) -> Result<Refused, ControlError> {
    match error.class() {
        Class::NoRoom => Ok((name.clone(), error)),
        _ => Err(error),
    }
}

fn check_names(registry: &Registry, wanted: &[Planned]) -> Result<(), ControlError> {
    let mut names = std::collections::BTreeSet::new();
    for Planned { config, .. } in wanted {
        registry.check_free(&config.name).map_err(LifeError::from)?;
        if !names.insert(&config.name) {
            let name = config.name.clone();
            return Err(LifeError::from(RegistryError::Exists { name }).into());
        }
    }
    Ok(())
}

fn rehearse<'a>(
    rehearsal: &mut Rehearsal<'_>,
    planned: &'a Planned,
) -> Result<Rehearsed<'a>, StepError> {
    let Planned { config, images } = planned;
    let id = rehearsal.carve(&config.name, config.memory(), config.order())?;
    let placed = match (images, rehearsal.made().last()) {
        (Some(images), Some(sub_pool)) => {
            Some(place(rehearsal.pool(), sub_pool, &config.name, images)?)
        }
        _ => None,
    };
    let loaded = match placed {
        Some((loaded, next)) => {
            rehearsal.book(&loaded.plan, next)?;
            Some(loaded)
        }
        None => None,
    };
    Ok(Rehearsed {
        id,
        planned,
        loaded,
    })
}

fn object(
    rehearsal: &Rehearsal<'_>,
    one: &Rehearsed<'_>,
    sub_pool: &SubPool,
) -> Result<Instance, ControlError> {
    let loaded = one.loaded.as_ref();
    let e820 = guest::e820(rehearsal.pool(), sub_pool, loaded)?;
    Ok(objects::described(&objects::Description {
        id: one.id,
        config: &one.planned.config,
        state: match loaded {
            Some(_) => State::Loaded,
            None => State::Ready,
        },
        sub_pool,
        loaded,
        e820: &e820,
    }))
}

fn pieces(one: &Rehearsed<'_>) -> Vec<Piece> {
    let pieces = one.loaded.iter().flat_map(|loaded| loaded.plan.pieces());
    let piece = |(name, range): (&str, AddrRange)| Piece {
        name: name.to_owned(),
        range: range.into(),
    };
    pieces.map(piece).collect()
}

fn wish(planned: &Planned) -> Wanted {
    let images = planned.images.as_ref();
    let facts = images.map(|images| images.facts().placement(images.initramfs_size()));
    Wanted {
        memory: planned.config.memory(),
        order: planned.config.order(),
        facts,
    }
}
