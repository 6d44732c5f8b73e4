//! A VMM that serves, and two ways to talk to it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Finished, Mkvmm, Running, Scratch};

/// How long something that is waited for may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// `mkvmm serve`, killed when the test goes before it.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub running: Running,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Server {
    /// `mkvmm serve --pool POOL`, ready.
    pub fn start(pool: &str) -> Self {
        Self::start_for(pool, Duration::from_secs(180))
    }

    /// The same for a test that takes up to `timeout`.
    pub fn start_for(pool: &str, timeout: Duration) -> Self {
        Self::start_as(pool, |serve| serve.timeout(timeout))
    }

    /// The same, started in a way of its own.
    pub fn start_as(pool: &str, how: impl FnOnce(Mkvmm) -> Mkvmm) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path("sock");
        let running = serve_as(pool, &socket, how);
        Self {
            running,
            socket,
            _scratch: scratch,
        }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command against it.
    pub fn run(&self, args: &str) -> Finished {
        self.run_words(args.split_whitespace())
    }

    /// The same with words that may hold blanks.
    pub fn run_words<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Finished {
        self.command(args).finish()
    }

    /// A command against it that is still to be run.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Mkvmm {
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        Mkvmm::new(args).arg("--socket").arg(&self.socket)
    }

    /// Runs a command that succeeds; what it printed.
    #[track_caller]
    pub fn ok(&self, args: &str) -> String {
        let run = self.run(args);
        run.expect_code(0);
        run.stdout
    }

    /// The JSON that a command prints.
    #[track_caller]
    pub fn json(&self, args: &str) -> Value {
        let text = self.ok(&format!("{args} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Waits until an instance is in `state`.
    #[track_caller]
    pub fn wait_for_state(&self, name: &str, state: &str) -> Value {
        self.wait_for_state_within(PATIENCE, name, state)
    }

    /// The same for what may take up to `patience`.
    #[track_caller]
    pub fn wait_for_state_within(&self, patience: Duration, name: &str, state: &str) -> Value {
        let end = Instant::now() + patience;
        loop {
            let (_, instance) = self.http("GET", &format!("/v1/instances/{name}"), "");
            if instance["state"] == state {
                return instance;
            }
            assert!(Instant::now() < end, "{name} is not {state}: {instance}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// One request on a connection of its own: status and JSON.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        http(&self.socket, method, path, body)
    }

    /// Fails unless the books are right.
    #[track_caller]
    pub fn expect_audit(&self) {
        let (status, audit) = self.http("GET", "/v1/audit", "");
        assert_eq!(status, 200);
        assert_eq!(audit["ok"], true, "{audit:#}");
    }
}

/// Starts it and waits for its ready line.
pub fn serve(pool: &str, socket: &Path) -> Running {
    serve_as(pool, socket, |serve| serve)
}

fn serve_as(pool: &str, socket: &Path, how: impl FnOnce(Mkvmm) -> Mkvmm) -> Running {
    let serve = Mkvmm::new(["serve", "--pool", pool, "--grace", "0", "--socket"])
        .arg(socket)
        .timeout(Duration::from_secs(180));
    let mut running = how(serve).spawn();
    running.wait_until("a ready line", |r| r.stdout().starts_with("ready: "));
    running
}

/// One request over a Unix socket.
pub fn http(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let value = serde_json::from_str(body).unwrap_or(Value::Null);
    (status.expect("a status"), value)
}
