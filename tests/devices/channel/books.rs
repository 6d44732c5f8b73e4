//! Channels in the views of the manager, in fleets and in metrics.

use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Scratch};
use serde_json::Value;

use super::*;

#[test]
fn channels_are_in_all_books_and_impossible_ones_are_refused() {
    let server = Server::start(POOL);
    let before = server.ok("iomem");
    let dry = server.json("channel create ab --size 3M --between a,b --dry-run");
    assert_eq!(
        (&dry["id"], server.ok("iomem")),
        (&Value::from(1), before.clone())
    );
    let memory = channel(&server, "ab --size 3M --between a,b:ro --doorbells 4");
    assert_eq!(dry["start"].as_u64(), Some(memory));
    let tree = server.ok("iomem");
    assert!(tree.contains("mk-channel-1-ab"), "{tree}");
    let map = server.json("pool map");
    let channel = map["segments"].as_array().expect("a list").iter();
    let channel: Vec<_> = channel.filter(|it| it["kind"] == "channel").collect();
    assert_eq!(channel.len(), 1);
    assert_eq!(
        (&channel[0]["channel"], channel[0]["size"].as_u64()),
        (&"ab".into(), Some(3 << 20))
    );
    server.expect_audit();
    for (options, code) in [
        ("ab --size 4K --between c,d", 4),
        ("cd --size 4K --between c", 2),
        ("cd --size 4K --between c,c", 2),
        ("cd --size 4K --between a,b,c,d,e,f,g,h,i", 2),
        ("cd --size 4K --between c,d --doorbells 5", 2),
        ("cd --size 4K --between c,d --doorbells 0", 2),
        ("cd --size 0 --between c,d", 2),
        ("cd --size 1G --between c,d", 5),
    ] {
        server
            .run(&format!("channel create {options}"))
            .expect_code(code);
    }
    server.run("channel show cd").expect_code(4);
    server.run("channel delete cd").expect_code(4);
    // No guest has more than eight.
    for number in 2..=8 {
        server.ok(&format!(
            "channel create c{number} --size 4K --between a,x{number}"
        ));
    }
    let ninth = server.run("channel create c9 --size 4K --between y,a");
    ninth.expect_code(5);
    for number in 2..=8 {
        server.ok(&format!("channel delete c{number}"));
    }
    server.ok("channel delete ab --dry-run");
    server.ok("channel delete ab");
    assert_eq!(server.ok("iomem"), before);
    server.tear_down();
}

#[test]
fn a_fleet_has_channels() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let guest = |name: &str, script: &str| {
        format!(
            "[[instance]]\nname = \"{name}\"\nmemory = \"8M\"\nkernel = \"probe\"\n\
             cmdline = \"{script}\"\n"
        )
    };
    // Without doorbells, as the place in the pool is known only when it is planned.
    let channel = "[[channel]]\nname = \"ab\"\nsize = \"64K\"\nbetween = [\"a\", \"b:ro\"]\n";
    let text = format!("{channel}{}{}", guest("a", "x"), guest("b", "x"));
    let file = scratch.file("fleet.toml", text.as_bytes());
    let server = Server::start(POOL);
    let planned = server.json(&format!("plan {}", file.display()));
    let start = planned["channels"][0]["start"].as_u64().expect("a place");
    assert_eq!(planned["fits"], true, "{planned}");
    server.expect_empty();
    let large = text.replace("64K", "1G");
    let large = scratch.file("large.toml", large.as_bytes());
    let refused = server.run(&format!("plan {}", large.display()));
    refused.expect_code(5);
    server.tear_down();
    let (mut a, mut b) = (Member::new(start), Member::new(start));
    a.put(0, 0x77);
    a.ring(1, 1);
    b.driver.pending(RUNG);
    b.wait(0, 0x77);
    let text = format!(
        "{channel}{}{}",
        guest("a", &a.driver.word()),
        guest("b", &b.driver.word())
    );
    let file = scratch.file("fleet.toml", text.as_bytes());
    let run = Mkvmm::run(POOL)
        .arg("--fleet")
        .arg(&file)
        .arg("--show")
        .finish();
    let consoles = run.expect_code(0).consoles(&["a", "b"]);
    assert!(
        consoles.has("a", "probe: pass") && consoles.has("b", "probe: pass"),
        "{run}"
    );
    assert!(run.stderr.contains("mk-channel-1-ab"), "{run}");
}

#[test]
fn channels_are_counted() {
    let server = Server::start(POOL);
    server.ok("channel create ab --size 64K --between a,b:ro");
    server.ok("create a --memory 8M --kernel probe");
    let metrics = server.ok("metrics");
    for line in [
        r#"mkvmm_channel_memory_bytes{name="ab",id="1"} 65536"#,
        r#"mkvmm_channel_member_present{name="ab",id="1",member="b"} 0"#,
        r#"mkvmm_channel_member_boots_total{name="ab",id="1",member="a"} 0"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let shown = server.ok("show a");
    assert!(
        shown.contains("ab 0x") && shown.contains("member 0"),
        "{shown}"
    );
    server.ok("delete a");
    server.ok("channel delete ab");
    server.tear_down();
}
