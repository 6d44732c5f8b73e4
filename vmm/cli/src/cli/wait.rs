//! `mkvmm wait NAME…`: waits until instances are in a state.

use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::cli::client::{Call, ClientArgs, ClientError, ask, block_on, open};
use crate::cli::exchange::{answer, done, escape};
use crate::cli::selection::{Selection, StateArgs};
use crate::cli::sse::Frames;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::events::Event;
use mkvmm_api::instance::Instance;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose};

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
        let since = newest(&socket).await?;
        let path = format!("/v1/events?since={since}&follow=true");
        let mut events = open(&socket, Call::get(path)).await?;
        loop {
            self.look(&socket).await?;
            if self.left.is_empty() {
                return Ok(ExitStatus::Done);
            }
            self.event(&mut events).await?;
        }
    }

    /// Prints those that are there, and keeps the others.
    async fn look(&mut self, socket: &Path) -> Result<(), CliError> {
        for name in std::mem::take(&mut self.left) {
            let path = format!("/v1/instances/{}", escape(&name));
            let text = ask(socket, Call::get(path)).await?;
            let instance: Instance = serde_json::from_str(&text).map_err(ClientError::Json)?;
            if self.is_there(&instance) {
                answer(self.args.client.json, text, done)?;
            } else {
                self.left.push(name);
            }
        }
        Ok(())
    }

    fn is_there(&self, instance: &Instance) -> bool {
        let has_ended = matches!(instance.state, State::Stopped | State::Failed);
        let states = self.args.state.states();
        let is_wanted = if states.is_empty() {
            has_ended
        } else {
            states.contains(&instance.state)
        };
        // One that its policy restarts has not come to its end.
        is_wanted && !(has_ended && instance.restarting)
    }

    /// Waits for an event of one of those that are left.
    async fn event(&self, events: &mut Incoming) -> Result<(), CliError> {
        let mut frames = Frames::default();
        while let Some(Ok(frame)) = events.frame().await {
            let data = frame.data_ref().map(|bytes| frames.push(bytes));
            for event in data.unwrap_or_default() {
                let event: Event = serde_json::from_slice(&event).map_err(ClientError::Json)?;
                if event.instance.is_some_and(|name| self.left.contains(&name)) {
                    return Ok(());
                }
            }
        }
        let left = self.left.clone();
        Err(WaitError::Ended { left }.into())
    }
}

/// Returns the number of the newest event, or 0.
///
/// # Errors
/// Returns the errors of the request.
pub async fn newest(socket: &Path) -> Result<u64, CliError> {
    let text = ask(socket, Call::get("/v1/events")).await?;
    let events = Frames::default().push(text.as_bytes());
    let Some(last) = events.last() else {
        return Ok(0);
    };
    let last: Event = serde_json::from_slice(last).map_err(ClientError::Json)?;
    Ok(last.seq)
}
