//! Plans: determines the result of a launch by a dry run of the code that a
//! launch uses.

use mkpool::AddrRange;
use mkvmm_api::Instance;
use mkvmm_api::plan::{Piece, Plan, PlanProblem};
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceId};
use mkvmm_memory::host_pool::{Rehearsal, Wanted};

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
/// The maximum number of instances that are tried for that, since all other
/// requests wait meanwhile.
const CANDIDATES: usize = 64;

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

/// Plans `wanted`, in this order.
///
/// # Errors
/// Returns a [`ControlError`] for errors that more room would not solve, such
/// as a duplicate name or an invalid value.
pub fn plan(registry: &mut Registry, wanted: &[Planned]) -> Result<Plan, ControlError> {
    check_names(registry, wanted)?;
    let instances = registry.len();
    let config = *registry.memory();
    let mut rehearsal = registry.pool_mut().rehearse();
    let mut done = Vec::new();
    let mut refused = None;
    for planned in wanted {
        match rehearse(&mut rehearsal, planned) {
            Ok(one) => done.push(one),
            Err(error) => {
                let error = ControlError::from(error.of(&planned.config.name));
                if error.class() != Class::NoRoom {
                    return Err(error);
                }
                refused = Some((planned, error));
                break;
            }
        }
    }
    let objects = done.iter().zip(rehearsal.made());
    let objects = objects.map(|(one, sub_pool)| object(&rehearsal, one, sub_pool));
    let made: Vec<AddrRange> = rehearsal
        .made()
        .iter()
        .flat_map(|s| s.regions().to_vec())
        .collect();
    let mut plan = Plan {
        fits: refused.is_none(),
        instances: objects.collect::<Result<_, _>>()?,
        pieces: done.iter().map(pieces).collect(),
        pool: objects::pool(rehearsal.pool(), &config, instances + done.len()),
        problem: None,
    };
    let avail = rehearsal.pool().avail();
    drop(rehearsal);
    plan.problem = refused.map(|(planned, error)| PlanProblem {
        name: planned.config.name.to_string(),
        error: (&error).into(),
        delete_one_of: makes_room(registry, wanted, &made, avail),
    });
    Ok(plan)
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
    sub_pool: &mkvmm_memory::host_pool::SubPool,
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

/// Returns the smallest instances of which deleting any one would make room for
/// all of `wanted`; `made` is the part that fits without, and `avail` the free
/// memory then.
fn makes_room(
    registry: &Registry,
    wanted: &[Planned],
    made: &[AddrRange],
    avail: u64,
) -> Vec<String> {
    let wanted: Vec<Wanted> = wanted.iter().map(wish).collect();
    // Instances that are certainly too small need not be tried.
    let room = made.iter().map(AddrRange::size).sum::<u64>() + avail;
    let needed = wanted
        .iter()
        .fold(0_u64, |all, one| all.saturating_add(one.memory));
    let enough = |guest: &&Guest| room + guest.sub_pool().size() >= needed;
    let mut candidates: Vec<&Guest> = registry.guests().filter(enough).collect();
    candidates.sort_by_key(|guest| guest.sub_pool().size());
    let would_do = |guest: &&Guest| registry.pool().would_fit(guest.regions(), &wanted);
    let found = candidates.into_iter().take(CANDIDATES).filter(would_do);
    found
        .take(SUGGESTIONS)
        .map(|guest| guest.name().to_string())
        .collect()
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
