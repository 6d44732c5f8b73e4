//! `mkvmm pool log`: lists the last allocations with their callers and results.

use std::time::Duration;

use comfy_table::{Attribute, Cell, CellAlignment, Color};

use crate::cli::client::ClientArgs;
use crate::cli::exchange::answer;
use crate::cli::tables::{self, size};
use crate::error::{CliError, ExitStatus};
use mkvmm_api::pool::PoolRecord;
use mkvmm_client::Call;

#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// Print only the last N allocations
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Carries out the command.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(args: &LogArgs) -> Result<ExitStatus, CliError> {
    let query = args.limit.map(|limit| format!("?limit={limit}"));
    let path = format!("/v1/pool/log{}", query.unwrap_or_default());
    let text = args.client.call(Call::get(path))?;
    answer(args.client.json, text, |records: &Vec<PoolRecord>| {
        table(records)
    })
}

fn table(records: &[PoolRecord]) -> String {
    let mut table = tables::table();
    let titles = [
        "SEQ", "SECONDS", "OP", "CALLER", "ADDRESS", "SIZE", "OUTCOME",
    ];
    table.set_header(titles.map(|t| Cell::new(t).add_attribute(Attribute::Bold)));
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for record in records {
        let at = Duration::from_nanos(record.at).as_secs_f64();
        let outcome = Cell::new(&record.outcome);
        table.add_row([
            right(record.seq.to_string()),
            right(format!("{at:.3}")),
            Cell::new(&record.op),
            Cell::new(&record.caller),
            Cell::new(record.start.map_or("-".to_owned(), |at| format!("{at:#x}"))),
            right(size(record.size)),
            match record.outcome.as_str() {
                "ok" => outcome,
                _ => outcome.fg(Color::Red),
            },
        ]);
    }
    tables::text(&table)
}
