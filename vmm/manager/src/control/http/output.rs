//! The route for what a guest has printed.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;

use crate::console::GuestConsole;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{NameParam, OutputQuery, Refusal, name};
use crate::registry::Registry;

/// What an instance has printed on its serial console, as far as it is kept, byte
/// for byte. A client that reads too slowly misses output.
#[utoipa::path(get, path = "/v1/instances/{name}/output",
    params(NameParam, OutputQuery),
    responses((status = 200, content_type = "application/octet-stream"), Refusal))]
pub async fn output(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<OutputQuery>, QueryRejection>,
) -> Result<Response, ControlError> {
    let name = name(path)?;
    let Query(query) = query?;
    let look = move |registry: &Registry| Ok(Arc::clone(registry.find(&name)?.console()));
    let console = api.client.look(look).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    let body = if query.follow {
        let following = Following::of(console, query.tail);
        Body::from_stream(stream::unfold(following, Following::next))
    } else {
        let (bytes, _) = console.since(0);
        Body::from(last_lines(bytes, query.tail))
    };
    Ok((headers, body).into_response())
}

/// A client that waits for output.
struct Following {
    printed: watch::Receiver<u64>,
    console: Arc<GuestConsole>,
    /// The position up to which everything was sent.
    position: u64,
    /// The number of lines to begin with, until they were sent.
    tail: Option<u32>,
    /// True once the instance is deleted.
    is_over: bool,
}

impl Following {
    fn of(console: Arc<GuestConsole>, tail: Option<u32>) -> Self {
        Self {
            printed: console.watch(),
            console,
            position: 0,
            tail,
            is_over: false,
        }
    }

    /// Returns the next output, or `None` after the last.
    async fn next(mut self) -> Option<(Result<Bytes, io::Error>, Self)> {
        loop {
            self.printed.mark_unchanged();
            let (bytes, end) = self.console.since(self.position);
            self.position = end;
            let bytes = last_lines(bytes, self.tail.take());
            if !bytes.is_empty() {
                return Some((Ok(bytes.into()), self));
            }
            if self.is_over {
                return None;
            }
            tokio::select! {
                // The sender is in the console, so this cannot fail.
                _ = self.printed.changed() => {}
                // The last output must still be sent.
                () = self.console.closed() => self.is_over = true,
            }
        }
    }
}

/// Returns the last `count` lines of `bytes`, of which the last may be
/// incomplete, or all if there is no count.
fn last_lines(mut bytes: Vec<u8>, count: Option<u32>) -> Vec<u8> {
    let Some(count) = count else {
        return bytes;
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 {
        return Vec::new();
    }
    // The line end of the last line begins no other.
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut ends = text.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    if let Some((end, _)) = ends.nth(count - 1) {
        bytes.drain(..=end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_of_whole_lines() {
        let of = |text: &str, count| {
            let tail = last_lines(text.as_bytes().to_vec(), count);
            String::from_utf8(tail).unwrap()
        };
        for (text, count, tail) in [
            ("a\nb\nc\n", None, "a\nb\nc\n"),
            ("a\nb\nc\n", Some(0), ""),
            ("a\nb\nc\n", Some(1), "c\n"),
            ("a\nb\nc", Some(2), "b\nc"),
            ("a\nb\n\n", Some(2), "b\n\n"),
            ("a\nb\n", Some(9), "a\nb\n"),
            ("", Some(1), ""),
        ] {
            assert_eq!(of(text, count), tail, "{count:?} of {text:?}");
        }
    }
}
