//! A session as a new user would type it.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Scratch};
use serde_json::json;

use crate::server::Server;

#[test]
fn a_session_from_an_empty_pool_to_an_empty_pool() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("256M@4G");
    let empty = server.json("pool show");
    assert_eq!(empty["avail"], 256 << 20);
    assert_eq!(server.ok("create web --memory 32M"), "web: ready\n");
    server.ok("create db --memory 16M --cpus 2");
    let spinning = [
        "create",
        "spin",
        "--memory",
        "8M",
        "--kernel",
        "probe",
        "--cmdline",
        "spin",
    ];
    server.run_words(spinning).expect_code(0);
    server.expect_audit();
    assert_eq!(server.ok("load web --kernel probe"), "web: loaded\n");
    server.ok("load db --kernel probe");
    for name in ["web", "db", "spin"] {
        assert_eq!(
            server.ok(&format!("start {name}")),
            format!("{name}: active\n")
        );
    }
    server.expect_audit();
    let web = server.wait_for_state("web", "stopped");
    assert_eq!(web["reason"], "reboot");
    assert_eq!(web["kernel"]["path"], "probe");
    assert_eq!(web["kernel"]["sha256"].as_str().map(str::len), Some(64));
    server.wait_for_state("db", "stopped");

    let list = server.ok("list");
    for words in ["stopped (reboot)", "active", "0x100000000", "32M"] {
        assert!(list.contains(words), "{list}");
    }
    let iomem = server.ok("iomem");
    let lines = [
        "100000000-10fffffff : Multikernel Memory Pool",
        "  100000000-101ffffff : mk-instance-1-web-region-0",
        "    100100000-1001fffff : control block",
    ];
    for line in lines {
        assert!(iomem.lines().any(|l| l == line), "{iomem}");
    }
    let map = server.ok("pool map");
    assert!(
        ["web", "db", "spin"].iter().all(|n| map.contains(n)),
        "{map}"
    );
    assert!(server.ok("show web --e820").contains("usable"));
    assert!(server.ok("show web").contains("stopped (reboot)"));

    assert_eq!(server.ok("pause spin"), "spin: paused\n");
    server.expect_audit();
    assert_eq!(server.ok("resume spin"), "spin: active\n");
    for _ in 0..2 {
        assert_eq!(server.ok("kill spin --force"), "spin: stopped (killed)\n");
    }
    // The kept images boot again.
    server.ok("start web");
    server.wait_for_state("web", "stopped");
    assert_eq!(server.ok("unload web"), "web: ready\n");
    for name in ["web", "db", "spin"] {
        server.expect_audit();
        server.ok(&format!("delete {name}"));
    }
    assert_eq!(server.json("pool show"), empty);
    assert_eq!(server.ok("iomem").lines().count(), 1);
    assert!(server.ok("audit").starts_with("ok: "));
    // Numbers are never reused.
    assert_eq!(server.json("create web --memory 8M")["id"], 4);
    let events = server.ok("events");
    assert!(events.lines().count() > 15, "{events}");
    assert!(server.ok("metrics").ends_with("# EOF\n"));
}

#[test]
fn what_is_typed_is_answered_by_the_guests_shell() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let create = "create web --memory 8M --kernel probe --cmdline shell";
    server.ok(create);
    server.ok("start web");
    let mut console = server.command(["console", "web"]).typed().spawn();
    console.wait_until("a prompt", |c| c.stdout().ends_with("probe# "));
    console.type_in("echo forty-tow\x7f\x7fwo\n");
    // A line is echoed as it is typed, and then answered.
    console.wait_until("an answer", |c| c.stdout().contains("\r\nforty-two\r\n"));
    // This is longer than the port's FIFO, and faster than the guest reads.
    let long = "x".repeat(100);
    for _ in 0..5 {
        console.type_in(&format!("echo {long}\n"));
    }
    let answer = format!("\r\n{long}\r\n");
    console.wait_until("five answers", |c| c.stdout().matches(&answer).count() == 5);
    server.expect_audit();
    console.type_in("exit\n");
    assert_eq!(server.wait_for_state("web", "stopped")["reason"], "reboot");
    // A client that attaches later gets all of the output.
    let mut late = server.command(["console", "web"]).typed().spawn();
    late.wait_until("a replay", |c| c.stdout().ends_with("probe# exit\r\n"));
}

