//! Tests of inspecting guests and the host.

use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::tier::skips_without_kvm;
use serde_json::Value;

use crate::server::Server;

const RAX: u64 = 0x1122_3344_5566_7788;
const R15: u64 = 0xfeed_face_cafe_beef;
/// The time limit for a response on a machine that is busy with other tests: a
/// vCPU has a second.
const BOUND: Duration = Duration::from_secs(10);

/// Creates and starts an instance whose kernel does `what` with known
/// registers.
fn start(server: &Server, scratch: &Scratch, name: &str, cpus: &str, what: &[u8]) {
    let code = [code::mov_rax(RAX), code::mov_r15(R15), what.to_vec()].concat();
    let kernel = scratch.file(name, &elf(&code));
    let kernel = kernel.display().to_string();
    let words = [
        "create", name, "--memory", "8M", "--cpus", cpus, "--kernel", &kernel,
    ];
    server.run_words(words).expect_code(0);
    server.ok(&format!("start {name}"));
}

/// Performs a `GET` below an instance; it must succeed in time.
#[track_caller]
fn get(server: &Server, path: &str) -> Value {
    let began = Instant::now();
    let (status, answer) = server.http("GET", &format!("/v1/instances/{path}"), "");
    assert_eq!(status, 200, "{path}: {answer}");
    assert!(began.elapsed() < BOUND, "{path}: {:?}", began.elapsed());
    answer
}

fn hex(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_default();
    let digits = text.strip_prefix("0x").unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// Waits until vCPU 0 has loaded the registers that `start` gave it.
fn wait_for_registers(server: &Server, name: &str) -> Value {
    let end = Instant::now() + crate::server::EVENT_TIMEOUT;
    loop {
        let regs = get(server, &format!("{name}/regs"));
        // A vCPU that takes long to answer is missing.
        let is_whole = regs["missing"].as_array().is_some_and(Vec::is_empty);
        if is_whole && hex(&regs["cpus"][0]["general"]["r15"]) == R15 {
            return regs;
        }
        assert!(Instant::now() < end, "{regs:#}");
    }
}

#[test]
fn registers_are_those_of_the_guest_wherever_it_is() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    start(&server, &scratch, "spin", "2", code::SPIN);
    let regs = wait_for_registers(&server, "spin");
    assert_eq!(regs["state"], "active");
    assert_eq!(regs["missing"].as_array().map(Vec::len), Some(0));
    let boot = &regs["cpus"][0];
    assert_eq!(hex(&boot["general"]["rax"]), RAX);
    assert_eq!((&boot["mode"], &boot["cpl"]), (&"long".into(), &0.into()));
    assert_eq!(boot["paging"], "4-level");
    let flags = |register: &Value| register["flags"].to_string();
    assert!(flags(&boot["control"]["efer"]).contains("LMA"), "{boot:#}");
    assert!(flags(&boot["control"]["cr0"]).contains("PG"), "{boot:#}");
    assert!(!flags(&boot["rflags"]).contains("IF"), "{boot:#}");
    // It was never started: it waits for the first vCPU.
    let other = &regs["cpus"][1];
    assert_eq!((&other["cpu"], &other["mode"]), (&1.into(), &"real".into()));
    assert_eq!(other["mp_state"], "uninitialized");
    let one = get(&server, "spin/regs?cpu=1");
    assert_eq!(one["cpus"].as_array().map(Vec::len), Some(1));

    // Reading changes nothing, even in a paused guest.
    server.ok("pause spin");
    let paused = get(&server, "spin/regs");
    assert_eq!(paused["state"], "paused");
    assert_eq!(get(&server, "spin/regs"), paused);
    assert_eq!(
        paused["cpus"][0]["general"], boot["general"],
        "a jump to itself"
    );
    server.ok("resume spin");
    let text = server.ok("debug regs spin --cpu 0");
    assert!(text.starts_with("vCPU 0: long mode, CPL 0,"), "{text}");
    assert!(text.contains("rax 0x1122334455667788"), "{text}");
    let json = server.json("debug regs spin --cpu 0");
    assert_eq!(hex(&json["cpus"][0]["general"]["rax"]), RAX);
    let (status, refusal) = server.http("GET", "/v1/instances/spin/regs?cpu=2", "");
    assert_eq!((status, &refusal["error"]["help"]), (422, &"0 to 1".into()));
    server.expect_audit();
}

