//! A state directory with a neighbour, and what must be as before.

use std::cell::{Cell, RefCell};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::faults::{Death, Injector, Moment};
use mkvmm_test_harness::images::{code, elf, numbers};
use mkvmm_test_harness::server::{EVENT_TIMEOUT, try_http};
use mkvmm_test_harness::walk::{Census, new_kernel, stand_back};
use mkvmm_test_harness::{Kept, Running, Terminal};
use rustix::process::Pid;
use serde_json::{Value, json};

/// The instance whose verbs the manager dies in.
pub const NAME: &str = "subject";
/// The channel of that instance.
pub const CHANNEL: &str = "line";
/// The neighbour, which runs the whole time.
const NEIGHBOUR: &str = "neighbour";
const POOL: &str = "64M@4G";
/// Longer than a walk takes on a slow machine.
const LONGEST: Duration = Duration::from_secs(3600);
/// Turns of a loop between two lines of the neighbour, of which some processors
/// make a million a second, and some a thousand million.
const PAUSE: u32 = 50_000;
/// How often a state and the events are compared until they agree.
const LOOKS: usize = 200;
/// The interval of polling.
const POLL: Duration = Duration::from_millis(2);

/// A state directory whose managers can be killed at any call.
#[derive(Debug)]
pub struct House {
    // Ended before the injector, without which its calls fail.
    kept: Kept,
    injector: Injector,
    /// The neighbour's worker.
    pid: Option<Pid>,
    /// What the neighbour has counted.
    counted: Cell<u32>,
    /// The last events that were seen.
    events: RefCell<Vec<Value>>,
    base: Option<Census>,
}

impl House {
    /// Starts a manager with `options`, and the neighbour.
    pub fn start(options: &[&str]) -> Self {
        let kept = Kept::new(POOL, options, LONGEST);
        let command = kept.serving();
        let started = Injector::start(move || {
            let running = command.spawn();
            let pid = running.pid();
            (running, pid)
        });
        let (injector, running) = started.expect("Linux 5.19 has such filters");
        let mut house = Self {
            kept,
            injector,
            pid: None,
            counted: Cell::new(0),
            events: RefCell::default(),
            base: None,
        };
        house.kept.take(running);
        house.move_in();
        house
    }

    fn move_in(&mut self) {
        let kernel = self.kept.path("neighbour");
        fs::write(&kernel, elf(&code::count_slowly(PAUSE))).expect("the directory is ours");
        let body = json!({"name": NEIGHBOUR, "memory": 8 << 20, "kernel": kernel});
        self.expect_ask("POST", "/v1/instances", &body.to_string());
        self.expect_ask("POST", &format!("/v1/instances/{NEIGHBOUR}/start"), "");
        let pid = self.kept.worker_pid(NEIGHBOUR);
        self.pid = Some(pid);
        self.expect_neighbour();
        stand_back(pid);
    }

    /// Fails unless the neighbour has the same process as ever, and has counted
    /// on without leaving out a number.
    #[track_caller]
    pub fn expect_neighbour(&self) {
        assert_eq!(Some(self.kept.worker_pid(NEIGHBOUR)), self.pid);
        let before = self.counted.get();
        let mut terminal = Terminal::attach(self.kept.socket(), NEIGHBOUR);
        let has_more = |seen: &[u8]| numbers(&String::from_utf8_lossy(seen)).end > before + 1;
        let seen = numbers(&terminal.wait("another line", has_more));
        assert!(seen.start <= before, "{before} is followed by {seen:?}");
        let count = seen.end;
        self.counted.set(count);
    }

    /// The body of a load. The kernel is a new file every time, so that it has
    /// to be read.
    pub fn images(&self) -> String {
        new_kernel(&self.kept.path("kernel.new"), &self.kept.path("kernel"))
    }

