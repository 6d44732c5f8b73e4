//! Refusals, as clients see them: an HTTP status, a code, a message, help.

use axum::http::StatusCode;
use mkpool::pool::AllocError;
use mkpool::range::RangeError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::builder::BuildError;
use crate::control::bodies::SIZE_MAX;
use crate::control::debug::DebugError;
use crate::control::number::EXACT_MAX;
use crate::devices::console_log::LogError;
use crate::error_chain::chain;
use crate::host_pool::HostPoolError;
use crate::instance::NameError;
use crate::instance::state::State;
use crate::manager::ManagerError;
use crate::placement::PlacementError;
use crate::spec::{MAX_CPUS, ResolveError, SpecError};

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The manager said no.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The images cannot be used.
    #[error("the images")]
    Resolve(#[from] ResolveError),
    /// The description of the images cannot be read.
    #[error("the images")]
    Spec(#[from] SpecError),
    /// A name that no instance can have.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A guest cannot be looked into.
    #[error(transparent)]
    Debug(#[from] DebugError),
    /// A memory map cannot be built; see [`crate::boot::e820::build`].
    #[error("the memory map")]
    Range(#[from] RangeError),
    /// The body is no JSON.
    #[error("the body is no JSON")]
    Syntax(#[source] serde_json::Error),
    /// The body is JSON, but not what the route takes.
    #[error("the body is not what this route takes")]
    Data(#[source] serde_json::Error),
    /// The body is too long or broke off.
    #[error("the body is longer than {max} bytes, or broke off")]
    Body {
        /// The limit.
        max: usize,
    },
    /// The query is not what the route takes.
    #[error("the query is not what this route takes")]
    Query(#[from] axum::extract::rejection::QueryRejection),
    /// The path has a part that is not what it should be.
    #[error("the path")]
    Path(#[from] axum::extract::rejection::PathRejection),
    /// A value that cannot be.
    #[error("{field}={value} cannot be")]
    Value {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The route is there, but not for this method.
    #[error("this route does not know the method")]
    NoMethod,
    /// No such route.
    #[error("there is no such route")]
    NoRoute,
    /// The console is reached only by an upgrade of the connection.
    #[error("this route needs `Connection: upgrade` and `Upgrade: mkvmm-console`")]
    NoUpgrade,
    /// An image lies where no image may.
    #[error("{path} lies below no --image-dir")]
    ImageDir {
        /// The path.
        path: String,
    },
    /// An image cannot be opened by its path.
    #[error("{path} cannot be read")]
    ImagePath {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An image is no file; a pipe could keep its reader waiting for ever.
    #[error("{path} is not a regular file")]
    ImageKind {
        /// The path.
        path: String,
    },
    /// A file cannot be a console log.
    #[error("the console log")]
    Log(#[from] LogError),
    /// The VMM is ending.
    #[error("the VMM is ending")]
    Ending,
}

/// The JSON object of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorObject {
    /// One word for programs.
    pub code: String,
    /// One line for people.
    pub message: String,
    /// The nearest thing that would work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Bytes asked for, where the pool cannot hold them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<u64>,
    /// Free bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail: Option<u64>,
    /// The longest free extent, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_free: Option<u64>,
    /// The state the instance is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The verbs that its state allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legal: Option<Vec<String>>,
}

/// Numbers of a refusal by the pool.
type Room = (u64, u64, u64);

impl ControlError {
    fn pool(&self) -> Option<&HostPoolError> {
        match self {
            Self::Manager(ManagerError::Pool(error)) => Some(error),
            Self::Manager(ManagerError::Build { source, .. }) => match &**source {
                BuildError::Pool(error) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }

    /// Bytes requested, available, and in one piece, where there is no room.
    fn room(&self) -> Option<Room> {
        match self.pool()? {
            HostPoolError::Carve {
                memory,
                avail,
                largest_free,
                ..
            } => Some((*memory, *avail, *largest_free)),
            HostPoolError::Alloc(AllocError::NoRoom {
                requested,
                avail,
                largest_free,
                ..
            }) => Some((*requested, *avail, *largest_free)),
            _ => None,
        }
    }

    /// HTTP status and code.
    pub fn kind(&self) -> (StatusCode, &'static str) {
        const NO_ROOM: (StatusCode, &str) = (StatusCode::INSUFFICIENT_STORAGE, "no-room");
        const INVALID: (StatusCode, &str) = (StatusCode::UNPROCESSABLE_ENTITY, "invalid");
        if let Some(error) = self.pool() {
            return match error {
                HostPoolError::Carve { source, .. } => match source {
                    mkpool::instance::CreateError::BadOrder { .. }
                    | mkpool::instance::CreateError::ZeroSize { .. } => INVALID,
                    _ => NO_ROOM,
                },
                HostPoolError::TooManyRegions { .. }
                | HostPoolError::Placement(_)
                | HostPoolError::Alloc(AllocError::NoRoom { .. }) => NO_ROOM,
                HostPoolError::Alloc(_) => INVALID,
                HostPoolError::NoAllocation { .. } => (StatusCode::NOT_FOUND, "no-allocation"),
                HostPoolError::ControlBusy { .. } | HostPoolError::Published { .. } => {
                    (StatusCode::CONFLICT, "busy")
                }
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "vmm-failed"),
            };
        }
        match self {
            Self::Manager(ManagerError::Unknown { .. }) => (StatusCode::NOT_FOUND, "no-instance"),
            Self::Manager(ManagerError::Exists { .. }) => (StatusCode::CONFLICT, "exists"),
            Self::Manager(ManagerError::State { .. }) => (StatusCode::CONFLICT, "wrong-state"),
            Self::Manager(ManagerError::Build { source, .. }) => match &**source {
                BuildError::Cmdline(_) => INVALID,
                BuildError::PageTables(_) | BuildError::BootParams(_) => NO_ROOM,
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "vmm-failed"),
            },
            Self::Log(LogError::Taken { .. }) => (StatusCode::CONFLICT, "busy"),
            Self::Resolve(ResolveError::File { .. } | ResolveError::Log { .. })
            | Self::Log(_)
            | Self::ImageDir { .. }
            | Self::ImagePath { .. }
            | Self::ImageKind { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "file"),
            Self::Spec(SpecError::NoKernel) => (StatusCode::UNPROCESSABLE_ENTITY, "no-kernel"),
            Self::Spec(SpecError::Affinity(_))
            | Self::Resolve(ResolveError::Spec(SpecError::Affinity(_))) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "affinity")
            }
            Self::Resolve(ResolveError::Spec(_))
            | Self::Spec(_)
            | Self::Data(_)
            | Self::Value { .. } => INVALID,
            Self::Name(_) => (StatusCode::UNPROCESSABLE_ENTITY, "name"),
            Self::Debug(error) => error.kind(),
            Self::Syntax(_) | Self::Query(_) | Self::Path(_) | Self::NoUpgrade => {
                (StatusCode::BAD_REQUEST, "bad-request")
            }
            Self::Body { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::NoMethod => (StatusCode::METHOD_NOT_ALLOWED, "no-method"),
            Self::NoRoute => (StatusCode::NOT_FOUND, "no-route"),
            Self::Range(_)
            | Self::Ending
            | Self::Manager(ManagerError::Pool(_) | ManagerError::Memory(_)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "vmm-failed")
            }
        }
    }

    /// The nearest thing that would work.
    pub fn help(&self) -> Option<String> {
        if let Some(HostPoolError::Placement(PlacementError::NoRoom { needed, .. })) = self.pool() {
            let mib = needed.map(|bytes| bytes.div_ceil(1 << 20));
            return mib.map(|mib| format!("a memory of {mib}M is the least for these images"));
        }
        if let Some((_, avail, largest)) = self.room() {
            return Some(format!(
                "{avail} bytes are free, {largest} of them in one piece"
            ));
        }
        match self {
            Self::Manager(ManagerError::State { state, .. }) => {
                Some(format!("legal now: {}", legal(*state).join(", ")))
            }
            Self::Manager(ManagerError::Exists { .. }) => {
                Some("delete it first, or choose another name".to_owned())
            }
            Self::Resolve(ResolveError::Spec(error)) | Self::Spec(error) => error.help(),
            Self::Debug(error) => error.help(),
            Self::Value { field: "since", .. } => Some(format!("at most {EXACT_MAX}")),
            Self::Value { field, .. } if *field != "cpus" => {
                Some(format!("at most {SIZE_MAX} bytes"))
            }
            Self::Value { .. } => Some(format!("1 to {MAX_CPUS} vCPUs")),
            _ => None,
        }
    }

    /// The object that is sent.
    pub fn body(&self) -> ErrorBody {
        let room = self.room();
        let state = match self {
            Self::Manager(ManagerError::State { state, .. }) => Some(*state),
            Self::Debug(error) => error.state(),
            _ => None,
        };
        ErrorBody {
            error: ErrorObject {
                code: self.kind().1.to_owned(),
                message: chain(self),
                help: self.help(),
                requested: room.map(|r| r.0),
                avail: room.map(|r| r.1),
                largest_free: room.map(|r| r.2),
                state: state.map(|state| state.to_string()),
                legal: state.map(legal),
            },
        }
    }
}

fn legal(state: State) -> Vec<String> {
    state.legal().map(|verb| verb.to_string()).collect()
}
