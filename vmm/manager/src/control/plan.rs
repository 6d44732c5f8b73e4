//! Plans: determines the result of a launch by a dry run of the code that a
//! launch uses.

use std::time::{Duration, Instant};

use mkpool::AddrRange;
use mkvmm_api::Instance;
use mkvmm_api::channel::Channel;
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
}

/// An instance that has some of the pool.
#[derive(Debug)]
struct Owner {
    name: InstanceName,
    regions: Vec<AddrRange>,
    size: u64,
}

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
        let (memory, instances) = (self.memory, self.instances.len());
        let mut rehearsal = self.pool.rehearse();
        let mut done = Vec::new();
        let (made_channels, mut refused) = rehearse_channels(&mut rehearsal, channels)?;
        let room_for = if refused.is_some() { &[] } else { wanted };
        for planned in room_for {
            match rehearse(&mut rehearsal, planned) {
                Ok(one) => done.push(one),
                Err(error) => {
                    let error = ControlError::from(error.of(&planned.config.name));
                    refused = Some(lacks_room(&planned.config.name, error)?);
                    break;
                }
            }
        }
        let objects = done.iter().zip(rehearsal.made());
        let objects = objects.map(|(one, sub_pool)| object(&rehearsal, one, sub_pool));
        let regions = |sub_pool: &SubPool| sub_pool.regions().to_vec();
        let made: Vec<AddrRange> = rehearsal.made().iter().flat_map(regions).collect();
        let mut plan = Plan {
            fits: refused.is_none(),
            channels: made_channels,
            instances: objects.collect::<Result<_, _>>()?,
            pieces: done.iter().map(pieces).collect(),
            pool: objects::pool(rehearsal.pool(), &memory, instances + done.len()),
            problem: None,
        };
        let avail = rehearsal.pool().avail();
        drop(rehearsal);
        let is_instance = plan.channels.len() == channels.len();
        plan.problem = refused.map(|(name, error)| PlanProblem {
            name: name.to_string(),
            error: (&error).into(),
            // Whether channels would fit is not tried.
            delete_one_of: match is_instance && channels.is_empty() {
                true => self.makes_room(wanted, &made, avail),
                false => Vec::new(),
            },
        });
        Ok(plan)
    }

    /// The smallest instances of which deleting any one would make room for
    /// all of `wanted`; `made` is what fits without, and `avail` what is free
    /// then.
    fn makes_room(&self, wanted: &[Planned], made: &[AddrRange], avail: u64) -> Vec<String> {
        let wanted: Vec<Wanted> = wanted.iter().map(wish).collect();
        // Those that are too small for sure are not worth a try.
        let room = made.iter().map(AddrRange::size).sum::<u64>() + avail;
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
        registry.check_members(config, channels.get(..index).unwrap_or_default())?;
    }
    Ok(())
}

/// An instance or a channel that does not fit.
type Refused = (InstanceName, ControlError);

/// Carves the channels up to the first that does not fit.
fn rehearse_channels(
    rehearsal: &mut Rehearsal<'_>,
    channels: &[ChannelConfig],
) -> Result<(Vec<Channel>, Option<Refused>), ControlError> {
    let mut made = Vec::new();
    for config in channels {
        match rehearsal.carve_channel(&config.name, config.size) {
            Ok((id, range)) => made.push(objects::rehearsed_channel(config, id, range)),
            Err(error) => {
                let error = ControlError::from(ChannelError::from(error));
                return Ok((made, Some(lacks_room(&config.name, error)?)));
            }
        }
    }
    Ok((made, None))
}

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
