//! Channels before and after a change of managers.

use mkvmm_test_harness::Kept;
use mkvmm_test_harness::tier::skips_without_kvm;

const POOL: &str = "64M@4G";

fn check(options: &[&str]) {
    let mut kept = Kept::start(POOL, options);
    kept.ok("channel create gone --size 64K --between a,b");
    kept.ok("channel create ab --size 8M --between a,b:ro,c --doorbells 3");
    kept.ok("channel create idle --size 64K --between x,y");
    kept.ok("channel delete gone");
    for name in ["a", "b"] {
        kept.ok(&format!(
            "create {name} --memory 8M --kernel probe --cmdline spin"
        ));
        kept.ok(&format!("start {name}"));
    }
    let before = (kept.json("channel list"), kept.ok("iomem"));
    kept.replace_manager();
    assert_eq!((kept.json("channel list"), kept.ok("iomem")), before);
    kept.expect_audit();
    kept.run("channel delete ab").expect_code(4);
    // A member that ends while nobody serves has left, for the next manager.
    let worker = kept.worker_pid("a");
    kept.kill_manager();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).expect("it runs");
    kept.serve();
    kept.wait_for_state("a", "failed");
    let shown = kept.json("channel show ab");
    assert_eq!(shown["members"][0]["present"], false, "{shown}");
    assert_eq!(shown["members"][1]["present"], true, "{shown}");
    kept.ok("start a");
    let shown = kept.json("channel show ab");
    assert_eq!(shown["members"][0]["present"], true, "{shown}");
    assert_eq!(shown["members"][0]["boots"], 2, "{shown}");
    kept.expect_audit();
    for name in ["a", "b"] {
        kept.ok(&format!("kill {name} --force"));
        kept.ok(&format!("delete {name}"));
    }
    kept.ok("channel delete ab");
    // Numbers are used once.
    kept.replace_manager();
    kept.ok("channel create last --size 64K --between a,b");
    assert_eq!(kept.json("channel show last")["id"], 4);
    kept.ok("channel delete last");
    kept.ok("channel delete idle");
    kept.tear_down();
    kept.end();
}

#[test]
fn channels_and_their_members_outlive_their_manager() {
    if !skips_without_kvm() {
        check(&[]);
    }
}

#[test]
fn populated_channels_outlive_their_manager() {
    if !skips_without_kvm() {
        check(&["--prealloc"]);
    }
}
