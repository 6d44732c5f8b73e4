//! `run --attach NAME`: the terminal of `run` is that of one guest.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use mkvmm_base::InstanceName;
use mkvmm_manager::console::GuestConsole;
use mkvmm_manager::stream::Attached;

use crate::cli::HostIoError;
use crate::cli::console::{Lines, RawTerminal, read_stdin};
use crate::error::CliError;
use crate::logger;

/// Writes what the guest prints: to a terminal that is raw, as it needs it.
struct Output(Lines);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(&self.0.print(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Returns whether what is typed comes from a terminal, and what is printed goes to
/// one.
fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Returns what ends a line on standard output while somebody is attached.
pub fn line_end() -> &'static [u8] {
    match is_terminal() {
        true => b"\r\n",
        false => b"\n",
    }
}

/// Returns where the output of the guest `name` goes; `is_probe` if it is the
/// built-in guest, which ends its lines like programs of this host.
pub fn output(name: InstanceName, is_probe: bool) -> Attached {
    Attached {
        name,
        out: Box::new(Output(Lines::new(is_probe && is_terminal()))),
        newline: line_end(),
        is_in_line: false,
    }
}

/// Passes standard input on to the guest `name`, until it ends; then a terminal is
/// as it was, and the guests go on. Returns only if that fails.
pub async fn type_in(name: &InstanceName, console: Arc<GuestConsole>) -> CliError {
    match pass(name, &console).await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn pass(name: &InstanceName, console: &GuestConsole) -> Result<(), CliError> {
    let terminal = match is_terminal() {
        true => RawTerminal::of_stdin().map_err(HostIoError::Terminal)?,
        false => None,
    };
    if terminal.is_some() {
        let note = format!("attached to {name}; Ctrl-] leaves, then Ctrl-C ends all guests\r");
        logger::say(&note);
    }
    let mut typed = read_stdin(terminal.is_some())?;
    while let Some(bytes) = typed.recv().await {
        let mut rest = bytes.as_slice();
        loop {
            let taken = console.type_in(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            console.room().await;
        }
    }
    Ok(())
}
