//! The commands that talk to a running VMM.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use mkpool::param::parse_addr;

use crate::cli::client::{Call, ClientArgs, ClientError};
use crate::cli::exchange::{ChangeArgs, answer, change, done, escape, get};
use crate::cli::options::{OptionError, size};
use crate::cli::output::print;
use crate::cli::{console, debug, fleet_file, images, pool_log, pool_map, tables};
use crate::error::{CliError, ExitStatus};
use mkvmm_api::Range;
use mkvmm_api::bodies::{AllocBody, CreateBody, KillBody, PlanBody, StartBody};
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, IomemRow, Pool};

/// The name of an instance, for commands that need nothing else.
#[derive(Debug, clap::Args)]
pub struct NameArgs {
    /// The name of the instance
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// The name of the instance
    name: String,
    /// Boot it in a cgroup of its own below this one, until its next start:
    /// PATH, or `mine` for that of this command
    #[arg(long, value_name = "PATH|mine")]
    cgroup: Option<PathBuf>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// The name of the instance
    name: String,
    /// End the instance at once, without pressing its power button
    #[arg(long)]
    force: bool,
    /// Milliseconds between the power button and SIGKILL
    #[arg(long, value_name = "MS", conflicts_with = "force")]
    grace_ms: Option<u32>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The name of the instance; all instances if absent
    name: Option<String>,
    /// Print its memory map, as its kernel prints it
    #[arg(long, requires = "name")]
    e820: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Print the pool's size, free memory and backing
    Show {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Draw the pool's addresses and their owners
    Map(pool_map::MapArgs),
    /// Print the last allocations, their callers, and why some were refused
    Log(pool_log::LogArgs),
    /// Allocate memory in the pool, or in an instance
    Alloc {
        /// The number of bytes, for example 2M
        size: String,
        /// The alignment in bytes, a power of two
        #[arg(long, value_name = "BYTES")]
        align: Option<String>,
        /// Allocate in the memory of this instance
        #[arg(long, value_name = "NAME")]
        instance: Option<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Free an allocation
    Free {
        /// The address of the first byte
        addr: String,
        /// Free in the memory of this instance
        #[arg(long, value_name = "NAME")]
        instance: Option<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Keep waiting for further events
    #[arg(long)]
    follow: bool,
    /// Print only events with numbers above this one
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    since: u64,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Create an instance and reserve its memory (state `ready`)
    Create(images::CreateArgs),
    /// Load an instance's images, replacing earlier ones (`loaded`)
    Load(images::LoadArgs),
    /// Boot an instance (`active`)
    Start(StartArgs),
    /// Boot an instance: the former name of `start`
    #[command(hide = true)]
    Exec(NameArgs),
    /// Pause an instance's vCPUs (`paused`)
    Pause(NameArgs),
    /// Continue a paused instance
    Resume(NameArgs),
    /// End an instance, by its power button and then by force
    Kill(KillArgs),
    /// Remove an instance's images from its memory (`ready`)
    Unload(NameArgs),
    /// Delete an instance and free its memory
    Delete(NameArgs),
    /// Show one instance, or all
    Show(ShowArgs),
    /// List all instances
    List(ClientArgs),
    /// Attach to an instance's serial console; Ctrl-] leaves
    ///
    /// Output from before the attachment is printed first. A serial line does
    /// not tell the guest the size of the window: in the guest, run `stty rows
    /// R cols C` with the numbers that `stty size` prints here, or run
    /// `resize`.
    Console(console::ConsoleArgs),
    /// Inspect a guest: registers, memory, page tables
    #[command(subcommand)]
    Debug(debug::DebugCommand),
    /// Print the resource tree, laid out like /proc/iomem
    Iomem(ClientArgs),
    /// Inspect the pool, and allocate in it
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Print where a fleet's instances would be placed, or why they do not fit
    Plan {
        /// A TOML file with instances
        file: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Check that no ranges overlap and that none is lost
    Audit(ClientArgs),
    /// Print events, one JSON object per line
    Events(EventsArgs),
    /// Print metrics in the OpenMetrics text format
    Metrics(ClientArgs),
}

/// Carries out `command`.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(command: RemoteCommand) -> Result<ExitStatus, CliError> {
    match command {
        RemoteCommand::Create(args) => images::create(&args),
        RemoteCommand::Load(args) => images::load(&args),
        RemoteCommand::Start(args) => {
            let body = StartBody {
                cgroup: args.cgroup,
            };
            let path = args.change.path(&args.name, "/start");
            change(&args.change, Call::new("POST", path).with(&body)?, done)
        }
        RemoteCommand::Exec(args) => {
            log::warn!("`exec` is now called `start`; the next release removes `exec`");
            verb(&args, "POST", "/start")
        }
        RemoteCommand::Pause(args) => verb(&args, "POST", "/pause"),
        RemoteCommand::Resume(args) => verb(&args, "POST", "/resume"),
        RemoteCommand::Kill(args) => {
            let body = KillBody {
                force: args.force,
                grace_ms: args.grace_ms,
            };
            let path = args.change.path(&args.name, "/kill");
            change(&args.change, Call::new("POST", path).with(&body)?, done)
        }
        RemoteCommand::Unload(args) => verb(&args, "POST", "/unload"),
        RemoteCommand::Delete(args) => {
            let call = Call::new("DELETE", args.change.path(&args.name, ""));
            change(&args.change, call, |was: &Instance| {
                format!("{}: deleted\n", was.name)
            })
        }
        RemoteCommand::Show(args) => show(&args),
        RemoteCommand::List(client) => list(&client),
        RemoteCommand::Console(args) => console::run(&args),
        RemoteCommand::Debug(command) => debug::run(&command),
        RemoteCommand::Iomem(client) => get(&client, "/v1/iomem", |rows: &Vec<IomemRow>| {
            tables::iomem(rows)
        }),
        RemoteCommand::Pool(command) => pool(&command),
        RemoteCommand::Plan { file, client } => plan(&file, &client),
        RemoteCommand::Audit(client) => audit(&client),
        RemoteCommand::Events(args) => events(&args),
        RemoteCommand::Metrics(client) => print(client.call(Call::get("/v1/metrics"))?.as_bytes()),
    }
}

fn verb(args: &NameArgs, method: &str, rest: &str) -> Result<ExitStatus, CliError> {
    let path = args.change.path(&args.name, rest);
    change(&args.change, Call::new(method, path), done)
}

fn show(args: &ShowArgs) -> Result<ExitStatus, CliError> {
    let Some(name) = &args.name else {
        return list(&args.client);
    };
    let path = format!("/v1/instances/{}", escape(name));
    if args.e820 {
        let path = format!("{path}/e820");
        return get(&args.client, &path, |rows: &Vec<E820Row>| {
            tables::e820(rows)
        });
    }
    get(&args.client, &path, tables::instance)
}

fn list(client: &ClientArgs) -> Result<ExitStatus, CliError> {
    get(client, "/v1/instances", |all: &Vec<Instance>| {
        tables::instances(all)
    })
}

fn pool(command: &PoolCommand) -> Result<ExitStatus, CliError> {
    let place = |instance: &Option<String>| match instance {
        Some(name) => format!("/v1/instances/{}/allocations", escape(name)),
        None => "/v1/pool/allocations".to_owned(),
    };
    let allocation = |a: &Range| format!("{:#x} {} bytes\n", a.start, a.size);
    match command {
        PoolCommand::Show { client } => get(client, "/v1/pool", |pool: &Pool| tables::pool(pool)),
        PoolCommand::Map(args) => pool_map::run(args),
        PoolCommand::Log(args) => pool_log::run(args),
        PoolCommand::Alloc {
            size: bytes,
            align,
            instance,
            change: args,
        } => {
            let body = AllocBody {
                size: bytes.parse().map_err(OptionError::of("size"))?,
                align: align.as_deref().map_or(Ok(0), |a| size("align", a))?,
            };
            let path = format!("{}{}", place(instance), args.query());
            change(args, Call::new("POST", path).with(&body)?, allocation)
        }
        PoolCommand::Free {
            addr,
            instance,
            change: args,
        } => {
            let addr = parse_addr(addr).map_err(OptionError::of("addr"))?;
            let path = format!("{}/{addr}{}", place(instance), args.query());
            change(args, Call::new("DELETE", path), |a: &Range| {
                format!("{:#x} {} bytes free\n", a.start, a.size)
            })
        }
    }
}

fn plan(file: &Path, client: &ClientArgs) -> Result<ExitStatus, CliError> {
    let fleet = fleet_file::read(file)?;
    let body = PlanBody {
        instances: fleet.into_iter().map(CreateBody).collect(),
    };
    let call = Call::new("POST", "/v1/plan".to_owned()).with(&body)?;
    let text = client.call(call)?;
    let plan: Plan = serde_json::from_str(&text).map_err(ClientError::Json)?;
    answer(client.json, text, tables::plan)?;
    match plan.problem {
        None => Ok(ExitStatus::Done),
        Some(problem) => {
            let mut error = problem.error;
            if !problem.delete_one_of.is_empty() {
                let names = problem.delete_one_of.join("`, `");
                error.help = Some(format!("deleting one of `{names}` would make room"));
            }
            Err(ClientError::Refused(Box::new(error)).into())
        }
    }
}

fn audit(client: &ClientArgs) -> Result<ExitStatus, CliError> {
    let text = client.call(Call::get("/v1/audit"))?;
    let found: Audit = serde_json::from_str(&text).map_err(ClientError::Json)?;
    answer(client.json, text, tables::audit)?;
    Ok(if found.ok {
        ExitStatus::Done
    } else {
        ExitStatus::Failed
    })
}

fn events(args: &EventsArgs) -> Result<ExitStatus, CliError> {
    let path = format!("/v1/events?since={}&follow={}", args.since, args.follow);
    let mut pending = Vec::new();
    args.client.stream(Call::get(path), |bytes| {
        pending.extend_from_slice(bytes);
        // Print whole lines only: a frame may end anywhere.
        let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(());
        };
        let lines: Vec<u8> = pending.drain(..=end).collect();
        for line in lines.split(|&byte| byte == b'\n') {
            if let Some(data) = line.strip_prefix(b"data: ") {
                print(&[data, b"\n"].concat())?;
            }
        }
        Ok(())
    })?;
    Ok(ExitStatus::Done)
}
