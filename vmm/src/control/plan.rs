//! Plans: what a launch would do, found out by doing it where nobody sees.
//!
//! Every instance is really made, with the code that a launch uses, on the
//! event loop's thread; then all of them are undone. So a plan is what a
//! launch would get, to the byte.

use crate::control::action::Planned;
use crate::control::error::ControlError;
use crate::control::objects::{Instance, Piece, Plan, PlanProblem, Pool};
use crate::guest::Guest;
use crate::manager::Manager;

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
                    delete_one_of: makes_room(manager, one.config.memory),
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
    let piece = |(name, range): (&str, mkpool::AddrRange)| Piece {
        name: name.to_owned(),
        range: range.into(),
    };
    pieces.map(piece).collect()
}

/// Instances whose memory, with what is free, is enough for `memory` bytes.
fn makes_room(manager: &Manager, memory: u64) -> Vec<String> {
    let avail = manager.pool().avail();
    let enough = |guest: &&Guest| avail.saturating_add(guest.sub_pool().size()) >= memory;
    let enough = manager.guests().filter(enough);
    enough.map(|guest| guest.name().to_string()).collect()
}
