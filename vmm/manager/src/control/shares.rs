//! Shares of what is limited: clients and requests.
//!
//! Other users than the VMM's own and root have shares: none of them can keep the others
//! out, and all of them together cannot keep out whoever supervises the VMM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The part that is left to the VMM's own user and root.
const RESERVE: usize = 8;
/// The part that one other user can have.
const SHARE: usize = 2;

/// A group of users who share a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// One user, other than the VMM's own and root.
    One(u32),
    /// All users but the VMM's own and root.
    Others,
    /// Every user of the socket.
    All,
}

impl Group {
    /// Returns whether `user` belongs to the group; `None` is the VMM's own and root.
    pub fn has(self, user: Option<u32>) -> bool {
        match self {
            Self::One(one) => user == Some(one),
            Self::Others => user.is_some(),
            Self::All => true,
        }
    }
}

/// Returns the groups to which `user` belongs, smallest first, each with how many of
/// `limit` it can have: at least one.
pub fn groups(limit: usize, user: Option<u32>) -> impl Iterator<Item = (Group, usize)> {
    let others = user.map(|user| {
        let all_others = limit - limit.div_ceil(RESERVE);
        [
            (Group::One(user), (limit / SHARE).max(1)),
            (Group::Others, all_others.max(1)),
        ]
    });
    let all = (Group::All, limit.max(1));
    others.into_iter().flatten().chain([all])
}

/// Room for a limited number of requests.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    /// The number of requests of each user.
    taken: Mutex<BTreeMap<Option<u32>, usize>>,
}

impl Room {
    /// Creates room for `limit` requests.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<u32>, usize>> {
        // Each count is changed in one step.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a request of `user`; `None` is the VMM's own and root.
    ///
    /// # Errors
    /// Returns the limit that is reached: that of all, or the share.
    pub fn take(self: &Arc<Self>, user: Option<u32>) -> Result<Taken, usize> {
        let mut taken = self.lock();
        for (group, limit) in groups(self.limit, user) {
            let of_group = taken.iter().filter(|(user, _)| group.has(**user));
            if of_group.map(|(_, count)| count).sum::<usize>() >= limit {
                return Err(limit);
            }
        }
        *taken.entry(user).or_default() += 1;
        Ok(Taken {
            room: Arc::clone(self),
            user,
        })
    }
}

/// Room that one request takes, until this is dropped.
#[derive(Debug)]
pub struct Taken {
    room: Arc<Room>,
    user: Option<u32>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: Option<u32> = Some(7101);
    const BOB: Option<u32> = Some(7102);

    #[test]
    fn no_user_takes_the_room_of_others() {
        let room = Room::new(16);
        let fill = |user| std::iter::from_fn(|| room.take(user).ok()).collect::<Vec<_>>();
        let ada = fill(ADA);
        assert_eq!((ada.len(), room.take(ADA).err()), (8, Some(8)));
        let bob = fill(BOB);
        assert_eq!((bob.len(), room.take(BOB).err()), (6, Some(14)));
        let own = fill(None);
        assert_eq!((own.len(), room.take(None).err()), (2, Some(16)));
        drop(ada);
        assert_eq!(fill(BOB).len(), 2, "a share is not exceeded");
        drop((bob, own));
        assert_eq!(room.lock().len(), 0, "who has nothing is not remembered");
    }

    #[test]
    fn the_supervisor_can_have_everything() {
        let room = Room::new(16);
        let own: Vec<_> = (0..16).map(|_| room.take(None).unwrap()).collect();
        assert_eq!(room.take(ADA).err(), Some(16));
        drop(own);
    }
}
