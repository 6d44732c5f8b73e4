//! `apply` makes a served pool be what a fleet file says, and `dump` writes the
//! file that says what is there.

use std::fmt::Write as _;
use std::path::PathBuf;

use mkvmm_api::apply::{Applied, ApplyBody, Difference, FleetAction, FleetChange};
use mkvmm_api::bodies::CreateBody;
use mkvmm_api::channel::{Channel, ChannelBody};
use mkvmm_api::instance::Instance;
use mkvmm_api::{InstanceSpec, Size};
use serde_json::json;

use crate::cli::client::ClientArgs;
use crate::cli::exchange::{ChangeArgs, answer};
use crate::cli::fleet_file::{self, FleetFile};
use crate::cli::grace::GraceArgs;
use crate::cli::output::print;
use crate::cli::selection::instances;
use crate::cli::tables::harmless;
use crate::error::{CliError, ExitStatus};
use mkvmm_client::{Call, ClientError};

/// What stands for a key that is not set.
const UNSET: &str = "(unset)";
/// What happens to something that the file does not have.
const LEFT: &str = "not in the file; --prune deletes it";

#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// A TOML file with instances, and channels between them
    file: PathBuf,
    /// Delete all instances and channels that the file does not have
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    grace: GraceArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Applies a fleet file, and prints what was done; with `--dry-run`, what would
/// be done.
///
/// # Errors
/// Returns the errors of the file and of the request.
pub fn apply(args: &ApplyArgs) -> Result<ExitStatus, CliError> {
    let FleetFile { channel, instance } = fleet_file::read(&args.file)?;
    let body = ApplyBody {
        channels: channel,
        instances: instance.into_iter().map(CreateBody).collect(),
        prune: args.prune,
        grace_ms: args.grace.ms(),
    };
    let path = format!("/v1/apply{}", args.change.query());
    let call = Call::new("POST", path).with(&body)?;
    let (client, is_dry_run) = (args.change.client(), args.change.is_dry_run());
    answer(client.json, client.call(call)?, |applied: &Applied| {
        describe(applied, is_dry_run)
    })
}

/// Prints the fleet file that describes what is there; as JSON, it is the body
/// of `POST /v1/apply`.
///
/// # Errors
/// Returns the errors of the request and of standard output.
pub fn dump(client: &ClientArgs) -> Result<ExitStatus, CliError> {
    let instances: Vec<InstanceSpec> = instances(client)?.into_iter().map(dumped).collect();
    let channels = client.call(Call::get("/v1/channels"))?;
    let channels: Vec<Channel> = serde_json::from_str(&channels).map_err(ClientError::Json)?;
    let channels = channels.iter().map(dumped_channel);
    let channels: Vec<ChannelBody> = channels.collect::<Result<_, _>>()?;
    if !client.json {
        return print(fleet_file::text(&channels, &instances).as_bytes());
    }
    let instances: Vec<CreateBody> = instances.into_iter().map(CreateBody).collect();
    let body = ApplyBody {
        channels,
        instances,
        ..ApplyBody::default()
    };
    let mut text = serde_json::to_string(&body).map_err(ClientError::Json)?;
    text.push('\n');
    print(text.as_bytes())
}

/// Returns the specification of an instance with which `apply` leaves it as it is.
fn dumped(instance: Instance) -> InstanceSpec {
    let runs = instance.state.is_live() || instance.restarting;
    InstanceSpec {
        // Without images there is nothing to boot.
        autostart: runs || instance.kernel.is_none(),
        ..instance.spec
    }
}

/// Returns what creates such a channel.
fn dumped_channel(channel: &Channel) -> Result<ChannelBody, ClientError> {
    let members = channel.members.iter().map(|member| {
        let access = if member.read_only { ":ro" } else { "" };
        format!("{}{access}", member.name)
    });
    let body = json!({
        "name": channel.name,
        "size": channel.range.size,
        "between": members.collect::<Vec<_>>(),
        "doorbells": channel.doorbells,
    });
    serde_json::from_value(body).map_err(ClientError::Json)
}

/// Formats what was done, or would be done: a line for each channel and instance, one more for
/// each key that differs, and a sum.
pub fn describe(applied: &Applied, is_dry_run: bool) -> String {
    let channels = applied
        .channels
        .iter()
        .map(|one| Line::of_channel(applied, one));
    let instances = applied.changes.iter().map(|one| Line::of(applied, one));
    let lines: Vec<Line<'_>> = channels.chain(instances).collect();
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Line { name, change, what } in &lines {
        let sign = sign(change.action);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{sign} {name:width$}  {what}");
        for Difference { key, from, to } in &change.differences {
            let side = |side: &Option<String>| harmless(side.as_deref().unwrap_or(UNSET));
            let _ = writeln!(text, "    {key}: {} -> {}", side(from), side(to));
        }
    }
    let counted = |action| {
        lines
            .iter()
            .filter(|line| line.change.action == action)
            .count()
    };
    let sums = [
        (counted(FleetAction::Create), "created"),
        (counted(FleetAction::Replace), "replaced"),
        (counted(FleetAction::Start), "started"),
        (counted(FleetAction::Delete), "deleted"),
        (counted(FleetAction::Keep), "unchanged"),
    ];
    let sums = sums.iter().filter(|(count, _)| *count > 0);
    let sums: Vec<String> = sums
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let verb = if is_dry_run { "to be done" } else { "done" };
    match sums.is_empty() {
        true => text.push_str("nothing to do\n"),
        false => {
            let _ = writeln!(text, "{verb}: {}", sums.join(", "));
        }
    }
    text
}

