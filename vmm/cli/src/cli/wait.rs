//! `mkvmm wait NAME…`: waits until instances are in a state.

use std::path::Path;
use std::time::Duration;

use crate::cli::client::ClientArgs;
use crate::cli::exchange::{answer, done};
use crate::cli::selection::{Selection, StateArgs};
use crate::error::{CliError, ExitStatus};
use mkvmm_api::instance::Instance;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose};
use mkvmm_client::connection::{ask, block_on};
use mkvmm_client::events::{Events, RECONNECT, newest};
use mkvmm_client::{Call, ClientError, Since};

#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    #[command(flatten)]
    instances: Selection,
    #[command(flatten)]
    state: StateArgs,
    /// The longest time to wait, for example 5s or 2min
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

/// A reason why waiting has ended without success.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The time is over.
    #[error("{} not there after {}", .left.join(", "), humantime::format_duration(*.limit))]
    Late {
        /// The names of those that were still waited for.
        left: Vec<String>,
        /// The time limit.
        limit: Duration,
    },
    /// The VMM has closed the stream of events.
    #[error("the VMM has ended while {} was waited for", .left.join(", "))]
    Ended {
        /// The names of those that were still waited for.
        left: Vec<String>,
    },
}

impl Diagnose for WaitError {
    fn class(&self) -> Class {
        match self {
            Self::Late { .. } => Class::WrongState,
            Self::Ended { .. } => Class::Lost,
        }
    }
}

/// Waits for all of the instances, and prints each when it is there.
///
/// # Errors
/// Returns a [`WaitError`], or the error of a request: an instance that is
/// deleted meanwhile is one that does not exist.
pub fn run(args: &WaitArgs) -> Result<ExitStatus, CliError> {
    let mut waiting = Waiting {
        args,
        left: args.instances.names(&args.client)?,
    };
    args.client.heard(|| {
        block_on(async {
            let Some(limit) = args.timeout else {
                return waiting.complete().await;
            };
            match tokio::time::timeout(limit, waiting.complete()).await {
                Ok(complete) => complete,
                Err(_elapsed) => Err(WaitError::Late {
                    left: waiting.left,
                    limit,
                }
                .into()),
            }
        })
    })
}

struct Waiting<'a> {
    args: &'a WaitArgs,
    /// The names of those that are not there yet.
    left: Vec<String>,
}

impl Waiting<'_> {
    async fn complete(&mut self) -> Result<ExitStatus, CliError> {
        let socket = self.args.client.socket();
        // From before the first look, so that no change falls in between.
        let mut since = newest(&socket).await?;
        loop {
            let mut events = Events::open(&socket, Since::Event(since), None, true).await?;
            loop {
                self.look(&socket).await?;
                if self.left.is_empty() {
                    return Ok(ExitStatus::Done);
                }
                if !self.event(&mut events).await? {
                    break;
                }
            }
            // The VMM was upgraded, or has ended.
            tokio::time::sleep(RECONNECT).await;
            let Ok(now) = newest(&socket).await else {
                let left = self.left.clone();
                return Err(WaitError::Ended { left }.into());
            };
            since = now;
        }
    }

    /// Prints those that are there, and keeps the others.
    async fn look(&mut self, socket: &Path) -> Result<(), CliError> {
        // Its future may be dropped at any time: then those are left that were not printed.
        for name in self.left.clone() {
            let text = ask(socket, Call::of_instance("GET", &name, "")).await?;
            let instance: Instance = serde_json::from_str(&text).map_err(ClientError::Json)?;
            if self.is_there(&instance) {
                self.left.retain(|left| *left != name);
                answer(self.args.client.json, text, done)?;
            }
        }
        Ok(())
    }

    fn is_there(&self, instance: &Instance) -> bool {
        let states = self.args.state.states();
        if states.is_empty() {
            return instance.has_ended();
        }
        let is_between =
            instance.restarting && matches!(instance.state, State::Stopped | State::Failed);
        states.contains(&instance.state) && !is_between
    }

    /// Waits for an event of one of those that are left; returns false at the end of
    /// the stream.
    async fn event(&self, events: &mut Events) -> Result<bool, CliError> {
        loop {
            match events.arrived().await {
                Ok(Some(arrived)) => {
                    let mut names = arrived.iter().filter_map(|event| event.instance.as_ref());
                    if names.any(|name| self.left.contains(name)) {
                        return Ok(true);
                    }
                }
                Err(error @ ClientError::Json(_)) => return Err(error.into()),
                Ok(None) | Err(_) => return Ok(false),
            }
        }
    }
}
