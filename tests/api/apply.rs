//! Tests of fleets: applied, looked at before, applied again, undone, dumped, and there from
//! the beginning.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_client::Client;
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Kept, Mkvmm, Scratch};
use serde_json::{Value, json};

use crate::server::Server;

mod channels;

/// Instances that run until they are killed.
const TWO: &str = r#"
[[instance]]
name = "web"
memory = "16M"
kernel = "probe"
cmdline = "spin"

[[instance]]
name = "db"
memory = "8M"
kernel = "probe"
cmdline = "spin"
autostart = false
"#;

/// A server with a fleet file beside it.
struct Ground {
    server: Server,
    scratch: Scratch,
}

impl Ground {
    /// The path of a console log, and a fleet of which one instance has it.
    fn logged(&self) -> (String, String) {
        let log = self.scratch.path("log").display().to_string();
        let one =
            format!("[[instance]]\nname = \"log\"\nmemory = \"4M\"\nconsole-log = \"{log}\"\n");
        (log, format!("{TWO}\n{one}"))
    }

    fn new(pool: &str) -> Self {
        Self {
            server: Server::start(pool),
            scratch: Scratch::new(),
        }
    }

    /// Writes a fleet file; returns its path.
    fn file(&self, text: &str) -> String {
        let path = self.scratch.file("fleet.toml", text.as_bytes());
        path.display().to_string()
    }

    /// Applies a fleet file with `options`; returns what that prints.
    #[track_caller]
    fn apply(&self, text: &str, options: &str) -> String {
        let file = self.file(text);
        self.server.ok(&format!("apply {file} {options}"))
    }

    /// Everything about the instances that a failure must leave as it is.
    fn books(&self) -> Value {
        let (_, mut all) = self.server.http("GET", "/v1/instances", "");
        for one in all.as_array_mut().expect("a list") {
            let one = one.as_object_mut().expect("an object");
            let kept = ["id", "name", "state", "chunks", "spec", "reason", "cmdline"];
            one.retain(|key, _| kept.contains(&key.as_str()));
        }
        let (_, mut channels) = self.server.http("GET", "/v1/channels", "");
        for one in channels.as_array_mut().expect("a list") {
            for member in one["members"].as_array_mut().expect("a list") {
                member.as_object_mut().expect("an object").remove("boots");
            }
        }
        let (_, pool) = self.server.http("GET", "/v1/pool", "");
        let (_, iomem) = self.server.http("GET", "/v1/iomem", "");
        let dump = self.server.ok("dump");
        json!([
            all,
            channels,
            pool["avail"],
            pool["free_extents"],
            iomem,
            dump
        ])
    }

    /// Returns which members of a channel have it.
    fn present(&self, channel: &str) -> Vec<bool> {
        let shown = self.server.json(&format!("channel show {channel}"));
        let members = shown["members"].as_array().expect("a list").iter();
        members.map(|member| member["present"] == true).collect()
    }

    /// Waits until a guest has looked at the pool in its boot of this number: what is
    /// reserved must not change meanwhile.
    #[track_caller]
    fn wait_for_pass(&self, name: &str, boots: usize) {
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            let logs = self.server.ok(&format!("logs {name}"));
            if logs.matches("probe: pass").count() >= boots {
                return;
            }
            assert!(Instant::now() < end, "{name}: {logs}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn pid(&self, name: &str) -> i64 {
        let shown = self.server.json(&format!("show {name}"));
        shown["pid"].as_i64().expect("it runs")
    }
}

#[test]
fn a_fleet_is_looked_at_applied_and_applied_again() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let planned = "+ web  create and start, 16M at 0x100000000\n\
                   + db   create, 8M at 0x101000000\n";
    let dry = ground.apply(TWO, "--dry-run");
    assert_eq!(dry, format!("{planned}to be done: 2 created\n"));
    ground.server.expect_empty();

    let done = ground.apply(TWO, "");
    assert_eq!(done, format!("{planned}done: 2 created\n"));
    let list = ground.server.json("list");
    assert_eq!(list[0]["state"], "active");
    assert_eq!(list[0]["chunks"][0]["start"], 0x1_0000_0000_u64);
    assert_eq!(list[1]["state"], "loaded");
    assert_eq!(list[1]["chunks"][0]["start"], 0x1_0100_0000_u64);

    let pid = ground.pid("web");
    let again = ground.apply(TWO, "");
    assert_eq!(
        again,
        "= web  unchanged\n= db   unchanged\ndone: 2 unchanged\n"
    );
    assert_eq!(ground.pid("web"), pid, "it was not touched");

    // A guest that has ended is booted again; one that others have booted is not ended.
    ground.server.ok("kill --force web");
    ground.server.ok("start db");
    let started = ground.apply(TWO, "");
    assert_eq!(
        started,
        "> web  start\n= db   unchanged\ndone: 1 started, 1 unchanged\n"
    );
    ground.server.wait_for_state("web", "active");

