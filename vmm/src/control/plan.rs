//! Plans: what a launch would do, found out by doing it where nobody sees.
//!
//! Every instance is really made, with the code that a launch uses, on the
//! event loop's thread; then all of them are undone. So a plan is what a
//! launch would get, to the byte.

use mkpool::AddrRange;
use mkpool::main_pool::PAGE_ORDER;

use crate::control::action::Planned;
use crate::control::error::ControlError;
use crate::control::objects::{Instance, Piece, Plan, PlanProblem, Pool};
use crate::guest::Guest;
use crate::host_pool::Wanted;
use crate::loader::Initramfs;
use crate::manager::Manager;

/// Most instances that are named when deleting one would help.
const SUGGESTIONS: usize = 8;
/// Most instances that are tried for that: it is the event loop that waits.
const CANDIDATES: usize = 64;

/// Plans `wanted`, in this order.
///
/// # Errors
/// [`ControlError`] for what no room would help: a name given twice, a value
/// that cannot be.
pub fn plan(manager: &mut Manager, wanted: &[Planned]) -> Result<Plan, ControlError> {
    let mut made: Vec<Guest> = Vec::new();
    // None of it takes effect.
    let paused = manager.pool_mut().log_mut().pause(true);
    let result = gather(manager, wanted, &mut made);
    for guest in made {
        manager.discard(guest);
    }
    manager.pool_mut().log_mut().pause(paused);
    result
}

fn gather(
    manager: &mut Manager,
    wanted: &[Planned],
    made: &mut Vec<Guest>,
) -> Result<Plan, ControlError> {
    let mut problem = None;
    for one in wanted {
        let name = &one.config.name;
        if let Some(twin) = made.iter().find(|guest| guest.name() == name) {
            let name = twin.name().clone();
            return Err(crate::manager::ManagerError::Exists { name }.into());
        }
        match manager.try_create(one.config.clone(), one.images.as_deref()) {
            Ok(guest) => made.push(guest),
            Err(error) => {
                let error = ControlError::from(error);
                if error.kind().1 != "no-room" {
                    return Err(error);
                }
                problem = Some(PlanProblem {
                    name: name.to_string(),
                    error: error.body().error,
                    delete_one_of: makes_room(manager, wanted, made),
                });
                break;
            }
        }
    }
    let objects = made.iter().map(|guest| Instance::of(manager, guest));
    Ok(Plan {
        fits: problem.is_none(),
        instances: objects.collect::<Result<_, _>>()?,
        pieces: made.iter().map(pieces).collect(),
        pool: Pool::of(manager),
        problem,
    })
}

fn pieces(guest: &Guest) -> Vec<Piece> {
    let pieces = guest
        .images()
        .into_iter()
        .flat_map(|images| images.plan.pieces());
    let piece = |(name, range): (&str, AddrRange)| Piece {
        name: name.to_owned(),
        range: range.into(),
    };
    pieces.map(piece).collect()
}

/// The smallest instances of which deleting any one would make room for all of
/// `wanted`; `made` is what fits without.
fn makes_room(manager: &Manager, wanted: &[Planned], made: &[Guest]) -> Vec<String> {
    let wanted: Vec<Wanted> = wanted.iter().map(wish).collect();
    let made: Vec<AddrRange> = made.iter().flat_map(Guest::regions).copied().collect();
    // Those that are too small for sure are not worth a try.
    let room = made.iter().map(AddrRange::size).sum::<u64>() + manager.pool().avail();
    let needed = wanted
        .iter()
        .fold(0_u64, |all, one| all.saturating_add(one.memory));
    let enough = |guest: &&Guest| room + guest.sub_pool().size() >= needed;
    let mut candidates: Vec<&Guest> = manager.guests().filter(enough).collect();
    candidates.sort_by_key(|guest| guest.sub_pool().size());
    let would_do = |guest: &&Guest| {
        let freed = [&made, guest.regions()].concat();
        manager.pool().would_fit(&freed, &wanted)
    };
    let found = candidates.into_iter().take(CANDIDATES).filter(would_do);
    found
        .take(SUGGESTIONS)
        .map(|guest| guest.name().to_string())
        .collect()
}

fn wish(planned: &Planned) -> Wanted {
    let facts = planned.images.as_ref().map(|images| {
        let initramfs = images.initramfs.as_ref();
        images.kernel.facts(initramfs.map(Initramfs::size))
    });
    Wanted {
        memory: planned.config.memory,
        order: planned.config.order.unwrap_or(PAGE_ORDER),
        facts,
    }
}
