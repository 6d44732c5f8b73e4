//! A serving VMM, and two ways to talk to it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;

use crate::{Finished, Mkvmm, Running, Scratch};

/// The time limit for awaited events on a busy machine.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The default lifetime of a server.
const LONGEST: Duration = Duration::from_secs(180);

/// A `mkvmm serve`, killed if the test ends before it.
#[derive(Debug)]
pub struct Server {
    /// The running server process.
    pub running: Running,
    socket: PathBuf,
    _scratch: Arc<Scratch>,
}

impl Server {
    /// Starts `mkvmm serve --pool POOL`, and waits until it is ready.
    pub fn start(pool: &str) -> Self {
        Self::start_with(pool, &[])
    }

    /// Starts a server with more options.
    pub fn start_with(pool: &str, options: &[&str]) -> Self {
        Self::start_in(
            Scratch::new(),
            |serve| {
                options
                    .iter()
                    .fold(serve, |serve, option| serve.arg(*option))
            },
            pool,
            LONGEST,
        )
    }

    /// Starts a server for a test that takes up to `timeout`.
    pub fn start_for(pool: &str, timeout: Duration) -> Self {
        Self::start_in(Scratch::new(), |serve| serve, pool, timeout)
    }

    /// Starts a server after `change` of its command.
    pub fn start_as(pool: &str, change: impl FnOnce(Mkvmm) -> Mkvmm) -> Self {
        Self::start_in(Scratch::new(), change, pool, LONGEST)
    }

    /// Starts a server with its socket in `scratch`, after `change` of its
    /// command.
    pub fn start_in(
        scratch: Scratch,
        change: impl FnOnce(Mkvmm) -> Mkvmm,
        pool: &str,
        timeout: Duration,
    ) -> Self {
        let socket = scratch.path("sock");
        let running = ready(change(command(pool, &socket, timeout)));
        Self {
            running,
            socket,
            _scratch: Arc::new(scratch),
        }
    }

    /// Waits until a server that was started with `socket`, a path in `scratch`,
    /// is ready.
    pub(crate) fn of(mut running: Running, socket: PathBuf, scratch: Arc<Scratch>) -> Self {
        wait_for_ready(&mut running);
        Self {
            running,
            socket,
            _scratch: scratch,
        }
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command against it.
    pub fn run(&self, args: &str) -> Finished {
        self.run_words(args.split_whitespace())
    }

    /// Runs a command against it, with arguments that may contain blanks.
    pub fn run_words<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Finished {
        self.command(args).finish()
    }

    /// Returns a command against it that is not started yet.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Mkvmm {
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        Mkvmm::new(args).arg("--socket").arg(&self.socket)
    }

    /// Runs a command that must succeed; returns its output.
    #[track_caller]
    pub fn ok(&self, args: &str) -> String {
        let run = self.run(args);
        run.expect_code(0);
        run.stdout
    }

