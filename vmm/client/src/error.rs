//! The errors of a client.

use std::io;
use std::path::PathBuf;

use mkvmm_api::ErrorObject;
use mkvmm_base::{Class, Diagnose};

use crate::socket;

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
    /// A console's or a lease's connection was closed or reset.
    #[error("the connection to mkvmm broke")]
    Stream(#[source] io::Error),
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
            Self::Connect { .. } | Self::Http(_) | Self::Stream(_) => Class::Lost,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { source, .. } => Some(socket::advice(source).to_owned()),
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
