//! An mkvmm with a neighbour, and what must be as before.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::faults::Injector;
use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::walk::{Census, new_kernel, stand_back};
use mkvmm_test_harness::{Scratch, Server};
use rustix::process::Pid;
use serde_json::Value;

/// The instance whose calls fail.
pub const NAME: &str = "subject";
/// The channel of that instance.
pub const CHANNEL: &str = "line";
/// The neighbour, which runs the whole time.
const NEIGHBOUR: &str = "neighbour";
/// Longer than a walk takes on a slow machine.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long an answer may take: longer than a worker that does not answer.
const ANSWER: Duration = Duration::from_secs(90);
/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(2);

/// An mkvmm that serves, whose calls can be made to fail.
#[derive(Debug)]
pub struct House {
    pub injector: Injector,
    server: Server,
    scratch: Scratch,
    process: Pid,
    /// Where the neighbour counts.
    counter: u64,
    empty: Option<Census>,
    /// Logs that were asked for.
    logs: Cell<u64>,
}

impl House {
    /// Starts it with `options`, and the neighbour in it.
    pub fn start(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let started = Injector::start(move || {
            let change = |serve| options.iter().fold(serve, mkvmm_test_harness::Mkvmm::arg);
            let server = Server::start_in(Scratch::new(), change, "64M@4G", LONGEST);
            let process = server.running.pid();
            (server, process)
        });
        let (injector, server) = started.expect("Linux 5.19 has such filters");
        let process = server.running.pid().expect("it runs");
        let mut house = Self {
            injector,
            server,
            scratch: Scratch::new(),
            process,
            counter: 0,
            empty: None,
            logs: Cell::new(0),
        };
        house.move_in();
        house
    }

    /// Starts the neighbour, which counts in its memory and asks for nothing.
    fn move_in(&mut self) {
        const MARK: u64 = 0x6b72_616d_6d76_6b6d;
        let kernel = elf(&[&code::count_in_memory(), &MARK.to_le_bytes()[..], &[0; 8]].concat());
        let kernel = self.scratch.file("neighbour", &kernel);
        let body = format!(
            r#"{{"name":"{NEIGHBOUR}","memory":8388608,"kernel":"{}"}}"#,
            kernel.display()
        );
        self.expect_ask("POST", "/v1/instances", &body);
        loop {
            let began = self.said().len();
            self.ask("POST", &format!("/v1/instances/{NEIGHBOUR}/start"), "");
            // Its threads have begun, and make no more calls.
            thread::sleep(Duration::from_millis(300));
            if !self.was_interrupted(began) {
                break;
            }
        }
        let mut mark = String::new();
        for byte in MARK.to_le_bytes() {
            write!(mark, "{byte:02x}").expect("a string takes it");
        }
        let found = self
            .server
            .memory(NEIGHBOUR)
            .into_iter()
            .find_map(|(addr, hex)| {
                // The mark is aligned to eight bytes, as the counter behind it.
                let at = (0..hex.len())
                    .step_by(16)
                    .find(|&at| hex[at..].starts_with(&mark))?;
                Some(addr + at as u64 / 2 + 8)
            });
        self.counter = found.expect("its kernel was loaded");
        let state = self.state(NEIGHBOUR);
        assert_eq!(state.as_deref(), Some("active"), "{}", self.said());
        stand_back(self.server.worker_pid(NEIGHBOUR));
        self.expect_neighbour();
    }

    /// What the neighbour has counted.
    fn counted(&self) -> u64 {
        let path = format!(
            "/v1/instances/{NEIGHBOUR}/memory?addr={:#x}&len=8",
            self.counter
        );
        let answer = self.expect_ask("GET", &path, "");
        let hex = answer["hex"].as_str().expect("digits");
        u64::from_str_radix(hex, 16).expect("digits").swap_bytes()
    }

    /// Fails unless the neighbour goes on.
    #[track_caller]
    pub fn expect_neighbour(&self) {
        let (before, end) = (self.counted(), Instant::now() + EVENT_TIMEOUT);
        while self.counted() <= before {
            assert!(Instant::now() < end, "the neighbour stands at {before}");
            thread::sleep(POLL);
        }
        let neighbour = self.instance(NEIGHBOUR).expect("it is there");
        assert_eq!(neighbour["state"], "active", "{neighbour:#}");
        assert_eq!(neighbour["violations"], 0, "{neighbour:#}");
    }

    /// The body of a load. The kernel is a new file every time, so that it has
    /// to be read.
    pub fn images(&self) -> String {
        new_kernel(
            &self.scratch.path("kernel.new"),
            &self.scratch.path("kernel"),
        )
    }

    /// Returns the path of a log that no instance has had lately: the last one may
    /// still be written.
    pub fn new_log(&self) -> PathBuf {
        let number = self.logs.get();
        self.logs.set(number + 1);
        self.scratch.path(&format!("log.{}", number % 16))
    }

