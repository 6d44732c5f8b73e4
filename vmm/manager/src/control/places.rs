//! Places of connections: how many clients there may be, and whose place goes
//! to the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// What is known of a connection.
#[derive(Debug)]
struct Known {
    /// Since when it says nothing; `None` while it is answered.
    idle: Option<Instant>,
    /// Told when it is to be closed.
    close: Arc<Notify>,
}

/// The connections of one socket, and how many there may be.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    all: Mutex<(u64, BTreeMap<u64, Known>)>,
}

impl Places {
    /// Makes `limit` free places, at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            all: Mutex::default(),
        })
    }

    /// Returns the number of places, free or not.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Known>)> {
        // A number and a map: consistent whatever panicked.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if need be that of the connection that has said nothing
    /// for longest; `None` when all are being answered.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let mut all = self.lock();
        let (next, known) = &mut *all;
        if known.len() >= self.limit {
            let silent = known
                .iter()
                .filter_map(|(number, one)| Some((one.idle?, *number)));
            let (_, longest) = silent.min()?;
            known.remove(&longest)?.close.notify_one();
        }
        let (number, close) = (*next, Arc::new(Notify::new()));
        *next += 1;
        let one = Known {
            idle: Some(Instant::now()),
            close: Arc::clone(&close),
        };
        known.insert(number, one);
        Some(Place {
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

/// The place of one connection, free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    close: Arc<Notify>,
}

impl Place {
    /// Waits until the place is needed for another.
    pub async fn needed(&self) {
        self.close.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().1.remove(&self.number);
    }
}

/// A connection whose client is being answered, until this is dropped. Who
/// takes a connection over takes this out of the request, and keeps it.
#[derive(Debug, Clone)]
pub struct Answering(#[expect(dead_code, reason = "acts when it is dropped")] Arc<AnsweringInner>);

#[derive(Debug)]
struct AnsweringInner(Arc<Place>);

impl Answering {
    /// Has the client of `place` count as one that is answered.
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
        let [first, second] = [(); 2].map(|()| Arc::new(places.take().unwrap()));
        let answering = Answering::begin(&first);
        let third = places.take().unwrap();
        second.needed().await;
        let third = Arc::new(third);
        let other = Answering::begin(&third);
        assert!(places.take().is_none(), "both are being answered");
        drop(answering);
        let fourth = places.take().unwrap();
        first.needed().await;
        // Whose place was taken gives none back.
        drop((first, second));
        assert_eq!(places.lock().1.len(), 2);
        drop((other, third, fourth));
        assert_eq!(places.lock().1.len(), 0);
    }
}
