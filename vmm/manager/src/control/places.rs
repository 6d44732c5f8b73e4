//! Places of connections: limits the number of clients, and selects the
//! connection that makes way for a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The state of a connection.
#[derive(Debug)]
struct Known {
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

    /// Returns the total number of places.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Known>)> {
        // A number and a map are valid even if the lock is poisoned.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if necessary that of the connection that has been idle
    /// longest; `None` if all are being served.
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
        // A connection whose place was taken does not free a place.
        drop((first, second));
        assert_eq!(places.lock().1.len(), 2);
        drop((other, third, fourth));
        assert_eq!(places.lock().1.len(), 0);
    }
}
