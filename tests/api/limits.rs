//! Tests that one client, guest or reader of a log cannot harm others.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Scratch, Stdout};
use rustix::process::{Signal, kill_process};

use crate::server::{EVENT_TIMEOUT, Server, http};

#[track_caller]
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + EVENT_TIMEOUT;
    while !happened() {
        assert!(Instant::now() < end, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

fn connect(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(server.socket()).expect("it listens");
    stream
        .set_read_timeout(Some(EVENT_TIMEOUT))
        .expect("a socket");
    stream
}

/// Opens a console connection and reads the response's head.
fn attach(server: &Server, name: &str) -> UnixStream {
    let mut stream = connect(server);
    write!(
        stream,
        "GET /v1/instances/{name}/console HTTP/1.1\r\nHost: x\r\n\
         Connection: upgrade\r\nUpgrade: mkvmm-console\r\n\r\n"
    )
    .expect("it reads");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("it answers");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{head:?}");
    stream
}

/// Returns the number of images that are being unpacked.
fn unpackers(server: &Server) -> usize {
    server.running.children_named("mkvmm-unpacker").len()
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_as("64M@4G", |serve| serve.stderr(Stdout::Unread));
    for name in ["a", "b"] {
        let create = format!("create {name} --memory 8M --kernel probe");
        server.ok(&create);
    }
    // Each end is a line of about 50 bytes, and the pipe holds 4096.
    for _ in 0..60 {
        for name in ["a", "b"] {
            server.ok(&format!("start {name}"));
            server.wait_for_state(name, "stopped");
        }
    }
    server.ok("list");
    server.ok("kill a --force");
    server.expect_audit();
    server.running.signal(Signal::TERM);
    server.running.wait().expect_code(0);
}

#[test]
fn clients_that_say_nothing_leave_room_for_those_that_ask() {
    if skips_without_kvm() {
        return;
    }
    // There are fewer descriptors than clients.
    let server = Server::start_as("64M@4G", |serve| serve.after("ulimit -n 256"));
    let create = ["create", "a", "--memory", "8M", "--kernel", "probe"];
    let restart = ["--cmdline", "hold=1200", "--on-reboot", "restart"];
    server
        .run_words([&create[..], &restart].concat())
        .expect_code(0);
    server.ok("start a");
    // Some have sent nothing yet, some only half of a request.
    let mut silent: Vec<UnixStream> = (0..300)
        .map(|nth| {
            let mut stream = connect(&server);
            if nth % 2 == 0 {
                // It may have been closed already.
                let _ = stream.write_all(b"POST /v1/instances HTTP/1.1\r\nContent-Length: 9\r\n");
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        server.ok("list");
        thread::sleep(Duration::from_millis(100));
    }
    // The guest was restarted meanwhile, and will be again.
    let boot = |server: &Server| {
        let a = server.json("show a");
        assert_ne!(a["state"], "failed", "{a}");
        a["timeline"]["exec"].as_u64()
    };
    let before = boot(&server);
    wait_until("another boot", || {
        let now = boot(&server);
        now.is_some() && now != before
    });
    server.ok("kill a --force");
    // The oldest connections were closed.
    let mut rest = Vec::new();
    silent[1].read_to_end(&mut rest).unwrap();
    server.expect_audit();
}

#[test]
fn more_clients_than_may_be_answered_at_once_are_told_so() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_as("64M@4G", |serve| serve.arg("--connections").arg("4"));
    server.ok("create a --memory 8M");
    let viewers: Vec<UnixStream> = (0..4).map(|_| attach(&server, "a")).collect();
    let (status, refusal) = http(server.socket(), "GET", "/v1/pool", "");
    assert_eq!(status, 503, "{refusal}");
    assert_eq!(refusal["error"]["code"], "overload");
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("4 clients"), "{message}");
    assert!(refusal["error"]["help"].is_string());
    server.run("list").expect_refusal(4);
    drop(viewers);
    wait_until("room", || {
        http(server.socket(), "GET", "/v1/pool", "").0 == 200
    });
}

#[test]
fn viewers_that_leave_a_silent_console_leave_nothing() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create a --memory 8M");
    let before = server.running.descriptors();
    for _ in 0..100 {
        let mut viewer = attach(&server, "a");
        // This is more than the guest, which does not run, ever reads.
        viewer.set_nonblocking(true).unwrap();
        while viewer.write(&[b'x'; 4096]).is_ok() {}
    }
    wait_until("the descriptors", || {
        server.running.descriptors() <= before + 1
    });
    // A client that has only closed its sending half continues to receive.
    let mut looking = attach(&server, "a");
    looking.shutdown(Shutdown::Write).unwrap();
    server.ok("load a --kernel probe");
    server.ok("start a");
    let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(b"probe: pass\n") {
        let count = looking.read(&mut bytes).unwrap();
        assert!(count > 0, "it was hung up on");
        seen.extend_from_slice(&bytes[..count]);
    }
}

#[test]
fn the_console_of_a_deleted_instance_ends_and_says_why() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create a --memory 8M --kernel probe");
    server.ok("start a");
    let mut raw = attach(&server, "a");
    let viewer = server.command(["console", "a"]).typed().spawn();
    server.wait_for_state("a", "stopped");
    server.ok("delete a");
    let mut seen = Vec::new();
    raw.read_to_end(&mut seen).unwrap();
    assert!(seen.ends_with(b"probe: pass\n"), "all that it printed came");
    let viewer = viewer.wait();
    viewer.expect_code(0);
    assert!(viewer.stdout.ends_with("probe: pass\n"), "{viewer}");
    assert!(viewer.stderr.contains("a was deleted"), "{viewer}");
}

