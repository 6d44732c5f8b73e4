//! Routes with unlimited responses: events and consoles.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mkvmm_wire::ready::Hangup;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use utoipa::ToSchema;

use crate::console::GuestConsole;
use crate::control::client;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{ConsoleQuery, EventsQuery, NameParam, Refusal, Since, name};
use crate::control::http::upgrades::asks_for;
use crate::control::places::Answering;
use crate::event_log::{Event, EventLog};
use crate::registry::Registry;
use mkvmm_api::CONSOLE_PROTOCOL;
use mkvmm_api::number::EXACT_MAX;
use mkvmm_base::InstanceName;

struct Following {
    log: Arc<EventLog>,
    ready: VecDeque<Event>,
    seen: u64,
    /// The instance whose events are wanted, if not all.
    name: Option<InstanceName>,
    /// The owner whose instances' events are wanted, if not all.
    owner: Option<u32>,
    newest: tokio::sync::watch::Receiver<u64>,
    follow: bool,
}

impl Following {
    fn is_wanted(&self, event: &Event) -> bool {
        let of = event.instance.as_deref();
        let is_its = |name: &InstanceName| of == Some(name.as_str());
        let is_owners = self.owner.is_none() || self.owner == event.uid;
        is_owners && self.name.as_ref().is_none_or(is_its)
    }

    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.seen = event.seq;
                if !self.is_wanted(&event) {
                    continue;
                }
                let frame = sse::Event::default().id(event.seq.to_string());
                // Plain data can always be converted to JSON.
                let frame = frame.json_data(&event).unwrap_or_default();
                return Some((Ok(frame), self));
            }
            self.ready = self.log.since(self.seen).into();
            if self.ready.is_empty() && (!self.follow || self.newest.changed().await.is_err()) {
                return None;
            }
        }
    }
}

/// The format of one server-sent event.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a frame, is never one")]
pub struct EventFrame {
    /// The number of the event.
    id: String,
    /// The event, an `Event` object as JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// Events as server-sent events; a gap in the numbers means that older events
/// had been dropped before the request.
#[utoipa::path(get, path = "/v1/events", params(EventsQuery),
    responses((status = 200, body = EventFrame, content_type = "text/event-stream"), Refusal))]
pub async fn events(
    State(api): State<Api>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, ControlError> {
    let Query(query) = query?;
    let newest = api.log.watch();
    let seen = match query.since {
        Since::Number(since) if since > EXACT_MAX => return Err(ControlError::Since { since }),
        Since::Number(since) => since,
        Since::Now => *newest.borrow(),
    };
    let following = Following {
        newest,
        log: api.log,
        ready: VecDeque::new(),
        seen,
        name: query.name,
        owner: client::user(),
        follow: query.follow,
    };
    let events = stream::unfold(following, Following::next);
    let answer = Sse::new(events).keep_alive(KeepAlive::default());
    Ok(answer.into_response())
}

/// An instance's console: the connection becomes a stream of bytes. Output that
/// the ring has kept comes first.
#[utoipa::path(get, path = "/v1/instances/{name}/console",
    params(NameParam, ConsoleQuery),
    responses((status = 101, description = "a raw stream in both directions"), Refusal))]
pub async fn console(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<ConsoleQuery>, QueryRejection>,
    mut request: Request,
) -> Result<Response, ControlError> {
    let name = name(path)?;
    let number = query?.number;
    let look = move |registry: &Registry| {
        let console = registry.find(&name)?.consoles().nth(number.into());
        Ok(Arc::clone(
            console.ok_or(ControlError::NoConsole { number })?,
        ))
    };
    let console = api.client.look(look).await?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (Some(upgrade), true) = (upgrade, asks_for(&request, CONSOLE_PROTOCOL)) else {
        return Err(ControlError::NoUpgrade {
            protocol: CONSOLE_PROTOCOL,
        });
    };
    // The connection belongs to this task now, and so does its place.
    let place = request.extensions_mut().remove::<Answering>();
    tokio::spawn(async move {
        let served = match upgrade.await.map(Upgraded::downcast::<TokioIo<UnixStream>>) {
            Ok(Ok(parts)) => serve_console(parts.io.into_inner(), &parts.read_buf, &console).await,
            Ok(Err(_other)) => Err(io::ErrorKind::Unsupported.into()),
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = served {
            log::debug!("a console client left early: {error}");
        }
        drop(place);
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, CONSOLE_PROTOCOL),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Copies until the client disconnects, or the instance is deleted. A slow
/// client misses output instead of delaying others; fast input waits for the
/// guest.
async fn serve_console(
    mut stream: UnixStream,
    typed_early: &[u8],
    console: &GuestConsole,
) -> io::Result<()> {
    // A client may close its sending half and continue to read, as `curl` and
    // shells with an empty input do: only a full hang-up is its end.
    let hangup = Hangup::new(stream.as_fd().try_clone_to_owned()?)?;
    let (mut reader, mut writer) = stream.split();
    let input = async {
        type_all(typed_early, console).await;
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            type_all(buffer.get(..count).unwrap_or_default(), console).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        written = print_all(&mut writer, console) => written,
        () = input => Ok(()),
        hung_up = hangup.wait() => hung_up,
    }
}

/// Writes all past and future output, until the instance is deleted.
async fn print_all(
    writer: &mut (impl AsyncWriteExt + Unpin),
    console: &GuestConsole,
) -> io::Result<()> {
    let mut printed = console.watch();
    let mut position = 0;
    let mut is_over = false;
    loop {
        printed.mark_unchanged();
        let (bytes, end) = console.since(position);
        position = end;
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        if is_over {
            return Ok(());
        }
        tokio::select! {
            // The sender is in the console, so this cannot fail.
            _ = printed.changed() => {}
            // The last output must still be written.
            () = console.closed() => is_over = true,
        }
    }
}

async fn type_all(mut left: &[u8], console: &GuestConsole) {
    while !left.is_empty() {
        let taken = console.type_in(left);
        left = left.get(taken..).unwrap_or_default();
        if taken == 0 {
            console.room().await;
        }
    }
}