    /// One request; `None` where there is no answer, since the manager was
    /// killed.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        try_http(self.kept.socket(), method, path, body)
    }

    #[track_caller]
    fn expect_ask(&self, method: &str, path: &str, body: &str) -> Value {
        match self.ask(method, path, body) {
            Some((200 | 201, answer)) => answer,
            other => panic!("{method} {path}: {other:?}\n{}", self.kept.said()),
        }
    }

    /// Returns the state of an instance, if there is one of this name.
    #[track_caller]
    pub fn state(&self, name: &str) -> Option<String> {
        match self.ask("GET", &format!("/v1/instances/{name}"), "") {
            Some((200, instance)) => {
                let state = instance["state"].as_str();
                Some(state.expect("a word").to_owned())
            }
            Some((404, _)) => None,
            other => panic!("{name}: {other:?}\n{}", self.kept.said()),
        }
    }

    /// Returns whether a verb is in progress on an instance: one that is illegal
    /// in its state is refused for that reason then.
    #[track_caller]
    pub fn is_busy(&self, name: &str) -> bool {
        let verb = match self.state(name).as_deref() {
            None => return false,
            Some("paused") => "pause",
            Some(_) => "resume",
        };
        match self.ask("POST", &format!("/v1/instances/{name}/{verb}"), "") {
            Some((404, _)) => false,
            Some((409, answer)) => answer["error"]["code"] == "busy",
            other => panic!("{verb}: {other:?}\n{}", self.kept.said()),
        }
    }

    /// Returns whether the subject has its channel; `None` in it for one that does not
    /// exist, and as a whole where there is no answer, since the manager was killed.
    pub fn line(&self) -> Option<Option<bool>> {
        let (status, shown) = self.ask("GET", &format!("/v1/channels/{CHANNEL}"), "")?;
        if status == 404 {
            return Some(None);
        }
        let members = shown["members"].as_array().expect("a list");
        let own = members.iter().find(|it| it["name"] == NAME);
        Some(own.expect("it is a member")["present"].as_bool())
    }

    /// Returns the addresses of the allocations in the pool.
    #[track_caller]
    pub fn allocations(&self) -> Vec<u64> {
        let found = self.find_allocations();
        found.unwrap_or_else(|| panic!("no answer\n{}", self.kept.said()))
    }

    /// Returns the same; `None` where there is no answer, since the manager was
    /// killed.
    pub fn find_allocations(&self) -> Option<Vec<u64>> {
        let (_, rows) = self.ask("GET", "/v1/iomem", "")?;
        let rows = rows.as_array().expect("rows").iter();
        let own = rows.filter(|row| row["name"] == "allocation");
        let starts = own.map(|row| row["start"].as_u64().expect("an address"));
        Some(starts.collect())
    }

    /// Has the manager killed at call `number` of those that `moment` is about.
    pub fn arm(&self, moment: Moment, number: u64) {
        self.injector.arm_death(moment, number);
    }

    /// Has nobody killed. Returns where the manager was.
    pub fn disarm(&self) -> Option<Death> {
        self.injector.disarm_death()
    }

    fn spawn(&self) -> Running {
        let command = self.kept.serving();
        let running = self.injector.run(move || command.spawn());
        self.injector.serves(running.pid());
        running
    }

    /// Kills the manager, if it was not killed already.
    pub fn kill_manager(&mut self) {
        self.kept.kill_manager();
    }

    /// Starts the next manager after one that was killed.
    pub fn adopt(&mut self) {
        let running = self.spawn();
        self.kept.take(running);
    }

    /// Starts the next manager, which may be killed before it is ready; returns
    /// whether it is.
    pub fn try_adopt(&mut self) -> bool {
        let running = self.spawn();
        self.kept.try_take(running)
    }

    /// Whether everything is as it can have been: the books, the events, the
    /// neighbour's process.
    ///
    /// # Errors
    /// Returns what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let audit = self.expect_ask("GET", "/v1/audit", "");
        if audit["ok"] != true {
            return Err(format!("the books: {audit:#}"));
        }
        if Some(self.kept.worker_pid(NEIGHBOUR)) != self.pid {
            return Err("the neighbour has another process".to_owned());
        }
        self.check_events()
    }

    /// Whether the events that were seen are still there, and no number was left
    /// out or used twice.
    fn check_events(&self) -> Result<(), String> {
        let seq = |event: &Value| event["seq"].as_u64().unwrap_or_default();
        let mut seen = self.events.borrow_mut();
        let since = seen.first().map_or(0, |event| seq(event) - 1);
        let now = self.kept.events(since);
        if !now.starts_with(&seen) {
            return Err(format!("events {seen:?} are {now:?}"));
        }
        for (due, event) in (since + 1..).zip(&now) {
            if seq(event) != due {
                return Err(format!("event {due} is {event}"));
            }
        }
        // Nobody is told twice that the same instance is gone.
        let is_own = |event: &&Value| event["instance"] == NAME && event["kind"] != "refused";
        let own: Vec<_> = now.iter().filter(is_own).collect();
        let is_gone = |event: &Value| event["kind"] == "deleted";
        if let Some(pair) = own
            .windows(2)
            .find(|pair| pair.iter().all(|event| is_gone(event)))
        {
            return Err(format!("it was deleted twice: {pair:?}"));
        }
        // Those who follow know what those see who look. It may change between the
        // two looks, but they agree in the end.
        let mut compared = self.compare(since);
        for _ in 1..LOOKS {
            if compared.is_ok() {
                break;
            }
            compared = self.compare(since);
        }
        compared?;
        let from = now.len().saturating_sub(8);
        *seen = now[from..].to_vec();
        Ok(())
    }

    /// Whether the subject is in the state that its last event announced.
    fn compare(&self, since: u64) -> Result<(), String> {
        let events = self.kept.events(since).into_iter();
        let is_own = |event: &Value| event["instance"] == NAME && event["kind"] != "refused";
        let Some(last) = events.rev().find(is_own) else {
            return Ok(());
        };
        let state = self.state(NAME);
        if last["state"].as_str() == state.as_deref() {
            return Ok(());
        }
        thread::sleep(POLL);
        Err(format!("it is {state:?} after {last}"))
    }

    /// Remembers how everything is without the subject.
    pub fn remember(&mut self) {
        self.base = Some(Census::settled(|| self.census()));
    }

    /// Whether everything is as it was remembered.
    ///
    /// # Errors
    /// Returns what is not.
    pub fn check_empty(&self) -> Result<(), String> {
        let base = self.base.as_ref().expect("it was remembered");
        base.await_again(|| self.census())
    }

    fn census(&self) -> Census {
        let children = self.kept.children().into_iter();
        let children = children.map(|child| child.title).collect();
        let pool = self.expect_ask("GET", "/v1/pool", "");
        let neighbour = self.expect_ask("GET", &format!("/v1/instances/{NEIGHBOUR}"), "");
        Census::of(self.kept.keeper(), children, pool, &neighbour)
    }

    /// Takes the subject and the allocations down whatever they are, and
    /// remembers anew.
    pub fn clear(&mut self) {
        self.disarm();
        let path = format!("/v1/instances/{NAME}");
        let end = Instant::now() + EVENT_TIMEOUT;
        while self.state(NAME).is_some() {
            assert!(
                Instant::now() < end,
                "the subject stays\n{}",
                self.kept.said()
            );
            self.ask("POST", &format!("{path}/kill"), r#"{"force":true}"#);
            self.ask("DELETE", &path, "");
            thread::sleep(POLL);
        }
        for start in self.allocations() {
            self.ask("DELETE", &format!("/v1/pool/allocations/{start}"), "");
        }
        self.ask("DELETE", &format!("/v1/channels/{CHANNEL}?force=true"), "");
        self.events.take();
        self.remember();
    }

    /// What all managers have said on their standard error.
    pub fn said(&self) -> String {
        self.kept.said()
    }

    /// Ends the neighbour; fails unless nothing is left then.
    pub fn end(self) {
        self.expect_neighbour();
        self.kept.tear_down();
        let children = self.kept.children();
        assert!(children.is_empty(), "{children:?}");
        self.kept.end();
    }
}
