//! The channel area: a part of the pool that all channels are in, which each guest
//! finds as a BAR of its function for channels.

use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Kept, Mkvmm, Scratch};
use serde_json::Value;

use super::*;

/// The option, and what it stands for.
const OPTION: [&str; 2] = ["--channel-area", "16M"];
const SIZE: u64 = 16 << 20;
/// The registers of the third BAR.
const BAR: u8 = 0x18;
/// The type of reserved memory in an e820.
const RESERVED: u64 = 2;
/// Memory with an address of 64 bits.
const WIDE: u64 = 0b100;

fn area(server: &Server) -> u64 {
    let area = &server.json("pool show")["channel_area"];
    assert_eq!(area["size"].as_u64(), Some(SIZE), "{area}");
    area["start"].as_u64().expect("an address")
}

/// Returns kind, start and size of the segments of the pool that are for channels.
fn segments(server: &Server) -> Vec<(String, u64, u64)> {
    let map = server.json("pool map");
    let all = map["segments"].as_array().expect("a list").iter();
    let ours = all.filter(|it| {
        it["kind"]
            .as_str()
            .is_some_and(|it| it.starts_with("channel"))
    });
    let number = |it: &Value, key: &str| it[key].as_u64().expect("a number");
    ours.map(|it| {
        let kind = it["kind"].as_str().expect("a kind").to_owned();
        (kind, number(it, "start"), number(it, "size"))
    })
    .collect()
}

/// Returns what a guest has read of configuration space.
fn configs(server: &Server, name: &str) -> Vec<u64> {
    let logs = server.ok(&format!("logs {name}"));
    let lines = logs.lines().filter(|it| it.starts_with("probe: config "));
    let value = |line: &str| {
        let (_, value) = line.trim().rsplit_once(" 0x").expect("a value");
        u64::from_str_radix(value, 16).expect("digits")
    };
    lines.map(value).collect()
}

#[test]
fn a_channel_appears_in_the_bar_of_its_members_at_its_own_address() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with(POOL, &OPTION);
    let area = area(&server);
    assert_eq!(area % SIZE, 0);
    channel(&server, "other --size 64K --between x,y");
    let dry = server.json("channel create ab --size 64K --between a,b --dry-run");
    let memory = dry["start"].as_u64().expect("a place");
    assert_eq!(memory, area + 0x1_0000);
    let mut a = Member::new(memory);
    a.driver.read_config(BAR);
    a.driver.read_config(BAR + 4);
    // Its size, as drivers ask for it; the channel will be where it is in the pool.
    a.driver.config(4, BAR, u32::MAX);
    a.driver.config(4, BAR + 4, u32::MAX);
    a.driver.read_config(BAR);
    a.driver.read_config(BAR + 4);
    // What others have, and what nobody has yet, is absent.
    a.driver.read(8, area);
    a.read(0);
    a.driver.read(8, area + SIZE - 8);
    a.driver.until(8, a.bar + MEMORY, u64::MAX, memory);
    a.put(0, 0x1234);
    a.read(0);
    a.driver.until(8, a.bar + MEMORY, u64::MAX, 0);
    a.read(0);
    a.create(&server, "a");
    start(&server, &["a"]);
    let (_, rows) = server.http("GET", "/v1/instances/a/e820", "");
    let rows = rows.as_array().expect("a list").iter();
    let covers = |row: &&Value| {
        let (start, size) = (row["start"].as_u64(), row["size"].as_u64());
        let (start, size) = (start.expect("an address"), size.expect("a size"));
        start <= area && start + size >= area + SIZE
    };
    let row = rows.clone().find(covers).expect("a row with all of it");
    assert_eq!(row["type"], RESERVED, "{row}");
    wait_for_values(&server, "a", 3);
    assert_eq!(channel(&server, "ab --size 64K --between a,b"), memory);
    server.expect_audit();
    wait_for_values(&server, "a", 4);
    server.ok("channel delete ab --force");
    expect_passed(&server, &["a"]);
    let ones = u64::MAX;
    assert_eq!(values(&server, "a"), [ones, ones, ones, 0x1234, ones]);
    let [low, high] = [area & 0xffff_ffff | WIDE, area >> 32];
    let [low_size, high_size] = [!(SIZE - 1) & 0xffff_ffff | WIDE, 0xffff_ffff];
    assert_eq!(configs(&server, "a"), [low, high, low_size, high_size]);
    end(&server, &["other"]);
}

