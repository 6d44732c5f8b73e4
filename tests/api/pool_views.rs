//! Tests of the views of the pool as a whole: its map and its log.

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::tier::skips_without_kvm;
use serde_json::Value;

use crate::server::Server;

/// Fails unless `ranges` are adjacent and cover `size` bytes from `start` on.
#[track_caller]
fn expect_cover(ranges: &Value, start: u64, size: u64) {
    let mut next = start;
    for range in ranges.as_array().expect("a list") {
        assert_eq!(range["start"], next, "{ranges:#}");
        next += range["size"].as_u64().expect("a number");
    }
    assert_eq!(next, start + size, "{ranges:#}");
}

#[test]
fn a_map_covers_the_pool_and_pictures_show_it() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 16M --kernel probe");
    server.ok("create gone --memory 8M");
    server.ok("create db --memory 8M");
    server.ok("delete gone");
    server.ok("pool alloc 1M");
    // This is more than the 32 MiB at the end: the rest comes from the hole.
    server.ok("create split --memory 36M");
    let map = server.json("pool map");
    assert_eq!(map["granule"], 4096);
    expect_cover(&map["segments"], 4 << 30, 64 << 20);
    let segments = map["segments"].as_array().unwrap();
    let kinds: Vec<(&str, Option<&str>)> = segments
        .iter()
        .map(|s| (s["kind"].as_str().unwrap(), s["instance"].as_str()))
        .collect();
    let instance = |name| ("instance", Some(name));
    let expected = [
        instance("web"),
        ("allocation", None),
        instance("split"),
        ("free", None),
        instance("db"),
        instance("split"),
    ];
    assert_eq!(kinds, expected);
    expect_cover(&segments[0]["parts"], 4 << 30, 16 << 20);
    assert_eq!(segments[0]["parts"][2]["name"], "kernel");
    assert_eq!(map["owners"][1]["name"], "split");
    assert_eq!(map["owners"][1]["chunks"], 2);
    assert_eq!(map["avail"], server.json("pool show")["avail"]);

    // Without a terminal there are no colours; names are in the picture.
    let text = server.ok("pool map --width 80");
    assert!(!text.contains('\u{1b}'), "{text}");
    for word in ["web", "split", "+ allocation", "CHUNKS"] {
        assert!(text.contains(word), "{text}");
    }
    let scratch = Scratch::new();
    let file = scratch.path("pool.svg");
    let path = file.to_str().unwrap();
    assert_eq!(server.ok(&format!("pool map --svg {path}")), "");
    let svg = std::fs::read_to_string(&file).unwrap();
    assert_eq!(server.ok("pool map --svg -"), svg);
    assert!(
        svg.starts_with("<svg ") && svg.contains("web: kernel"),
        "{svg}"
    );
    let run = server.run("pool map --svg /no/such/directory/pool.svg");
    run.expect_refusal(1);
    server.run("pool map --svg - --json").expect_refusal(2);
}

#[test]
fn the_log_names_callers_and_reasons_and_no_dry_runs() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 16M --kernel probe");
    server.ok("pool alloc 2M --dry-run");
    server.ok("create db --memory 8M --kernel probe --dry-run");
    let scratch = Scratch::new();
    let fleet = "[[instance]]\nname = \"a\"\nmemory = \"8M\"\nkernel = \"probe\"\n";
    let fleet = scratch.file("fleet.toml", fleet.as_bytes());
    server.ok(&format!("plan {}", fleet.display()));
    let refused = [
        ("create big --memory 1G", 5),
        ("pool alloc 4096 --align 3", 2),
        ("create tiny --memory 2052K --kernel probe", 5),
    ];
    for (args, code) in refused {
        server.run(args).expect_refusal(code);
    }
    let addr = server.json("pool alloc 1M")["start"].as_u64().unwrap();
    server.ok(&format!("pool free {addr:#x}"));
    server.ok("unload web");
    let log = server.json("pool log");
    let lines: Vec<String> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            let word = |key: &str| r[key].as_str().unwrap().to_owned();
            format!("{} {} {}", word("op"), word("caller"), word("outcome"))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "alloc web: chunk ok",
            "alloc web: low window ok",
            "alloc web: control block ok",
            "alloc web: kernel ok",
            "alloc big: chunk too-big",
            "alloc allocation bad-align",
            "alloc tiny: chunk ok",
            "alloc tiny: kernel too-big",
            "free tiny: chunk ok",
            "alloc allocation ok",
            "free allocation ok",
            "free web: low window ok",
            "free web: control block ok",
            "free web: kernel ok",
        ]
    );
    let first = &log[0];
    assert_eq!(
        (&first["seq"], &first["start"]),
        (&1.into(), &(4_u64 << 30).into())
    );
    assert_eq!(
        (&first["size"], &first["instance"]),
        (&(16 << 20).into(), &"web".into())
    );
    assert_eq!(
        (&log[4]["size"], &log[4]["start"]),
        (&(1_u64 << 30).into(), &Value::Null)
    );
    let last = server.json("pool log --limit 2");
    assert_eq!(last.as_array().map(Vec::len), Some(2));
    assert_eq!(last[1]["seq"], 14);
    let text = server.ok("pool log");
    assert!(
        text.contains("tiny: kernel") && text.contains("too-big"),
        "{text}"
    );
    let (status, _) = server.http("GET", "/v1/pool/log?limit=x", "");
    assert_eq!(status, 400);
}
