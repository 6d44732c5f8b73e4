//! The manager is killed at random while clients use it, each with instances of
//! its own, of which it knows what has become.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::images::{code, elf, numbers};
use mkvmm_test_harness::server::{EVENT_TIMEOUT, try_http};
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::{Kept, Random};
use serde_json::{Value, json};

/// Kills unless it is told, and those from which on the crowd is a large one.
const KILLS: u64 = 20;
const MANY: u64 = 1000;
/// Guests and clients of a small and of a large crowd.
const SMALL: (u64, u64) = (9, 3);
const LARGE: (u64, u64) = (50, 8);
/// The memory of a guest: enough for its kernel wherever it begins, since clients
/// allocate pages between guests.
const MEMORY: u64 = 8 << 20;
/// Guests that count the whole time, with a log.
const WITNESSES: u64 = 2;
/// How often all is taken down and looked at.
const ROUNDS: u64 = 5;
/// Turns of a loop between two lines of a witness.
const PAUSE: u32 = 50_000;
/// What the keeper's memory may grow by: what the C library keeps for later.
const GROWTH_KIB: u64 = 512;
/// How long a verb may take with all the kills meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than all of it takes.
const LONGEST: Duration = Duration::from_secs(3600);

/// What a client's instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Gone,
    Ready,
    Loaded,
    Active,
    Paused,
    Stopped,
}

impl Is {
    /// Its state, as the socket has it.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Gone => None,
            Self::Ready => Some("ready"),
            Self::Loaded => Some("loaded"),
            Self::Active => Some("active"),
            Self::Paused => Some("paused"),
            Self::Stopped => Some("stopped"),
        }
    }
}

