//! Tests of guests' resource usage: processes, CPU time, memory and cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Mkvmm, Running, Scratch};
use rustix::process::Signal;
use serde_json::Value;

use crate::server::{EVENT_TIMEOUT, Server, http};

/// The CPU time that a busy guest should use, in microseconds.
const BUSY_US: u64 = 300_000;

fn number(value: &Value, key: &str) -> u64 {
    let found = value[key].as_u64();
    found.unwrap_or_else(|| panic!("{key} is no number in {value:#}"))
}

/// Returns the value of a series of instance `name`.
fn sample(text: &str, family: &str, name: &str) -> f64 {
    let start = format!("{family}{{name=\"{name}\",");
    let line = text.lines().find(|line| line.starts_with(&start));
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.unwrap_or_else(|| panic!("no {family} of {name} in\n{text}"))
}

/// Waits until instance `name` has used `cpu_us`, and returns its description.
fn wait_for_use(server: &Server, name: &str, cpu_us: u64) -> Value {
    let end = Instant::now() + EVENT_TIMEOUT;
    loop {
        let instance = server.json(&format!("show {name}"));
        if number(&instance, "cpu_us") >= cpu_us {
            return instance;
        }
        assert!(Instant::now() < end, "{instance:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn cpu_time_is_that_of_the_guest_alone() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    for name in ["busy", "idle"] {
        server.ok(&format!(
            "create {name} --memory 8M --kernel probe --cmdline spin"
        ));
        server.ok(&format!("start {name}"));
    }
    server.ok("pause idle");
    let before = server.json("show idle");
    let busy_before = number(&server.json("show busy"), "cpu_us");
    let busy = wait_for_use(&server, "busy", busy_before + BUSY_US);
    let after = server.json("show idle");
    let idle_used = number(&after, "cpu_us") - number(&before, "cpu_us");
    assert!(idle_used < BUSY_US / 10, "paused, it used {idle_used} us");

    // It is the CPU time of its process, which reports the same.
    let (busy_pid, idle_pid) = (number(&busy, "pid"), number(&after, "pid"));
    assert_ne!(busy_pid, idle_pid);
    let command = fs::read_to_string(format!("/proc/{busy_pid}/cmdline")).unwrap();
    assert!(command.starts_with("mkvmm-worker: busy"), "{command:?}");
    let (_, version) = server.http("GET", "/v1/version", "");
    let own = server.running.pid().unwrap().as_raw_nonzero().get();
    assert_eq!(version["pid"], own);

    let shown = server.ok("show busy");
    for line in ["cpu time", "process", "resident"] {
        assert!(shown.contains(line), "{shown}");
    }
    let metrics = server.ok("metrics");
    let seconds = sample(&metrics, "mkvmm_instance_cpu_seconds_total", "busy");
    let told = Duration::from_micros(number(&busy, "cpu_us")).as_secs_f64();
    assert!(seconds >= told, "{seconds} < {told}");
    let idle = sample(&metrics, "mkvmm_instance_cpu_seconds_total", "idle");
    assert!(idle < seconds, "{idle}");
}

#[test]
fn cpu_time_goes_on_over_boots() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M --kernel probe --cmdline spin");
    let mut used = 0;
    for boot in 0..3 {
        server.ok("start web");
        let live = wait_for_use(&server, "web", used + BUSY_US / 3);
        server.ok("kill web --force");
        let ended = server.json("show web");
        assert_eq!(ended["pid"], Value::Null, "boot {boot}");
        assert_eq!(ended["process_memory"], Value::Null);
        assert!(number(&ended, "cpu_us") >= number(&live, "cpu_us"));
        used = number(&ended, "cpu_us");
        assert_eq!(number(&server.json("show web"), "cpu_us"), used, "it ended");
        let all = server.json("list");
        assert_eq!(number(&all[0], "cpu_us"), used);
        let metrics = server.ok("metrics");
        let seconds = sample(&metrics, "mkvmm_instance_cpu_seconds_total", "web");
        assert_eq!(Duration::from_secs_f64(seconds).as_micros(), used.into());
    }
    server.ok("delete web");
    server.ok("create web --memory 8M");
    assert_eq!(number(&server.json("show web"), "cpu_us"), 0);
}

