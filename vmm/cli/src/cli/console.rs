//! `mkvmm console NAME`: connects a terminal to an instance's serial port, or to
//! another of its consoles.
//!
//! A serial line cannot transmit the size of a window. A guest can ask the
//! terminal (`resize` does), or the user can set it: `stty rows R cols C`.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::cli::HostIoError;
use crate::cli::client::ClientArgs;
use crate::error::{CliError, ExitStatus};
use crate::logger;
use mkvmm_api::CONSOLE_PROTOCOL;
use mkvmm_api::events::{Event, EventKind};
use mkvmm_api::instance::Instance;
use mkvmm_client::connection::{Stream, ask_for, block_on, reach, upgrade};
use mkvmm_client::events::{Events, newest};
use mkvmm_client::{Call, ClientError, Since, streams};

/// The byte of Ctrl-], which detaches, as in telnet and virsh.
const LEAVE: u8 = 0x1d;

#[derive(Debug, clap::Args)]
pub struct ConsoleArgs {
    /// The name of the instance
    name: String,
    /// The number of the console: 0 for the serial port, others from 1 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    number: u8,
    #[command(flatten)]
    client: ClientArgs,
}

/// The number of chunks that may wait for a slow terminal; beyond that, nothing
/// more is received.
const OUTPUT_CHUNKS: usize = 16;
/// How long the last output may take to reach standard output.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// The terminal's original settings, restored when this is dropped, also after
/// a panic. Signals would end the process without a drop, so handlers are
/// installed before the terminal is changed.
pub struct RawTerminal {
    terminal: File,
    before: Termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal.
    ///
    /// # Errors
    /// Fails if the terminal does not let itself be set.
    pub fn of_stdin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        Self::of(File::from(stdin.as_fd().try_clone_to_owned()?)).map(Some)
    }

    fn of(terminal: File) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Discard input that was meant for the guest, so that the shell does
        // not get it. Do not wait for output to drain: nobody may be reading it
        // any more. If the terminal is gone, there is nothing left to do.
        let _ = tcflush(&self.terminal, QueueSelector::IFlush);
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Attaches to the instance that the arguments name.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(args: &ConsoleArgs) -> Result<ExitStatus, CliError> {
    attach_to(&args.name, args.number, &args.client)
}

/// Stays attached to the serial port until Ctrl-], a signal, or the end of the
/// VMM.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn attach(name: &str, client: &ClientArgs) -> Result<ExitStatus, CliError> {
    attach_to(name, 0, client)
}

fn attach_to(name: &str, number: u8, client: &ClientArgs) -> Result<ExitStatus, CliError> {
    let socket = client.socket();
    block_on(async {
        let instance: Instance = ask_for(&socket, Call::of_instance("GET", name, "")).await?;
        // The built-in guest ends its lines like programs of this host; kernels drive
        // their terminals themselves.
        let is_probe = instance.kernel.is_some_and(|kernel| kernel.path == "probe");
        let since = Since::Event(newest(&socket).await?);
        let events = Events::open(&socket, since, None, true).await?;
        let call = streams::console(name, number);
        let stream = upgrade(&socket, call, CONSOLE_PROTOCOL).await?;
        let signals = Signals::listen().map_err(HostIoError::Terminal)?;
        let terminal = RawTerminal::of_stdin().map_err(HostIoError::Terminal)?;
        if terminal.is_some() {
            // If stderr is closed, nobody wants this message.
            let note = format!("attached to {name}; Ctrl-] leaves\r\n");
            let _ = io::stderr().write_all(note.as_bytes());
        }
        let mut ends = Ends {
            name: name.to_owned(),
            events,
        };
        let mut lines = Lines::new(is_probe && terminal.is_some());
        let end = converse(stream, signals, terminal.is_some(), &mut ends, &mut lines).await;
        let is_in_line = terminal.is_some() && lines.last != b'\n';
        if is_in_line && !matches!(end, Ok(End::Ended(_))) && has_room(io::stderr()) {
            // What follows, such as a prompt, begins a line of its own.
            let _ = io::stderr().write_all(b"\r\n");
        }
        drop(terminal);
        Ok(match end? {
            End::Left => ExitStatus::Done,
            End::Ended(status) => status,
            End::HungUp => {
                // The VMM closes a connection for no other reason.
                let why = match reach(&socket).await {
                    Ok(()) => format!("{name} was deleted"),
                    Err(_) => "the VMM has ended".to_owned(),
                };
                logger::say(&format!("mkvmm: {why}"));
                ExitStatus::Done
            }
        })
    })
}