#[test]
fn a_halted_guest_answers_and_its_last_registers_are_kept() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    start(&server, &scratch, "halt", "1", code::HALT);
    let regs = wait_for_registers(&server, "halt");
    assert_eq!(hex(&regs["cpus"][0]["general"]["rax"]), RAX);
    server.wait_for_state("halt", "stopped");
    let last = get(&server, "halt/regs");
    assert_eq!(last["reason"], "halt");
    assert_eq!(last["cpus"][0]["general"], regs["cpus"][0]["general"]);
    assert_eq!(last["cpus"][0]["mp_state"], "halted");
    server.ok("unload halt");
    let run = server.run("debug regs halt");
    run.expect_refusal(4);
    assert!(run.stderr.contains("legal now: load, delete"), "{run}");
    let (status, refusal) = server.http("GET", "/v1/instances/halt/regs", "");
    assert_eq!((status, &refusal["error"]["state"]), (409, &"ready".into()));
}

#[test]
fn a_crashed_guest_can_be_looked_into() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    start(&server, &scratch, "crash", "1", code::CRASH);
    let crash = server.wait_for_state("crash", "failed");
    assert_eq!(crash["reason"], "triple-fault");
    let entry = crash["kernel"]["entry"].as_u64().unwrap();
    let last = get(&server, "crash/regs");
    let boot = &last["cpus"][0];
    // AMD's processors lose the state on a triple fault; KVM resets the vCPU
    // there.
    if boot["mode"] == "long" {
        assert_eq!(hex(&boot["general"]["r15"]), R15);
        assert_eq!(hex(&boot["general"]["rip"]), entry + 20);
        let walk = get(&server, &format!("crash/translate?addr={entry:#x}"));
        assert_eq!(walk["target"]["physical"].as_u64(), Some(entry));
        assert_eq!(walk["kvm"], Value::Null);
        let text = server.ok(&format!("debug mem crash {entry:#x} 4 --virtual"));
        assert!(text.starts_with("100200000  48 b8 88 77"), "{text}");
    }
    let run = server.ok(&format!("debug mem crash {:#x} 2", entry + 20));
    assert!(run.contains("  0f 0b  "), "{run}");
}

#[test]
fn our_walk_through_page_tables_is_kvms() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let create = ["create", "web", "--memory", "16M", "--kernel", "probe"];
    server
        .run_words([&create[..], &["--cmdline", "spin"]].concat())
        .expect_code(0);
    server.ok("start web");
    let end = Instant::now() + crate::server::EVENT_TIMEOUT;
    // The probe's own tables are in use when it is in ring 3.
    while get(&server, "web/regs?cpu=0")["cpus"][0]["cpl"] != 3 {
        assert!(Instant::now() < end, "the probe does not reach ring 3");
    }
    server.ok("pause web");
    let mut mapped = 0;
    for addr in [
        0x0_u64,
        0x7123,
        0x10_0000,
        0x20_0000,
        0xfee0_0000,
        0x1_0000_0000,
        0x1_0020_1234,
        0x1_00ff_ffff,
        0x1_0100_0000,
        0x7fff_ffff_f000,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_ffff,
    ] {
        let walk = get(&server, &format!("web/translate?addr={addr:#x}"));
        let ours = &walk["target"]["physical"];
        if walk["kvm"] != Value::Null {
            assert_eq!(&walk["kvm"]["physical"], ours, "{walk:#}");
        }
        mapped += u32::from(!ours.is_null());
        assert_eq!(ours.is_null(), !walk["fault"].is_null(), "{walk:#}");
    }
    assert!(mapped >= 3, "{mapped} of them are mapped");
    let low = get(&server, "web/translate?addr=0x7000");
    assert_eq!(low["target"]["own"], true);
    assert_eq!(low["target"]["pool_addr"], 0x1_0000_7000_u64);
    let place = low["target"]["place"].as_array().unwrap();
    assert_eq!(place.last(), Some(&"low window".into()));
    let text = server.ok("debug translate web 0x7000");
    assert!(text.contains("physical 0x7000: its own memory"), "{text}");
    let wrong = get(&server, "web/translate?addr=0x800000000000");
    assert_eq!(wrong["fault"], "the address is not canonical");
}

