//! Tests of pools with a granule, and of what schedulers ask a VMM.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Random};
use serde_json::Value;

use crate::server::Server;

/// A granule of 8 MiB.
const GRANULE: u64 = 8 << 20;

fn free(server: &Server) -> u64 {
    let (status, capacity) = server.http("GET", "/v1/capacity", "");
    assert_eq!(status, 200);
    capacity["free"].as_u64().expect("a number")
}

#[test]
fn sizes_are_multiples_of_the_granule() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with("64M@4G", &["--granule", "8M"]);
    let capacity = server.json("capacity");
    assert_eq!(capacity["granule"], GRANULE);
    assert_eq!(
        (&capacity["granules"], &capacity["free"]),
        (&8.into(), &8.into())
    );
    assert_eq!(capacity["largest_image"], GRANULE - (2 << 20));
    let refused = server.run("create a --memory 12M");
    refused.expect_refusal(2);
    assert!(
        refused.stderr.contains("help: 8M or 16M would do"),
        "{refused}"
    );
    server
        .run("create a --memory 12M --dry-run")
        .expect_refusal(2);
    server.run("pool alloc 1M").expect_refusal(2);
    server
        .run("channel create c --size 1M --member a --member b")
        .expect_refusal(2);
    server.ok("create a --memory 16M --kernel probe");
    assert_eq!(free(&server), 6);
    server.run("create b --memory 56M").expect_refusal(5);
    server.tear_down();
    assert_eq!(free(&server), 8);
}

#[test]
fn granules_that_do_not_fit_the_pool_are_refused() {
    if skips_without_kvm() {
        return;
    }
    for (pool, granule) in [("64M", "3M"), ("64M", "2M"), ("60M", "8M"), ("64M", "x")] {
        let serve = Mkvmm::new(["serve", "--pool", pool, "--granule", granule]).finish();
        serve.expect_refusal(2);
    }
    let held = [
        "serve",
        "--pool",
        "64M@4G",
        "--granule",
        "8M",
        "--hold",
        "1M@4G",
    ];
    Mkvmm::new(held).finish().expect_refusal(2);
}

#[test]
fn whatever_fits_by_its_granules_is_created_and_loaded() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with("128M@4G", &["--granule", "8M"]);
    let mut random = Random(16);
    let mut there: Vec<String> = Vec::new();
    for step in 0..120 {
        let wanted = 1 + random.below(4);
        if wanted > free(&server) {
            let name =
                there.swap_remove(usize::try_from(random.below(there.len() as u64)).unwrap());
            let path = format!("/v1/instances/{name}");
            assert_eq!(server.http("DELETE", &path, "").0, 200);
            continue;
        }
        let name = format!("n{step}");
        let memory = wanted * GRANULE;
        let body = format!(r#"{{"name": "{name}", "memory": {memory}, "kernel": "probe"}}"#);
        let (status, answer) = server.http("POST", "/v1/instances", &body);
        assert_eq!(status, 201, "step {step}: {answer}");
        there.push(name);
    }
    server.tear_down();
}

#[test]
fn health_is_ok_while_the_vmm_serves() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("16M@4G");
    let health = server.json("health");
    assert_eq!(
        (&health["ok"], &health["problems"]),
        (&true.into(), &Value::Array(vec![]))
    );
    assert!(server.ok("health").starts_with("ok"));
    // Without a granule, the unit is that of the allocator.
    let capacity = server.json("capacity");
    assert_eq!(
        (&capacity["granule"], &capacity["largest_image"]),
        (&4096.into(), &Value::Null)
    );
    let nobody = Mkvmm::new(["health", "--socket", "/no/such/socket"]).finish();
    nobody.expect_refusal(75);
}