#[test]
fn instances_are_refused_before_descriptors_run_out() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_as("64M@4G", |serve| serve.after("ulimit -n 256"));
    let create = |nth: usize| {
        let body = format!(r#"{{"name":"a{nth}","memory":4194304,"kernel":"probe"}}"#);
        server.http("POST", "/v1/instances", &body)
    };
    let mut made = 0;
    let refusal = loop {
        let (status, answer) = create(made);
        if status != 201 {
            break (status, answer);
        }
        made += 1;
    };
    assert!(made > 0, "{refusal:?}");
    let (status, refusal) = refusal;
    assert_eq!(status, 507, "after {made}: {refusal}");
    assert_eq!(
        refusal["error"]["code"], "exhausted",
        "after {made}: {refusal}"
    );
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("descriptors"), "{message}");
    // All of them run at once, and each end makes room for another one.
    for nth in 0..made {
        server.ok(&format!("start a{nth}"));
    }
    for nth in 0..made {
        server.wait_for_state(&format!("a{nth}"), "stopped");
    }
    server.ok("delete a0");
    assert_eq!(create(0).0, 201);
    server.expect_audit();
}

#[test]
fn a_guest_that_the_host_has_no_threads_for_is_refused_alone() {
    if skips_without_kvm() || !rustix::process::geteuid().is_root() {
        return;
    }
    // Use a separate user, so that processes of other tests do not count.
    let uid = 61_000 + std::process::id() % 1000;
    let server = Server::start_as("256M@4G", |serve| {
        // The option is -u in bash and -p in dash.
        let serve = serve.after("{ ulimit -u 260 2>/dev/null || ulimit -p 260; }");
        serve.arg("--worker-uid").arg(uid.to_string())
    });
    server.ok("create good --memory 8M --kernel probe --cmdline spin");
    server.ok("start good");
    // Each needs 64 threads and a few more; the first two fit into the budget.
    let mut codes = Vec::new();
    for nth in 0..4 {
        let create = format!("create b{nth} --memory 8M --cpus 64 --kernel probe --cmdline spin");
        let run = server.run(&create);
        if run.code() == Some(5) {
            assert!(run.stderr.contains("threads"), "{run}");
        } else {
            run.expect_code(0);
            server.ok(&format!("start b{nth}"));
        }
        codes.push(run.code());
    }
    assert_eq!(codes.last(), Some(&Some(5)), "{codes:?}");
    assert_eq!(server.json("show good")["state"], "active");
    server.expect_audit();
}

#[test]
fn an_initrd_that_cannot_fit_is_refused_before_it_is_read() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let first = scratch.path("first");
    File::create(&first).unwrap().set_len(3900 << 20).unwrap();
    server.ok("create a --memory 8M");
    for name in ["first", "second", "third", "fourth"] {
        let link = scratch.path(name);
        if name != "first" {
            fs::hard_link(&first, &link).unwrap();
        }
        let link = link.display().to_string();
        let load = ["load", "a", "--kernel", "probe", "--initrd", &link];
        let run = server.run_words(load);
        run.expect_refusal(5);
        assert!(run.stderr.contains("4089446400"), "{run}");
    }
    assert!(server.running.status_kib("VmHWM") < 200 << 10);
    assert_eq!(unpackers(&server), 0);
    assert_eq!(server.json("show a")["state"], "ready");
}

