//! passt: the program that connects a network device with the host's network
//! without root (passt(1)). There is one for each device, a child in the cgroup of
//! its guest, behind a socket of which the guest's worker has the other end.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mkvmm_api::net::{Forward, Protocol};
use mkvmm_base::{Class, Diagnose, is_plain, is_shortage};
use mkvmm_keeper::process::{Child, Exit};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::messages::{HelperFailure, HelperOrder};
use mkvmm_wire::ready::Ready;
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::sync::{oneshot, watch};

use crate::child::{Children, Role, Started};
use crate::worker::WorkerError;

/// The name of the program.
const PROGRAM: &str = "passt";
/// Where it is looked for besides PATH: Debian's place, which a service manager's
/// PATH may lack.
const ELSEWHERE: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
/// How long it may take to start. It takes 30 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// The size of the file for its messages in bytes.
const WORDS: usize = 8 << 10;
/// The number of bytes of its messages that are passed on.
const WORDS_SHOWN: usize = 400;
/// The buffer for frames in bytes, as far as the host allows it.
const BUFFER: usize = 1 << 20;
/// Lines of it that say nothing of its state.
const NOISE: &str = "Failed to send ";

/// A reason why a guest has no passt.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error("net=passt: the program passt is not in PATH")]
    Missing,
    /// It has ended at once.
    #[error("net=passt: passt has ended ({exit}): {words}")]
    Ended {
        /// How it ended.
        exit: Exit,
        /// What it said.
        words: String,
    },
    /// It could not be executed.
    #[error("net=passt: {reason}")]
    Execution {
        /// The words of the process that was to execute it.
        reason: String,
    },
    /// It was not ready in time, and was killed.
    #[error("net=passt: passt was not ready within {} s, and was killed", PATIENCE.as_secs())]
    Slow,
    /// The host refuses what it needs.
    #[error("net=passt: the host refuses a socket, a pipe or a file")]
    Io(#[from] io::Error),
    /// The process could not be started.
    #[error("net=passt")]
    Worker(#[from] WorkerError),
}

impl Diagnose for PasstError {
    fn class(&self) -> Class {
        match self {
            _ if is_shortage(self) => Class::Exhausted,
            Self::Missing | Self::Ended { .. } => Class::Invalid,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing => Some("install it: on Debian, apt install passt".to_owned()),
            Self::Ended { words, .. } if words.contains("routable") => Some(
                "passt copies address and routes of the host's network: give the host an \
                 interface with a default route, such as a dummy one"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// The settings of one passt.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The name of the instance.
    pub label: String,
    /// The ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
    /// The number of bytes of the largest packet.
    pub mtu: u16,
}

/// A passt that is ready, with the worker's end of its socket.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The process of passt.
    pub child: Child,
    /// The number of the process, if it is a child of the keeper.
    pub serial: Option<u64>,
    /// The file with its messages.
    pub words: File,
    /// The worker's end of the socket.
    pub socket: OwnedFd,
}

/// Starts a passt in the v2 cgroup whose open directory is given, if any, and waits
/// until it is ready.
///
/// # Errors
/// Returns a [`PasstError`]; no process is left then.
pub(crate) async fn connect(
    children: &Children,
    settings: &Settings,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Connected, PasstError> {
    let program = tokio::task::spawn_blocking(find).await;
    let program = program.map_err(io::Error::other)?;
    let program = program.ok_or(PasstError::Missing)?;
    let (ours, theirs) = stream()?;
    let words = words()?;
    let (ready, ready_end) = io::pipe()?;
    let ready_end = OwnedFd::from(ready_end);
    // It opens the pipe by its path, as another user than this one if that is root.
    fchmod(&ready_end, Mode::from_raw_mode(0o666)).map_err(io::Error::from)?;
    let Started {
        child,
        socket,
        serial,
    } = children
        .start(Role::Helper, &settings.label, cgroup)
        .await?;
    let child = child.confirmed().await.map_err(WorkerError::from)?;
    let mut child = Mortal(Some(child));
    let order = order(&program, settings);
    let given = [theirs.as_fd(), words.as_fd(), ready_end.as_fd()];
    let started = execute(socket, &order, &given).await;
    drop((theirs, ready_end));
    let outcome = match started {
        Ok(()) => tokio::time::timeout(PATIENCE, is_ready(ready.into())).await,
        Err(error) => {
            child.end().await;
            return Err(error);
        }
    };
    match outcome {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            let exit = child.end().await;
            let words = said(&words);
            return Err(PasstError::Ended { exit, words });
        }
        Ok(Err(error)) => {
            child.end().await;
            return Err(error.into());
        }
        Err(_elapsed) => {
            child.end().await;
            return Err(PasstError::Slow);
        }
    }
    match child.0.take() {
        Some(child) => Ok(Connected {
            child,
            serial,
            words,
            socket: ours,
        }),
        None => Err(PasstError::Slow),
    }
}

/// Finds the program.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).filter(|place| place.is_absolute());
    let places = places.chain(ELSEWHERE.map(PathBuf::from));
    let mut programs = places.map(|place| place.join(PROGRAM));
    programs.find(|program| program.is_file())
}

/// Creates a pair of stream sockets.
fn stream() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    for end in [&pair.0, &pair.1] {
        set_socket_send_buffer_size(end, BUFFER)?;
    }
    Ok(pair)
}

/// Creates the file for its messages: writes beyond its size fail, so that nothing
/// waits for a reader or grows.
fn words() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("passt", flags)?;
    ftruncate(&file, WORDS as u64)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(File::from(file))
}