#[test]
fn memory_is_what_was_touched() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 32M");
    let empty = server.json("show web");
    assert_eq!(number(&empty, "resident"), 0);
    assert_eq!(empty["process_memory"], Value::Null);
    server.ok("load web --kernel probe --cmdline spin");
    server.ok("start web");
    let web = wait_for_use(&server, "web", BUSY_US / 10);
    let resident = number(&web, "resident");
    // This is at least the kernel, and far less than all of the memory.
    assert!((64 << 10..16 << 20).contains(&resident), "{resident}");
    // This is heap and stacks; guest memory is not counted twice.
    let own = number(&web, "process_memory");
    assert!((16 << 10..16 << 20).contains(&own), "{own}");
    let metrics = server.ok("metrics");
    let of = |family| sample(&metrics, family, "web");
    assert!(of("mkvmm_instance_memory_resident_bytes") >= 65536.0);
    assert!(of("mkvmm_instance_process_memory_bytes") >= 16384.0);
    assert_eq!(of("mkvmm_instance_memory_bytes"), 32.0 * 1_048_576.0);
    server.ok("kill web --force");
    server.ok("unload web");
    assert_eq!(number(&server.json("show web"), "resident"), 0);

    // Populated memory is resident from the beginning.
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let _running = serve(&socket, &["--prealloc"]).unwrap();
    let (status, web) = http(
        &socket,
        "POST",
        "/v1/instances",
        r#"{"name": "web", "memory": 8388608}"#,
    );
    assert_eq!((status, number(&web, "resident")), (201, 8 << 20));
}

/// Starts a server with these options; returns its stderr if it did not start.
fn serve(socket: &Path, options: &[&str]) -> Result<Running, String> {
    let words = ["serve", "--pool", "64M@4G", "--grace", "0", "--socket"];
    let mut command = Mkvmm::new(words).arg(socket);
    for option in options {
        command = command.arg(option);
    }
    let mut running = command.spawn();
    running.wait_until("a ready line or an error", |r| {
        r.stdout().starts_with("ready: ") || r.stderr().contains("error: ")
    });
    if running.stdout().starts_with("ready: ") {
        return Ok(running);
    }
    Err(running.wait().stderr)
}

/// Starts a server whose guests have cgroups, if that is possible.
fn serve_with_cgroups(socket: &Path) -> Option<Running> {
    match serve(socket, &["--cgroup", "mine"]) {
        Ok(running) => Some(running),
        Err(why) => {
            assert!(why.contains("--cgroup"), "{why}");
            skip(&format!("no cgroup can be made: {why}"));
            None
        }
    }
}

/// Returns the number of cgroup paths of a process that end with `leaf`.
fn membership(pid: u64, leaf: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    text.lines().filter(|line| line.ends_with(leaf)).count()
}

/// Creates a running instance.
fn make(socket: &Path, name: &str) -> Value {
    let body =
        format!(r#"{{"name": "{name}", "memory": 8388608, "kernel": "probe", "cmdline": "spin"}}"#);
    let (status, made) = http(socket, "POST", "/v1/instances", &body);
    assert_eq!(status, 201, "{made:#}");
    start(socket, name)
}

fn start(socket: &Path, name: &str) -> Value {
    let (status, started) = http(socket, "POST", &format!("/v1/instances/{name}/start"), "");
    assert_eq!(status, 200, "{started:#}");
    started
}

#[test]
fn a_guest_has_a_leaf_until_it_is_deleted() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let Some(running) = serve_with_cgroups(&socket) else {
        return;
    };
    let own = running.pid().unwrap().as_raw_nonzero();
    let mut directories = Vec::new();
    for (name, leaf) in [("web", "1-web"), ("db", "2-db")] {
        let made = make(&socket, name);
        let directory = PathBuf::from(made["cgroup"].as_str().unwrap());
        assert!(directory.ends_with(format!("mkvmm/{own}/{leaf}")));
        assert!(membership(number(&made, "pid"), leaf) > 0);
        let inside = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), made["pid"].to_string(), "nobody else");
        directories.push(directory);
    }
    // Another boot has another process in the same leaf.
    let body = r#"{"force": true}"#;
    let (_, killed) = http(&socket, "POST", "/v1/instances/web/kill", body);
    assert_eq!(killed["pid"], Value::Null);
    let again = start(&socket, "web");
    assert!(membership(number(&again, "pid"), "1-web") > 0);

    let (status, _) = http(&socket, "POST", "/v1/instances/web/kill", body);
    assert_eq!(status, 200);
    let (status, _) = http(&socket, "DELETE", "/v1/instances/web", "");
    assert_eq!(status, 200);
    assert!(!directories[0].exists());
    assert!(directories[1].exists());
    running.signal(Signal::TERM);
    running.wait().expect_code(0);
    assert!(!directories[1].parent().unwrap().exists());
}

