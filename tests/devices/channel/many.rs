//! Many channels, at once and one after the other.

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Kept;
use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use rustix::process::Pid;

use super::*;

#[test]
fn two_hundred_channels_are_used_at_once() {
    if skips_without_kvm() {
        return;
    }
    const GUESTS: u64 = 51;
    const EACH: u64 = 4;
    let server = Server::start("768M@4G");
    let mut memory = Vec::new();
    for guest in 0..GUESTS - 1 {
        for number in 0..EACH {
            let (one, next) = (format!("g{guest}"), guest + 1);
            let name = format!("c{guest}-{number}");
            memory.push(channel(
                &server,
                &format!("{name} --size 4K --between {one},g{next}"),
            ));
        }
    }
    server.expect_audit();
    let names: Vec<String> = (0..GUESTS).map(|guest| format!("g{guest}")).collect();
    let at = |guest: u64, number: u64| memory[usize::try_from(guest * EACH + number).unwrap()];
    for guest in 0..GUESTS {
        let mut member = Member::new(0);
        let mut position = 0;
        let mut ring = |member: &mut Member, other: u64| {
            let number = position << 24 | other << 16;
            member.driver.write(4, member.bar + DOORBELL, number);
            position += 1;
        };
        // Its channels with the guest before it come first, as they are older.
        for number in (0..EACH).filter(|_| guest > 0) {
            member.driver.write(8, at(guest - 1, number) + 8, guest);
            ring(&mut member, 0);
        }
        for number in (0..EACH).filter(|_| guest + 1 < GUESTS) {
            member.driver.write(8, at(guest, number), guest + 1);
            ring(&mut member, 1);
        }
        // The doorbell of the first channel: the one before it has rung.
        if guest > 0 {
            member.driver.pending(RUNG);
        }
        for number in (0..EACH).filter(|_| guest > 0) {
            member
                .driver
                .until(8, at(guest - 1, number), u64::MAX, guest);
        }
        for number in (0..EACH).filter(|_| guest + 1 < GUESTS) {
            member
                .driver
                .until(8, at(guest, number) + 8, u64::MAX, guest + 1);
        }
        let word = member.driver.word();
        create_with(&server, &names[usize::try_from(guest).unwrap()], &word);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    start(&server, &names);
    expect_passed(&server, &names);
    server.expect_audit();
    let channels: Vec<String> = (0..GUESTS - 1)
        .flat_map(|guest| (0..EACH).map(move |number| format!("c{guest}-{number}")))
        .collect();
    let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
    end(&server, &channels);
}

/// What must not grow: the descriptors of a process, and its memory in KiB.
fn grown(pid: Pid) -> (usize, u64) {
    let descriptors = Kept::descriptors(pid).len();
    let status = format!("/proc/{}/status", pid.as_raw_pid());
    let status = fs::read_to_string(status).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let memory = line.expect("a number").trim().trim_end_matches(" kB");
    (descriptors, memory.trim().parse().expect("digits"))
}

#[test]
fn channels_that_come_and_go_leave_nothing() {
    let count = env::var("MKVMM_CHANNELS").ok();
    let count: u64 = count.map_or(200, |text| text.parse().expect("a number"));
    let timeout = Duration::from_secs(120 + count / 10);
    let mut kept = Kept::new(POOL, &[], timeout);
    kept.serve();
    let before = kept.ok("iomem");
    let processes = [kept.manager(), kept.keeper()];
    let turn = |number: u64| {
        let body = format!(
            r#"{{"name":"c{}","size":{},"between":["a","b:ro"],"doorbells":4}}"#,
            number % 7,
            4096 << (number % 8),
        );
        let (status, answer) = kept.http("POST", "/v1/channels", &body);
        assert_eq!(status, 201, "{answer}");
        let path = format!("/v1/channels/c{}", number % 7);
        let (status, answer) = kept.http("DELETE", &path, "");
        assert_eq!(status, 200, "{answer}");
    };
    let descriptors = || processes.map(|pid| grown(pid).0);
    // The last client has been forgotten by then.
    thread::sleep(Duration::from_secs(1));
    let few = descriptors();
    // The keeper lets go of what it holds when it gets round to it.
    let settle = || {
        let end = Instant::now() + EVENT_TIMEOUT;
        while descriptors() != few {
            assert!(Instant::now() < end, "{few:?} became {:?}", descriptors());
            thread::sleep(Duration::from_millis(5));
        }
    };
    (0..count / 10).for_each(turn);
    settle();
    let early = processes.map(grown);
    (count / 10..count).for_each(turn);
    settle();
    let late = processes.map(grown);
    for ((_, memory), (_, used)) in late.into_iter().zip(early) {
        assert!(memory <= used + 1024, "{used} KiB grew to {memory} KiB");
    }
    announce(&format!("{count} channels: {early:?} became {late:?}"));
    assert_eq!(kept.ok("iomem"), before);
    kept.expect_audit();
    kept.end();
}
