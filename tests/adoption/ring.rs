//! Messages between two guests over a channel, while either of them and their managers
//! are killed: each arrives once and in order, or is reported as in doubt.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::{Kept, Random};

const POOL: &str = "64M@4G";
/// Messages unless `MKVMM_RING_MESSAGES` says otherwise.
const MESSAGES: u64 = 60_000;
/// TSC cycles between two messages, so that there is time for kills.
const PACE: u64 = 200_000;
/// Messages for each kill.
const BETWEEN: u64 = 3_000;
/// The average pause between two kills, and how long it takes to see what has arrived.
const PAUSE_MS: u64 = 60;
const POLL: Duration = Duration::from_millis(20);
/// The time per message after which the two are stuck.
const STUCK: Duration = Duration::from_millis(3);
/// The parts of the channel: the ring, and the record of the receiver.
const RING: u64 = 64 << 10;
const RECORD: u64 = 1 << 20;

/// Returns the command line of a side, whose last field is `extra`.
fn cmdline(
    kept: &Kept,
    word: &str,
    messages: u64,
    other: u64,
    extra: impl Fn(u64) -> u64,
) -> String {
    let channel = kept.json("channel show ab");
    let start = channel["start"].as_u64().expect("an address");
    let bar = 0xc000_0000 + (31_u64 << 20);
    format!(
        "do=p2:f804:6 {word}={start:#x}-{:#x}:{messages}:{:#x}:{:#x}:{:#x}",
        start + RING,
        bar + 0x0c,
        other << 16,
        extra(start)
    )
}

/// Returns whether a guest has come to its own end.
fn has_finished(kept: &Kept, name: &str) -> bool {
    let instance = kept.json(&format!("show {name}"));
    let (state, reason) = (&instance["state"], &instance["reason"]);
    let is_killed = reason == "killed" || reason == "vmm";
    let is_over = (state == "stopped" || state == "failed") && !is_killed;
    if is_over {
        assert_eq!(
            reason,
            "reboot",
            "{name}: {}",
            kept.ok(&format!("logs {name}"))
        );
    }
    is_over
}

/// Returns the number of the message that the receiver last told of, if its log has one.
fn arrived(kept: &Kept) -> Option<u64> {
    let logs = kept.ok("logs b");
    // The last line may be one that is being printed.
    let (whole, _) = logs.rsplit_once('\n')?;
    let (_, rest) = whole.rsplit_once("ring at ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|it| it.parse().ok())
}

/// Kills a guest and starts its successor, unless it has come to its own end.
fn kill(kept: &Kept, name: &str) -> bool {
    if has_finished(kept, name) {
        return false;
    }
    // It may end meanwhile.
    kept.run(&format!("kill {name} --force"));
    if has_finished(kept, name) {
        return false;
    }
    kept.ok(&format!("start {name}"));
    true
}

#[test]
fn each_message_arrives_once_or_is_reported() {
    if skips_without_kvm() {
        return;
    }
    let messages = env::var("MKVMM_RING_MESSAGES").ok();
    let messages = messages.map_or(MESSAGES, |text| text.parse().expect("a number"));
    let stuck = Duration::from_secs(60) + STUCK * u32::try_from(messages).expect("a count");
    let mut kept = Kept::new(POOL, &[], stuck);
    kept.serve();
    let size = RECORD + 8 * messages + 4096;
    kept.ok(&format!("channel create ab --size {size} --between a,b"));
    for (name, cmdline) in [
        ("a", cmdline(&kept, "send", messages, 1, |_start| PACE)),
        (
            "b",
            cmdline(&kept, "receive", messages, 0, |start| start + RECORD),
        ),
    ] {
        let create = [
            "create",
            name,
            "--memory",
            "8M",
            "--kernel",
            "probe",
            "--cmdline",
        ];
        let words = create.into_iter().chain([cmdline.as_str()]);
        kept.run_words(words).expect_code(0);
        kept.ok(&format!("start {name}"));
    }
    let seed = u64::from(std::process::id());
    let mut random = Random(seed);
    let (mut kills, mut managers) = ([0_u64; 2], 0_u64);
    let begin = Instant::now();
    // Where the first, and the last kill was.
    let (mut at, mut first, mut last) = (0, None, 0);
    while !(has_finished(&kept, "a") && has_finished(&kept, "b")) {
        assert!(begin.elapsed() < stuck, "seed {seed}: the two are stuck");
        // As many kills as messages allow, so that they are spread over all of them.
        at = at.max(arrived(&kept).unwrap_or(0));
        if kills[0] + kills[1] > at / BETWEEN {
            thread::sleep(POLL);
            continue;
        }
        first.get_or_insert(at);
        last = at;
        thread::sleep(Duration::from_millis(random.below(2 * PAUSE_MS)));
        let choice = random.below(8);
        if choice < 4 {
            kills[1] += u64::from(kill(&kept, "b"));
        }
        if choice > 2 {
            kills[0] += u64::from(kill(&kept, "a"));
        }
        if choice == 0 {
            kept.replace_manager();
            managers += 1;
        }
    }
    let logs = kept.ok("logs b");
    let told = logs.lines().find(|line| line.contains("ring received"));
    let told = told.unwrap_or_else(|| panic!("seed {seed}: {logs}"));
    announce(&format!(
        "{messages} messages, seed {seed}, killed {} senders, {} receivers, {managers} managers \
         from message {} to {last} in {} s: {told}",
        kills[0],
        kills[1],
        first.unwrap_or(0),
        begin.elapsed().as_secs()
    ));
    let number = |key: &str| -> u64 {
        let (_, rest) = told.split_once(key).expect("a key");
        let digits = rest.trim().split(' ').next().expect("a number");
        digits.parse().expect("digits")
    };
    let (received, doubts, lost) = (number("received"), number("in doubt"), number("lost"));
    assert_eq!(received + lost, messages, "seed {seed}");
    // Only the message that a receiver had taken last when it died is in doubt.
    assert!(doubts <= kills[1], "seed {seed}: {told}");
    assert!(lost <= doubts, "seed {seed}: {told}");
    let (few, late) = (messages / BETWEEN / 2, messages / 4 * 3);
    assert!(kills[0] + kills[1] >= few, "seed {seed}: too few kills");
    assert!(last >= late, "seed {seed}: nobody was killed after {last}");
    kept.expect_audit();
    for name in ["a", "b"] {
        kept.ok(&format!("delete {name}"));
    }
    kept.ok("channel delete ab");
    kept.tear_down();
    kept.end();
}
