//! Guests with devices under load, before and after a change of managers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Kept;
use mkvmm_test_harness::kept::expect_gone;
use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::driver::{Driver, NEXT, Queue, WRITE};

const FIRST: Queue = Queue { index: 0, size: 8 };
const SECOND: Queue = Queue { index: 1, size: 8 };
/// The program of `net=passt`, which not every host has.
const PASST: &str = "/usr/bin/passt";

/// Returns a script for an entropy device, a console, and a disk: it prints numbers
/// that go up by one, and writes the same to the first sector.
fn prints_and_writes() -> String {
    let mut driver = Driver::of(0, 1);
    driver.start(FIRST);
    let random = driver.buffer(0);
    driver.descriptor(FIRST, 0, (random, 64), WRITE, 0);
    driver.go_on_with(2);
    driver.start(SECOND);
    let number = driver.buffer(0);
    driver.descriptor(SECOND, 0, (number, 8), 0, 0);
    driver.go_on_with(3);
    driver.start(FIRST);
    let header = driver.buffer(0);
    driver.write(8, header, 1);
    driver.descriptor(FIRST, 0, (header, 16), NEXT, 1);
    driver.descriptor(FIRST, 1, (number, 512), NEXT, 2);
    driver.descriptor(FIRST, 2, (header + 64, 1), WRITE, 0);
    driver.begin_loop();
    driver.add(8, number, 1);
    driver.turn_over(FIRST);
    driver.look_at(2);
    driver.turn_over(SECOND);
    driver.look_at(1);
    driver.turn_over(FIRST);
    driver.word()
}

/// The devices of the guests on a chain of segments: each sends what it has received.
fn frames(guest: u64, receives: bool, sends: bool, passt: bool) -> String {
    let mut driver = Driver::of(guest, 1);
    driver.negotiate();
    let (room, packet) = (driver.buffer(0), driver.buffer(1));
    if receives {
        driver.enable(FIRST);
        driver.descriptor(FIRST, 0, (room, 4096), WRITE, 0);
    }
    driver.enable(SECOND);
    driver.register(1, crate::driver::STATUS, crate::driver::IN_USE);
    let id = guest + 1;
    // From its own address to that of the next one.
    driver.write(8, packet + 12, 2 | (id + 1) << 32 | 2 << 48);
    driver.write(8, packet + 20, id << 16 | 0xb588 << 32);
    driver.descriptor(SECOND, 0, (packet, 100), 0, 0);
    if passt {
        driver.go_on_with(2);
        driver.start(SECOND);
        let packet = driver.buffer(1);
        driver.write(8, packet + 12, 0xffff_ffff_ffff | 2 << 48);
        driver.write(8, packet + 20, id << 16 | 1 << 24 | 0xb588 << 32);
        driver.descriptor(SECOND, 0, (packet, 100), 0, 0);
    }
    driver.begin_loop();
    if passt {
        driver.turn_over(SECOND);
        driver.look_at(1);
    }
    if receives {
        driver.turn_over(FIRST);
    }
    if sends {
        driver.turn_over(SECOND);
    }
    driver.word()
}

/// The counters of devices, by series.
fn counters(kept: &Kept) -> BTreeMap<String, u64> {
    let metrics = kept.ok("metrics");
    let is_ours = |line: &&str| {
        ["device", "disk", "net"]
            .iter()
            .any(|kind| line.starts_with(&format!("mkvmm_instance_{kind}_")))
    };
    let lines = metrics.lines().filter(is_ours);
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    let pairs = pairs.map(|(series, count)| (series.to_owned(), count.parse().expect("a number")));
    pairs.collect()
}