#[test]
fn leaves_of_a_killed_server_are_removed_by_the_next() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let Some(running) = serve_with_cgroups(&socket) else {
        return;
    };
    let made = make(&socket, "web");
    let directory = PathBuf::from(made["cgroup"].as_str().unwrap());
    running.signal(Signal::KILL);
    running.wait();
    // The worker dies with its parent, but not immediately.
    let end = Instant::now() + EVENT_TIMEOUT;
    while Path::new(&format!("/proc/{}", made["pid"])).exists() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    // The leaves may have been removed by another test's server before this
    // one.
    let next = serve_with_cgroups(&scratch.path("next"));
    assert!(!directory.parent().unwrap().exists());
    drop(next);
}

#[test]
fn cgroups_are_had_as_asked_for() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let why = serve(&scratch.path("sock"), &["--cgroup", "/no/such"]).unwrap_err();
    assert!(why.contains("there is no cgroup /no/such"), "{why}");
    let run = Mkvmm::run("64M@4G").guest("name=a,memory=8M,kernel=probe");
    let run = run.arg("--cgroup").arg("/no/such").finish();
    run.expect_refusal(2);

    let socket = scratch.path("sock");
    let _running = serve(&socket, &["--cgroup", "off"]).unwrap();
    assert_eq!(make(&socket, "web")["cgroup"], Value::Null);

    let file = scratch.file("serve.toml", b"cgroup = \"off\"\n");
    let file = file.display().to_string();
    let socket = scratch.path("second");
    let _second = serve(&socket, &["--config", &file]).unwrap();
    assert_eq!(make(&socket, "web")["cgroup"], Value::Null);
}

#[test]
fn a_start_names_a_cgroup_until_the_next_one() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M --kernel probe --cmdline spin");
    let loaded = server.json("show web");
    let refused = server.run("start web --cgroup /no/such");
    let error = refused.expect_refusal(2);
    assert!(error.contains("there is no cgroup /no/such"), "{refused}");
    let unchanged = server.json("show web");
    assert_eq!(
        (&unchanged["state"], &unchanged["pid"], &unchanged["cgroup"]),
        (&loaded["state"], &loaded["pid"], &loaded["cgroup"])
    );
    let started = server.run("start web --cgroup mine");
    if started.stderr.contains("cannot create the cgroup") {
        return skip(&format!("no cgroup can be made: {}", started.stderr));
    }
    started.expect_code(0);
    // Its memory is charged there from the first byte on, that of its images
    // among them.
    let here = server.json("show web");
    assert_ne!(here["pid"], loaded["pid"], "{here}");
    let hierarchies = membership(number(&here, "pid"), "1-web");
    let before = usize::from(loaded["cgroup"].is_string());
    assert!(hierarchies > 0 && hierarchies >= before, "{here}");
    assert_eq!(here["spec"]["cgroup"], Value::Null, "{here}");
    server.ok("kill web --force");

    server.ok("start web");
    let back = server.json("show web");
    assert_eq!(back["cgroup"], loaded["cgroup"]);
    assert_eq!(membership(number(&back, "pid"), "1-web"), before, "{back}");
    server.ok("kill web --force");
    server.tear_down();
}

#[test]
fn an_instance_names_its_cgroup_and_limits() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let unknown = server.run("create no --memory 8M --cgroup /no/such");
    let error = unknown.expect_refusal(2);
    assert!(error.contains("there is no cgroup /no/such"), "{unknown}");
    let limits = "--cpu-limit 50 --memory-limit 64M --thread-limit 4";
    let spin = "--memory 8M --kernel probe --cmdline spin";
    let made = server.run(&format!("create web {spin} --cgroup mine {limits}"));
    if made.stderr.contains("controller") || made.stderr.contains("cannot create the cgroup") {
        made.expect_refusal(2);
        return skip(&format!("no cgroup limits anything here: {}", made.stderr));
    }
    made.expect_code(0);
    server.ok("start web");
    let web = server.json("show web");
    assert!(membership(number(&web, "pid"), "1-web") > 1, "{web}");
    assert_eq!(web["spec"]["cgroup"], "mine", "{web}");
    let used = |web: &Value| number(web, "cpu_us");
    // Half a processor at most, over the time and a period of the scheduler's.
    let began = Instant::now();
    let before = used(&server.json("show web"));
    std::thread::sleep(Duration::from_secs(2));
    let after = used(&server.json("show web"));
    let half = u64::try_from(began.elapsed().as_micros()).expect("it is short") / 2;
    assert!(
        after - before <= half + 200_000,
        "{before} to {after}, half is {half}"
    );
    assert!(after > before, "its CPU time does not grow");

    let many = "--cpus 8 --thread-limit 4";
    server.ok(&format!("create many {spin} {many}"));
    let run = server.run("start many");
    run.expect_refusal(5);
    server.wait_for_state("many", "loaded");
    server.ok("kill web --force");
    server.tear_down();
}
