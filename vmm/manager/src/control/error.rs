//! Errors of the control socket, and the HTTP status of each class.

use std::time::Duration;

use axum::http::StatusCode;
use mkpool::range::RangeError;
use mkvmm_api::SpecError;
use mkvmm_api::number::EXACT_MAX;
use mkvmm_base::{Class, Diagnose, Room};
use mkvmm_keeper::cgroup::CgroupError;

use crate::channels::ChannelError;
use crate::console_log::LogError;
use crate::control::apply_error::ApplyError;
use crate::control::debug::error::DebugError;
use crate::devices::DeviceError;
use crate::life::LifeError;
use crate::registry::RegistryError;
use crate::resolve::ResolveError;
use crate::upgrade::UpgradeError;
use mkvmm_base::NameError;
use mkvmm_base::state::State;

/// A reason why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The manager refused it.
    #[error(transparent)]
    Life(#[from] LifeError),
    /// The images cannot be used.
    #[error("the images")]
    Resolve(#[from] ResolveError),
    /// The specification of the instance is invalid.
    #[error("the instance")]
    Spec(#[from] SpecError),
    /// The name is not valid for an instance.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A fleet could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Another program does not take over.
    #[error("upgrade")]
    Upgrade(#[from] UpgradeError),
    /// The guest cannot be inspected.
    #[error(transparent)]
    Debug(#[from] DebugError),
    /// A memory map cannot be built; see [`mkvmm_memory::e820::build`].
    #[error("the memory map")]
    Range(#[from] RangeError),
    /// The body is not JSON.
    #[error("the body is not JSON")]
    Syntax(#[source] serde_json::Error),
    /// The body is JSON, but not valid for the route.
    #[error("the body is not valid for this route")]
    Data(#[source] serde_json::Error),
    /// The body is too long.
    #[error("the body is longer than {max} bytes")]
    Body {
        /// The maximum size of a body in bytes.
        max: usize,
    },
    /// The body broke off, or its chunks are none.
    #[error("the body broke off, or is not in the chunks that it should be in")]
    Broken(#[source] axum::Error),
    /// The body did not come.
    #[error("the request did not arrive within {} s", .limit.as_secs())]
    Slow {
        /// The time limit for the body.
        limit: Duration,
    },
    /// The maximum number of clients is connected, and all are being served.
    #[error("{limit} clients are connected, which is the limit, and none of them is idle")]
    Crowded {
        /// The maximum number of connected clients.
        limit: usize,
    },
    /// The maximum number of requests is in progress, some of them of clients
    /// that disconnected.
    #[error("{limit} requests are in progress, which is the limit")]
    Requests {
        /// The maximum number of requests in progress, or a share of it.
        limit: usize,
    },
    /// A plan has too many instances or channels.
    #[error("the plan has {count} entries of one kind, exceeding the limit of {limit}")]
    PlanSize {
        /// The number of instances or channels in the plan.
        count: usize,
        /// The maximum number of them in a plan.
        limit: usize,
    },
    /// The query is not valid for the route.
    #[error("the query is not valid for this route")]
    Query(#[from] axum::extract::rejection::QueryRejection),
    /// A part of the path is invalid.
    #[error("the path")]
    Path(#[from] axum::extract::rejection::PathRejection),
    /// The number of an event exceeds what JSON represents exactly.
    #[error("since={since} is out of range (0..={EXACT_MAX})")]
    Since {
        /// The number that was requested.
        since: u64,
    },
    /// The route does not support this method.
    #[error("this route does not support the method")]
    NoMethod,
    /// There is no such route.
    #[error("there is no such route")]
    NoRoute,
    /// The route requires an upgrade of the connection.
    #[error("this route needs `Connection: upgrade` and `Upgrade: {protocol}`")]
    NoUpgrade {
        /// The protocol of the upgraded connection.
        protocol: &'static str,
    },
    /// The cgroup that an instance is to be in is not there.
    #[error("the cgroup")]
    Cgroup(#[from] CgroupError),
    /// The client's process is not to be seen from here.
    #[error("the cgroup of a process in another pid namespace is not known here")]
    NoPeer,
    /// A file cannot be used as a console log.
    #[error("the console log")]
    Log(#[from] LogError),
    /// The channel cannot be had.
    #[error("the channel")]
    Channel(#[from] ChannelError),
    /// What a device needs cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The instance has no console with this number.
    #[error("the instance has no console {number}")]
    NoConsole {
        /// The number that was given.
        number: u8,
    },
    /// The client has not the rights of this VMM's user.
    #[error("only the user of this VMM, and root, may {what}")]
    Forbidden {
        /// What the client wanted to do.
        what: &'static str,
    },
    /// The VMM is shutting down.
    #[error("the VMM is shutting down")]
    Ending,
}

impl From<RegistryError> for ControlError {
    fn from(error: RegistryError) -> Self {
        Self::Life(error.into())
    }
}

impl ControlError {
    /// Returns the underlying error that has a class and a hint, if there is
    /// one.
    fn inner(&self) -> Option<&dyn Diagnose> {
        Some(match self {
            Self::Life(error) => error,
            Self::Resolve(error) => error,
            Self::Spec(error) => error,
            Self::Apply(error) => error,
            Self::Upgrade(error) => error,
            Self::Debug(error) => error,
            Self::Log(error) => error,
            Self::Device(error) => error,
            Self::Channel(error) => error,
            _ => return None,
        })
    }
}

impl Diagnose for ControlError {
    fn class(&self) -> Class {
        if let Some(error) = self.inner() {
            return error.class();
        }
        match self {
            Self::Name(_) => Class::Name,
            Self::Data(_) | Self::Since { .. } => Class::Invalid,
            Self::NoConsole { .. } => Class::NoConsole,
            Self::Cgroup(_) | Self::NoPeer => Class::Cgroup,
            Self::Syntax(_)
            | Self::Broken(_)
            | Self::Query(_)
            | Self::Path(_)
            | Self::NoUpgrade { .. } => Class::BadRequest,
            Self::Body { .. } | Self::PlanSize { .. } => Class::TooLarge,
            Self::Slow { .. } => Class::BadRequest,
            Self::Crowded { .. } | Self::Requests { .. } => Class::Overload,
            Self::Forbidden { .. } => Class::Forbidden,
            Self::NoMethod => Class::NoMethod,
            Self::NoRoute => Class::NoRoute,
            Self::Ending => Class::Lost,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Crowded { .. } => Some(
                "try again, detach a console or an event stream, or raise serve's --connections"
                    .to_owned(),
            ),
            Self::Requests { .. } => Some("try again when some are finished".to_owned()),
            Self::PlanSize { .. } => Some("plan the instances in several parts".to_owned()),
            _ => self.inner()?.hint(),
        }
    }

    fn room(&self) -> Option<Room> {
        self.inner()?.room()
    }

    fn state(&self) -> Option<State> {
        self.inner()?.state()
    }
}

/// Returns the HTTP status of a class; this is the only such table.
pub const fn status(class: Class) -> StatusCode {
    match class {
        Class::BadRequest => StatusCode::BAD_REQUEST,
        Class::NoRoute
        | Class::NoInstance
        | Class::NoAllocation
        | Class::NoConsole
        | Class::NoChannel => StatusCode::NOT_FOUND,
        Class::Forbidden => StatusCode::FORBIDDEN,
        Class::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
        Class::Exists | Class::WrongState | Class::Busy => StatusCode::CONFLICT,
        Class::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Class::Invalid
        | Class::Name
        | Class::Affinity
        | Class::Cgroup
        | Class::NoKernel
        | Class::File
        | Class::NoMemory
        | Class::NoCpu
        | Class::Unmapped => StatusCode::UNPROCESSABLE_ENTITY,
        Class::NoRoom | Class::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        Class::Overload | Class::Lost => StatusCode::SERVICE_UNAVAILABLE,
        Class::VmmFailed | Class::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
