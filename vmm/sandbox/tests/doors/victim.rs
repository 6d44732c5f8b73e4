//! The process that is attacked: it has a secret in memory, a memory file with
//! a known number, and two listening sockets.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::door::Target;
use crate::setup::{Role, Setup};
use crate::syscall::address;

/// The data that no attacker may read or change.
pub const SECRET: [u8; 16] = *b"a victim's words";

/// The number of the victim's memory file.
pub const MEMORY_FD: i32 = 100;

/// The time after which a test gives up on a victim that does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mkvmm-doors-{name}"))
}

pub fn abstract_name(name: &str) -> String {
    format!("mkvmm-doors-{name}")
}

/// The main function of the victim's process: prints its secret on request.
pub fn run(role: &Role) -> io::Result<()> {
    let name: String = role.word(0);
    let secret = Box::new(SECRET);
    let file = memfd_create(c"guest", MemfdFlags::CLOEXEC)?;
    let _memory = fcntl_dupfd_cloexec(&file, MEMORY_FD)?;
    let _path = UnixListener::bind(socket_path(&name))?;
    let address_of_name = SocketAddr::from_abstract_name(abstract_name(&name))?;
    let _abstract = UnixListener::bind_addr(&address_of_name)?;
    // World-writable, since attackers may run under another ID than the binder.
    std::fs::set_permissions(
        socket_path(&name),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )?;
    let report = role.enter();
    assert!(report.outcome(mkvmm_sandbox::Layer::Dumpable).is_some());
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    writeln!(output, "{}", address(&*secret))?;
    loop {
        output.flush()?;
        let mut question = [0];
        input.read_exact(&mut question)?;
        // This is effectively volatile: another process may have written here.
        output.write_all(std::hint::black_box(&*secret))?;
    }
}

/// A running victim, killed when this value is dropped.
pub struct Victim {
    child: Child,
    channel: BufReader<UnixStream>,
    name: String,
    pub target: Target,
    before: String,
}

impl Victim {
    /// Starts a victim; `number` distinguishes its sockets from others.
    pub fn start(setup: &Setup, number: u64) -> io::Result<Self> {
        let name = format!("{}-{number}", std::process::id());
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let theirs = OwnedFd::from(theirs);
        fcntl_setfd(&theirs, FdFlags::CLOEXEC)?;
        let child = setup
            .clone()
            .word(&name)
            .command()
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs))
            .spawn()?;
        let mut channel = BufReader::new(ours);
        let mut line = String::new();
        channel.read_line(&mut line)?;
        let secret = line
            .trim()
            .parse()
            .map_err(|error| io::Error::other(format!("the victim says {line:?}: {error}")))?;
        let target = Target {
            pid: usize::try_from(child.id()).map_err(io::Error::other)?,
            secret,
            socket: name.clone(),
        };
        let before = outside(target.pid)?;
        Ok(Self {
            child,
            channel,
            name,
            target,
            before,
        })
    }

    /// Returns the harm done to the victim, or `None`. A signal that was sent
    /// before has taken effect before it can answer.
    pub fn harm(&mut self) -> io::Result<Option<String>> {
        if self.channel.get_mut().write_all(b"?").is_err() {
            return Ok(Some("is dead".to_owned()));
        }
        let mut answer = [0; 16];
        match self.channel.read_exact(&mut answer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Some("does not answer".to_owned()));
            }
            Err(_gone) => return Ok(Some("is dead".to_owned())),
        }
        if answer != SECRET {
            return Ok(Some("has another secret".to_owned()));
        }
        let after = outside(self.target.pid)?;
        Ok((after != self.before).then(|| format!("changed: {} to {after}", self.before)))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.expect("the victim is a child of this process");
        let _never_made = std::fs::remove_file(socket_path(&self.name));
    }
}

/// Returns the externally visible properties of a process that a neighbour
/// could change: niceness and the limit of descriptors.
fn outside(pid: usize) -> io::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let nice = fields.split_whitespace().nth(16).unwrap_or_default();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    Ok(format!("nice {nice}, {}", files.unwrap_or_default()))
}