    /// One request; `None` where the connection is closed without an answer.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let stream = UnixStream::connect(self.server.socket());
        let mut stream = stream.unwrap_or_else(|error| panic!("{error}\n{}", self.said()));
        stream.set_read_timeout(Some(ANSWER)).expect("a socket");
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let mut answer = Vec::new();
        // Whoever is hung up on early has nothing to read.
        let _ = stream.write_all(request.as_bytes());
        if let Err(error) = stream.read_to_end(&mut answer) {
            let is_late = error.kind() == std::io::ErrorKind::WouldBlock;
            if is_late {
                let fault = self.injector.disarm();
                panic!("{method} {path}: no answer: {fault:?}\n{}", self.said());
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Some((status?, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    #[track_caller]
    fn expect_ask(&self, method: &str, path: &str, body: &str) -> Value {
        match self.ask(method, path, body) {
            Some((200 | 201, answer)) => answer,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// An instance, if there is one of this name.
    #[track_caller]
    pub fn instance(&self, name: &str) -> Option<Value> {
        match self.ask("GET", &format!("/v1/instances/{name}"), "") {
            Some((200, instance)) => Some(instance),
            Some((404, _)) => None,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Returns the state of an instance.
    #[track_caller]
    pub fn state(&self, name: &str) -> Option<String> {
        let instance = self.instance(name)?;
        Some(instance["state"].as_str().expect("a word").to_owned())
    }

    /// Returns whether an instance has a channel; `None` if there is no such channel.
    #[track_caller]
    pub fn line(&self, channel: &str, member: &str) -> Option<bool> {
        let shown = match self.ask("GET", &format!("/v1/channels/{channel}"), "") {
            Some((200, shown)) => shown,
            Some((404, _)) => return None,
            other => panic!("{channel}: {other:?}"),
        };
        let members = shown["members"].as_array().expect("a list");
        let own = members.iter().find(|it| it["name"] == member);
        own.expect("it is a member")["present"].as_bool()
    }

    /// Whether a process that has an instance's memory is confined.
    ///
    /// # Errors
    /// What it is not.
    pub fn check_confined(&self, name: &str) -> Result<(), String> {
        let instance = self.instance(name).unwrap_or_default();
        let Some(pid) = instance["pid"].as_i64() else {
            return Ok(());
        };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            return Ok(());
        };
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.map(|value| value.trim().to_owned())
        };
        // One filter is the test's own.
        let filters = value("Seccomp_filters:").and_then(|n| n.parse().ok());
        let uid = value("Uid:").unwrap_or_default();
        let is_root = uid.split_whitespace().any(|id| id == "0");
        if filters < Some(2_u32)
            || is_root
            || value("CapEff:").is_none_or(|c| c != "0000000000000000")
        {
            return Err(format!("its worker is not confined:\n{status}"));
        }
        Ok(())
    }

    /// Returns whether the audit finds nothing.
    ///
    /// # Errors
    /// What is wrong.
    pub fn audit(&self) -> Result<(), String> {
        let audit = self.expect_ask("GET", "/v1/audit", "");
        match audit["ok"] == true {
            true => Ok(()),
            false => Err(format!("the books: {audit:#}")),
        }
    }

    /// Remembers how everything is without the subject.
    pub fn remember(&mut self) {
        self.empty = Some(Census::settled(|| self.census()));
    }

    /// Whether everything is as it was remembered.
    ///
    /// # Errors
    /// What is not.
    pub fn check_empty(&self) -> Result<(), String> {
        let empty = self.empty.as_ref().expect("it was remembered");
        empty.await_again(|| self.census())
    }

    fn census(&self) -> Census {
        let children = self.server.running.children_named("");
        let mut children: Vec<i32> = children.iter().map(|pid| pid.as_raw_pid()).collect();
        children.sort_unstable();
        let children = children.iter().map(ToString::to_string).collect();
        let pool = self.expect_ask("GET", "/v1/pool", "");
        let neighbour = self.instance(NEIGHBOUR).expect("it is there");
        Census::of(self.process, children, pool, &neighbour)
    }

    /// Takes the subject down whatever it is doing, and remembers anew.
    pub fn clear(&mut self) {
        let path = format!("/v1/instances/{NAME}");
        let end = Instant::now() + EVENT_TIMEOUT;
        while self.instance(NAME).is_some() {
            assert!(Instant::now() < end, "the subject stays\n{}", self.said());
            self.ask("POST", &format!("{path}/kill"), r#"{"force":true}"#);
            self.ask("DELETE", &path, "");
            thread::sleep(POLL);
        }
        self.ask("DELETE", &format!("/v1/channels/{CHANNEL}?force=true"), "");
        self.remember();
    }

    /// Whether a worker has died since `began` because a call of its was
    /// interrupted that the kernel never interrupts: by a signal that came
    /// between the filter and the one who answers. Such a death is the test's.
    pub fn was_interrupted(&self, began: usize) -> bool {
        let said = self.said();
        let new = said.get(began..).unwrap_or_default();
        new.contains("its worker process ended") && new.contains("Interrupted system call")
    }

    /// What it has said on its standard error.
    pub fn said(&self) -> String {
        self.server.running.stderr()
    }

    /// Ends the neighbour; fails unless nothing is left then.
    pub fn tear_down(&self) {
        self.expect_neighbour();
        self.server.tear_down();
        assert!(self.server.running.children_named("").is_empty());
    }
}
