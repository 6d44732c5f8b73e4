//! Types that every crate of mkvmm shares: names and numbers of instances,
//! their states and stages, violations, the layout of a guest's address space,
//! and facts about images. This crate depends on none of the others.

pub mod affinity;
mod bytes;
pub mod cmdline;
mod diagnose;
mod error_chain;
mod exit_counts;
pub mod image_facts;
pub mod layout;
pub mod mac;
mod names;
mod plain;
pub mod registers;
pub mod setup_header;
pub mod state;
pub mod timeline;
pub mod unpacking;
pub mod violation;

pub use bytes::Bytes;
pub use diagnose::{Class, Diagnose, Room};
pub use error_chain::{Detail, causes, chain, is_shortage};
pub use exit_counts::{ExitCounts, ExitKind};
pub use names::{InstanceId, InstanceName, NameError, RunId};
pub use plain::is_plain;