fn order(program: &Path, settings: &Settings) -> HelperOrder {
    let mut arguments: Vec<String> = ["--foreground", "--quiet", "--mtu"]
        .map(str::to_owned)
        .into();
    arguments.push(settings.mtu.to_string());
    for (protocol, option) in [
        (Protocol::Tcp, "--tcp-ports"),
        (Protocol::Udp, "--udp-ports"),
    ] {
        let forwards = settings.forwards.iter();
        let mut forwards = forwards.filter(|forward| forward.protocol == protocol);
        let first = forwards.next().map_or("none".to_owned(), Forward::ports);
        arguments.extend([option.to_owned(), first]);
        for forward in forwards {
            arguments.extend([option.to_owned(), forward.ports()]);
        }
    }
    HelperOrder {
        program: program.display().to_string(),
        arguments,
        link: "--fd".to_owned(),
        ready: "--pid".to_owned(),
    }
}

/// Has the child execute the program.
async fn execute(
    socket: OwnedFd,
    order: &HelperOrder,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), PasstError> {
    let channel = AsyncChannel::<HelperOrder, HelperFailure>::open(socket);
    let mut channel = channel.map_err(WorkerError::from)?;
    let sent = channel.sender.send(order, descriptors).await;
    match sent {
        Ok(()) | Err(WireError::Closed) => {}
        Err(error) => return Err(WorkerError::from(error).into()),
    }
    match tokio::time::timeout(PATIENCE, channel.receiver.recv()).await {
        Ok(Ok(Some(failure))) => {
            let HelperFailure(reason) = failure.message;
            let reason = plain(&reason);
            Err(PasstError::Execution { reason })
        }
        // The channel ends when the program is executed.
        Ok(Ok(None) | Err(WireError::Closed)) => Ok(()),
        Ok(Err(error)) => Err(WorkerError::from(error).into()),
        Err(_elapsed) => Err(PasstError::Slow),
    }
}

/// Waits until the program has written its process ID; `false` if it has ended
/// instead.
async fn is_ready(pipe: OwnedFd) -> io::Result<bool> {
    let pipe = std::sync::Arc::new(pipe);
    let ready = Ready::new(std::sync::Arc::clone(&pipe), false)?;
    drop(ready.readable().await?);
    Ok(rustix::io::read(&*pipe, &mut [0; 16])? > 0)
}

/// Returns what the program said, on one line.
fn said(words: &File) -> String {
    let mut bytes = vec![0; WORDS];
    let length = words.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    let lines = text.trim_end_matches('\0').lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(NOISE));
    let all = lines.collect::<Vec<_>>().join("; ");
    match all.is_empty() {
        true => "it said nothing".to_owned(),
        false => plain(&all),
    }
}

/// Returns the text without control characters, bounded.
fn plain(text: &str) -> String {
    let end = text.floor_char_boundary(WORDS_SHOWN);
    let text = text.get(..end).unwrap_or_default();
    let clean = |c: char| if is_plain(c) { c } else { '?' };
    text.chars().map(clean).collect()
}

/// A child that is killed if nobody takes it, without anybody waiting for it.
struct Mortal(Option<Child>);

impl Mortal {
    /// Kills the child, and returns how it ended.
    async fn end(&mut self) -> Exit {
        match self.0.take() {
            Some(child) => end(child).await,
            None => Exit::Code(-1),
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(child) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(end(child));
        }
    }
}

/// Kills a child and waits until it is gone.
async fn end(mut child: Child) -> Exit {
    let _ = child.kill();
    child.ended().await.unwrap_or(Exit::Code(-1))
}

/// A passt at work. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Passt {
    pid: i32,
    /// Closed by dropping it.
    #[expect(dead_code, reason = "the other end waits for its end")]
    wanted: oneshot::Sender<()>,
    gone: watch::Receiver<bool>,
}

impl Passt {
    /// Watches a passt; calls `on_end` with what it said if it ends by itself. Must
    /// be called in a `LocalSet`.
    pub fn watch(
        mut child: Child,
        words: File,
        is_kept: bool,
        on_end: impl FnOnce(String) + 'static,
    ) -> Self {
        let pid = child.pid();
        let (sender, gone) = watch::channel(false);
        let (wanted, unwanted) = oneshot::channel();
        tokio::task::spawn_local(async move {
            tokio::select! {
                exit = child.ended() => {
                    let exit = exit.unwrap_or(Exit::Code(-1));
                    sender.send_replace(true);
                    on_end(format!("passt has ended ({exit}): {}", said(&words)));
                }
                _dropped = unwanted => {
                    // The keeper kills its child unless this manager only goes,
                    // and reaps it.
                    match is_kept {
                        true => drop(child),
                        false => drop(end(child).await),
                    }
                    sender.send_replace(true);
                }
            }
        });
        Self { pid, wanted, gone }
    }

    /// Returns the process ID.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns whether it has ended.
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }
}
