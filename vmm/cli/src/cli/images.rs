//! `create` and `load`: the keys of instances and images as options.

use std::env;

use crate::cli::HostIoError;
use crate::cli::exchange::{ChangeArgs, change, done};
use crate::cli::spec_args::SpecArgs;
use crate::cli::verbs;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::{ImagesSpec, InstanceSpec};
use mkvmm_client::Call;

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The name of the instance: 1 to 32 letters, digits, `.`, `_`, `-`
    name: String,
    #[command(flatten)]
    spec: SpecArgs<InstanceSpec>,
    /// Succeed as well if it was created by the same options before
    #[arg(long)]
    if_absent: bool,
    /// Boot it at once
    #[arg(long, requires = "kernel", conflicts_with = "dry_run")]
    start: bool,
    /// Attach to its console afterwards
    #[arg(long, requires = "start", conflicts_with = "json")]
    console: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// The name of the instance
    name: String,
    #[command(flatten)]
    spec: SpecArgs<ImagesSpec>,
    #[command(flatten)]
    change: ChangeArgs,
}

pub fn create(args: &CreateArgs) -> Result<ExitStatus, CliError> {
    let mut spec = args.spec.spec(Some(&args.name))?;
    // The VMM has another working directory than its clients.
    spec.rebase(&env::current_dir().map_err(HostIoError::WorkingDirectory)?);
    spec.images()?;
    let path = format!("/v1/instances{}", args.change.query());
    let mut call = Call::new("POST", path).with(&spec)?;
    call.header = args.if_absent.then_some(("if-none-match", "*"));
    let created = change(&args.change, call, done)?;
    if args.start && created == ExitStatus::Done {
        return verbs::start_new(&args.change, &args.name, args.console);
    }
    Ok(created)
}

pub fn load(args: &LoadArgs) -> Result<ExitStatus, CliError> {
    let mut spec = args.spec.spec(None)?;
    // Paths are relative to this working directory, not to the VMM's.
    spec.rebase(&env::current_dir().map_err(HostIoError::WorkingDirectory)?);
    let path = args.change.path(&args.name, "/load");
    change(&args.change, Call::new("POST", path).with(&spec)?, done)
}
