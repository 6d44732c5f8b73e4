//! The commands that talk to a running VMM.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use mkpool::param::parse_addr;

use crate::cli::channel::{self, ChannelCommand};
use crate::cli::client::ClientArgs;
use crate::cli::exchange::{ChangeArgs, answer, change, get};
use crate::cli::options::{OptionError, size};
use crate::cli::output::print;
use crate::cli::selection::{StateArgs, instances};
use crate::cli::verbs::{self, KillArgs, RestartArgs, StartArgs, VerbArgs};
use crate::cli::{
    apply, console, debug, fleet_file, images, logs, pool_log, pool_map, tables, top, wait,
};
use crate::error::{CliError, ExitStatus};
use mkvmm_api::Range;
use mkvmm_api::bodies::{AllocBody, CreateBody, PlanBody};
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, Health, IomemRow, Pool};
use mkvmm_base::state::State;
use mkvmm_base::{Bytes, InstanceName};
use mkvmm_client::events::{self, Frames};
use mkvmm_client::{Call, ClientError, Since, escape};

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

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Print only the names
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
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
    /// Print only events with numbers above this one, or those from `now` on
    #[arg(long, value_name = "SEQ", default_value = "0")]
    since: Since,
    /// Print only events of the instance with this name
    #[arg(long)]
    name: Option<InstanceName>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Create an instance and reserve its memory (state `ready`)
    Create(images::CreateArgs),
    /// Load an instance's images, replacing earlier ones (`loaded`)
    Load(images::LoadArgs),
    /// Boot instances (`active`)
    Start(StartArgs),
    /// Boot instances: the former name of `start`
    #[command(hide = true)]
    Exec(VerbArgs),
    /// Pause the vCPUs of instances (`paused`)
    Pause(VerbArgs),
    /// Continue paused instances
    Resume(VerbArgs),
    /// End instances, by their power buttons and then by force
    #[command(aliases = ["stop", "shutdown", "destroy"])]
    Kill(KillArgs),
    /// End instances as `kill` does, and boot them again
    #[command(alias = "reboot")]
    Restart(RestartArgs),
    /// End instances at once, as their reset buttons would, and boot them again
    Reset(VerbArgs),
    /// Remove the images from the memory of instances (`ready`)
    Unload(VerbArgs),
    /// Delete instances and free their memory
    #[command(aliases = ["rm", "undefine"])]
    Delete(VerbArgs),
    /// Wait until instances have ended, or are in a state
    Wait(wait::WaitArgs),
    /// Show one instance, or all
    #[command(aliases = ["status", "inspect", "dominfo"])]
    Show(ShowArgs),
    /// List all instances, or those in a state
    #[command(aliases = ["ps", "ls"])]
    List(ListArgs),
    /// Show the pool and its instances live
    ///
    /// Needs a terminal. Keys: arrows select an instance, `s` starts it, `p` pauses or
    /// resumes it, `k` kills it after a question, `o` changes the order, `q` leaves.
    Top(top::TopArgs),
    /// Print what an instance has printed on its serial console
    Logs(logs::LogsArgs),
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
    /// Create, inspect and delete channels between instances
    #[command(subcommand)]
    Channel(ChannelCommand),
    /// Print where a fleet's instances would be placed, or why they do not fit
    Plan {
        /// A TOML file with instances
        file: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make the pool be what a fleet file says: create, replace and start what
    /// differs
    ///
    /// All of it is done or none: if a step fails, the earlier ones are undone, and a
    /// guest that was ended for them is booted again. Instances that do not differ
    /// are not touched. `--dry-run` prints what would be done.
    Apply(apply::ApplyArgs),
    /// Print the fleet file that describes what is there
    Dump(ClientArgs),
    /// Check that no ranges overlap and that none is lost
    Audit(ClientArgs),
    /// Print what the pool has in granules, for schedulers
    Capacity(ClientArgs),
    /// Check that the VMM answers and has what it needs; exit status 0, 1 or 75
    Health(ClientArgs),
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
        RemoteCommand::Start(args) => verbs::start(&args),
        RemoteCommand::Exec(args) => {
            log::warn!("`exec` is now called `start`; the next release removes `exec`");
            verbs::plain(&args, "/start")
        }
        RemoteCommand::Pause(args) => verbs::plain(&args, "/pause"),
        RemoteCommand::Resume(args) => verbs::plain(&args, "/resume"),
        RemoteCommand::Kill(args) => verbs::kill(&args),
        RemoteCommand::Restart(args) => verbs::restart(&args),
        RemoteCommand::Reset(args) => verbs::reset(&args),
        RemoteCommand::Unload(args) => verbs::plain(&args, "/unload"),
        RemoteCommand::Delete(args) => verbs::delete(&args),
        RemoteCommand::Wait(args) => wait::run(&args),
        RemoteCommand::Show(args) => show(&args),
        RemoteCommand::List(args) => list(&args),
        RemoteCommand::Top(args) => top::run(&args),
        RemoteCommand::Logs(args) => logs::run(&args),
        RemoteCommand::Console(args) => console::run(&args),
        RemoteCommand::Debug(command) => debug::run(&command),
        RemoteCommand::Iomem(client) => get(&client, "/v1/iomem", |rows: &Vec<IomemRow>| {
            tables::iomem(rows)
        }),
        RemoteCommand::Pool(command) => pool(&command),
        RemoteCommand::Channel(command) => channel::run(&command),
        RemoteCommand::Plan { file, client } => plan(&file, &client),
        RemoteCommand::Apply(args) => apply::apply(&args),
        RemoteCommand::Dump(client) => apply::dump(&client),
        RemoteCommand::Audit(client) => audit(&client),
        RemoteCommand::Capacity(client) => get(&client, "/v1/capacity", tables::capacity),
        RemoteCommand::Health(client) => health(&client),
        RemoteCommand::Events(args) => list_events(&args),
        RemoteCommand::Metrics(client) => print(client.call(Call::get("/v1/metrics"))?.as_bytes()),
    }
}