    /// Returns the JSON that a command prints.
    #[track_caller]
    pub fn json(&self, args: &str) -> Value {
        let text = self.ok(&format!("{args} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Waits until an instance is in `state`.
    #[track_caller]
    pub fn wait_for_state(&self, name: &str, state: &str) -> Value {
        self.wait_for_state_within(EVENT_TIMEOUT, name, state)
    }

    /// Waits up to `timeout` until an instance is in `state`.
    #[track_caller]
    pub fn wait_for_state_within(&self, timeout: Duration, name: &str, state: &str) -> Value {
        let end = Instant::now() + timeout;
        loop {
            let (_, instance) = self.http("GET", &format!("/v1/instances/{name}"), "");
            if instance["state"] == state {
                return instance;
            }
            assert!(Instant::now() < end, "{name} is not {state}: {instance}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends one request on a new connection; returns status and JSON.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        http(&self.socket, method, path, body)
    }

    /// Returns the events with numbers above `since`.
    #[track_caller]
    pub fn events(&self, since: u64) -> Vec<Value> {
        let path = format!("/v1/events?since={since}");
        let answer = exchange(&self.socket, "GET", &path, "");
        let answer = String::from_utf8_lossy(&answer);
        let texts = answer
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        let parse = |text| serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        texts.map(parse).collect()
    }

    /// Returns all of an instance's memory, as addresses and bytes in
    /// hexadecimal.
    #[track_caller]
    pub fn memory(&self, name: &str) -> Vec<(u64, String)> {
        const PART: u64 = 1 << 20;
        let (_, instance) = self.http("GET", &format!("/v1/instances/{name}"), "");
        let mut parts = Vec::new();
        for chunk in instance["chunks"].as_array().expect("it has memory") {
            let number = |key: &str| chunk[key].as_u64().expect("a range");
            let (start, size) = (number("start"), number("size"));
            for at in (0..size).step_by(1 << 20) {
                let (addr, len) = (start + at, PART.min(size - at));
                let path = format!("/v1/instances/{name}/memory?addr={addr:#x}&len={len}");
                let (status, answer) = self.http("GET", &path, "");
                assert_eq!(status, 200, "{path}: {answer}");
                let bytes = answer["hex"].as_str().expect("digits").to_owned();
                assert_eq!(bytes.len() as u64, 2 * len, "{path}");
                parts.push((addr, bytes));
            }
        }
        parts
    }

    /// Deletes all instances, regardless of their state, and all channels. Fails
    /// unless the pool is free in one extent then, and the ledger is consistent.
    #[track_caller]
    pub fn tear_down(&self) {
        let (_, all) = self.http("GET", "/v1/instances", "");
        for instance in all.as_array().expect("a list") {
            let name = instance["name"].as_str().expect("a name");
            let path = format!("/v1/instances/{name}");
            // A running instance must be ended first; other states refuse this.
            self.http("POST", &format!("{path}/kill"), r#"{"force":true}"#);
            let (status, answer) = self.http("DELETE", &path, "");
            assert_eq!(status, 200, "{name}: {answer}");
        }
        let (_, all) = self.http("GET", "/v1/channels", "");
        for channel in all.as_array().expect("a list") {
            let name = channel["name"].as_str().expect("a name");
            let (status, answer) = self.http("DELETE", &format!("/v1/channels/{name}"), "");
            assert_eq!(status, 200, "{name}: {answer}");
        }
        self.expect_audit();
        self.expect_empty();
    }

    /// Fails unless there is no instance, and the pool, without the channel area if it
    /// has one, is free in one extent.
    #[track_caller]
    pub fn expect_empty(&self) {
        let (_, pool) = self.http("GET", "/v1/pool", "");
        let area = pool["channel_area"]["size"].as_u64().unwrap_or(0);
        assert_eq!(
            (&pool["used"], &pool["instances"]),
            (&area.into(), &0.into()),
            "{pool}"
        );
        assert_eq!(pool["free_extents"], 1, "{pool}");
        assert_eq!(pool["largest_free"], pool["avail"], "{pool}");
    }

    /// Returns the process ID of an instance's worker.
    #[track_caller]
    pub fn worker_pid(&self, name: &str) -> Pid {
        let (_, instance) = self.http("GET", &format!("/v1/instances/{name}"), "");
        let pid = instance["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw);
        pid.unwrap_or_else(|| panic!("{name} has no process: {instance}"))
    }

    /// Fails unless the ledger is consistent.
    #[track_caller]
    pub fn expect_audit(&self) {
        let (status, audit) = self.http("GET", "/v1/audit", "");
        assert_eq!(status, 200);
        assert_eq!(audit["ok"], true, "{audit:#}");
    }
}

/// Starts it and waits for its ready line.
pub fn serve(pool: &str, socket: &Path) -> Running {
    ready(command(pool, socket, LONGEST))
}

fn command(pool: &str, socket: &Path, timeout: Duration) -> Mkvmm {
    Mkvmm::new(["serve", "--pool", pool, "--grace", "0", "--socket"])
        .arg(socket)
        .timeout(timeout)
}

fn ready(command: Mkvmm) -> Running {
    let mut running = command.spawn();
    wait_for_ready(&mut running);
    running
}

fn wait_for_ready(running: &mut Running) {
    running.wait_until("a ready line", |r| r.stdout().starts_with("ready: "));
}

/// Sends one request over a Unix socket.
pub fn http(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let answer = exchange(socket, method, path, body);
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let value = serde_json::from_str(body).unwrap_or(Value::Null);
    (status.expect("a status"), value)
}

/// Sends one request; returns the whole answer.
fn exchange(socket: &Path, method: &str, path: &str, body: &str) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream
        .set_read_timeout(Some(EVENT_TIMEOUT))
        .expect("a socket");
    write!(stream, "{}", request(method, path, body)).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    answer
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Sends one request over a Unix socket to a server that may be gone, or be
/// killed meanwhile; returns `None` if there is no whole answer.
pub fn try_http(socket: &Path, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).ok()?;
    stream
        .write_all(request(method, path, body).as_bytes())
        .ok()?;
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let is_late = error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!is_late, "{method} {path}: no answer in {EVENT_TIMEOUT:?}");
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).ok()?))
}
