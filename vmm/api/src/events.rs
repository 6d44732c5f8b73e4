//! Objects that describe events.

use mkvmm_base::Class;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::violation::Access;
use serde::{Deserialize, Serialize};

use crate::range::Range;

/// One entry of the event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Event {
    /// The number of the event, counted from 1.
    pub seq: u64,
    /// The time of the event: nanoseconds since the VMM started.
    pub at: u64,
    /// The same time by the clock of the host: milliseconds since 1970.
    #[serde(default)]
    pub unix_ms: u64,
    /// The name of the instance, if the event concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The user ID of the owner of that instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The kind of the event, with its details.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The details of an event, by its `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// An instance was created or changed its state.
    State {
        /// The new state of the instance.
        state: State,
        /// The reason why it ended, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<EndReason>,
    },
    /// An instance was deleted.
    Deleted,
    /// An instance was to be deleted, and its memory could not be cleaned: it is
    /// nobody's until that succeeds.
    Lost {
        /// The number of bytes.
        size: u64,
    },
    /// A guest accessed memory it does not own.
    Violation {
        /// The guest-physical addresses that were accessed.
        #[serde(flatten)]
        range: Range,
        /// The kind of the access.
        access: Access,
        /// The owner of the address according to the resource tree.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
    },
    /// The link of a network device is down permanently, since the program behind it
    /// has ended; the guest continues without it.
    LinkDown {
        /// The PCI address of the device in the guest.
        address: String,
        /// How the program ended, and what it said.
        message: String,
    },
    /// A console log can no longer be written; the guest continues without it.
    ConsoleLogFailed {
        /// The path of the file.
        path: String,
        /// The error that writing it returned.
        message: String,
    },
    /// A request was refused.
    Refused {
        /// The action that was requested.
        action: String,
        /// The code of the error.
        code: Class,
        /// The error and its causes.
        message: String,
    },
}
