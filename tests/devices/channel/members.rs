//! Members that exchange messages, come and go.

use std::thread;

use mkvmm_test_harness::Mkvmm;
use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

#[test]
fn channels_that_are_made_at_once_are_not_too_many_for_a_guest() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with(POOL, &["--prealloc"]);
    server.ok("create a --memory 8M --kernel probe --cmdline spin");
    for number in 0..7 {
        channel(
            &server,
            &format!("c{number} --size 4K --between a,b{number}"),
        );
    }
    let statuses = thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|number| {
                let server = &server;
                scope.spawn(move || {
                    let body = format!(
                        r#"{{"name":"d{number}","size":4194304,"between":["a","d{number}"]}}"#
                    );
                    server.http("POST", "/v1/channels", &body).0
                })
            })
            .collect();
        let answers = asking.into_iter().map(|one| one.join().expect("it asks"));
        answers.collect::<Vec<u16>>()
    });
    let made = statuses.iter().filter(|status| **status == 201).count();
    assert_eq!(made, 1, "{statuses:?}");
    server.ok("start a");
    server.expect_audit();
}

#[test]
fn two_guests_exchange_messages_and_interrupts() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 1M --between a,b --doorbells 2");
    let mut a = Member::new(memory);
    a.driver.read(8, a.bar + MEMORY);
    a.state(1, true, 1);
    a.put(0, 0x1234);
    a.ring(1, 1);
    a.driver.pending(RUNG);
    a.wait(0xf_fff8, 0x5678);
    let mut b = Member::new(memory);
    b.driver.pending(RUNG);
    b.wait(0, 0x1234);
    b.put(0xf_fff8, 0x5678);
    b.ring(0, 1);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    expect_passed(&server, &["a", "b"]);
    // The address in the registers is that of the ledger.
    assert_eq!(values(&server, "a"), [memory]);
    assert!(server.ok("logs a").contains("probe: channel"));
    assert_eq!(members(&server, "ab"), [(false, 1), (false, 1)]);
    end(&server, &["ab"]);
}

#[test]
fn the_death_and_the_return_of_a_member_are_seen() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 4K --between a,b");
    server.ok("create a --memory 8M --kernel probe --cmdline spin");
    let mut b = Member::new(memory);
    b.state(0, true, 1);
    b.read(0);
    b.state(0, false, 1);
    b.driver.pending(NEWS);
    b.read(0);
    b.state(0, true, 2);
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    wait_for_values(&server, "b", 1);
    let refused = server.run("channel delete ab");
    refused.expect_code(4);
    assert_eq!(members(&server, "ab"), [(true, 1), (true, 1)]);
    server.expect_audit();
    server.ok("kill a --force");
    wait_for_values(&server, "b", 2);
    server.ok("start a");
    expect_passed(&server, &["b"]);
    assert_eq!(members(&server, "ab"), [(true, 2), (false, 1)]);
    server.expect_audit();
    end(&server, &["ab"]);
}

#[test]
fn three_members_ring_each_other_and_nobody_else() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "abc --size 64K --between a,b,c");
    let apart = channel(&server, "other --size 64K --between c,d");
    let ring = |own: u64, next: u64| {
        let mut member = Member::new(memory);
        member.state(0, true, 1);
        member.state(1, true, 1);
        member.state(2, true, 1);
        member.put(8 * own, own + 1);
        member.ring(next, 1);
        member.driver.pending(RUNG);
        for other in 0..3 {
            member.wait(8 * other, other + 1);
        }
        // Nobody leaves before all have seen all.
        member.put(0x100 + 8 * own, 1);
        for other in 0..3 {
            member.wait(0x100 + 8 * other, 1);
        }
        member
    };
    let mut c = ring(2, 0);
    // The second channel of c has its own memory and doorbells, which d hears of.
    c.driver.write(8, apart, 0xc);
    c.driver.write(4, c.bar + DOORBELL, 0x101 << 16);
    let mut d = Member::new(apart);
    d.driver.pending(RUNG);
    d.wait(0, 0xc);
    // The first channel does not exist for it.
    d.driver.read(8, memory);
    ring(0, 1).create(&server, "a");
    ring(1, 2).create(&server, "b");
    c.create(&server, "c");
    d.create(&server, "d");
    start(&server, &["d", "a", "b", "c"]);
    expect_passed(&server, &["a", "b", "c", "d"]);
    assert_eq!(values(&server, "d"), [u64::MAX]);
    end(&server, &["abc", "other"]);
}

#[test]
fn who_can_only_read_cannot_write() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 64K --between a,b:ro");
    let mut a = Member::new(memory);
    a.put(0, 0x1111);
    a.ring(1, 1);
    a.driver.pending(RUNG);
    a.read(0);
    let mut b = Member::new(memory);
    b.driver.pending(RUNG);
    b.wait(0, 0x1111);
    b.put(0, 0x2222);
    b.read(0);
    b.ring(0, 1);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    expect_passed(&server, &["a", "b"]);
    assert_eq!(values(&server, "a"), [0x1111]);
    assert_eq!(values(&server, "b"), [0x1111]);
    end(&server, &["ab"]);
}