/// Returns whether a terminal takes output: one that nobody reads would keep us.
fn has_room(terminal: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&terminal, PollFlags::OUT)];
    let ready = poll(&mut polled, Some(&Timespec::default()));
    ready.is_ok_and(|count| count > 0)
}

/// The ends of the lines that a guest prints.
pub struct Lines {
    /// The last byte that was printed.
    last: u8,
    /// True if a line feed alone also returns to the first column.
    returns: bool,
}

impl Lines {
    /// Begins with a line of its own.
    pub const fn new(returns: bool) -> Self {
        Self {
            last: b'\n',
            returns,
        }
    }

    /// Returns what a terminal is to get for `bytes`.
    pub fn print(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.returns && byte == b'\n' && self.last != b'\r' {
                text.push(b'\r');
            }
            text.push(byte);
            self.last = byte;
        }
        text
    }
}

/// Tells how a guest ends while somebody is attached.
struct Ends {
    name: String,
    events: Events,
}

impl Ends {
    /// Waits until the guest ends; returns what to tell. Waits forever once there
    /// are no more events.
    async fn next(&mut self) -> String {
        loop {
            let events = match self.events.arrived().await {
                Ok(Some(events)) => events,
                // Of a later version.
                Err(ClientError::Json(_)) => continue,
                Ok(None) | Err(_) => return std::future::pending().await,
            };
            let mut told = events.iter().filter_map(|event| self.text(event));
            if let Some(text) = told.next() {
                return text;
            }
        }
    }

    fn text(&self, event: &Event) -> Option<String> {
        match &event.kind {
            EventKind::State {
                state,
                reason: Some(reason),
            } if event.instance.as_ref() == Some(&self.name) => {
                Some(format!("{}: {state} ({reason})", self.name))
            }
            _ => None,
        }
    }
}

/// The reason why a session ended.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The user detached, or standard output was closed.
    Left,
    /// The VMM closed the connection.
    HungUp,
    /// A signal arrived, which means this exit status.
    Ended(ExitStatus),
}

/// The signals that end the client.
struct Signals([Signal; 4]);

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ]))
    }

    /// Waits for any of the signals, and returns the exit status that it means.
    async fn any(&mut self) -> ExitStatus {
        let Self([terminate, interrupt, hangup, quit]) = self;
        tokio::select! {
            _ = terminate.recv() => ExitStatus::Terminated,
            _ = interrupt.recv() => ExitStatus::Interrupted,
            _ = hangup.recv() => ExitStatus::Interrupted,
            _ = quit.recv() => ExitStatus::Interrupted,
        }
    }
}

