//! Connections: their maximum number and their timeouts.
//!
//! An idle client does not keep others out: when all places are in use, the
//! connection that has been idle longest is closed in favour of the new one.
//! Only if every other client is being served is a new one refused, with 503.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service;

use crate::control::error::ControlError;
use crate::control::http::received;
use crate::control::places::{Answering, Place, Places};

/// The timeouts of clients.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The limit for the head of a request, and for idle connections.
    pub head: Duration,
    /// The limit for the body of a request.
    pub body: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(60),
            body: Duration::from_secs(30),
        }
    }
}

/// The maximum number of clients that are being refused at once; further ones
/// are just disconnected.
const REFUSALS: usize = 8;
/// The time within which a refused client must read the refusal.
const REFUSAL: Duration = Duration::from_secs(1);
/// The time to wait before accepting again when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Who may connect.
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    /// The maximum number of clients.
    pub limit: usize,
    /// True if whoever can open the socket may connect, and not only our own user
    /// and root.
    pub is_shared: bool,
}

/// Serves `router` to those of `clients`.
pub async fn serve(listener: UnixListener, router: Router, clients: Clients, timeouts: Timeouts) {
    let places = Places::new(clients.limit);
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("no client can be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let peer = match stream.peer_cred() {
            Ok(peer) if clients.is_shared || is_trusted(peer.uid()) => Peer {
                pid: peer.pid().unwrap_or_default(),
                user: (!is_trusted(peer.uid())).then_some(peer.uid()),
            },
            Ok(peer) => {
                log::warn!("user {} is refused", peer.uid());
                continue;
            }
            Err(error) => {
                log::warn!("a client is refused: {error}");
                continue;
            }
        };
        match places.take(peer.user) {
            Ok(place) => drop(tokio::spawn(converse(
                stream,
                peer,
                router.clone(),
                place,
                timeouts,
            ))),
            Err(limit) => {
                if let Ok(turn) = Arc::clone(&refusals).try_acquire_owned() {
                    tokio::spawn(refuse(stream, limit, turn));
                }
            }
        }
    }
}

/// Returns whether a user has all rights: the one of this process, who could do
/// everything without it, and root.
fn is_trusted(user: u32) -> bool {
    [geteuid().as_raw(), 0].contains(&user)
}

/// A client, as the kernel describes it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peer {
    /// The number of its process; 0 where it cannot be seen from here.
    pub pid: i32,
    /// Its user, if that has no rights to the instances of others.
    pub user: Option<u32>,
}

/// Serves a client until it disconnects, times out, or its place is needed.
pub(super) async fn converse<S>(
    stream: S,
    peer: Peer,
    router: Router,
    place: Place,
    timeouts: Timeouts,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::new(place);
    let kept = Arc::clone(&place);
    let answer = service_fn(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(peer);
        answer(router.clone(), Arc::clone(&place), timeouts.body, request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    tokio::select! {
        served = connection => if let Err(error) = served {
            log::debug!("a client left early: {error}");
        },
        () = kept.needed() => {}
    }
}

async fn answer(
    mut router: Router,
    place: Arc<Place>,
    limit: Duration,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<Response, Infallible> {
    let request: Request = request.map(Body::new);
    let request = tokio::time::timeout(limit, received(request)).await;
    let answering = Answering::begin(&place);
    let response = match request {
        Ok(Ok(mut request)) => {
            request.extensions_mut().insert(answering.clone());
            match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Ok(Err(error)) => error.into_response(),
        Err(_elapsed) => ControlError::Slow { limit }.into_response(),
    };
    Ok(response.map(|body| Body::new(Answered { body, answering })))
}

/// A body that keeps its client's place until it has been sent.
struct Answered {
    body: Body,
    #[expect(dead_code, reason = "kept, and dropped with the body")]
    answering: Answering,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Tells a client that there is no place for it.
async fn refuse(stream: UnixStream, limit: usize, turn: OwnedSemaphorePermit) {
    let answer = service_fn(move |_request| async move {
        Ok::<_, Infallible>(ControlError::Crowded { limit }.into_response())
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    // The client is refused, regardless of the result.
    let _ = tokio::time::timeout(REFUSAL, connection).await;
    drop(turn);
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