#[test]
fn a_channel_is_made_and_ended_while_its_members_run() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    // Where it will be: the first free place after the guests.
    let memory = {
        server.ok("create a --memory 8M");
        server.ok("create b --memory 8M");
        let dry = server.json("channel create ab --size 64K --between a,b --dry-run");
        server.ok("delete a");
        server.ok("delete b");
        dry["start"].as_u64().expect("a place")
    };
    let mut a = Member::new(memory);
    // Nothing is there yet.
    a.read(0);
    a.driver.until(8, a.bar + MEMORY, u64::MAX, memory);
    a.driver.pending(NEWS);
    a.state(1, true, 1);
    a.put(0, 1);
    a.wait(8, 2);
    a.state(1, false, 1);
    a.state(1, true, 2);
    a.put(16, 3);
    // It is taken away.
    a.driver.until(8, a.bar + MEMORY, u64::MAX, 0);
    a.read(0);
    let mut b = Member::new(memory);
    b.read(0);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, memory);
    b.wait(0, 1);
    b.put(8, 2);
    b.read(8);
    // It is taken away, and given again.
    b.driver.until(8, b.bar + MEMORY, u64::MAX, 0);
    b.read(8);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, memory);
    b.wait(16, 3);
    b.read(8);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, 0);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    // Neither looks at the pool any more, in which nothing may be but ones.
    wait_for_values(&server, "a", 1);
    wait_for_values(&server, "b", 1);
    assert_eq!(channel(&server, "ab --size 64K --between a,b"), memory);
    assert_eq!(members(&server, "ab"), [(true, 1), (true, 1)]);
    server.expect_audit();
    server.run("channel leave ab c").expect_code(4);
    server.run("channel delete ab").expect_code(4);
    // Both have seen each other when a waits for the absence of b.
    wait_for_values(&server, "b", 2);
    server.ok("channel leave ab b --dry-run");
    server.ok("channel leave ab b");
    assert_eq!(members(&server, "ab"), [(true, 1), (false, 1)]);
    server.expect_audit();
    wait_for_values(&server, "b", 3);
    server.ok("channel join ab b");
    assert_eq!(members(&server, "ab"), [(true, 1), (true, 2)]);
    server.ok("channel join ab b");
    wait_for_values(&server, "b", 4);
    server.expect_audit();
    server.ok("channel delete ab --force");
    expect_passed(&server, &["a", "b"]);
    assert_eq!(values(&server, "a"), [u64::MAX, u64::MAX]);
    assert_eq!(values(&server, "b"), [u64::MAX, 2, u64::MAX, 2]);
    end(&server, &[]);
}

#[test]
fn the_example_of_the_documentation_runs() {
    if skips_without_kvm() {
        return;
    }
    let fleet = mkvmm_test_harness::root().join("docs/messages.toml");
    let run = Mkvmm::run(POOL).arg("--fleet").arg(fleet).finish();
    let consoles = run.expect_code(0).consoles(&["producer", "consumer"]);
    let all = "probe: ring received 100000 in doubt 0 lost 0";
    assert!(consoles.has("consumer", all), "{run}");
}

#[test]
fn a_channel_that_cannot_be_taken_from_all_is_taken_from_nobody() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 64K --between a,b");
    let member = |own: u64| {
        let mut member = Member::new(memory);
        member.state(1 - own, true, 1);
        member.put(8 * own, own + 1);
        member.read(8 * own);
        // It loses the channel permanently only at the end.
        member.wait(16, 1);
        member
    };
    member(0).create(&server, "a");
    member(1).create(&server, "b");
    start(&server, &["a", "b"]);
    wait_for_values(&server, "a", 1);
    wait_for_values(&server, "b", 1);
    let pid = server.json("show b")["pid"].as_i64().expect("a process");
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process");
    kill_process(pid, Signal::STOP).expect("it runs");
    let refused = server.run("channel delete ab --force");
    assert_ne!(refused.code(), Some(0), "{refused}");
    // The one that had left has it again, and the other one when it has left.
    assert_eq!(members(&server, "ab")[0], (true, 2));
    kill_process(pid, Signal::CONT).expect("it runs");
    let end = Instant::now() + EVENT_TIMEOUT;
    while members(&server, "ab") != [(true, 2), (true, 2)] {
        assert!(Instant::now() < end, "{:?}", members(&server, "ab"));
        thread::sleep(Duration::from_millis(10));
    }
    server.expect_audit();
    server.ok("channel delete ab --force");
    super::end(&server, &[]);
}