#[test]
fn memory_is_the_instances_own_in_every_state_and_no_more() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    server.ok("create other --memory 8M");
    let refused = |path: &str| {
        let (status, answer) = server.http("GET", &format!("/v1/instances/{path}"), "");
        let help = answer["error"]["help"].as_str().unwrap_or_default();
        (status, help.to_owned())
    };
    let zeros = get(&server, "other/memory?addr=0x100000000&len=16");
    assert_eq!(zeros["hex"], "0".repeat(32));
    // Without images there is no low window.
    let nearest = "the nearest memory is 0x100000000-0x1007fffff";
    let (status, help) = refused("other/memory?addr=0x7000&len=16");
    assert_eq!((status, help.as_str()), (422, nearest));

    let hello = code::print(b"hello");
    start(
        &server,
        &scratch,
        "web",
        "1",
        &[&hello, code::SPIN].concat(),
    );
    let first = "0x100a00000";
    let text = server.ok(&format!("debug mem web {first} 4"));
    assert!(text.starts_with("100a00000  48 b8 88 77"), "{text}");
    let raw = server.run(&format!("debug mem web {first} 2 --raw"));
    assert!(raw.stdout.starts_with('H'), "{raw}");
    // The low window is visible at two addresses.
    let low = get(&server, "web/memory?addr=0x7000&len=4096");
    let high = get(&server, "web/memory?addr=0x100807000&len=4096");
    assert_eq!(low["hex"], high["hex"]);
    assert!(low["hex"].as_str().unwrap().contains("48647253"), "HdrS");
    // Neighbouring memory does not exist, at either end.
    let ends = [
        "0x1007fffff&len=1",
        "0x1007ffff0&len=32",
        "0x101000000&len=1",
    ];
    for range in ends {
        assert_eq!(
            refused(&format!("web/memory?addr={range}")).0,
            422,
            "{range}"
        );
    }
    let (_, help) = refused("web/memory?addr=0x100fffff0&len=0x20");
    assert_eq!(help, "", "a length is decimal");
    let (_, help) = refused("web/memory?addr=0x100fffff0&len=32");
    assert_eq!(help, "there are 0x10 bytes from there on, to 0x100ffffff");
    let whole = get(&server, "web/memory?addr=0x100800000&len=1048576");
    assert_eq!(whole["hex"].as_str().map(str::len), Some(2 << 20));
    for (query, status) in [
        ("addr=0x7000&len=0", 422),
        ("addr=0x7000&len=1048577", 422),
        ("addr=0xffffffffffffffff&len=2", 422),
        ("addr=0x10000000000000000&len=1", 400),
        ("addr=here&len=1", 400),
        ("len=1", 400),
        ("addr=0x7000&len=1&x=1", 400),
    ] {
        assert_eq!(refused(&format!("web/memory?{query}")).0, status, "{query}");
    }
    server.expect_audit();
}

#[test]
fn looking_does_not_disturb_a_guest_that_works() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let create = ["create", "web", "--memory", "16M", "--cpus", "2"];
    let load = ["--kernel", "probe", "--cmdline", "hold=2000"];
    server
        .run_words([&create[..], &load[..]].concat())
        .expect_code(0);
    server.ok("start web");
    thread::scope(|scope| {
        for path in ["regs", "memory?addr=0&len=1048576", "translate?addr=0x7000"] {
            let server = &server;
            scope.spawn(move || {
                let path = format!("/v1/instances/web/{path}");
                loop {
                    let (status, answer) = server.http("GET", &path, "");
                    assert_eq!(status, 200, "{answer}");
                    let (_, web) = server.http("GET", "/v1/instances/web", "");
                    if web["state"] != "active" {
                        assert_eq!(web["reason"], "reboot", "{web:#}");
                        return;
                    }
                }
            });
        }
    });
    server.expect_audit();
}

#[test]
fn the_doctor_answers_through_the_socket_as_on_the_command_line() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("16M@4G");
    let told: Value = serde_json::from_str(&server_doctor()).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            let (server, told) = (&server, &told);
            scope.spawn(move || {
                let (status, heard) = server.http("GET", "/v1/doctor", "");
                assert_eq!(status, 200, "{heard}");
                for key in ["kvm", "kvm_kind", "probe", "linux", "max_vcpus"] {
                    assert_eq!(heard[key], told[key], "{key}");
                }
                let keys = |value: &Value| value.as_object().map(|o| o.keys().cloned().collect());
                assert_eq!(keys(&heard), keys(told) as Option<Vec<String>>);
            });
        }
    });
    server.expect_audit();
    assert_eq!(server.json("list"), serde_json::json!([]));
}

fn server_doctor() -> String {
    let run = mkvmm_test_harness::Mkvmm::new(["doctor", "--json"]).finish();
    run.expect_code(0);
    run.stdout
}