fn show(args: &ShowArgs) -> Result<ExitStatus, CliError> {
    let Some(name) = &args.name else {
        return all(&args.client, &StateArgs::default());
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

fn list(args: &ListArgs) -> Result<ExitStatus, CliError> {
    if !args.quiet {
        return all(&args.client, &args.state);
    }
    let mut names = String::new();
    for one in instances(&args.client)? {
        if args.state.allow(one.state) {
            names.push_str(one.name.as_str());
            names.push('\n');
        }
    }
    print(names.as_bytes())
}

/// Prints the instances in the given states, or all.
fn all(client: &ClientArgs, states: &StateArgs) -> Result<ExitStatus, CliError> {
    let text = client.call(Call::get("/v1/instances"))?;
    if states.states().is_empty() {
        return answer(client.json, text, |all: &Vec<Instance>| {
            tables::instances(all)
        });
    }
    // Objects of any later version are passed on as they are.
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).map_err(ClientError::Json)?;
    let words: Vec<String> = states.states().iter().map(State::to_string).collect();
    let is_wanted = |one: &serde_json::Value| {
        let state = one.get("state").and_then(serde_json::Value::as_str);
        state.is_some_and(|state| words.iter().any(|word| word == state))
    };
    let wanted: Vec<serde_json::Value> = all.into_iter().filter(is_wanted).collect();
    let text = serde_json::to_string(&wanted).map_err(ClientError::Json)?;
    answer(client.json, text, |all: &Vec<Instance>| {
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
        channels: fleet.channel,
        instances: fleet.instance.into_iter().map(CreateBody).collect(),
    };
    let call = Call::new("POST", "/v1/plan".to_owned()).with(&body)?;
    let text = client.call(call)?;
    let plan: Plan = serde_json::from_str(&text).map_err(ClientError::Json)?;
    answer(client.json, text, tables::plan)?;
    match plan.problem {
        None => Ok(ExitStatus::Done),
        Some(problem) => {
            let mut error = problem.error;
            let others = plan.problems.len().saturating_sub(1);
            if others > 0 {
                error.message = format!("{}; {others} more do not fit", error.message);
            }
            let mut ways = Vec::new();
            if !problem.delete_one_of.is_empty() {
                let names = problem.delete_one_of.join("`, `");
                ways.push(format!("deleting one of `{names}` would make room"));
            }
            if let Some(size) = plan.pool_size {
                ways.push(format!("a pool of {} would do", Bytes(size)));
            }
            if !ways.is_empty() {
                error.help = Some(ways.join("; "));
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

fn health(client: &ClientArgs) -> Result<ExitStatus, CliError> {
    let text = client.call(Call::get("/v1/health"))?;
    let found: Health = serde_json::from_str(&text).map_err(ClientError::Json)?;
    answer(client.json, text, tables::health)?;
    Ok(if found.ok {
        ExitStatus::Done
    } else {
        ExitStatus::Failed
    })
}

fn list_events(args: &EventsArgs) -> Result<ExitStatus, CliError> {
    let name = args.name.as_ref().map(InstanceName::as_str);
    let call = events::request(args.since, name, args.follow);
    let mut frames = Frames::default();
    args.client.stream(call, |bytes| {
        for mut event in frames.push(bytes) {
            event.push(b'\n');
            print(&event)?;
        }
        Ok(())
    })?;
    Ok(ExitStatus::Done)
}
