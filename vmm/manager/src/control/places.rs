//! Places of connections: limits the number of clients, and selects the
//! connection that makes way for a new one. Each user has a share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::shares::{Group, groups};

/// The state of a connection.
#[derive(Debug)]
struct Known {
    /// The user, if it is another than the VMM's own and root.
    user: Option<u32>,
    /// The time since when it is idle; `None` while it is being served.
    idle: Option<Instant>,
    /// Notified when the connection is to be closed.
    close: Arc<Notify>,
}

/// The connections of one socket, and their maximum number.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    all: Mutex<(u64, BTreeMap<u64, Known>)>,
}

impl Places {
    /// Creates `limit` free places, at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            all: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Known>)> {
        // A number and a map are valid even if the lock is poisoned.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for `user`, `None` for the VMM's own and root; if necessary that of
    /// the connection that has been idle longest, among those of whoever has used up a
    /// share.
    ///
    /// # Errors
    /// Returns the number of places, or of the share, if all of them are being served.
    pub fn take(self: &Arc<Self>, user: Option<u32>) -> Result<Place, usize> {
        let mut all = self.lock();
        let (next, known) = &mut *all;
        for (group, limit) in groups(self.limit, user) {
            make_room(known, group, limit)?;
        }
        let (number, close) = (*next, Arc::new(Notify::new()));
        *next += 1;
        let one = Known {
            user,
            idle: Some(Instant::now()),
            close: Arc::clone(&close),
        };
        known.insert(number, one);
        Ok(Place {
            places: Arc::clone(self),
            number,
            close,
        })
    }

    fn set_idle(&self, number: u64, idle: Option<Instant>) {
        if let Some(one) = self.lock().1.get_mut(&number) {
            one.idle = idle;
        }
    }
}

/// Closes the connection of a group that has been idle longest, if these are `limit` or
/// more.
///
/// # Errors
/// Returns `limit` if all of them are being served.
fn make_room(known: &mut BTreeMap<u64, Known>, group: Group, limit: usize) -> Result<(), usize> {
    let counted = known.iter().filter(|(_, one)| group.has(one.user));
    if counted.clone().count() < limit {
        return Ok(());
    }
    let silent = counted.filter_map(|(number, one)| Some((one.idle?, *number)));
    let longest = silent.min().and_then(|(_, number)| known.remove(&number));
    longest.ok_or(limit)?.close.notify_one();
    Ok(())
}

/// The place of one connection, which becomes free when this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    close: Arc<Notify>,
}

impl Place {
    /// Waits until another connection needs the place.
    pub async fn needed(&self) {
        self.close.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().1.remove(&self.number);
    }
}

/// Marks a connection as being served, until this is dropped. A handler that
/// takes the connection over removes this from the request and keeps it.
#[derive(Debug, Clone)]
pub struct Answering(#[expect(dead_code, reason = "acts when it is dropped")] Arc<AnsweringInner>);

#[derive(Debug)]
struct AnsweringInner(Arc<Place>);

impl Answering {
    /// Marks the client of `place` as being served.
    pub fn begin(place: &Arc<Place>) -> Self {
        place.places.set_idle(place.number, None);
        Self(Arc::new(AnsweringInner(Arc::clone(place))))
    }
}

impl Drop for AnsweringInner {
    fn drop(&mut self) {
        let Self(place) = self;
        place.places.set_idle(place.number, Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_says_nothing_makes_room_and_who_is_answered_does_not() {
        let places = Places::new(2);
        let [first, second] = [(); 2].map(|()| Arc::new(places.take(None).unwrap()));
        let answering = Answering::begin(&first);
        let third = places.take(None).unwrap();
        second.needed().await;
        let third = Arc::new(third);
        let other = Answering::begin(&third);
        assert_eq!(places.take(None).err(), Some(2), "both are being answered");
        drop(answering);
        let fourth = places.take(None).unwrap();
        first.needed().await;
        // A connection whose place was taken does not free a place.
        drop((first, second));
        assert_eq!(places.lock().1.len(), 2);
        drop((other, third, fourth));
        assert_eq!(places.lock().1.len(), 0);
    }

    #[tokio::test]
    async fn no_other_user_keeps_anybody_out() {
        const ADA: Option<u32> = Some(7101);
        const BOB: Option<u32> = Some(7102);
        let places = Places::new(16);
        let take = |user| {
            let place = Arc::new(places.take(user)?);
            Ok::<_, usize>((Answering::begin(&place), place))
        };
        let fill = |user| std::iter::from_fn(|| take(user).ok()).collect::<Vec<_>>();
        let ada = fill(ADA);
        assert_eq!((ada.len(), take(ADA).err()), (8, Some(8)));
        let mut bob = fill(BOB);
        assert_eq!((bob.len(), take(BOB).err()), (6, Some(14)));
        let own = fill(None);
        assert_eq!((own.len(), take(None).err()), (2, Some(16)));
        // Whoever is idle makes room for the same user first.
        let (answering, idle) = bob.pop().unwrap();
        drop((answering, own));
        let (_answering, _again) = take(BOB).unwrap();
        idle.needed().await;
        assert_eq!(take(ADA).err(), Some(8));
    }

    #[test]
    fn there_is_a_place_for_everybody_however_few_there_are() {
        for limit in 1..20 {
            let places = Places::new(limit);
            assert!(places.take(Some(7101)).is_ok(), "{limit}");
            assert!(places.take(None).is_ok(), "{limit}");
        }
    }
}
