//! The command line of `mkvmm`: parses arguments into typed calls.

mod apply;
mod attached;
mod channel;
mod client;
mod completions;
mod config_file;
mod console;
mod continuity;
mod debug;
mod examples;
mod exchange;
mod find_socket;
mod fleet_file;
mod founding;
mod grace;
mod group;
mod hexdump;
mod host_io;
mod images;
mod job;
mod last_fleet;
mod log_options;
mod logs;
mod manual;
mod on;
mod options;
mod output;
mod pool_log;
mod pool_map;
mod pool_setup;
mod remote;
mod replay;
mod run;
mod run_result;
mod runtime;
mod selection;
mod serve;
mod signals;
mod spec_args;
mod start_fleet;
mod state_dir;
mod successor;
mod tables;
mod top;
mod upgrade;
mod usage;
mod verbs;
mod wait;

pub use find_socket::advice;
pub use founding::{ChildOptions, Treatment, found};
pub use host_io::HostIoError;
pub use pool_setup::Ground;
pub use runtime::block_on;
pub use usage::one_line;

use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use mkvmm_children::Early;
use mkvmm_client::ClientError;

use crate::cli::output::print;
use crate::doctor;
use crate::error::{CliError, ExitStatus};

/// Several guest kernels from one reserved memory pool, on KVM.
#[derive(Debug, Parser)]
#[command(name = "mkvmm", version, max_term_width = 100)]
pub struct Cli {
    /// The control socket, for commands that use one; their own --socket comes first
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reserve a pool, launch all guests or none, and end when the last one
    /// ends
    Run(Box<run::RunArgs>),
    /// Reserve a pool and serve it through a control socket
    Serve(Box<serve::ServeArgs>),
    /// Continue a running serve with another mkvmm; the guests run on
    Upgrade(upgrade::UpgradeArgs),
    /// Check a journal on standard input
    #[command(hide = true)]
    CheckJournal(successor::CheckArgs),
    /// Wait until an upgrade is complete
    #[command(hide = true)]
    UpgradeGuard(successor::GuardArgs),
    #[command(flatten)]
    Remote(remote::RemoteCommand),
    /// Report what this host supports, and why not
    Doctor {
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Play allocator traces and report where the pool's answers differ
    Replay(replay::ReplayArgs),
    /// Print shell completions
    Completions {
        /// The shell to generate completions for
        shell: clap_complete::Shell,
    },
    /// Print the man page (roff)
    Man {
        /// Write one page per command into this directory instead
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// The part of [`Cli`] that `mkvmm run` needs.
#[derive(Debug, Parser)]
#[command(name = "mkvmm", version, max_term_width = 100)]
struct RunCli {
    #[command(subcommand)]
    command: RunCommand,
}

#[derive(Debug, Subcommand)]
enum RunCommand {
    Run(Box<run::RunArgs>),
}

pub use successor::go_back;

/// Parses the command line.
///
/// # Errors
/// Returns clap's error, which may also be the help or the version.
pub fn parse() -> Result<Cli, clap::Error> {
    // Guests wait for the parser, most of which is for other commands.
    match RunCli::try_parse() {
        Ok(RunCli {
            command: RunCommand::Run(args),
        }) => Ok(Cli {
            socket: None,
            command: Command::Run(args),
        }),
        // It is another command, or a message that needs the complete parser.
        Err(_) => Cli::from_arg_matches(&described().try_get_matches()?),
    }
}

/// Returns the whole command line, with examples in its help.
fn described() -> clap::Command {
    examples::add(Cli::command())
}

impl Cli {
    /// Carries out the command. `early` is the worker of the first guest of
    /// `run`, if it was started already.
    ///
    /// # Errors
    /// Returns a [`CliError`], which determines the exit status.
    pub fn run(self, early: Option<Early>) -> Result<ExitStatus, CliError> {
        find_socket::remember(self.socket);
        match self.command {
            Command::Run(args) => run::run(&args, early),
            Command::Serve(args) => serve::run(&args).inspect_err(|error| go_back(&error.render())),
            Command::Upgrade(args) => upgrade::run(&args),
            Command::CheckJournal(args) => successor::check(&args),
            Command::UpgradeGuard(args) => successor::guard(&args),
            Command::Remote(command) => remote::run(command),
            Command::Doctor { json } => print_doctor(json),
            Command::Replay(args) => replay::run(&args),
            Command::Completions { shell } => {
                print(completions::completions(&mut Self::command(), shell).as_bytes())
            }
            Command::Man { out: Some(dir) } => {
                let written = manual::write_all(&Self::command(), &dir);
                written.map_err(|source| HostIoError::Write { path: dir, source })?;
                Ok(ExitStatus::Done)
            }
            Command::Man { out: None } => {
                let mut text = Vec::new();
                let words = ["mkvmm".to_owned()];
                manual::write_page(&Self::command(), &words, &mut text)
                    .map_err(HostIoError::Output)?;
                print(&text)
            }
        }
    }
}

fn print_doctor(json: bool) -> Result<ExitStatus, CliError> {
    // The end of a test guest is a finding and not worth a log line.
    log::set_max_level(log::LevelFilter::Off);
    let findings = doctor::examine();
    let text = if json {
        let mut text = serde_json::to_string_pretty(&findings).map_err(ClientError::Json)?;
        text.push('\n');
        text
    } else {
        findings.to_string()
    };
    print(text.as_bytes())
}
