//! Processes of workers that have been started and have not received any order.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mkvmm_base::{InstanceName, chain};
use mkvmm_keeper::cgroup::Leaf;
use mkvmm_keeper::process::{Child, Starting};
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::messages::{Order, Report};
use mkvmm_wire::settings::Settings;

use crate::child::{Children, Role, Started};
use crate::stock::Waiting;
use crate::worker::WorkerError;

/// The cgroup hierarchies that a worker still has to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It has to enter none: it was started in its leaf, or has none.
    Done,
    /// It has to enter the v1 hierarchies only.
    Rest,
    /// It has to enter every hierarchy of its leaf.
    All,
    /// It has to enter every hierarchy of its leaf later: it was started before
    /// its instance was known, and its resources are not limited there.
    Later,
}

/// The connection to a worker.
#[derive(Debug)]
pub(crate) enum Line {
    /// This end of the socket to one that was started now.
    Socket(OwnedFd),
    /// The channel to one that was taken from the stock.
    Channel(Box<AsyncChannel<Order, Report>>),
}

/// A worker's process that waits for its first order. It is killed if this is
/// dropped.
#[derive(Debug)]
pub struct Begun {
    /// The name of its instance.
    pub(crate) name: InstanceName,
    /// The process of the worker.
    pub(crate) child: Starting,
    /// The connection to it.
    pub(crate) line: Line,
    /// Its number, if it is a child of the keeper.
    pub(crate) serial: Option<u64>,
    /// The cgroup that it has to enter.
    pub(crate) leaf: Option<Arc<Leaf>>,
    /// The hierarchies that it still has to enter.
    pub(crate) entry: Entry,
}

impl Begun {
    /// Takes a worker that was started before its instance was known, and sends
    /// it its settings: it is for the first instance of this name. `socket`
    /// leads to it.
    ///
    /// # Errors
    /// Returns [`WorkerError::Wire`]; the worker is killed then.
    pub fn early(
        child: Child,
        socket: OwnedFd,
        children: &Children,
        name: &InstanceName,
    ) -> Result<Self, WorkerError> {
        let settings = Settings {
            environment: children.environment.clone(),
        };
        settings.send(socket.as_fd())?;
        Ok(Self {
            name: name.clone(),
            child: child.into(),
            line: Line::Socket(socket),
            serial: None,
            leaf: None,
            entry: Entry::Later,
        })
    }

    /// Takes a worker from the stock for an instance of this name.
    pub(crate) fn waiting(waiting: Waiting, name: InstanceName) -> Self {
        Self {
            name,
            child: waiting.child.into(),
            line: Line::Channel(Box::new(waiting.channel)),
            serial: waiting.serial,
            leaf: None,
            entry: Entry::Later,
        }
    }

    /// Starts a worker, directly in `leaf` if possible. It has to enter that by
    /// all means if guests have to, or this one has, since its user named it.
    pub(crate) async fn start(
        children: &Children,
        name: InstanceName,
        leaf: Option<Arc<Leaf>>,
        is_named: bool,
    ) -> Result<Self, WorkerError> {
        let label = name.as_str();
        let birthplace = leaf.as_deref().map(Leaf::birthplace).transpose();
        if let (Some(leaf), Ok(Some(Some(place)))) = (&leaf, &birthplace) {
            let cgroup = Some(place.as_fd());
            match children.start(Role::Worker, label, cgroup).await {
                Ok(Started {
                    child,
                    socket,
                    serial,
                }) => {
                    let entry = match leaf.is_to_be_moved() {
                        true => Entry::Rest,
                        false => Entry::Done,
                    };
                    return Ok(Self {
                        child,
                        line: Line::Socket(socket),
                        serial,
                        entry,
                        leaf: Some(Arc::clone(leaf)),
                        name,
                    });
                }
                // The kernel is too old, a filter or missing permission
                // prevents it, or no process can be started at all.
                Err(error) => log::debug!("{label}: {}", chain(&error)),
            }
        }
        let started = children.start(Role::Worker, label, None).await?;
        let is_required = is_named || children.leaves.is_required();
        Ok(Self {
            child: started.child,
            line: Line::Socket(started.socket),
            serial: started.serial,
            entry: match is_required {
                true => Entry::All,
                false => Entry::Done,
            },
            // Otherwise no process is in it.
            leaf: leaf.filter(|_| is_required),
            name,
        })
    }
}
