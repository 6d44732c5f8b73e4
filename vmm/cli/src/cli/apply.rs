//! `apply` makes a served pool be what a fleet file says, and `dump` writes the
//! file that says what is there.

use std::fmt::Write as _;
use std::path::PathBuf;

use mkvmm_api::apply::{Applied, ApplyBody, Difference, FleetAction, FleetChange};
use mkvmm_api::bodies::CreateBody;
use mkvmm_api::instance::Instance;
use mkvmm_api::{InstanceSpec, Size};

use crate::cli::client::{Call, ClientArgs, ClientError};
use crate::cli::exchange::{ChangeArgs, answer};
use crate::cli::fleet_file;
use crate::cli::grace::GraceArgs;
use crate::cli::output::print;
use crate::cli::selection::instances;
use crate::cli::tables::harmless;
use crate::error::{CliError, ExitStatus};

/// What stands for a key that is not set.
const UNSET: &str = "(unset)";

#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// A TOML file with instances
    file: PathBuf,
    /// Delete all instances that the file does not have
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
    let fleet = fleet_file::read(&args.file)?.without_channels(&args.file)?;
    let body = ApplyBody {
        instances: fleet.into_iter().map(CreateBody).collect(),
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
    if !client.json {
        return print(fleet_file::text(&[], &instances).as_bytes());
    }
    let instances: Vec<CreateBody> = instances.into_iter().map(CreateBody).collect();
    let body = ApplyBody {
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

/// Formats what was done, or would be done: a line for each instance, one more for
/// each key that differs, and a sum.
pub fn describe(applied: &Applied, is_dry_run: bool) -> String {
    let mut text = String::new();
    let width = applied.changes.iter().map(|one| one.name.len()).max();
    for one in &applied.changes {
        let (sign, what) = words(one);
        let size = match one.action {
            FleetAction::Create | FleetAction::Replace => place(applied, &one.name),
            _ => String::new(),
        };
        let (name, width) = (&one.name, width.unwrap_or(0));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{sign} {name:width$}  {what}{size}");
        for Difference { key, from, to } in &one.differences {
            let side = |side: &Option<String>| harmless(side.as_deref().unwrap_or(UNSET));
            let _ = writeln!(text, "    {key}: {} -> {}", side(from), side(to));
        }
    }
    let counted = |action| {
        let same = applied.changes.iter().filter(|one| one.action == action);
        same.count()
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

fn words(change: &FleetChange) -> (char, &'static str) {
    match (change.action, change.starts, change.ends) {
        (FleetAction::Keep, _, _) => ('=', "unchanged"),
        (FleetAction::Create, true, _) => ('+', "create and start"),
        (FleetAction::Create, false, _) => ('+', "create"),
        (FleetAction::Replace, true, true) => ('~', "end, create again and start"),
        (FleetAction::Replace, true, false) => ('~', "create again and start"),
        (FleetAction::Replace, false, true) => ('~', "end and create again"),
        (FleetAction::Replace, false, false) => ('~', "create again"),
        (FleetAction::Start, _, _) => ('>', "start"),
        (FleetAction::Delete, _, true) => ('-', "end and delete"),
        (FleetAction::Delete, _, false) => ('-', "delete"),
        (FleetAction::Leave, _, _) => (' ', "not in the file; --prune deletes it"),
    }
}

/// Returns the size and the first address of an instance that is created.
fn place(applied: &Applied, name: &str) -> String {
    let mut planned = applied.plan.instances.iter();
    let Some(instance) = planned.find(|one| one.name.as_str() == name) else {
        return String::new();
    };
    let size = Size::try_from(instance.memory).map(Size::exact_text);
    let start = instance.chunks.first().map_or(0, |chunk| chunk.start);
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
            "~ web  end, create again and start\n    cmdline: (unset) -> quiet ?[2K\n\
             = db   unchanged\n  old  not in the file; --prune deletes it\n\
             to be done: 1 replaced, 1 unchanged\n"
        );
        applied.changes.clear();
        assert_eq!(describe(&applied, false), "nothing to do\n");
    }
}