#[test]
fn refusals_say_why_and_change_nothing() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 16M");
    let before = server.json("list");
    for (args, code, words) in [
        ("start web", 4, "legal now: load, delete"),
        ("kill web", 4, "wrong"),
        ("pause nobody", 4, "no instance nobody"),
        ("create web --memory 8M", 4, "already"),
        (
            "create big --memory 1G",
            5,
            "instance big: needs 1G, 48M are free (976M short)",
        ),
        ("create bad/name --memory 8M", 2, "not an instance name"),
        (
            "create one --memory 1",
            5,
            "no guest runs in less than 2052K",
        ),
        (
            "create zero --memory 0",
            2,
            "memory=0: 0 bytes is out of range",
        ),
        ("create many --memory 8M --cpus 200", 2, "1 to 64"),
        ("create odd --memory 8Q", 2, "memory"),
        ("load web --kernel /no/such/file", 3, "/no/such/file"),
        ("load web --kernel /dev/zero", 3, "regular file"),
        ("load web --kernel fd:0", 3, ""),
        ("pool alloc 1G", 5, "free"),
        ("pool alloc 4096 --align 3", 2, "power of two"),
        ("pool free 0x100000000", 4, "no allocation"),
    ] {
        let run = server.run(args);
        let error = run.expect_refusal(code);
        let all = format!("{error}{}", run.stderr);
        assert!(words == "wrong" || all.contains(words), "{args}: {all}");
        server.expect_audit();
    }
    assert_eq!(server.json("list"), before);
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 16M --kernel probe");
    let before = (server.json("list"), server.json("pool show"));
    let planned = server.json("create db --memory 8M --kernel probe --dry-run");
    assert_eq!(planned["state"], "loaded");
    assert_eq!(planned["chunks"][0]["start"], 0x1_0100_0000_u64);
    for args in [
        "start web",
        "unload web",
        "delete web",
        "pool alloc 2M",
        "load web --kernel probe",
    ] {
        server.ok(&format!("{args} --dry-run"));
    }
    server.run("pause web --dry-run").expect_refusal(4);
    assert_eq!((server.json("list"), server.json("pool show")), before);
    server.expect_audit();
}

#[test]
fn allocations_are_named_withheld_and_given_back() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let path = "/v1/instances/web/allocations";
    server.run_words([
        "create",
        "web",
        "--memory",
        "16M",
        "--kernel",
        "probe",
        "--cmdline",
        "spin",
    ]);
    let (status, early) = server.http("POST", path, r#"{"size": 5000}"#);
    assert_eq!((status, &early["size"]), (201, &json!(8192)));
    server.expect_audit();
    server.ok("start web");
    server.expect_audit();
    let mut console = server.command(["console", "web"]).typed().spawn();
    console.wait_until("a guest content with its map", |c| {
        c.stdout().ends_with("probe: pass\n")
    });
    // The guest owns its RAM now: new allocations are in the control block.
    let (status, late) = server.http("POST", path, r#"{"size": 4096, "align": 8192}"#);
    assert_eq!((status, &late["start"]), (201, &json!(0x1_0010_0000_u64)));
    let (status, _) = server.http("DELETE", &format!("{path}/{}", early["start"]), "");
    assert_eq!(status, 409);
    server.expect_audit();
    let (status, _) = server.http("DELETE", &format!("{path}/{}", late["start"]), "");
    assert_eq!(status, 200);
    server.ok("kill web --force");
    let (status, _) = server.http("DELETE", &format!("{path}/{}", early["start"]), "");
    assert_eq!(status, 200);
    let addr = server.json("pool alloc 2M --align 2M")["start"].clone();
    server.expect_audit();
    server.ok(&format!("pool free {addr}"));
    server.expect_audit();
}

#[test]
fn a_plan_is_what_a_launch_gets_to_the_byte() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create old --memory 32M");
    let scratch = Scratch::new();
    let entry = |name: &str, memory: &str| {
        format!("[[instance]]\nname = \"{name}\"\nmemory = \"{memory}\"\nkernel = \"probe\"\n")
    };
    let file = scratch.file("a.toml", (entry("a", "8M") + &entry("b", "16M")).as_bytes());
    let before = server.json("pool show");
    let plan = server.json(&format!("plan {}", file.display()));
    assert_eq!(server.json("pool show"), before);
    server.expect_audit();
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["pieces"][1][2]["name"], "kernel");
    for (index, (name, memory)) in [("a", "8M"), ("b", "16M")].into_iter().enumerate() {
        let made = server.json(&format!("create {name} --memory {memory} --kernel probe"));
        let planned = &plan["instances"][index];
        for key in ["name", "chunks", "kernel", "e820", "avail"] {
            assert_eq!(made[key], planned[key], "{name}: {key}");
        }
    }
    assert_eq!(server.json("pool show")["avail"], plan["pool"]["avail"]);

    let plan = |text: String| {
        let file = scratch.file("b.toml", text.as_bytes());
        let run = server.run(&format!("plan {}", file.display()));
        run.expect_code(5);
        run
    };
    let run = plan(entry("c", "24M"));
    assert!(
        run.stderr
            .contains("deleting one of `b`, `old` would make room"),
        "{run}"
    );
    // All are judged, and what would help is said.
    let run = plan(entry("c", "24M") + &entry("d", "4M") + &entry("e", "1G"));
    assert!(
        run.stderr.starts_with(
            "error: instance c: needs 24M, 8M are free (16M short); 1 more do not fit\n"
        ),
        "{run}"
    );
    assert!(run.stderr.contains("a pool of 1112M would do"), "{run}");
    for line in [
        "d: 4M\n",
        "does not fit: instance c: needs 24M, ",
        "does not fit: instance e: needs 1G, 4M are free (1020M short)\n",
    ] {
        assert!(run.stdout.contains(line), "{run}");
    }
    // The first of two fits anyway, but both fit only without `old`.
    let run = plan(entry("c", "8M") + &entry("d", "32M"));
    assert!(
        run.stderr.contains("deleting one of `old` would make room"),
        "{run}"
    );
    let run = plan(entry("c", "60M"));
    assert!(!run.stderr.contains("make room"), "{run}");
}