/// What happens to one instance or channel, in words.
struct Line<'a> {
    name: String,
    change: &'a FleetChange,
    what: String,
}

impl<'a> Line<'a> {
    fn of(applied: &Applied, change: &'a FleetChange) -> Self {
        let what = match (change.action, change.starts, change.ends) {
            (FleetAction::Keep, _, _) => "unchanged",
            (FleetAction::Create, true, _) => "create and start",
            (FleetAction::Create, false, _) => "create",
            (FleetAction::Replace, true, true) => "end, create again and start",
            (FleetAction::Replace, true, false) => "create again and start",
            (FleetAction::Replace, false, true) => "end and create again",
            (FleetAction::Replace, false, false) => "create again",
            (FleetAction::Start, _, _) => "start",
            (FleetAction::Delete, _, true) => "end and delete",
            (FleetAction::Delete, _, false) => "delete",
            (FleetAction::Leave, _, _) => LEFT,
        };
        let mut planned = applied.plan.instances.iter();
        let planned = planned.find(|one| one.name.as_str() == change.name);
        let place = planned.map_or_else(String::new, |one| {
            let start = one.chunks.first().map_or(0, |chunk| chunk.start);
            place(one.memory, start)
        });
        Self {
            name: change.name.clone(),
            change,
            what: format!("{what}{place}"),
        }
    }

    fn of_channel(applied: &Applied, change: &'a FleetChange) -> Self {
        let what = match (change.action, change.ends) {
            (FleetAction::Keep | FleetAction::Start, _) => "unchanged",
            (FleetAction::Create, _) => "create",
            (FleetAction::Replace, true) => "take from its guests and create again",
            (FleetAction::Replace, false) => "create again",
            (FleetAction::Delete, true) => "take from its guests and delete",
            (FleetAction::Delete, false) => "delete",
            (FleetAction::Leave, _) => LEFT,
        };
        let mut planned = applied.plan.channels.iter();
        let planned = planned.find(|one| one.name == change.name);
        let place = planned.map_or_else(String::new, |one| place(one.range.size, one.range.start));
        Self {
            name: format!("channel {}", change.name),
            change,
            what: format!("{what}{place}"),
        }
    }
}

fn sign(action: FleetAction) -> char {
    match action {
        FleetAction::Keep => '=',
        FleetAction::Create => '+',
        FleetAction::Replace => '~',
        FleetAction::Start => '>',
        FleetAction::Delete => '-',
        FleetAction::Leave => ' ',
    }
}

/// Returns the size and the first address of what is created.
fn place(size: u64, start: u64) -> String {
    let size = Size::try_from(size).map(Size::exact_text);
    format!(", {} at {start:#x}", size.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_api::plan::Plan;
    use mkvmm_api::pool::Pool;

    fn change(name: &str, action: FleetAction, starts: bool, ends: bool) -> FleetChange {
        FleetChange {
            name: name.to_owned(),
            action,
            differences: Vec::new(),
            starts,
            ends,
        }
    }

    #[test]
    fn what_is_done_has_a_line_for_each_instance() {
        let mut replaced = change("web", FleetAction::Replace, true, true);
        replaced.differences.push(Difference {
            key: "cmdline".to_owned(),
            from: None,
            to: Some("quiet \u{1b}[2K".to_owned()),
        });
        let pool: Pool = serde_json::from_str(
            r#"{"start":0,"size":4096,"avail":0,"used":0,"largest_free":0,"free_extents":0,
                "min_order":12,"instances":0,
                "backing":{"kind":"memfd","page_size":4096,"prealloc":false,"numa_node":null}}"#,
        )
        .unwrap();
        let mut applied = Applied {
            channels: vec![
                change("ab", FleetAction::Create, false, false),
                change("bc", FleetAction::Delete, false, true),
            ],
            changes: vec![
                replaced,
                change("db", FleetAction::Keep, false, false),
                change("old", FleetAction::Leave, false, false),
            ],
            plan: Plan {
                fits: true,
                channels: Vec::new(),
                instances: Vec::new(),
                pieces: Vec::new(),
                pool,
                problem: None,
                problems: Vec::new(),
                pool_size: None,
            },
        };
        assert_eq!(
            describe(&applied, true),
            "+ channel ab  create\n- channel bc  take from its guests and delete\n\
             ~ web         end, create again and start\n    cmdline: (unset) -> quiet ?[2K\n\
             = db          unchanged\n  old         not in the file; --prune deletes it\n\
             to be done: 1 created, 1 replaced, 1 deleted, 1 unchanged\n"
        );
        applied.changes.clear();
        applied.channels.clear();
        assert_eq!(describe(&applied, false), "nothing to do\n");
    }
}