#[test]
fn reading_an_image_ends_when_its_client_goes_and_holds_up_nobody() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("1G@4G"), Scratch::new());
    let big = scratch.path("big");
    File::create(&big).unwrap().set_len(900 << 20).unwrap();
    server.ok("create a --memory 960M");
    server.ok("create b --memory 8M");
    let body = format!(r#"{{"kernel":"probe","initrd":"{}"}}"#, big.display());
    let mut client = connect(&server);
    let length = body.len();
    write!(
        client,
        "POST /v1/instances/a/load HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    wait_until("an unpacker", || unpackers(&server) == 1);
    server.ok("load b --kernel probe");
    assert_eq!(unpackers(&server), 1, "b did not wait for a");
    drop(client);
    wait_until("its end", || unpackers(&server) == 0);
    let (_, a) = server.http("GET", "/v1/instances/a", "");
    assert_eq!(a["state"], "ready", "{a}");
    server.expect_audit();
}

#[test]
fn a_plan_is_bounded_and_the_largest_holds_nobody_up_for_long() {
    if skips_without_kvm() {
        return;
    }
    // Its memory is never touched.
    let server = Server::start("16G@4G");
    let plan = |count: usize| {
        let one = |nth| format!(r#"{{"name":"n{nth}","memory":4194304}}"#);
        let all: Vec<String> = (0..count).map(one).collect();
        let body = format!(r#"{{"instances":[{}]}}"#, all.join(","));
        server.http("POST", "/v1/plan", &body)
    };
    let (status, refusal) = plan(20_000);
    assert_eq!(status, 413, "{refusal}");
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("20000"), "{message}");
    let (status, plan) = plan(4096);
    assert_eq!(status, 200);
    assert_eq!(plan["fits"], true);
    server.expect_audit();
}

#[test]
fn an_image_is_looked_up_once_while_its_link_is_exchanged() {
    if skips_without_kvm() {
        return;
    }
    let (scratch, outside) = (Scratch::new(), Scratch::new());
    let server = Server::start_as("64M@4G", |serve| {
        serve.arg("--image-dir").arg(scratch.dir())
    });
    let kernel = |says: &[u8]| elf(&[&code::print(says)[..], code::RESET].concat());
    scratch.file("good", &kernel(b"inside\n"));
    let secret = outside.file("bad", &kernel(b"outside\n"));
    let link = scratch.path("kernel");
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let next = scratch.path("next");
            for target in [std::path::Path::new("good"), &secret].iter().cycle() {
                std::os::unix::fs::symlink(target, &next).unwrap();
                fs::rename(&next, &link).unwrap();
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
            }
        });
        wait_until("a link", || link.symlink_metadata().is_ok());
        let (mut inside, mut refused) = (0, 0);
        let end = Instant::now() + EVENT_TIMEOUT;
        while (inside < 5 || refused < 5) && Instant::now() < end {
            let body = format!(
                r#"{{"name":"a","memory":8388608,"kernel":"{}"}}"#,
                link.display()
            );
            match server.http("POST", "/v1/instances", &body) {
                (201, _) => {
                    server.ok("start a");
                    server.wait_for_state("a", "stopped");
                    let mut viewer = attach(&server, "a");
                    server.ok("delete a");
                    let mut printed = String::new();
                    viewer.read_to_string(&mut printed).unwrap();
                    assert_eq!(printed, "inside\n");
                    inside += 1;
                }
                (status, refusal) => {
                    assert_eq!(status, 422, "{refusal}");
                    refused += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(
            inside > 0 && refused > 0,
            "{inside} inside, {refused} refused"
        );
    });
}

#[test]
fn memory_that_cannot_be_cleaned_stays_and_is_tried_again() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_as("768M@4G", |serve| serve.arg("--prealloc"));
    let caught = (0..20).any(|_| {
        server.ok("create a --memory 700M --kernel probe");
        server.ok("start a");
        server.wait_for_state("a", "stopped");
        thread::scope(|scope| {
            let (watching, watched) = mpsc::channel::<()>();
            let server = &server;
            scope.spawn(move || {
                while watched.try_recv() == Err(TryRecvError::Empty) {
                    for pid in server.running.children_named("mkvmm-cleaner") {
                        // It may have ended already.
                        let _ = kill_process(pid, Signal::KILL);
                    }
                }
            });
            let (status, answer) = server.http("DELETE", "/v1/instances/a", "");
            if status == 200 {
                return false;
            }
            assert_eq!(answer["error"]["code"], "vmm-failed", "{answer}");
            // Nobody gets the memory or the name.
            let (_, a) = server.http("GET", "/v1/instances/a", "");
            assert_eq!(a["state"], "cleaning", "{a}");
            server.expect_audit();
            server.run("create b --memory 700M").expect_refusal(5);
            server.run("start a").expect_refusal(4);
            drop(watching);
            true
        })
    });
    assert!(caught, "no cleaner was seen");
    wait_until("its end", || {
        server.http("GET", "/v1/instances/a", "").0 == 404
    });
    server.ok("create b --memory 700M --kernel probe");
    server.ok("start b");
    server.wait_for_state("b", "stopped");
    assert!(!server.ok("list").contains("BAD"));
    server.expect_audit();
}