#[test]
fn a_fleet_may_have_a_thousand_instances() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("4G@4G");
    let scratch = Scratch::new();
    let entry =
        |n| format!("[[instance]]\nname = \"an-instance-with-a-name-{n}\"\nmemory = \"3M\"\n");
    let text: String = (0..1000).map(entry).collect();
    let file = scratch.file("many.toml", text.as_bytes());
    let plan = server.json(&format!("plan {}", file.display()));
    assert_eq!(plan["instances"].as_array().map(Vec::len), Some(1000));
    assert_eq!(plan["pool"]["used"], 1000_u64 * (3 << 20));
    server.expect_audit();
}

#[test]
fn what_deleting_makes_room_for_is_tried_and_not_added_up() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    // Memory of 48 MiB in regions of 4 KiB would be sufficient, but no machine
    // supports so many regions.
    for name in ["a", "b", "c"] {
        server.ok(&format!("create {name} --memory 16M"));
    }
    let mut even = Vec::new();
    for nth in 0..1024 {
        let (_, got) = server.http("POST", "/v1/pool/allocations", r#"{"size": 4096}"#);
        let addr = got["start"].clone();
        if nth % 2 == 0 {
            even.push(addr);
        }
    }
    for addr in even {
        server.http("DELETE", &format!("/v1/pool/allocations/{addr}"), "");
    }
    server.ok("pool alloc 12M");
    server.ok("delete b");
    server.ok("pool alloc 16M");
    // There are 2 MiB free in 512 pieces; without `a` or `c` 18 MiB.
    let scratch = Scratch::new();
    let file = |size: &str| {
        let text = format!("[[instance]]\nmemory = \"{size}\"\n");
        scratch.file("plan.toml", text.as_bytes())
    };
    let run = server.run(&format!("plan {}", file("16M").display()));
    run.expect_code(5);
    assert!(run.stderr.contains("`a`, `c` would make room"), "{run}");
    let run = server.run(&format!("plan {}", file("17M").display()));
    run.expect_code(5);
    assert!(!run.stderr.contains("make room"), "{run}");
    server.expect_audit();
}

#[test]
fn create_takes_every_key_that_guest_takes() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let scratch = Scratch::new();
    let [one, two] = ["one", "two"].map(|name| scratch.file(name, &[7; 5000]));
    server.ok(&format!(
        "create web --memory 8M --kernel probe --boot elf --initrd {} --initrd {} \
         --cpus-affinity 0 --on-reboot restart --order 13",
        one.display(),
        two.display()
    ));
    let web = server.json("show web");
    // The size is 10,000 bytes in granules of 8 KiB.
    assert_eq!(web["initrd"]["size"], 16 << 10, "{web:#}");
    server.ok("start web");
    let mut console = server.command(["console", "web"]).typed().spawn();
    console.wait_until("a second boot", |c| {
        c.stdout().matches("probe: pass\n").count() > 1
    });
    server.expect_audit();
    server.ok("kill web --force");
}

#[test]
fn run_takes_a_fleet_file() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let text = "[[instance]]\nname = \"a\"\nmemory = \"8M\"\nkernel = \"probe\"\n";
    let file = scratch.file("fleet.toml", text.as_bytes());
    let run = Mkvmm::run("64M@4G").arg("--fleet").arg(file);
    let run = run.guest("name=b,kernel=probe,memory=8M").finish();
    let consoles = run.expect_code(0).consoles(&["a", "b"]);
    assert!(
        consoles.has("a", "probe: pass") && consoles.has("b", "probe: pass"),
        "{run}"
    );
}

#[test]
fn of_many_instances_those_that_are_large_enough_are_tried() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("264M@4G");
    let create = |name: &str, size: u64| {
        let body = format!(r#"{{"name": "{name}", "memory": {size}}}"#);
        assert_eq!(server.http("POST", "/v1/instances", &body).0, 201);
    };
    create("large", 32 << 20);
    for small in 0..100 {
        create(&format!("small{small}"), 2052 << 10);
    }
    let body = r#"{"instances": [{"name": "a", "memory": 41943040}]}"#;
    let (status, plan) = server.http("POST", "/v1/plan", body);
    let help = &plan["problem"]["delete_one_of"];
    assert_eq!((status, help), (200, &json!(["large"])));
}

#[test]
fn what_was_deleted_is_gone_and_what_was_only_rehearsed_is_not() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M");
    let path = "/v1/instances/web";
    let rehearsed = server.http("DELETE", &format!("{path}?dry_run=true"), "");
    assert_eq!(rehearsed.0, 200, "{}", rehearsed.1);
    assert_eq!(server.http("GET", path, "").0, 200);
    assert_eq!(server.http("DELETE", path, "").0, 200);
    assert_eq!(server.http("GET", path, "").0, 404);
}