    // What others have made stays, unless it is pruned.
    ground.server.ok("create mine --memory 4M");
    let left = ground.apply(TWO, "");
    assert!(
        left.contains("  mine  not in the file; --prune deletes it\n"),
        "{left}"
    );
    let pruned = ground.apply(TWO, "--prune");
    assert!(pruned.contains("- mine  delete\n"), "{pruned}");
    ground.server.run("show mine").expect_code(4);
    ground.server.tear_down();
}

#[test]
fn what_differs_is_replaced_and_nothing_else() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    // What is opened for it is closed before it is opened again.
    let disk = ground.scratch.file("disk", &[0; 1 << 20]);
    let log = ground.scratch.path("log");
    let two = format!(
        "{TWO}disk = \"{}\"\nconsole-log = \"{}\"\n",
        disk.display(),
        log.display()
    );
    ground.apply(&two, "");
    let pid = ground.pid("web");
    let other = two.replace("memory = \"8M\"", "memory = \"12M\"\ncpus = 2");
    let other = other.replace("autostart = false", "");
    let options = "--grace 0s";
    let done = ground.apply(&other, options);
    assert_eq!(
        done,
        "= web  unchanged\n~ db   create again and start, 12M at 0x101000000\n    cpus: 1 -> 2\n    \
         memory: 8M -> 12M\ndone: 1 replaced, 1 unchanged\n"
    );
    assert_eq!(ground.pid("web"), pid);
    let db = ground.server.wait_for_state("db", "active");
    assert_eq!((&db["memory"], &db["cpus"]), (&json!(12 << 20), &json!(2)));

    // The plan says that a guest ends.
    let dry = ground.apply(&two, "--dry-run");
    assert!(dry.contains("~ db   end and create again, 8M"), "{dry}");
    let file = ground.file(&two);
    let json = ground
        .server
        .json(&format!("apply {file} --dry-run --grace 0s"));
    assert_eq!(json["changes"][1]["action"], "replace");
    assert_eq!(json["changes"][1]["ends"], true);
    assert_eq!(
        json["changes"][1]["differences"][1],
        json!({"key": "memory", "from": "12M", "to": "8M"})
    );
    assert_eq!(json["plan"]["instances"][0]["name"], "db");
    ground.server.tear_down();
}

#[test]
fn a_step_that_fails_leaves_everything_as_it_was() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let log = ground.scratch.path("log").display().to_string();
    // `web` has a log, too, and goes on with it afterwards.
    let own = ground.scratch.path("own").display().to_string();
    let two = TWO.replacen("memory =", &format!("console-log = \"{own}\"\nmemory ="), 1);
    let boots = |count| {
        let end = Instant::now() + EVENT_TIMEOUT;
        let log = || fs::read_to_string(&own).unwrap_or_default();
        while log().matches("probe: name web").count() != count {
            assert!(Instant::now() < end, "{}", log());
            thread::sleep(Duration::from_millis(10));
        }
    };
    let logged =
        format!("{two}\n[[instance]]\nname = \"log\"\nmemory = \"4M\"\nconsole-log = \"{log}\"\n");
    ground.apply(&logged, "");
    ground.server.ok("pool alloc 4096 --instance db");
    boots(1);
    let before = ground.books();

    // The last step finds that its log is that of another, when the guest of web
    // has been ended already and new ones were created.
    let fails = logged.replace(
        "cmdline = \"spin\"\n\n",
        "cmdline = \"spin\"\nviolation = \"stop\"\n\n",
    );
    let fails = fails.replace("autostart = false", &format!("console-log = \"{log}\""));
    let new = "[[instance]]\nname = \"new\"\nmemory = \"4M\"\nkernel = \"probe\"\n";
    let file = ground.file(&format!("{fails}\n{new}"));
    let run = ground.server.run(&format!("apply {file} --grace 0s"));
    run.expect_code(4);
    assert!(
        run.stderr
            .starts_with("error: nothing has changed, but web was booted again: guest db: "),
        "{run}"
    );
    assert_eq!(ground.books(), before);
    ground.server.wait_for_state("web", "active");
    ground.server.expect_audit();
    // Nothing of what it had printed is lost.
    boots(2);

    // What cannot fit is refused before anything is touched.
    let pid = ground.pid("web");
    let big = logged.replace("memory = \"8M\"", "memory = \"60M\"");
    let file = ground.file(&big);
    let run = ground.server.run(&format!("apply {file}"));
    run.expect_code(5);
    assert_eq!(ground.books(), before);
    let missing = logged.replace("kernel = \"probe\"", "kernel = \"/nowhere\"");
    let file = ground.file(&missing);
    ground.server.run(&format!("apply {file}")).expect_code(3);
    assert_eq!((ground.books(), ground.pid("web")), (before, pid));

    // But what goes makes room, where there is none for both.
    let big = "[[instance]]\nname = \"big\"\nmemory = \"60M\"\nkernel = \"probe\"\n";
    let done = ground.apply(big, "--prune --grace 0s");
    assert!(
        done.contains("+ big  create and start, 60M at 0x100000000"),
        "{done}"
    );
    ground.server.tear_down();
}

