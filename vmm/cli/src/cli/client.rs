//! The client's side of the control socket: one request, one response.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use log::LevelFilter;
use serde::Serialize;
use tokio::net::UnixStream;

use crate::cli::find_socket;
use crate::error::CliError;
use mkvmm_api::{ErrorBody, ErrorObject};
use mkvmm_base::{Class, Diagnose};

/// An error of a request, or a refusal by the VMM.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the control socket.
    #[error("no VMM answers at {}", .path.display())]
    Connect {
        /// The path of the socket.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The host has run out of file descriptors.
    #[error("the connection cannot be set up")]
    Runtime(#[source] io::Error),
    /// The connection was closed or reset.
    #[error("the connection to mkvmm broke")]
    Http(#[from] hyper::Error),
    /// The request cannot be encoded.
    #[error("the request cannot be encoded")]
    Request(#[from] hyper::http::Error),
    /// The VMM refused the request.
    #[error("{}", .0.message)]
    Refused(Box<ErrorObject>),
    /// The response was not sent by mkvmm.
    #[error("mkvmm answered with status {status}")]
    Answer {
        /// The HTTP status of the response.
        status: u16,
    },
    /// A body that should be JSON is not.
    #[error("invalid JSON")]
    Json(#[source] serde_json::Error),
}

impl Diagnose for ClientError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(error) => error.code,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Class::VmmFailed
            }
            Self::Connect { .. } | Self::Http(_) => Class::Lost,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { path, source } => Some(find_socket::advice(path, source)),
            Self::Refused(error) => error.help.clone(),
            _ => None,
        }
    }

    fn told(&self) -> Option<&[String]> {
        match self {
            Self::Refused(error) => Some(&error.causes),
            _ => None,
        }
    }
}

/// Options of every command that talks to a running VMM.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The control socket [default: $MKVMM_SOCKET, $XDG_RUNTIME_DIR/mkvmm.sock or
    /// /run/mkvmm.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print exactly the JSON that the VMM sends, also that of an error
    #[arg(long)]
    pub json: bool,
    /// If there is an error, print each of its causes, down to the last one
    #[arg(short, long)]
    pub verbose: bool,
}

/// A request as text: method, path with query, a header, and body.
#[derive(Debug)]
pub struct Call<'a> {
    pub method: &'a str,
    pub path: String,
    /// A header with its value, if there is to be one.
    pub header: Option<(&'static str, &'static str)>,
    pub body: Option<String>,
}

impl<'a> Call<'a> {
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            header: None,
            body: None,
        }
    }

    pub fn new(method: &'a str, path: String) -> Self {
        Self {
            method,
            path,
            header: None,
            body: None,
        }
    }

    /// Adds a JSON body.
    pub fn with(mut self, body: &impl Serialize) -> Result<Self, ClientError> {
        self.body = Some(serde_json::to_string(body).map_err(ClientError::Json)?);
        Ok(self)
    }
}

impl ClientArgs {
    /// Returns the arguments that name this socket, or the default one.
    pub const fn maybe(socket: Option<PathBuf>) -> Self {
        Self {
            socket,
            json: false,
            verbose: false,
        }
    }

    /// Returns the arguments that name the socket at `path`.
    pub fn of(path: &Path) -> Self {
        Self {
            socket: Some(path.to_owned()),
            json: false,
            verbose: false,
        }
    }

    /// Returns the path of the VMM's control socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(find_socket::of_clients)
    }

    /// Sends `call` and returns the text of the response.
    pub fn call(&self, call: Call<'_>) -> Result<String, CliError> {
        let socket = self.socket();
        if self.verbose {
            log::set_max_level(LevelFilter::Debug);
        }
        block_on(async { Ok(ask(&socket, call).await?) })
    }

    /// Sends `call` and passes the text of the response on as it arrives.
    pub fn stream(
        &self,
        call: Call<'_>,
        mut print: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let socket = self.socket();
        block_on(async {
            let mut body = open(&socket, call).await?;
            while let Some(frame) = body.frame().await {
                if let Some(data) = frame.map_err(ClientError::from)?.data_ref() {
                    print(data)?;
                }
            }
            Ok(())
        })
    }
}

/// Sends `call` to the VMM at `socket`; returns the text of the response.
pub async fn ask(socket: &Path, call: Call<'_>) -> Result<String, ClientError> {
    let body = open(socket, call).await?;
    let bytes = body.collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Sends `call` to the VMM at `socket`; returns the body of the response, which
/// may still be arriving.
pub async fn open(socket: &Path, call: Call<'_>) -> Result<Incoming, ClientError> {
    let mut sender = connect(socket).await?;
    let answer = sender.send_request(request(call, None)?).await?;
    Ok(accepted(answer).await?.into_body())
}

/// Runs `future` on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientError::Runtime)?;
    runtime.block_on(future)
}

/// Connects to the socket and spawns a task that drives the connection.
pub async fn connect(socket: &Path) -> Result<SendRequest<Full<Bytes>>, ClientError> {
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
pub fn request(
    call: Call<'_>,
    protocol: Option<&str>,
) -> Result<Request<Full<Bytes>>, ClientError> {
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
pub async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
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
