//! Connections to the control socket, for programs with a runtime of tokio: each has one
//! request and its response, or becomes a stream of bytes in both directions.

use std::future::Future;
use std::io;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use mkvmm_api::ErrorBody;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::call::Call;
use crate::error::ClientError;

/// A connection that is a stream of bytes now.
pub type Stream = TokioIo<Upgraded>;

/// The body of a response, which may still be arriving.
#[derive(Debug)]
pub struct Body(Incoming);

impl Body {
    /// Waits for the next bytes; returns `None` after the last. Nothing is lost if the
    /// future is dropped before it is ready.
    ///
    /// # Errors
    /// Returns [`ClientError::Http`] if the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.0.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// Runs `future` on a runtime of its own.
///
/// # Errors
/// Returns [`ClientError::Runtime`], or the error of `future`.
pub fn block_on<T, E: From<ClientError>>(
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    runtime()?.block_on(future)
}

/// Returns a runtime for one connection.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientError::Runtime)
}

/// Checks whether a VMM listens at `socket`.
///
/// # Errors
/// Returns [`ClientError::Connect`] if none does.
pub async fn reach(socket: &Path) -> Result<(), ClientError> {
    connect(socket).await.map(drop)
}

/// Sends `call` to the VMM at `socket`; returns the text of the response.
///
/// # Errors
/// Returns a [`ClientError`], above all [`ClientError::Refused`].
pub async fn ask(socket: &Path, call: Call<'_>) -> Result<String, ClientError> {
    let body = open(socket, call).await?;
    let bytes = body.0.collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Sends `call` to the VMM at `socket`; returns the object of the response.
///
/// # Errors
/// Returns a [`ClientError`], above all [`ClientError::Refused`].
pub async fn ask_for<T: DeserializeOwned>(socket: &Path, call: Call<'_>) -> Result<T, ClientError> {
    let text = ask(socket, call).await?;
    serde_json::from_str(&text).map_err(ClientError::Json)
}

/// Sends `call` to the VMM at `socket`; returns the body of the response.
///
/// # Errors
/// Returns a [`ClientError`], above all [`ClientError::Refused`].
pub async fn open(socket: &Path, call: Call<'_>) -> Result<Body, ClientError> {
    let mut sender = connect(socket).await?;
    let answer = sender.send_request(request(call, None)?).await?;
    Ok(Body(accepted(answer).await?.into_body()))
}

/// Sends `call` to the VMM at `socket`, and upgrades the connection to `protocol`.
///
/// # Errors
/// Returns a [`ClientError`], above all [`ClientError::Refused`].
pub async fn upgrade(socket: &Path, call: Call<'_>, protocol: &str) -> Result<Stream, ClientError> {
    let mut sender = connect(socket).await?;
    let answer = sender.send_request(request(call, Some(protocol))?).await?;
    let answer = accepted(answer).await?;
    Ok(TokioIo::new(hyper::upgrade::on(answer).await?))
}

/// Connects to the socket and spawns a task that drives the connection.
async fn connect(socket: &Path) -> Result<SendRequest<Full<Bytes>>, ClientError> {
    let failed = |source: io::Error| ClientError::Connect {
        path: socket.to_owned(),
        source,
    };
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            log::debug!("control connection: {error}");
        }
    });
    Ok(sender)
}

/// Builds the request, with an upgrade to `protocol` if one is given.
fn request(call: Call<'_>, protocol: Option<&str>) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut builder = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header("host", "mkvmm");
    if let Some(protocol) = protocol {
        builder = builder
            .header("connection", "upgrade")
            .header("upgrade", protocol);
    }
    if let Some((name, value)) = call.header {
        builder = builder.header(name, value);
    }
    if call.body.is_some() {
        builder = builder.header("content-type", "application/json");
    }
    let body = call.body.map(Bytes::from).unwrap_or_default();
    Ok(builder.body(Full::new(body))?)
}

/// Returns the response, or the error that a refusal carries.
async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = answer.status();
    if status.is_success() || status.is_informational() {
        return Ok(answer);
    }
    let status = status.as_u16();
    let bytes = answer.into_body().collect().await?.to_bytes();
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => Err(ClientError::Refused(Box::new(body.error))),
        Err(_no_mkvmm) => Err(ClientError::Answer { status }),
    }
}