#[test]
fn a_dump_is_a_fleet_that_makes_the_same_elsewhere() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    ground.apply(TWO, "");
    ground
        .server
        .ok("create idle --memory 4097K --cpus 2 --on-panic restart");
    ground
        .server
        .ok("create odd --memory 8M --kernel probe --start");
    ground.server.ok("wait odd");
    let dump = ground.server.ok("dump");
    for words in [
        "[[instance]]\nname = \"web\"\nmemory = \"16M\"\n",
        "name = \"idle\"\nmemory = \"4097K\"\ncpus = 2\n",
    ] {
        assert!(dump.contains(words), "{dump}");
    }
    // `odd` has ended by itself, and is not booted by its own dump.
    assert_eq!(dump.matches("autostart = false").count(), 2, "{dump}");
    let unchanged = ground.apply(&dump, "--prune");
    assert!(unchanged.ends_with("done: 4 unchanged\n"), "{unchanged}");

    let there = Ground::new("64M@4G");
    there.apply(&dump, "");
    assert_eq!(there.server.ok("dump"), dump);
    // As JSON it is the body of the route.
    let body = there.server.ok("dump --json");
    let (status, applied) = ground.server.http("POST", "/v1/apply", &body);
    assert_eq!(status, 200, "{applied}");
    let changes = applied["changes"].as_array().expect("a list");
    assert!(changes.iter().all(|c| c["action"] == "keep"), "{applied}");
    for ground in [ground, there] {
        ground.server.tear_down();
    }
}

#[test]
fn fleets_that_make_no_sense_are_refused() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let twice = r#"{"instances":[{"name":"a","memory":4194304},{"name":"a","memory":4194304}]}"#;
    let (status, refused) = ground.server.http("POST", "/v1/apply", twice);
    assert_eq!(status, 422, "{refused}");
    for (fleet, code) in [
        ("", 2),
        ("[[instance]]\nname = \"a\"\nauto-start = true\n", 2),
        ("[[instance]]\nname = \"a\"\ncmdline = \"x\"\n", 2),
    ] {
        let file = ground.file(fleet);
        ground
            .server
            .run(&format!("apply {file}"))
            .expect_code(code);
    }
    ground.server.run("apply /nowhere").expect_code(3);
    ground.server.expect_empty();
}

#[test]
fn serve_can_begin_with_a_fleet_and_begins_again_with_it() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch
        .file("fleet.toml", TWO.as_bytes())
        .display()
        .to_string();
    let server = Server::start_with("64M@4G", &["--fleet", &file]);
    assert_eq!(server.json("show web")["state"], "active");
    assert_eq!(server.json("show db")["state"], "loaded");
    server.tear_down();
    drop(server);

    // A fleet that cannot be applied ends a serve that has nothing else.
    let missing = TWO.replace("kernel = \"probe\"", "kernel = \"/nowhere\"");
    let bad = scratch.file("bad.toml", missing.as_bytes());
    let socket = scratch.path("sock");
    let serve = Mkvmm::new(["serve", "--pool", "64M@4G", "--socket"])
        .arg(&socket)
        .arg("--fleet")
        .arg(&bad)
        .finish();
    serve.expect_code(3);
    assert!(serve.stderr.contains("/nowhere"), "{serve}");
    assert!(!socket.exists());

    let mut kept = Kept::start("64M@4G", &["--fleet", &file]);
    let web = kept.json("show web")["pid"].clone();
    kept.kill_manager();
    // What is there stays as it is, and what is missing is made.
    let three = format!("{TWO}\n[[instance]]\nname = \"late\"\nmemory = \"4M\"\n");
    fs::write(&file, three).unwrap();
    kept.serve();
    assert_eq!(kept.json("show web")["pid"], web);
    assert_eq!(kept.json("show late")["state"], "ready");
    // With guests there, a fleet that cannot be applied is no reason to leave them.
    kept.kill_manager();
    fs::write(&file, missing).unwrap();
    kept.serve();
    assert_eq!(kept.json("show web")["pid"], web);
    assert_eq!(kept.ok("dump").matches("[[instance]]").count(), 3);
    kept.tear_down();
}

#[test]
fn a_leased_instance_that_is_put_back_does_not_outlive_its_lease() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let (log, logged) = ground.logged();
    ground.apply(&logged, "");
    let client = Client::new(ground.server.socket());
    let job = "name=job,memory=4M,kernel=probe,cmdline=spin".parse();
    client
        .create_leased(&job.expect("it is one"))
        .expect("room");
    let _held = client.lease("job", None).expect("it waits for it");
    client.start("job").expect("it is loaded");
    // The last step finds that its log is that of another.
    let fails = logged.replace("autostart = false", &format!("console-log = \"{log}\""));
    let file = ground.file(&fails);
    let run = ground
        .server
        .run(&format!("apply {file} --prune --grace 0s"));
    run.expect_code(4);
    assert!(
        run.stderr
            .starts_with("error: nothing has changed, but job was booted again: "),
        "{run}"
    );
    let end = Instant::now() + EVENT_TIMEOUT;
    while client.instance("job").is_ok() {
        assert!(Instant::now() < end, "it is still there");
        thread::sleep(Duration::from_millis(100));
    }
    ground.server.tear_down();
}
