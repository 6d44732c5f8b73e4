//! Tests of the channels of fleets.

use mkvmm_test_harness::tier::skips_without_kvm;
use serde_json::json;

use super::{Ground, TWO};
use crate::server::Server;

/// A channel between those of [`TWO`].
const CHANNEL: &str = r#"
[[channel]]
name = "ab"
size = "1M"
between = ["web", "db:ro"]
"#;

#[test]
fn channels_are_made_kept_replaced_and_pruned() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let fleet = format!("{CHANNEL}{}", TWO.replace("autostart = false", ""));
    let dry = ground.apply(&fleet, "--dry-run");
    let first = "+ channel ab  create, 1M at 0x100000000\n+ web         create and start, 16M at ";
    assert!(dry.starts_with(first), "{dry}");
    assert!(dry.ends_with("\nto be done: 3 created\n"), "{dry}");
    ground.server.expect_empty();
    assert_eq!(ground.server.json("channel list"), json!([]));

    let done = ground.apply(&fleet, "");
    assert_eq!(done, dry.replace("to be done", "done"));
    assert_eq!(ground.present("ab"), [true, true]);
    ground.wait_for_pass("web", 1);
    ground.wait_for_pass("db", 1);
    let pids = || (ground.pid("web"), ground.pid("db"));
    let before = pids();
    // Sizes are rounded up to whole granules before they are compared.
    let same = fleet.replace("\"1M\"", "1044481");
    let again = ground.apply(&same, "");
    assert_eq!(
        again,
        "= channel ab  unchanged\n= web         unchanged\n= db          unchanged\n\
         done: 3 unchanged\n"
    );

    // One that differs is made again; its guests lose it, and have it again.
    let other = fleet.replace("db:ro\"]", "db\"]\ndoorbells = 2");
    let done = ground.apply(&other, "");
    assert_eq!(
        done,
        "~ channel ab  take from its guests and create again, 1M at 0x100000000\n    \
         between: web, db:ro -> web, db\n    doorbells: 1 -> 2\n\
         = web         unchanged\n= db          unchanged\ndone: 1 replaced, 2 unchanged\n"
    );
    assert_eq!((ground.present("ab"), pids()), (vec![true, true], before));

    // What is dumped is what is there, here and elsewhere.
    let dump = ground.server.ok("dump");
    let table = "[[channel]]\nname = \"ab\"\nsize = \"1M\"\nbetween = [\"web\", \"db\"]\n\
                 doorbells = 2\n";
    assert!(dump.starts_with(table), "{dump}");
    let unchanged = ground.apply(&dump, "--prune");
    assert!(unchanged.ends_with("done: 3 unchanged\n"), "{unchanged}");
    let body = ground.server.ok("dump --json");
    let (status, applied) = ground.server.http("POST", "/v1/apply", &body);
    assert_eq!(status, 200, "{applied}");
    assert_eq!(applied["channels"][0]["action"], "keep", "{applied}");
    let file = ground.file(&dump);
    let there = Server::start_with("64M@4G", &["--fleet", &file]);
    assert_eq!(there.ok("dump"), dump);

    // A channel that the file does not have stays, unless it is pruned.
    let left = ground.apply(TWO, "");
    let line = "  channel ab  not in the file; --prune deletes it\n";
    assert!(left.contains(line), "{left}");
    let pruned = ground.apply(TWO, "--prune");
    let line = "- channel ab  take from its guests and delete\n";
    assert!(pruned.contains(line), "{pruned}");
    assert_eq!(ground.server.json("channel list"), json!([]));
    assert_eq!(pids(), before);
    ground.server.expect_audit();
    for server in [&ground.server, &there] {
        server.tear_down();
    }
}

#[test]
fn guests_that_a_fleet_boots_have_its_channels() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let idle = TWO.replace("\"spin\"\n\n", "\"spin\"\nautostart = false\n\n");
    ground.apply(&idle, "");
    let all = TWO.replace("autostart = false", "");
    ground.apply(&format!("{CHANNEL}{all}"), "");
    assert_eq!(ground.present("ab"), [true, true]);
    ground.wait_for_pass("web", 1);
    ground.wait_for_pass("db", 1);
    // A channel that is replaced is there before they boot.
    ground.server.ok("kill --force web db");
    let wide = CHANNEL.replace("\"1M\"", "\"2M\"");
    let new =
        "[[instance]]\nname = \"new\"\nmemory = \"4M\"\nkernel = \"probe\"\ncmdline = \"spin\"\n";
    let wide = wide.replace("\"web\"", "\"new\", \"web\"");
    let done = ground.apply(&format!("{wide}{all}{new}"), "");
    assert!(
        done.contains("~ channel ab  create again, 2M at "),
        "{done}"
    );
    assert_eq!(ground.present("ab"), [true, true, true]);
    for (name, boots) in [("web", 2), ("db", 2), ("new", 1)] {
        ground.wait_for_pass(name, boots);
    }

    // A member of as many channels as can be: others replace them.
    let eight = |letter: char| -> String {
        let one = |number| CHANNEL.replace("\"ab\"", &format!("\"{letter}{number}\""));
        (0..8).map(one).collect()
    };
    for letter in ['c', 'd'] {
        let done = ground.apply(&format!("{}{all}", eight(letter)), "--prune --grace 0s");
        assert!(
            done.contains(&format!("+ channel {letter}7  create")),
            "{done}"
        );
    }
    assert_eq!(ground.present("d7"), [true, true]);
    let nine = format!("{}{CHANNEL}{all}", eight('d'));
    let file = ground.file(&nine);
    let before = ground.books();
    ground.server.run(&format!("apply {file}")).expect_code(5);
    assert_eq!(ground.books(), before);
    ground.server.tear_down();
}

#[test]
fn channels_are_there_again_if_a_fleet_fails() {
    if skips_without_kvm() {
        return;
    }
    let ground = Ground::new("64M@4G");
    let (log, logged) = ground.logged();
    let gone = CHANNEL.replace("\"ab\"", "\"gone\"");
    ground.apply(&format!("{CHANNEL}{gone}{logged}"), "");
    ground.wait_for_pass("web", 1);
    let before = ground.books();
    let pid = ground.pid("web");
    // The last step finds that its log is that of another, when one channel was
    // replaced, one deleted and one is new.
    let fails = logged.replace("autostart = false", &format!("console-log = \"{log}\""));
    let other = CHANNEL.replace("1M", "3M");
    let new = CHANNEL.replace("\"ab\"", "\"new\"");
    let file = ground.file(&format!("{other}{new}{fails}"));
    let run = ground.server.run(&format!("apply {file} --prune"));
    run.expect_code(4);
    let words = "error: nothing has changed, but these channels are empty: gone, ab: guest db: ";
    assert!(run.stderr.starts_with(words), "{run}");
    assert_eq!((ground.books(), ground.pid("web")), (before.clone(), pid));
    ground.server.expect_audit();

    // What cannot be is refused before anything is touched.
    let huge = CHANNEL.replace("1M", "60M");
    let lonely = CHANNEL.replace(", \"db:ro\"", "");
    for (channels, code) in [
        (huge, 5),
        (lonely, 2),
        (format!("{CHANNEL}{CHANNEL}"), 4),
        (CHANNEL.replace("\"db:ro\"", "\"web\""), 2),
    ] {
        let file = ground.file(&format!("{channels}{logged}"));
        let run = ground.server.run(&format!("apply {file}"));
        run.expect_code(code);
        assert_eq!(ground.books(), before, "{run}");
    }
    ground.server.tear_down();
}
