//! The verbs: what changes the state of instances.

use std::path::PathBuf;

use crate::cli::console;
use crate::cli::exchange::{ChangeArgs, change, done};
use crate::cli::grace::GraceArgs;
use crate::cli::selection::{Selection, each, only};
use crate::error::{CliError, ExitStatus};
use mkvmm_api::bodies::{KillBody, StartBody};
use mkvmm_api::instance::Instance;
use mkvmm_client::{Call, ClientError, escape};

/// The instances, for verbs that need nothing else.
#[derive(Debug, clap::Args)]
pub struct VerbArgs {
    #[command(flatten)]
    instances: Selection,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct StartArgs {
    #[command(flatten)]
    instances: Selection,
    /// Boot it in a cgroup of its own below this one, until its next start:
    /// PATH, or `mine` for that of this command
    #[arg(long, value_name = "PATH|mine")]
    cgroup: Option<PathBuf>,
    /// Attach to its console afterwards
    #[arg(long, conflicts_with_all = ["dry_run", "json"])]
    console: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct KillArgs {
    #[command(flatten)]
    instances: Selection,
    /// End the instance at once, without pressing its power button
    #[arg(long, conflicts_with_all = ["grace", "grace_ms"])]
    force: bool,
    #[command(flatten)]
    grace: GraceArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct RestartArgs {
    #[command(flatten)]
    instances: Selection,
    #[command(flatten)]
    grace: GraceArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Boots the instances.
pub fn start(args: &StartArgs) -> Result<ExitStatus, CliError> {
    let names = args.instances.names(args.change.client())?;
    if args.console {
        only(&names)?;
    }
    let body = StartBody {
        cgroup: args.cgroup.clone(),
    };
    let started = each(&names, |name| start_one(&args.change, name, &body))?;
    match names.as_slice() {
        [name] if args.console && started == ExitStatus::Done => {
            console::attach(name, args.change.client())
        }
        _ => Ok(started),
    }
}

fn start_one(args: &ChangeArgs, name: &str, body: &StartBody) -> Result<ExitStatus, CliError> {
    let call = Call::new("POST", args.path(name, "/start")).with(body)?;
    change(args, call, done)
}

/// Boots a new instance, and attaches to its console if `console` is true.
pub fn start_new(args: &ChangeArgs, name: &str, console: bool) -> Result<ExitStatus, CliError> {
    let started = start_one(args, name, &StartBody::default())?;
    if console && started == ExitStatus::Done {
        return console::attach(name, args.client());
    }
    Ok(started)
}

/// Carries out a verb without parameters, whose path ends with `rest`.
pub fn plain(args: &VerbArgs, rest: &str) -> Result<ExitStatus, CliError> {
    let names = args.instances.names(args.change.client())?;
    each(&names, |name| {
        let call = Call::new("POST", args.change.path(name, rest));
        change(&args.change, call, done)
    })
}

/// Ends the instances.
pub fn kill(args: &KillArgs) -> Result<ExitStatus, CliError> {
    let names = args.instances.names(args.change.client())?;
    let body = KillBody {
        force: args.force,
        grace_ms: args.grace.ms(),
    };
    each(&names, |name| {
        let call = Call::new("POST", args.change.path(name, "/kill")).with(&body)?;
        change(&args.change, call, done)
    })
}

/// Deletes the instances.
pub fn delete(args: &VerbArgs) -> Result<ExitStatus, CliError> {
    let names = args.instances.names(args.change.client())?;
    each(&names, |name| {
        let call = Call::new("DELETE", args.change.path(name, ""));
        change(&args.change, call, |was: &Instance| {
            format!("{}: deleted\n", was.name)
        })
    })
}

/// Ends the instances by their power buttons, and boots them again.
pub fn restart(args: &RestartArgs) -> Result<ExitStatus, CliError> {
    let body = KillBody {
        force: false,
        grace_ms: args.grace.ms(),
    };
    boot_again(&args.instances, &args.change, &body)
}

/// Ends the instances at once, and boots them again.
pub fn reset(args: &VerbArgs) -> Result<ExitStatus, CliError> {
    let body = KillBody {
        force: true,
        grace_ms: None,
    };
    boot_again(&args.instances, &args.change, &body)
}

/// Ends those that run, and starts all of them.
fn boot_again(
    instances: &Selection,
    args: &ChangeArgs,
    body: &KillBody,
) -> Result<ExitStatus, CliError> {
    let names = instances.names(args.client())?;
    each(&names, |name| {
        let path = format!("/v1/instances/{}", escape(name));
        let text = args.client().call(Call::get(path))?;
        let instance: Instance = serde_json::from_str(&text).map_err(ClientError::Json)?;
        if instance.state.is_live() {
            let call = Call::new("POST", args.path(name, "/kill")).with(body)?;
            if args.is_dry_run() {
                // Afterwards it is one that has ended, which may be started.
                return change(args, call, done);
            }
            args.client().call(call)?;
        }
        start_one(args, name, &StartBody::default())
    })
}
