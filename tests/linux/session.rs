//! A session as a new user would type it, with Debian guests.

use std::path::Path;
use std::time::Duration;

use mkvmm_test_harness::Server;
use serde_json::Value;

use crate::guest::Guest;
use crate::launch::TIMEOUT;

const POOL: &str = "512M@4G";
/// The guest that answers at its console.
const WEB: Guest = Guest::new("web", "6.1", 128).end("poweroff");
/// The guest that runs until it is killed.
const DB: Guest = Guest::new("db", "6.12", 160).cpus(2).end("hold");
/// The guest that gets its images after its creation, and is never started: a
/// third running guest would slow an emulated host down by half.
const OLD: Guest = Guest::new("old", "6.1", 112);

/// Returns a `create` or `load` command with a guest's images.
fn with_images(words: &[&str], guest: &Guest, images: &Path, more: &str) -> Vec<String> {
    let mut all: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
    for (option, value) in [
        (
            "--kernel",
            images.join(guest.kernel_file()).display().to_string(),
        ),
        (
            "--initrd",
            guest.initramfs_path(images).display().to_string(),
        ),
        ("--cmdline", format!("{}{more}", guest.cmdline())),
    ] {
        all.extend([option.to_owned(), value]);
    }
    all
}

#[track_caller]
fn run(server: &Server, words: &[String]) {
    let words = words.iter().map(String::as_str);
    server.run_words(words).expect_code(0);
}

/// Tests three guests from an empty pool to an empty pool.
pub fn three_guests_from_an_empty_pool_to_an_empty_pool(images: &Path) {
    let server = Server::start_for(POOL, TIMEOUT * 2);
    let empty = server.json("pool show");
    let create = ["create", "web", "--memory", "128M"];
    run(&server, &with_images(&create, &WEB, images, " mkvmm.shell"));
    let create = ["create", "db", "--memory", "160M", "--cpus", "2"];
    run(&server, &with_images(&create, &DB, images, ""));
    server.ok("create old --memory 112M");
    run(&server, &with_images(&["load", "old"], &OLD, images, ""));
    server.expect_audit();
    for name in ["web", "db"] {
        let answer = server.ok(&format!("start {name}"));
        assert_eq!(answer, format!("{name}: active\n"));
    }
    server.expect_audit();
    expect_views(&server);

    let mut console = server
        .command(["console", "web"])
        .typed()
        .timeout(TIMEOUT)
        .spawn();
    console.wait_until("a shell", |c| c.stdout().contains("mkvmm-guest: shell"));
    console.type_in("echo $((6 * 7)) $(uname -r)\n");
    console.wait_until("an answer", |c| c.stdout().contains("\r\n42 6.1."));
    expect_to_see_through(&server);
    let fast = Duration::from_secs(5);
    let instance = server.wait_for_state_within(fast, "web", "active");
    assert_eq!(instance["violations"], 0, "{instance:#}");

    let mut db = server
        .command(["console", "db"])
        .typed()
        .timeout(TIMEOUT)
        .spawn();
    db.wait_until("its init", |c| c.stdout().contains("mkvmm-guest: nproc 2"));
    db.wait_until("its end", |c| c.stdout().contains("mkvmm-guest: hold"));
    assert_eq!(server.ok("kill db --force"), "db: stopped (killed)\n");
    server.expect_audit();
    console.type_in("exit\n");
    let web = server.wait_for_state_within(TIMEOUT, "web", "stopped");
    assert_eq!(web["reason"], "poweroff", "{web:#}");
    for name in ["web", "db", "old"] {
        server.ok(&format!("delete {name}"));
        server.expect_audit();
    }
    assert_eq!(server.json("pool show"), empty);
}

/// Checks the views of the guests while they boot.
fn expect_views(server: &Server) {
    let list = server.ok("list");
    assert_eq!(list.matches("active").count(), 2, "{list}");
    assert_eq!(list.matches("loaded").count(), 1, "{list}");
    let iomem = server.ok("iomem");
    for line in [
        "100000000-11fffffff : Multikernel Memory Pool",
        "  100000000-107ffffff : mk-instance-1-web-region-0",
    ] {
        assert!(iomem.lines().any(|l| l == line), "{iomem}");
    }
    let web = server.json("show web");
    assert_eq!(web["kernel"]["format"], "bzImage", "{web:#}");
    let usable = |rows: &Value| {
        let rows = rows.as_array().cloned().unwrap_or_default();
        rows.iter().filter(|r| r["type"] == 1).count()
    };
    assert!(usable(&server.json("show web --e820")) >= 2, "{web:#}");
    server.ok("show db");
    let map = server.ok("pool map");
    assert!(
        ["web", "db", "old"].iter().all(|n| map.contains(n)),
        "{map}"
    );
    let log = server.ok("pool log");
    assert!(log.contains("web"), "{log}");
}

/// Checks the position of a halted Linux through its own page tables: in its
/// kernel's memory or another part of its sub-pool, and as KVM translates it.
fn expect_to_see_through(server: &Server) {
    server.ok("pause web");
    let regs = server.json("debug regs web");
    let cpu = &regs["cpus"][0];
    assert_eq!(cpu["mode"], "long", "{regs:#}");
    let rip = cpu["general"]["rip"].as_str().expect("hex").to_owned();
    let walk = server.json(&format!("debug translate web {rip}"));
    let physical = walk["target"]["physical"].as_u64().expect("mapped");
    let (ours, kvms) = (&walk["target"], &walk["kvm"]);
    assert_eq!(ours["physical"], kvms["physical"], "{walk:#}");
    let chunk = &server.json("show web")["chunks"][0];
    let (start, size) = (chunk["start"].as_u64(), chunk["size"].as_u64());
    let (start, size) = (start.expect("a number"), size.expect("a number"));
    assert!((start..start + size).contains(&physical), "{walk:#}");
    let code = server.ok(&format!("debug mem web {physical:#x} 16"));
    assert_eq!(code.lines().count(), 2, "{code}");
    server.ok("resume web");
}