struct Scene {
    kept: Kept,
    /// The queues that are busy all the time: instance, device and queue.
    busy: Vec<(&'static str, u8, u8)>,
}

impl Scene {
    fn set() -> Self {
        let kept = Kept::start("64M@4G", &[]);
        let disk = kept.path("disk.img");
        fs::write(&disk, vec![0; 1 << 20]).expect("the directory is ours");
        let has_passt = Path::new(PASST).exists();
        let store = format!("--rng --consoles 1 --disk {}", disk.display());
        let passt = if has_passt { " --net passt" } else { "" };
        let begin = format!("--net pool:lan{passt}");
        for (name, devices, script) in [
            ("store", store.as_str(), prints_and_writes()),
            ("begin", &begin, frames(1, false, true, has_passt)),
            ("middle", "--net pool:lan", frames(2, true, true, false)),
            ("end", "--net pool:lan", frames(3, true, false, false)),
        ] {
            let create = format!("create {name} --memory 8M --kernel probe {devices} --cmdline");
            let words = create.split(' ').chain([script.as_str()]);
            kept.run_words(words).expect_code(0);
        }
        for name in ["end", "middle", "begin", "store"] {
            kept.ok(&format!("start {name}"));
        }
        let mut busy = vec![("store", 1, 0), ("store", 2, 1), ("store", 3, 0)];
        busy.extend([
            ("begin", 1, 1),
            ("middle", 1, 0),
            ("middle", 1, 1),
            ("end", 1, 0),
        ]);
        if has_passt {
            busy.push(("begin", 2, 1));
        }
        Self { kept, busy }
    }

