//! Workers' processes that have begun and were not given anything yet.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mkvmm_base::{InstanceName, chain};
use mkvmm_keeper::cgroup::Leaf;
use mkvmm_keeper::process::{Child, Starting};
use mkvmm_wire::settings::Settings;

use crate::child::{Children, Role};
use crate::worker::WorkerError;

/// The hierarchies that a worker still has to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// None: it was born in its leaf, or has none.
    Done,
    /// Those of v1.
    Rest,
    /// Every hierarchy that its leaf is in.
    All,
    /// Every hierarchy that its leaf will be in, some time: it was begun before
    /// there could be a leaf, and nothing is limited there.
    Later,
}

/// A worker's process that waits for its first order. Dropped, it ends.
#[derive(Debug)]
pub struct Begun {
    /// The name of the instance that it is for.
    pub(crate) name: InstanceName,
    /// The process of the worker.
    pub(crate) child: Starting,
    /// This end of the socket to it.
    pub(crate) socket: OwnedFd,
    /// The cgroup that it is to be in.
    pub(crate) leaf: Option<Arc<Leaf>>,
    /// How it still gets there.
    pub(crate) entry: Entry,
}

impl Begun {
    /// Takes over a worker that was begun before it was known whose it will be,
    /// and tells it: it is for the first instance of this name. `socket` leads
    /// to it.
    ///
    /// # Errors
    /// [`WorkerError::Wire`]; the worker is ended then.
    pub fn early(
        child: Child,
        socket: OwnedFd,
        children: &Children,
        name: &InstanceName,
    ) -> Result<Self, WorkerError> {
        let settings = Settings {
            label: name.to_string(),
            environment: children.environment.clone(),
        };
        settings.send(socket.as_fd())?;
        Ok(Self {
            name: name.clone(),
            child: child.into(),
            socket,
            leaf: None,
            entry: Entry::Later,
        })
    }

    /// Starts a worker, in `leaf` from its birth where that can be.
    pub(crate) fn start(
        children: &Children,
        name: InstanceName,
        leaf: Option<Arc<Leaf>>,
    ) -> Result<Self, WorkerError> {
        let label = name.as_str();
        let birthplace = leaf.as_deref().map(Leaf::birthplace).transpose();
        if let (Some(leaf), Ok(Some(Some(place)))) = (&leaf, &birthplace) {
            match children.start(Role::Worker, label, Some(place.as_fd())) {
                Ok((child, socket)) => {
                    let entry = match leaf.is_to_be_moved() {
                        true => Entry::Rest,
                        false => Entry::Done,
                    };
                    return Ok(Self {
                        child,
                        socket,
                        entry,
                        leaf: Some(Arc::clone(leaf)),
                        name,
                    });
                }
                // An older kernel, a filter, no right to: or no process at all.
                Err(error) => log::debug!("{label}: {}", chain(&error)),
            }
        }
        let (child, socket) = children.start(Role::Worker, label, None)?;
        let is_required = children.leaves.is_required();
        Ok(Self {
            child,
            socket,
            entry: match is_required {
                true => Entry::All,
                false => Entry::Done,
            },
            // Otherwise nobody is in it.
            leaf: leaf.filter(|_| is_required),
            name,
        })
    }
}
