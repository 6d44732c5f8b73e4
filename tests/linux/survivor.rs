//! Five Debian guests: four die, or should, and the fifth counts. All are
//! started again from their images, and taken down.
//!
//! The same with probes is `tests/processes/deaths.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::{Scratch, Server};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::guest::Guest;
use crate::launch::TIMEOUT;

const POOL: &str = "512M@4G";
/// MiB of each guest's memory, which all must have room for.
const MEMORY: u64 = 100;
/// MiB that the witness keeps and hashes.
const KEPT: u64 = 4;
/// Lines of the witness's that must follow every death.
const TICKS: usize = 2;
/// Accesses to the witness's memory that make an attack.
const ATTACKS: u64 = 3;
/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The guests, their ends, and what else their kernels are told.
const WITNESS: (&str, &str, &str) = ("witness", "hold", "mkvmm.tick=1 mkvmm.keep=4");
const PANICS: (&str, &str, &str) = ("panics", "panic", "");
const CRASHES: (&str, &str, &str) = ("crashes", "reset", "reboot=t");
const SHOT: (&str, &str, &str) = ("shot", "hold", "");
const ENEMY: (&str, &str, &str) = ("enemy", "attack", "");

/// A server, and the directory of what its guests print.
struct House {
    server: Server,
    logs: Scratch,
    images: PathBuf,
}

impl House {
    fn create(&self, (name, end, words): (&str, &str, &str), more: &str) {
        let guest = Guest::new("guest", "6.1", MEMORY);
        let text = |path: PathBuf| path.display().to_string();
        let cmdline = format!("console=ttyS0 quiet mkvmm.brief mkvmm.end={end} {words} {more}");
        let memory = format!("{MEMORY}M");
        let words = ["create", name, "--memory", &memory, "--cmdline", &cmdline];
        let kernel = text(self.images.join(guest.kernel_file()));
        let initrd = text(guest.initramfs_path(&self.images));
        let log = text(self.log(name));
        let files = [
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--console-log",
            &log,
        ];
        // An emulated host may take long to unpack a kernel.
        let create = self.server.command(words.into_iter().chain(files));
        create.timeout(TIMEOUT).finish().expect_code(0);
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.path(&format!("{name}.log"))
    }

    /// The whole lines of a guest's init, without their mark.
    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let own = whole
            .lines()
            .filter_map(|l| l.trim_end().strip_prefix("mkvmm-guest: "));
        own.map(str::to_owned).collect()
    }

    /// What the witness has counted and hashed. Fails where a number is
    /// missing or the hash is another.
    #[track_caller]
    fn ticks(&self) -> usize {
        let lines = self.lines(WITNESS.0);
        let ticks: Vec<&str> = lines
            .iter()
            .filter_map(|l| l.strip_prefix("tick "))
            .collect();
        let mut first = None;
        for (tick, due) in ticks.iter().zip(1..) {
            let (number, hash) = tick.split_once(' ').expect("a number and a hash");
            assert_eq!(number.parse(), Ok(due), "{lines:?}");
            assert_eq!(hash.len(), 64, "{tick}");
            assert_eq!(*first.get_or_insert(hash), hash, "its memory has changed");
        }
        ticks.len()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, happened: impl Fn() -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !happened() {
            assert!(Instant::now() < end, "{what} did not come");
            thread::sleep(POLL);
        }
    }

    /// Waits until the witness goes on after what happened just now.
    #[track_caller]
    fn wait_for_witness(&self) {
        let before = self.ticks();
        self.wait_for("a tick", || self.ticks() >= before + TICKS);
    }

    fn violations(&self, name: &str) -> u64 {
        let instance = self.server.json(&format!("show {name}"));
        instance["violations"].as_u64().expect("a number")
    }

    /// Waits for attacks that were not there yet.
    #[track_caller]
    fn wait_for_attacks(&self) {
        let before = self.violations(ENEMY.0);
        let goes_on = || self.violations(ENEMY.0) >= before + ATTACKS;
        self.wait_for("an attack", goes_on);
    }

    #[track_caller]
    fn expect_end(&self, name: &str, state: &str, reason: &str) {
        let instance = self.server.wait_for_state_within(TIMEOUT, name, state);
        assert_eq!(instance["reason"], reason, "{instance:#}");
        assert_eq!(instance["pid"], Value::Null, "{instance:#}");
    }

    /// All four die, of which each has been booted so often; the witness goes
    /// on.
    fn watch_them_die(&self, boots: usize) {
        self.expect_end(PANICS.0, "failed", "panic");
        self.expect_end(CRASHES.0, "failed", "triple-fault");
        let stays = |line: &&String| *line == SHOT.1;
        self.wait_for("a guest that stays", || {
            self.lines(SHOT.0).iter().filter(stays).count() == boots
        });
        let pid = self.server.worker_pid(SHOT.0);
        kill_process(pid, Signal::KILL).expect("it runs");
        self.expect_end(SHOT.0, "failed", "vmm");
        self.wait_for_attacks();
        self.wait_for_witness();
        self.server.ok(&format!("kill {} --force", ENEMY.0));
        self.expect_end(ENEMY.0, "stopped", "killed");
        self.server.expect_audit();
        self.wait_for_witness();
    }
}

/// The whole of it.
pub fn four_die_in_four_ways_and_the_fifth_never_notices(images: &Path) {
    let house = House {
        server: Server::start_for(POOL, TIMEOUT * 2),
        logs: Scratch::new(),
        images: images.to_owned(),
    };
    let server = &house.server;
    assert_eq!(
        WITNESS.2.split('=').next_back(),
        Some(KEPT.to_string().as_str())
    );
    house.create(WITNESS, "");
    let seen = server.json(&format!("show {}", WITNESS.0));
    let start = seen["chunks"][0]["start"].as_u64().expect("an address");
    // Its kernel, and what it may keep its bytes in.
    let targets = [2, 40, 60, 80].map(|mib| format!("{:#x}", start + (mib << 20)));
    let attack = format!("mkvmm.attack={}", targets.join(","));
    for guest in [PANICS, CRASHES, SHOT] {
        house.create(guest, "");
    }
    house.create(ENEMY, &attack);
    server.ok(&format!("start {}", WITNESS.0));
    house.wait_for("a first tick", || house.ticks() > 0);
    let process = server.worker_pid(WITNESS.0);

    // The second time from the images that they were made with.
    for boots in 1..=2 {
        for (name, ..) in [PANICS, CRASHES, SHOT, ENEMY] {
            server.ok(&format!("start {name}"));
        }
        house.watch_them_die(boots);
    }
    let now = server.json(&format!("show {}", WITNESS.0));
    for key in ["state", "chunks", "violations", "e820"] {
        let before = if key == "state" {
            &"active".into()
        } else {
            &seen[key]
        };
        assert_eq!(&now[key], before, "{key}");
    }
    assert_eq!(server.worker_pid(WITNESS.0), process);
    server.tear_down();
}