#[test]
fn the_area_is_for_channels_only_and_they_for_it() {
    let server = Server::start_with(POOL, &OPTION);
    let start = area(&server);
    let free = |size| ("channel-area".to_owned(), start + SIZE - size, size);
    assert_eq!(segments(&server), [free(SIZE)]);
    // The rest of the pool is for guests, and all of it.
    server.ok("create a --memory 48M");
    server.run("create b --memory 4K").expect_code(5);
    let memory = channel(&server, "ab --size 4M --between a,b");
    let ab = ("channel".to_owned(), memory, 4 << 20);
    assert_eq!(segments(&server), [ab, free(SIZE - (4 << 20))]);
    let tree = server.ok("iomem");
    let depth = |name: &str| {
        let line = tree.lines().find(|line| line.ends_with(name));
        let line = line.unwrap_or_else(|| panic!("{name}: {tree}"));
        line.len() - line.trim_start().len()
    };
    assert!(depth("mk-channel-1-ab") > depth("mk-channel-area"));
    server.expect_audit();
    server.ok("delete a");
    // It is full, though the pool is not.
    let full = server.run("channel create cd --size 16M --between a,b");
    full.expect_code(5);
    assert_eq!(server.json("pool show")["avail"].as_u64(), Some(48 << 20));
    let scratch = Scratch::new();
    let channel = |size: &str| {
        format!(
            "[[channel]]\nname = \"cd\"\nsize = \"{size}\"\nbetween = [\"c\", \"d\"]\n\
             [[instance]]\nname = \"c\"\nmemory = \"8M\"\nkernel = \"probe\"\n"
        )
    };
    for (size, code) in [("8M", 0), ("16M", 5)] {
        let file = scratch.file(&format!("{size}.toml"), channel(size).as_bytes());
        let planned = server.run(&format!("plan {}", file.display()));
        planned.expect_code(code);
    }
    server.ok("channel delete ab");
    server.expect_audit();
    assert_eq!(segments(&server), [free(SIZE)]);
    server.tear_down();
}

#[test]
fn the_next_manager_has_the_same_area() {
    let mut kept = Kept::start(POOL, &OPTION);
    let memory = channel(&kept, "ab --size 64K --between a,b");
    let tree = kept.ok("iomem");
    kept.replace_manager();
    assert_eq!(kept.ok("iomem"), tree);
    kept.expect_audit();
    assert_eq!(kept.json("channel show ab")["start"].as_u64(), Some(memory));
    assert_eq!(
        channel(&kept, "cd --size 64K --between a,b"),
        memory + 0x1_0000
    );
    kept.kill_manager();
    // Another one is another pool; without the option, it is the one that is there.
    kept.set_options(&["--channel-area", "8M"]);
    let refused = kept.serving().finish();
    refused.expect_code(2);
    assert!(refused.stderr.contains("--channel-area"), "{refused}");
    kept.set_options(&[]);
    kept.serve();
    assert_eq!(area(&kept), memory);
    for name in ["ab", "cd"] {
        kept.ok(&format!("channel delete {name}"));
    }
    kept.expect_audit();
    kept.end();
}

#[test]
fn an_impossible_area_is_refused() {
    for size in ["3M", "0", "2K", "128M", "16M@4G", "x"] {
        let options = [
            "--channel-area",
            size,
            "--guest",
            "name=a,memory=8M,kernel=probe",
        ];
        let run = options.into_iter().fold(Mkvmm::run(POOL), Mkvmm::arg);
        let refused = run.finish();
        assert!(matches!(refused.code(), Some(2 | 5)), "{refused}");
        assert!(!refused.stderr.contains("panicked"), "{refused}");
    }
}