    /// Fails unless all devices go on, and no counter ever goes back; returns the
    /// counters.
    #[track_caller]
    fn expect_traffic(&self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let end = Instant::now() + EVENT_TIMEOUT;
        let first = counters(&self.kept);
        for (series, count) in before {
            assert!(
                first.get(series) >= Some(count),
                "{series} was {count}: {first:#?}"
            );
        }
        loop {
            let now = counters(&self.kept);
            let has_more = |(name, device, queue): &(&str, u8, u8)| {
                let series = now.iter().find(|(series, _)| {
                    series.starts_with("mkvmm_instance_device_requests_total")
                        && series.contains(&format!("name=\"{name}\""))
                        && series.contains(&format!("device=\"00:{device:02}.0\""))
                        && series.contains(&format!("queue=\"{queue}\""))
                });
                series.is_some_and(|(series, count)| *count > first[series] + 10)
            };
            let still: Vec<_> = self.busy.iter().filter(|busy| !has_more(busy)).collect();
            if still.is_empty() {
                return now;
            }
            assert!(Instant::now() < end, "{still:?} stand still: {now:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The number in the first sector of the disk.
    fn written(&self) -> u64 {
        let mut bytes = [0; 8];
        let disk = File::open(self.kept.path("disk.img")).expect("it is there");
        disk.read_exact_at(&mut bytes, 0).expect("a sector");
        u64::from_le_bytes(bytes)
    }

    /// Fails unless the console has printed all numbers up to `least`, and goes on.
    #[track_caller]
    fn expect_printed(&self, least: u64) {
        let mut client = Command::new(binary())
            .args(["console", "store", "--number", "1", "--socket"])
            .arg(self.kept.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it is executable");
        let mut output = client.stdout.take().expect("a pipe");
        let mut number = [0; 8];
        output.read_exact(&mut number).expect("it prints");
        let first = u64::from_le_bytes(number);
        for expected in first + 1..=(least + 10).max(first + 10) {
            output.read_exact(&mut number).expect("it prints");
            assert_eq!(u64::from_le_bytes(number), expected);
        }
        client.kill().expect("it runs");
        client.wait().expect("it is ours");
    }

    /// Fails unless the disk is that of its guest alone.
    #[track_caller]
    fn expect_locked(&self) {
        let disk = self.kept.path("disk.img");
        let create = format!("create second --memory 8M --disk {}", disk.display());
        let refused = self.kept.run(&create);
        assert!(refused.expect_refusal(4).contains("is in use"), "{refused}");
    }

    #[track_caller]
    fn expect_all(&self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let written = self.written();
        let after = self.expect_traffic(before);
        assert!(self.written() > written);
        self.expect_printed(written);
        self.expect_locked();
        self.kept.expect_audit();
        let events = self.kept.events(0);
        let is_down = |event: &serde_json::Value| event["kind"] == "link-down";
        assert!(!events.iter().any(is_down), "{events:?}");
        after
    }
}

#[test]
fn devices_go_on_under_the_next_manager_and_the_next_program() {
    if skips_without_kvm() {
        return;
    }
    let mut scene = Scene::set();
    let mut before = scene.expect_all(&BTreeMap::new());
    let children = scene.kept.children();
    for _ in 0..2 {
        let written = scene.written();
        scene.kept.kill_manager();
        let end = Instant::now() + EVENT_TIMEOUT;
        while scene.written() <= written + 10 {
            assert!(Instant::now() < end, "without a manager nothing is written");
            thread::sleep(Duration::from_millis(10));
        }
        scene.kept.serve();
        before = scene.expect_all(&before);
        assert_eq!(scene.kept.children(), children);
    }
    let other = scene.kept.path("other");
    fs::copy(binary(), &other).expect("there is room");
    scene.kept.ok(&format!("upgrade {}", other.display()));
    scene.expect_all(&before);
    assert_eq!(scene.kept.children(), children);

    scene.kept.tear_down();
    for child in children {
        expect_gone(rustix::process::Pid::from_raw(child.pid).expect("it had one"));
    }
    // The disk is free, too.
    let disk = scene.kept.path("disk.img");
    scene.kept.ok(&format!(
        "create second --memory 8M --disk {}",
        disk.display()
    ));
    scene.kept.tear_down();
    // The keeper closes it when it gets to the message that says so.
    let end = Instant::now() + EVENT_TIMEOUT;
    loop {
        let holds = Kept::descriptors(scene.kept.keeper());
        let mut memory = holds
            .iter()
            .filter(|kind| kind.starts_with("/memfd:mkvmm-") && !kind.contains("journal"));
        if memory.next().is_none() {
            break;
        }
        assert!(Instant::now() < end, "the keeper holds {holds:?}");
        thread::sleep(Duration::from_millis(5));
    }
    scene.kept.end();
}

/// The files of consoles that the keeper holds, by number.
fn consoles(kept: &Kept) -> BTreeMap<u64, PathBuf> {
    let directory = format!("/proc/{}/fd", kept.keeper().as_raw_pid());
    let entries = fs::read_dir(directory).expect("it runs").flatten();
    let paths = entries.map(|entry| entry.path());
    let is_console = |path: &PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().starts_with("/memfd:mkvmm-console")
    };
    let number = |path: PathBuf| (fs::metadata(&path).expect("it is held").ino(), path);
    paths.filter(is_console).map(number).collect()
}

#[test]
fn a_worker_that_has_destroyed_one_of_its_consoles_fails_alone() {
    if skips_without_kvm() {
        return;
    }
    // One of the two is that of its serial port.
    for index in 0..2 {
        let mut kept = Kept::start("32M@4G", &[]);
        let mut path = PathBuf::new();
        for name in ["a", "b"] {
            let create = format!("create {name} --memory 8M --consoles 1 --kernel probe");
            kept.ok(&format!("{create} --cmdline spin"));
            kept.ok(&format!("start {name}"));
            // Those of the other do not exist yet.
            if name == "a" {
                path = consoles(&kept)
                    .into_values()
                    .nth(index)
                    .expect("there are two");
            }
        }
        let pids = ["a", "b"].map(|name| kept.worker_pid(name));
        kept.kill_manager();
        let file = File::options().write(true).open(path).expect("it is held");
        file.write_all_at(&[0xa5; 4096], 0).expect("there is room");
        kept.serve();
        let failed = kept.wait_for_state("a", "failed");
        assert_eq!(failed["reason"], "vmm", "{failed}");
        expect_gone(pids[0]);
        assert_eq!(kept.worker_pid("b"), pids[1]);
        kept.expect_audit();
        // It has new ones, which the keeper holds as well.
        kept.ok("start a");
        let pid = kept.worker_pid("a");
        kept.replace_manager();
        kept.ok("pause a");
        kept.ok("resume a");
        assert_eq!(kept.worker_pid("a"), pid);
        kept.tear_down();
        kept.end();
    }
}
