//! The numbered log of this VMM's last few thousand events.
//!
//! The event loop's thread appends, any thread reads. Sequence numbers begin at
//! 1 and have no gaps; a reader that has missed old events notices it by the
//! number of the first one it gets.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use mkvmm_api::events::{Event, EventKind};
use mkvmm_base::timeline;
use tokio::sync::watch;

use crate::journal::Journal;

/// The number of events that are kept.
const KEPT: usize = 4096;

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    next: u64,
    /// The owners of the instances, by name.
    owners: HashMap<String, u32>,
    /// The events that wait for the state that they tell, if there is any.
    waiting: Option<Vec<Event>>,
}

impl Kept {
    fn keep(&mut self, event: Event) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// What the last events say about the states of instances.
#[derive(Debug)]
pub(crate) struct Told {
    last: HashMap<String, EventKind>,
    /// True if all events are kept since the first one.
    is_whole: bool,
}

impl Told {
    /// Returns whether readers know that the state of an instance is what `now` says.
    /// Of an instance about which nothing is kept they have read it long ago: only the
    /// newest event can be missing.
    pub(crate) fn knows(&self, instance: &str, now: &EventKind) -> bool {
        match self.last.get(instance) {
            Some(last) => last == now,
            None => !self.is_whole,
        }
    }
}

/// The bounded log of events.
#[derive(Debug)]
pub struct EventLog {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
    journal: OnceLock<Arc<Journal>>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            kept: Mutex::new(Kept {
                events: VecDeque::new(),
                next: 1,
                owners: HashMap::new(),
                waiting: None,
            }),
            newest: watch::Sender::new(0),
            journal: OnceLock::new(),
        }
    }
}

impl EventLog {
    /// Appends an event.
    pub fn push(&self, instance: Option<String>, kind: EventKind) {
        let mut kept = self.lock();
        let seq = kept.next;
        kept.next += 1;
        let uid = instance.as_ref().and_then(|name| match kind {
            // The name is free for others now.
            EventKind::Deleted => kept.owners.remove(name),
            _ => kept.owners.get(name).copied(),
        });
        let event = Event {
            seq,
            at: timeline::now(),
            unix_ms: timeline::unix_ms(),
            instance,
            uid,
            kind,
        };
        if let Some(waiting) = &mut kept.waiting {
            waiting.push(event);
            return;
        }
        if let Some(journal) = self.journal.get() {
            // Before anybody can see it: its number is not used again.
            journal.append_event(&event);
        }
        kept.keep(event);
        drop(kept);
        self.newest.send_replace(seq);
    }

    /// Sets the owner of the instance that has a name from now on.
    pub(crate) fn set_owner(&self, instance: &str, owner: u32) {
        self.lock().owners.insert(instance.to_owned(), owner);
    }

    /// Has events wait from now on: the state that they tell is being changed.
    pub(crate) fn hold_back(&self) {
        self.lock().waiting.get_or_insert_default();
    }

    /// Returns the events that wait, to be written down with that state.
    pub(crate) fn waiting(&self) -> Vec<Event> {
        self.lock().waiting.clone().unwrap_or_default()
    }

    /// Shows the events that have waited.
    pub(crate) fn show(&self) {
        let mut kept = self.lock();
        let Some(waiting) = kept.waiting.take().filter(|waiting| !waiting.is_empty()) else {
            return;
        };
        for event in waiting {
            kept.keep(event);
        }
        let newest = kept.next - 1;
        drop(kept);
        self.newest.send_replace(newest);
    }

    /// Continues with the events of an earlier process.
    pub(crate) fn restore(&self, events: impl IntoIterator<Item = Event>) {
        let mut kept = self.lock();
        for event in events {
            kept.next = event.seq.saturating_add(1);
            kept.keep(event);
        }
        let newest = kept.next - 1;
        drop(kept);
        self.newest.send_replace(newest);
    }

    /// Adds all events to `journal` from now on.
    pub(crate) fn record_in(&self, journal: Arc<Journal>) {
        // There is one journal for each process.
        let _ = self.journal.set(journal);
    }

    /// Returns the events with numbers above `seq` that are kept.
    pub fn since(&self, seq: u64) -> Vec<Event> {
        let kept = self.lock();
        let newer = kept.events.iter().filter(|event| event.seq > seq);
        newer.cloned().collect()
    }

    /// Returns the kind of the last event that tells the state of an instance.
    pub(crate) fn last_state(&self, instance: &str) -> Option<EventKind> {
        let kept = self.lock();
        let is_state = |event: &&Event| {
            let is_its = event.instance.as_deref() == Some(instance);
            is_its && matches!(event.kind, EventKind::State { .. } | EventKind::Deleted)
        };
        let last = kept.events.iter().rev().find(is_state);
        last.map(|event| event.kind.clone())
    }

    /// Returns what the last events say about the states of all instances.
    pub(crate) fn told(&self) -> Told {
        let kept = self.lock();
        let is_state =
            |kind: &EventKind| matches!(kind, EventKind::State { .. } | EventKind::Deleted);
        let states = kept.events.iter().filter(|event| is_state(&event.kind));
        // A later one replaces an earlier one.
        let named = states.filter_map(|event| Some((event.instance.clone()?, event.kind.clone())));
        Told {
            last: named.collect(),
            is_whole: kept.events.front().is_none_or(|event| event.seq == 1),
        }
    }

    /// Returns a value that changes with every event: the newest number.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A list and a number are valid even if the lock is poisoned.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use mkvmm_base::state::State;

    #[test]
    fn events_have_the_owner_of_their_instance_at_that_time() {
        let log = EventLog::default();
        let push = |kind| log.push(Some("a".to_owned()), kind);
        let lost = || EventKind::Lost { size: 1 };
        push(lost());
        for owner in [1000, 1001] {
            log.set_owner("a", owner);
            push(lost());
            push(EventKind::Deleted);
            push(lost());
        }
        let owners: Vec<Option<u32>> = log.since(0).iter().map(|event| event.uid).collect();
        let (one, two) = (Some(1000), Some(1001));
        assert_eq!(owners, [None, one, one, None, two, two, None]);
    }

    #[test]
    fn what_was_told_long_ago_is_known() {
        let log = EventLog::default();
        let ready = EventKind::State {
            state: State::Ready,
            reason: None,
        };
        assert!(!log.told().knows("a", &ready));
        log.push(Some("a".to_owned()), ready.clone());
        assert!(log.told().knows("a", &ready));
        assert!(!log.told().knows("a", &EventKind::Deleted));
        for _ in 0..KEPT {
            log.push(Some("b".to_owned()), EventKind::Deleted);
        }
        let told = log.told();
        assert!(told.knows("a", &ready), "it is among the first events");
        assert!(!told.knows("b", &ready));
    }

    #[test]
    fn numbers_have_no_gaps_and_old_events_go_first() {
        let log = EventLog::default();
        for _ in 0..KEPT + 10 {
            log.push(None, EventKind::Deleted);
        }
        let events = log.since(0);
        assert_eq!(events.len(), KEPT);
        assert_eq!(events[0].seq, 11);
        assert!(events.windows(2).all(|two| two[1].seq == two[0].seq + 1));
        assert_eq!(log.since(KEPT as u64 + 9).len(), 1);
        assert_eq!(*log.watch().borrow(), KEPT as u64 + 10);
    }
}