/// Copies bytes in both directions without changes: a guest's query to the
/// terminal (`ESC [ 18 t` asks for its size) and the terminal's answer pass
/// through like any text. `lines` says what was printed.
async fn converse(
    stream: Stream,
    mut signals: Signals,
    is_terminal: bool,
    ends: &mut Ends,
    lines: &mut Lines,
) -> Result<End, CliError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut typed = read_stdin(is_terminal)?;
    let (output, mut written) = write_stdout()?;
    let mut buffer = vec![0; 16 << 10];
    let mut stdin_is_open = true;
    // Input that a slow guest has not taken yet. It is sent concurrently with
    // everything else, which must not wait for it.
    let mut unsent = Vec::new();
    let end = loop {
        // Wait for room first: the guest's output waits for a slow terminal.
        let received = async {
            let room = output.reserve().await.ok()?;
            let count = reader.read(&mut buffer).await.unwrap_or(0);
            room.send(lines.print(buffer.get(..count)?));
            Some(count)
        };
        tokio::select! {
            // Standard output has failed; the writer says how. A guest that
            // prints nothing more would not let that be noticed otherwise.
            () = output.closed() => break End::Left,
            received = received => match received {
                None => break End::Left,
                Some(0) => break End::HungUp,
                Some(_) => {}
            },
            bytes = typed.recv(), if stdin_is_open && unsent.is_empty() => match bytes {
                None if is_terminal => break End::Left,
                // All piped input was sent; the response is still to come.
                None => stdin_is_open = false,
                Some(bytes) => unsent = bytes,
            },
            sent = writer.write(&unsent), if !unsent.is_empty() => match sent {
                Ok(count @ 1..) => drop(unsent.drain(..count)),
                _ => break End::HungUp,
            },
            told = ends.next() => {
                let text = format!("\r\nmkvmm: {told}\r\n");
                // After the output that the guest has printed before.
                if is_terminal && output.send(text.into_bytes()).await.is_err() {
                    break End::Left;
                }
            }
            status = signals.any() => return Ok(End::Ended(status)),
        }
    };
    drop(output);
    // Print what was received, unless nobody reads it or the user interrupts.
    tokio::select! {
        result = &mut written => match result {
            Ok(Err(error)) => Err(HostIoError::Output(error).into()),
            _ => Ok(end),
        },
        () = tokio::time::sleep(LAST_OUTPUT) => Ok(end),
        status = signals.any() => Ok(End::Ended(status)),
    }
}

/// Reads standard input in a thread of its own, up to Ctrl-] on a terminal.
///
/// # Errors
/// Fails if the host has run out of threads.
pub fn read_stdin(is_terminal: bool) -> Result<mpsc::Receiver<Vec<u8>>, CliError> {
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
        .map_err(HostIoError::Signals)?;
    Ok(receiver)
}

/// The result of the thread that writes standard output.
pub type Written = oneshot::Receiver<io::Result<()>>;

/// Writes standard output in a thread of its own: a terminal that does not read
/// must not keep the client from handling signals.
pub fn write_stdout() -> Result<(mpsc::Sender<Vec<u8>>, Written), CliError> {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(OUTPUT_CHUNKS);
    let (done, written) = oneshot::channel();
    let body = move || {
        let mut out = io::stdout().lock();
        let mut result = Ok(());
        // What failed once is not waited for again.
        while result.is_ok()
            && let Some(bytes) = receiver.blocking_recv()
        {
            result = out.write_all(&bytes).and_then(|()| out.flush());
        }
        drop(receiver);
        // The receiver may be gone already.
        let _ = done.send(result);
    };
    thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(body)
        .map_err(HostIoError::Signals)?;
    Ok((sender, written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    #[test]
    fn a_line_feed_alone_returns_only_where_it_is_to() {
        let mut lines = Lines::new(true);
        assert_eq!(lines.print(b"a\nb\r"), b"a\r\nb\r");
        assert_eq!(lines.print(b"\nc"), b"\nc");
        assert_eq!(lines.last, b'c');
        lines.returns = false;
        assert_eq!(lines.print(b"a\n"), b"a\n");
    }

    #[test]
    fn a_panic_puts_the_terminal_back() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = File::from(ioctl_tiocgptpeer(&master, flags).unwrap());
        let modes = |file: &File| format!("{:?}", tcgetattr(file).unwrap());
        let before = modes(&terminal);
        let ours = terminal.try_clone().unwrap();
        let thread = thread::spawn(move || {
            let raw = RawTerminal::of(ours).unwrap();
            assert_ne!(modes(&raw.terminal), before, "it is raw");
            std::panic::resume_unwind(Box::new(before));
        });
        let before = *thread.join().unwrap_err().downcast::<String>().unwrap();
        assert_eq!(format!("{:?}", tcgetattr(&terminal).unwrap()), before);
    }
}
