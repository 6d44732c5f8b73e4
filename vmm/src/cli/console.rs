//! `mkvmm console NAME`: a terminal on an instance's serial port.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::thread;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::client::{Call, ClientArgs, accepted, block_on, connect, request};
use crate::error::{CliError, ExitStatus};
use mkvmm::control::http::CONSOLE_PROTOCOL;

/// Ctrl-]: leaves, as in telnet and virsh.
const LEAVE: u8 = 0x1d;

#[derive(Debug, clap::Args)]
pub struct ConsoleArgs {
    /// The instance
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// The terminal as it was, put back however this ends.
struct RawTerminal {
    terminal: File,
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal.
    fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let terminal = File::from(stdin.as_fd().try_clone_to_owned()?);
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Flush, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing is left to do about a terminal that is gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Attaches until Ctrl-], a signal, or the end of the VMM.
///
/// # Errors
/// [`CliError`], which knows its exit status.
pub fn run(args: &ConsoleArgs) -> Result<ExitStatus, CliError> {
    let socket = args.client.socket();
    block_on(async {
        let mut sender = connect(&socket).await?;
        let path = format!("/v1/instances/{}/console", args.name);
        let request = request(Call::get(path), Some(CONSOLE_PROTOCOL))?;
        let answer = accepted(sender.send_request(request).await?).await?;
        let stream = hyper::upgrade::on(answer).await?;
        let terminal = RawTerminal::new().map_err(CliError::Terminal)?;
        if terminal.is_some() {
            eprint!("attached to {}; Ctrl-] leaves\r\n", args.name);
        }
        let end = converse(stream, terminal.is_some()).await;
        drop(terminal);
        end
    })
}

async fn converse(stream: Upgraded, is_terminal: bool) -> Result<ExitStatus, CliError> {
    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
    let mut typed = read_stdin(is_terminal)?;
    let mut signals = Vec::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        signals.push(signal(kind).map_err(CliError::Terminal)?);
    }
    let [terminate, interrupt, hangup] = signals.as_mut_slice() else {
        return Ok(ExitStatus::Failed);
    };
    let mut buffer = vec![0; 16 << 10];
    let mut stdin_is_open = true;
    loop {
        tokio::select! {
            count = reader.read(&mut buffer) => match count {
                // The VMM has gone.
                Ok(0) | Err(_) => return Ok(ExitStatus::Done),
                Ok(count) => {
                    let mut out = io::stdout().lock();
                    out.write_all(buffer.get(..count).unwrap_or_default())
                        .and_then(|()| out.flush())
                        .map_err(CliError::Output)?;
                }
            },
            bytes = typed.recv(), if stdin_is_open => match bytes {
                None if is_terminal => return Ok(ExitStatus::Done),
                // What was piped in is sent; the answer is still to come.
                None => stdin_is_open = false,
                Some(bytes) => if writer.write_all(&bytes).await.is_err() {
                    return Ok(ExitStatus::Done);
                },
            },
            _ = terminate.recv() => return Ok(ExitStatus::Interrupted),
            _ = interrupt.recv() => return Ok(ExitStatus::Interrupted),
            _ = hangup.recv() => return Ok(ExitStatus::Interrupted),
        }
    }
}

/// Standard input, read by a thread of its own, up to Ctrl-] on a terminal.
fn read_stdin(is_terminal: bool) -> Result<mpsc::Receiver<Vec<u8>>, CliError> {
    let (sender, receiver) = mpsc::channel(16);
    let body = move || {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default();
            let leave = bytes.iter().position(|&b| is_terminal && b == LEAVE);
            let sent = bytes.get(..leave.unwrap_or(count)).unwrap_or_default();
            if sender.blocking_send(sent.to_vec()).is_err() || leave.is_some() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(body)
        .map_err(CliError::SignalPipe)?;
    Ok(receiver)
}
