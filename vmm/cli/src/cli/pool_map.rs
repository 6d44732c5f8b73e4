//! `mkvmm pool map`: draws the pool in a terminal or as SVG.

mod picture;
mod svg;
mod terminal;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use mkvmm_api::pool::PoolMap;
use rustix::termios::tcgetwinsize;

use crate::cli::HostIoError;
use crate::cli::client::ClientArgs;
use crate::cli::output::print;
use crate::error::{CliError, ExitStatus};
use mkvmm_client::{Call, ClientError};

/// The number of columns without `--width` and without a terminal.
const WIDTH: usize = 80;
/// The number of instances in the terminal's legend without `--all`.
const LISTED: usize = 16;
/// The number of instances in an SVG's legend without `--all`.
const LISTED_SVG: usize = 30;

#[derive(Debug, clap::Args)]
pub struct MapArgs {
    /// Write an SVG picture to this file instead; `-` is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Columns to use [default: the terminal's, or 80]
    #[arg(long, value_name = "N", conflicts_with = "svg",
          value_parser = clap::value_parser!(u16).range(40..))]
    width: Option<u16>,
    /// List every instance, not only the largest
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Carries out the command.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(args: &MapArgs) -> Result<ExitStatus, CliError> {
    let mut text = args.client.call(Call::get("/v1/pool/map"))?;
    if args.client.json {
        text.push('\n');
        return print(text.as_bytes());
    }
    let map: PoolMap = serde_json::from_str(&text).map_err(ClientError::Json)?;
    let most = |most| if args.all { usize::MAX } else { most };
    let Some(path) = &args.svg else {
        let room = terminal::Room {
            width: args.width.map_or_else(width, usize::from),
            legend: most(LISTED),
        };
        return coloured(&terminal::render(&map, room));
    };
    let picture = svg::render(&map, most(LISTED_SVG));
    if path.as_os_str() == "-" {
        return print(picture.as_bytes());
    }
    std::fs::write(path, picture).map_err(|source| HostIoError::Write {
        path: path.clone(),
        source,
    })?;
    Ok(ExitStatus::Done)
}

fn width() -> usize {
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| tcgetwinsize(&out));
    match size {
        Some(Ok(size)) if size.ws_col > 0 => size.ws_col.into(),
        _ => WIDTH,
    }
}

/// Prints `text` with colours on a terminal, unless NO_COLOR is set.
fn coloured(text: &str) -> Result<ExitStatus, CliError> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(HostIoError::Output)?;
    Ok(ExitStatus::Done)
}
