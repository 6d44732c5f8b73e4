//! The events of a VMM, as they arrive.
//!
//! They are sent as server-sent events: HTML Living Standard, section 9.2.6. The data of
//! each is one line.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use mkvmm_api::events::Event;

use crate::call::{Call, escape};
use crate::connection::{Body, open};
use crate::error::ClientError;

/// How long to wait before events are asked for again, after their end: the VMM is being
/// upgraded, or gone.
pub const RECONNECT: Duration = Duration::from_millis(100);

/// Where events begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// After the event with this number; after 0 are all that the VMM has kept.
    Event(u64),
    /// With the next that happens.
    Now,
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(number) => write!(f, "{number}"),
            Self::Now => f.write_str("now"),
        }
    }
}

/// A text is neither `now` nor the number of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a number or `now`")]
pub struct NoEvent;

impl FromStr for Since {
    type Err = NoEvent;

    fn from_str(text: &str) -> Result<Self, NoEvent> {
        match text {
            "now" => Ok(Self::Now),
            _ => text.parse().map(Self::Event).map_err(|_no_number| NoEvent),
        }
    }
}

/// Returns the request of events: of the instance `name`, or of all; those that are
/// there, or also those to come.
#[must_use]
pub fn request(since: Since, name: Option<&str>, follow: bool) -> Call<'static> {
    let name = name.map_or_else(String::new, |name| format!("&name={}", escape(name)));
    Call::get(format!("/v1/events?since={since}&follow={follow}{name}"))
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    body: Body,
    frames: Frames,
}

impl Events {
    /// Opens the stream that [`request`] describes.
    ///
    /// # Errors
    /// Returns the errors of the request.
    pub async fn open(
        socket: &Path,
        since: Since,
        name: Option<&str>,
        follow: bool,
    ) -> Result<Self, ClientError> {
        let body = open(socket, request(since, name, follow)).await?;
        let frames = Frames::default();
        Ok(Self { body, frames })
    }

    /// Waits for events; returns all that have arrived together, or `None` after the
    /// last. No event is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    /// Returns [`ClientError::Http`] if the connection breaks, and [`ClientError::Json`]
    /// if one of the events is of a later version.
    pub async fn arrived(&mut self) -> Result<Option<Vec<Event>>, ClientError> {
        while let Some(bytes) = self.body.next().await? {
            let data = self.frames.push(&bytes);
            if !data.is_empty() {
                let events = data.iter().map(|event| serde_json::from_slice(event));
                let events: Result<Vec<Event>, _> = events.collect();
                return events.map(Some).map_err(ClientError::Json);
            }
        }
        Ok(None)
    }
}

/// Returns the number of the newest event, or 0.
///
/// # Errors
/// Returns the errors of the request.
pub async fn newest(socket: &Path) -> Result<u64, ClientError> {
    let mut events = Events::open(socket, Since::Event(0), None, false).await?;
    let mut newest = 0;
    while let Some(arrived) = events.arrived().await? {
        newest = arrived.last().map_or(newest, |event| event.seq);
    }
    Ok(newest)
}

/// Collects what arrives, and returns the data of complete events.
#[derive(Debug, Default)]
pub struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    /// Adds bytes, which may end anywhere; returns the data of the events that
    /// they complete, without line ends.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.pending.extend_from_slice(bytes);
        let Some(end) = self.pending.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let lines: Vec<u8> = self.pending.drain(..=end).collect();
        let lines = lines.split(|&byte| byte == b'\n');
        let data = lines.filter_map(|line| line.strip_prefix(b"data: "));
        data.map(<[u8]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_arrives_in_any_number_of_pieces() {
        let mut frames = Frames::default();
        assert!(frames.push(b"id: 1\ndata: {\"a").is_empty());
        assert_eq!(frames.push(b"\":1}\n\nid: 2\n"), [b"{\"a\":1}".to_vec()]);
        assert_eq!(
            frames.push(b"data: x\n\n:\n\ndata: y\n"),
            [b"x".to_vec(), b"y".to_vec()]
        );
    }

    #[test]
    fn events_begin_after_a_number_or_now() {
        assert_eq!("now".parse(), Ok(Since::Now));
        assert_eq!("7".parse(), Ok(Since::Event(7)));
        assert_eq!("-7".parse::<Since>(), Err(NoEvent));
        let path = request(Since::Now, Some("a&b"), true).path;
        assert_eq!(path, "/v1/events?since=now&follow=true&name=a%26b");
    }
}
