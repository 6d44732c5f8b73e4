//! The socket for metrics: HTTP over TCP, for programs such as Prometheus, which
//! cannot use the control socket. It serves `/metrics` and nothing else.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use mkvmm_base::{Class, Diagnose};
use tokio::net::TcpListener;

use crate::control::connections::{self, Peer, Timeouts};
use crate::control::error::ControlError;
use crate::control::http::{Api, scrape};
use crate::control::places::Places;

/// The maximum number of connected clients: one scraper, its spare, and people. A
/// silent one makes way for the next.
pub const SCRAPERS: usize = 4;
/// The limit for a request, and for idle connections: longer than the interval of
/// usual scrapers, which keep their connections.
const TIMEOUTS: Timeouts = Timeouts {
    head: Duration::from_secs(300),
    body: Duration::from_secs(5),
};
/// The time to wait before accepting again when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("--metrics-listen {address}")]
pub struct MetricsSocketError {
    /// The address that was to be listened at.
    address: SocketAddr,
    /// The underlying error.
    #[source]
    source: io::Error,
}

impl Diagnose for MetricsSocketError {
    fn class(&self) -> Class {
        match self.source.kind() {
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::PermissionDenied => Class::Invalid,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self.source.kind() {
            io::ErrorKind::AddrInUse => "another program listens there; name another port",
            io::ErrorKind::AddrNotAvailable => "name an address of this host, such as 127.0.0.1",
            io::ErrorKind::PermissionDenied => "name a port from 1024 on",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// A listening socket for metrics.
#[derive(Debug)]
pub struct MetricsSocket {
    listener: StdListener,
    address: SocketAddr,
}

impl MetricsSocket {
    /// Listens at `address`; port 0 is any that is free.
    ///
    /// # Errors
    /// Returns a [`MetricsSocketError`].
    pub fn listen(address: SocketAddr) -> Result<Self, MetricsSocketError> {
        let listen = || {
            let listener = StdListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        listen().map_err(|source| MetricsSocketError { address, source })
    }

    /// Returns the address at which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves metrics for the lifetime of the process. Must be called in a tokio
    /// runtime.
    pub(super) async fn serve(self, api: Api) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                log::error!("the socket for metrics failed: {error}");
                return;
            }
        };
        let router = Router::new()
            .route("/metrics", get(scrape))
            .fallback(|| async { ControlError::NoRoute })
            .method_not_allowed_fallback(|| async { ControlError::NoMethod })
            .with_state(api);
        let places = Places::new(SCRAPERS);
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::warn!("no scraper can be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Beyond the limit, whoever comes is disconnected.
            if let Ok(place) = places.take(None) {
                let (router, peer) = (router.clone(), Peer::default());
                tokio::spawn(connections::converse(stream, peer, router, place, TIMEOUTS));
            }
        }
    }
}