/// A verb: method, the rest of the path, body, and what it leads to.
type Verb = (&'static str, &'static str, &'static str, Is);

/// What is legal.
fn verbs(is: Is) -> &'static [Verb] {
    const LOAD: Verb = (
        "POST",
        "/load",
        r#"{"kernel":"probe","cmdline":"spin"}"#,
        Is::Loaded,
    );
    const SHELL: Verb = (
        "POST",
        "/load",
        r#"{"kernel":"probe","cmdline":"shell"}"#,
        Is::Loaded,
    );
    const START: Verb = ("POST", "/start", "", Is::Active);
    const DELETE: Verb = ("DELETE", "", "", Is::Gone);
    const UNLOAD: Verb = ("POST", "/unload", "", Is::Ready);
    const KILL: Verb = ("POST", "/kill", r#"{"force":true}"#, Is::Stopped);
    const STOP: Verb = ("POST", "/kill", r#"{"grace_ms":50}"#, Is::Stopped);
    match is {
        // A create needs a name, so its path is another.
        Is::Gone => &[("CREATE", "", "", Is::Ready)],
        Is::Ready => &[LOAD, LOAD, SHELL, SHELL, DELETE],
        Is::Loaded => &[START, START, START, UNLOAD, LOAD, DELETE],
        Is::Active => &[("POST", "/pause", "", Is::Paused), KILL, STOP],
        Is::Paused => &[("POST", "/resume", "", Is::Active), KILL],
        Is::Stopped => &[START, LOAD, UNLOAD, DELETE],
    }
}

/// What all clients have done.
#[derive(Debug, Default)]
struct Counts {
    /// Verbs by how often they had to be asked for.
    verbs: Mutex<BTreeMap<u32, u64>>,
}

/// A client and its instances.
struct Client<'a> {
    socket: &'a Path,
    counts: &'a Counts,
    random: Random,
    /// Its instances, with the process of those that run.
    names: Vec<(String, Is, Option<i64>)>,
}

impl Client<'_> {
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        try_http(self.socket, method, path, body)
    }

    /// Asks until there is an answer.
    fn insist(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.ask(method, path, body) {
                // It is busy with all the others that come again.
                Some((503, _)) | None => {}
                Some(answer) => return answer,
            }
            assert!(Instant::now() < end, "{method} {path} has no answer");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Fails unless an instance is what it must be.
    fn check(&self, index: usize) {
        let (name, is, pid) = &self.names[index];
        let (status, instance) = self.insist("GET", &format!("/v1/instances/{name}"), "");
        let state = instance["state"].as_str().filter(|_| status == 200);
        assert_eq!(state, is.word(), "{name}: {instance}");
        if pid.is_some() {
            assert_eq!(instance["pid"].as_i64(), *pid, "{name}: {instance}");
        }
    }

    /// Waits until no verb is in progress on an instance; returns its state.
    fn settled(&self, name: &str) -> Option<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let (status, instance) = self.insist("GET", &format!("/v1/instances/{name}"), "");
            if status == 404 {
                return None;
            }
            let is_paused = instance["state"] == "paused";
            let illegal = if is_paused { "pause" } else { "resume" };
            let path = format!("/v1/instances/{name}/{illegal}");
            let (status, answer) = self.insist("POST", &path, "");
            // The state at that time: it may have changed since the other request.
            let state = answer["error"]["state"].as_str();
            let is_settled = status == 409 && answer["error"]["code"] == "wrong-state";
            if is_settled && state != Some("cleaning") {
                return state.map(str::to_owned);
            }
            assert!(Instant::now() < end, "{name} stays busy: {answer}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Does a verb to one of its instances, however often it takes.
    fn act(&mut self) {
        let index = self.random.below(self.names.len() as u64);
        let index = usize::try_from(index).expect("a small number");
        self.check(index);
        let (name, was, _) = self.names[index].clone();
        let &(method, rest, body, to) = self.random.pick(verbs(was));
        let mut path = format!("/v1/instances/{name}{rest}");
        let (mut method, mut body) = (method, body.to_owned());
        if method == "CREATE" {
            (method, path) = ("POST", "/v1/instances".to_owned());
            body = json!({"name": name, "memory": MEMORY, "on-reboot": "restart"}).to_string();
        }
        let (mut tries, mut refusal) = (0, Value::Null);
        let end = Instant::now() + PATIENCE;
        loop {
            tries += 1;
            match self.ask(method, &path, &body) {
                Some((200 | 201, _)) => break,
                // The manager has died: what was asked for was done, will be
                // done, or was not done.
                None => {
                    let state = self.settled(&name);
                    if state.as_deref() == to.word() && to != was {
                        break;
                    }
                    // A load begins by taking out what was there.
                    let is_unloaded = rest == "/load" && state.as_deref() == Some("ready");
                    if !is_unloaded {
                        assert_eq!(
                            state.as_deref(),
                            was.word(),
                            "{name}: {method} {path} {body}"
                        );
                    }
                }
                // Overload, or for a moment no memory.
                Some((503 | 507, answer)) => refusal = answer,
                other => panic!("{name} was {was:?}: {method} {path} {body}: {other:?}"),
            }
            assert!(
                Instant::now() < end,
                "{name}: {method} {path} takes too long: {refusal}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        *self
            .counts
            .verbs
            .lock()
            .expect("nobody has failed")
            .entry(tries)
            .or_default() += 1;
        let pid = match to {
            Is::Active | Is::Paused => {
                let (_, instance) = self.insist("GET", &format!("/v1/instances/{name}"), "");
                let pid = instance["pid"].as_i64();
                assert!(pid.is_some(), "{name}: {instance}");
                if matches!(was, Is::Active | Is::Paused) {
                    assert_eq!(pid, self.names[index].2, "{name}: {instance}");
                }
                pid
            }
            _ => None,
        };
        (self.names[index].1, self.names[index].2) = (to, pid);
    }

    /// Allocates in the pool, and frees it again.
    fn allocate(&self) {
        let Some((201 | 200, allocation)) =
            self.ask("POST", "/v1/pool/allocations", r#"{"size":16384}"#)
        else {
            // It may have been allocated; whoever is not told does not have it.
            return;
        };
        let start = allocation["start"].as_u64().expect("an address");
        let path = format!("/v1/pool/allocations/{start}");
        let mut is_repeated = false;
        loop {
            match self.ask("DELETE", &path, "") {
                Some((200, _)) => return,
                Some((404, _)) if is_repeated => return,
                None | Some((503, _)) => is_repeated = true,
                other => panic!("{path}: {other:?}"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn work(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match self.random.below(12) {
                0 => self.allocate(),
                _ => self.act(),
            }
        }
        for index in 0..self.names.len() {
            self.check(index);
        }
    }
}

/// Starts a guest that ends by itself, again and again: whatever was killed
/// meanwhile, its end has the reason that it had.
fn sprint(client: &Client<'_>, stop: &AtomicBool) {
    let (of, name) = ("/v1/instances/gsprint", "gsprint");
    let body = json!({"name": name, "memory": MEMORY, "kernel": "probe"}).to_string();
    let (status, answer) = client.insist("POST", "/v1/instances", &body);
    // It may have been created for a manager that was killed.
    let is_there = status == 201 || answer["error"]["code"] == "exists";
    assert!(is_there, "{answer}");
    while client.settled(name).is_none() {
        client.insist("POST", "/v1/instances", &body);
    }
    while !stop.load(Ordering::Relaxed) {
        client.ask("POST", &format!("{of}/start"), "");
        let end = Instant::now() + PATIENCE;
        loop {
            let state = client.settled(name).expect("nobody deletes it");
            if state == "stopped" {
                let (_, instance) = client.insist("GET", of, "");
                assert_eq!(instance["reason"], "reboot", "{instance}");
                break;
            }
            // The start may not have been heard.
            if state == "loaded" {
                break;
            }
            assert_eq!(state, "active");
            assert!(Instant::now() < end, "it does not end");
        }
    }
}

/// What must not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    descriptors: Vec<String>,
    rss_kib: u64,
}

struct Crowd {
    kept: Kept,
    logs: Vec<PathBuf>,
    witnesses: Vec<i32>,
    /// The last event that was seen.
    last: u64,
    adoption_ms: Vec<u128>,
}

impl Crowd {
    fn start(guests: u64) -> Self {
        let mut kept = Kept::new(&format!("{}M@4G", 8 * guests + 64), &[], LONGEST);
        kept.serve();
        let count = kept.path("count");
        fs::write(&count, elf(&code::count_slowly(PAUSE))).expect("the directory is ours");
        let mut logs = Vec::new();
        for number in 0..WITNESSES {
            let log = kept.path(&format!("log{number}"));
            let body = json!({"name": format!("w{number}"), "memory": MEMORY,
                "kernel": count, "console-log": log});
            let (status, answer) = kept.http("POST", "/v1/instances", &body.to_string());
            assert_eq!(status, 201, "{answer}");
            kept.ok(&format!("start w{number}"));
            logs.push(log);
        }
        let witnesses = (0..WITNESSES).map(|n| kept.worker_pid(&format!("w{n}")).as_raw_pid());
        let witnesses = witnesses.collect();
        Self {
            kept,
            logs,
            witnesses,
            last: 0,
            adoption_ms: Vec::new(),
        }
    }

    /// Kills the manager, starts the next one, and looks at the books.
    fn kill(&mut self) {
        self.kept.kill_manager();
        let began = Instant::now();
        self.kept.serve();
        self.adoption_ms.push(began.elapsed().as_millis());
        self.kept.expect_audit();
        for (number, pid) in (0..).zip(&self.witnesses) {
            let now = self.kept.worker_pid(&format!("w{number}"));
            assert_eq!(now.as_raw_pid(), *pid);
        }
        let events = self.kept.events(self.last.saturating_sub(1));
        let seq = |event: &Value| event["seq"].as_u64().expect("a number");
        if let Some(first) = events.first() {
            // Not all are kept forever, and then the oldest goes first.
            let is_next = seq(first) <= self.last.max(1) || events.len() >= 4000;
            assert!(is_next, "{first} follows {}", self.last);
        }
        for (due, event) in (events.first().map_or(0, seq)..).zip(&events) {
            assert_eq!(seq(event), due, "{event}");
        }
        let last = events.last().map_or(0, seq);
        assert!(last >= self.last, "{last} after {}", self.last);
        self.last = last;
    }

    /// Kills managers while clients use them.
    fn round(&mut self, number: u64, kills: u64, guests: u64, clients: u64, counts: &Counts) {
        let socket = self.kept.socket().to_owned();
        let stop = AtomicBool::new(false);
        let mut random = Random(number);
        thread::scope(|scope| {
            for client in 0..clients {
                let (socket, stop) = (&socket, &stop);
                let own = (0..guests).filter(|guest| guest % clients == client);
                let names = own.map(|guest| (format!("g{guest}"), Is::Gone, None));
                let mut client = Client {
                    socket,
                    counts,
                    random: Random(1000 * number + client),
                    names: names.collect(),
                };
                scope.spawn(move || client.work(stop));
            }
            let sprinter = Client {
                socket: &socket,
                counts,
                random: Random(number),
                names: Vec::new(),
            };
            let stop_sprinting = &stop;
            scope.spawn(move || sprint(&sprinter, stop_sprinting));
            for _ in 0..kills {
                thread::sleep(Duration::from_millis(20 + random.below(300)));
                self.kill();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Takes everything but the witnesses down; returns what is left.
    fn calm(&mut self) -> Sample {
        let (_, all) = self.kept.http("GET", "/v1/instances", "");
        let names = all.as_array().expect("a list").iter();
        let names = names.filter_map(|instance| instance["name"].as_str());
        for name in names.filter(|name| name.starts_with('g')) {
            let path = format!("/v1/instances/{name}");
            self.kept
                .http("POST", &format!("{path}/kill"), r#"{"force":true}"#);
            let (status, answer) = self.kept.http("DELETE", &path, "");
            assert_eq!(status, 200, "{name}: {answer}");
        }
        let (_, rows) = self.kept.http("GET", "/v1/iomem", "");
        for row in rows.as_array().expect("rows") {
            if row["name"] == "allocation" {
                let start = row["start"].as_u64().expect("an address");
                let path = format!("/v1/pool/allocations/{start}");
                assert_eq!(self.kept.http("DELETE", &path, "").0, 200);
            }
        }
        self.kept.expect_audit();
        let (_, pool) = self.kept.http("GET", "/v1/pool", "");
        assert_eq!(pool["used"], WITNESSES * MEMORY, "{pool}");
        assert_eq!(pool["free_extents"], 1, "{pool}");
        let end = Instant::now() + EVENT_TIMEOUT;
        while self.kept.children().len() > self.witnesses.len() {
            assert!(Instant::now() < end, "{:?}", self.kept.children());
            thread::sleep(Duration::from_millis(5));
        }
        // What was released is closed by the keeper in its turn.
        self.kill();
        let keeper = self.kept.keeper();
        let status = fs::read_to_string(format!("/proc/{}/status", keeper.as_raw_pid()));
        let status = status.expect("it runs");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rss| rss.trim().strip_suffix(" kB")?.parse().ok());
        Sample {
            descriptors: Kept::descriptors(keeper),
            rss_kib: rss.expect("a number"),
        }
    }

    /// Fails unless the witnesses have counted without leaving anything out.
    fn check_logs(&self) {
        for log in &self.logs {
            let text = fs::read_to_string(log).expect("it is there");
            let logged = numbers(&text);
            assert!(logged.start == 0 && logged.len() > 2, "{logged:?}");
        }
    }
}

#[test]
fn managers_are_killed_while_clients_use_them_and_nothing_is_lost() {
    if skips_without_kvm() {
        return;
    }
    let kills = env::var("MKVMM_KILLS").ok();
    let kills = kills.map_or(KILLS, |text| text.parse().expect("a number"));
    let (guests, clients) = if kills < MANY { SMALL } else { LARGE };
    let mut crowd = Crowd::start(guests);
    let counts = Counts::default();
    let mut samples = vec![crowd.calm()];
    for round in 0..ROUNDS {
        crowd.round(round, kills / ROUNDS, guests, clients, &counts);
        samples.push(crowd.calm());
        crowd.check_logs();
        let sample = &samples[samples.len() - 1];
        assert_eq!(
            sample.descriptors, samples[0].descriptors,
            "after round {round}"
        );
    }
    crowd.adoption_ms.sort_unstable();
    let median = crowd.adoption_ms[crowd.adoption_ms.len() / 2];
    let rss: Vec<_> = samples.iter().map(|sample| sample.rss_kib).collect();
    announce(&format!(
        "{} kills; verbs by how often they were asked for: {:?}; ready again after {median} ms \
         (median); the keeper's KiB {rss:?}, descriptors {}",
        crowd.adoption_ms.len(),
        counts.verbs.lock().expect("nobody has failed"),
        samples[0].descriptors.len(),
    ));
    // The first round fills what is filled once.
    let (settled, last) = (rss[1], rss[rss.len() - 1]);
    assert!(last <= settled + GROWTH_KIB, "KiB {rss:?}");
    crowd.kept.tear_down();
    crowd.kept.end();
}
