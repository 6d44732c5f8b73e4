//! Tests of the specification of an instance: the API accepts what it returns,
//! and all interfaces create the same instance.

use serde_json::{Value, json};

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::server::Server;

/// Returns the properties that define an instance, without its state.
fn shown(server: &Server, name: &str) -> Value {
    let (status, mut instance) = server.http("GET", &format!("/v1/instances/{name}"), "");
    assert_eq!(status, 200, "{instance:#}");
    let object = instance.as_object_mut().expect("an object");
    let of_process = ["pid", "cpu_us", "resident", "process_memory", "cgroup"];
    for fleeting in ["id", "timeline"].into_iter().chain(of_process) {
        object.remove(fleeting);
    }
    instance
}

#[test]
fn what_get_returns_can_be_sent_to_post() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let log = scratch.dir().join("web.log");
    let body = json!({
        "name": "web", "memory": "8M", "cpus": 2, "cpus-affinity": "0", "order": 13,
        "violation": "stop", "on-reboot": "restart", "on-panic": "restart",
        "console-log": log, "kernel": "probe", "cmdline": "spin",
    });
    let (status, made) = server.http("POST", "/v1/instances", &body.to_string());
    assert_eq!(status, 201, "{made:#}");
    let before = shown(&server, "web");
    assert_eq!(before["cpus"], 2);
    let spec = &before["spec"];
    for (key, value) in body.as_object().unwrap() {
        let value = if key == "memory" {
            &json!(8 << 20)
        } else {
            value
        };
        assert_eq!(&spec[key], value, "{key}");
    }
    for body in [&before, spec] {
        server.ok("delete web");
        let (status, made) = server.http("POST", "/v1/instances", &body.to_string());
        assert_eq!(status, 201, "{made:#}");
        assert_eq!(shown(&server, "web"), before);
    }
    // It also works in a plan, beside others.
    server.ok("delete web");
    let plan = json!({"instances": [before, {"name": "db", "memory": 8 << 20}]});
    let (status, plan) = server.http("POST", "/v1/plan", &plan.to_string());
    assert_eq!((status, &plan["fits"]), (200, &true.into()), "{plan:#}");
}

#[test]
fn what_is_shown_follows_what_is_loaded() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M");
    let bare = shown(&server, "web")["spec"].clone();
    assert_eq!(bare.get("kernel"), None);
    server.ok("load web --kernel probe --cmdline spin");
    let spec = shown(&server, "web")["spec"].clone();
    assert_eq!(
        (&spec["kernel"], &spec["cmdline"]),
        (&"probe".into(), &"spin".into())
    );
    server.ok("unload web");
    assert_eq!(shown(&server, "web")["spec"], bare);
}

#[test]
fn options_fleet_files_and_json_make_the_same_instance() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let keys = [
        ("memory", "8M"),
        ("on-panic", "restart"),
        ("kernel", "probe"),
        ("order", "13"),
    ];
    let options = keys
        .map(|(key, value)| format!("--{key} {value}"))
        .join(" ");
    server.ok(&format!("create web {options}"));
    let by_options = shown(&server, "web");
    server.ok("delete web");
    let body = json!({
        "name": "web", "memory": 8 << 20, "on-panic": "restart", "kernel": "probe", "order": 13,
    });
    let (status, _) = server.http("POST", "/v1/instances", &body.to_string());
    assert_eq!(status, 201);
    assert_eq!(shown(&server, "web"), by_options);
    server.ok("delete web");
    let fleet = "[[instance]]\nname = \"web\"\nmemory = \"8M\"\non-panic = \"restart\"\n\
                 kernel = \"probe\"\norder = 13\n";
    let fleet = scratch.file("fleet.toml", fleet.as_bytes());
    let plan = server.json(&format!("plan {}", fleet.display()));
    assert_eq!(plan["instances"][0]["spec"], by_options["spec"]);
}

#[test]
fn wrong_bodies_are_told_what_is_wrong() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("16M@4G");
    for (body, code, part) in [
        (r#"{"memory": 8388608}"#, "invalid", "`name` is missing"),
        (
            r#"{"name": "a", "nice": 3}"#,
            "invalid",
            "unknown field `nice`",
        ),
        (r#"{"name": "a", "cpus": 65}"#, "invalid", "from 1 to 64"),
        (r#"{"name": "a", "memory": "1Q"}"#, "invalid", "`Q` follows"),
        (
            r#"{"name": "a", "on-panic": "cry"}"#,
            "invalid",
            "`stop` or `restart`",
        ),
        (
            r#"{"name": "a", "cmdline": "quiet"}"#,
            "no-kernel",
            "`kernel` is missing",
        ),
        (
            r#"{"name": "a", "cpus-affinity": "3-1"}"#,
            "affinity",
            "descending",
        ),
        (
            r#"{"id": 1, "spec": {"name": "a", "vcpus": 1}}"#,
            "invalid",
            "unknown field `vcpus`",
        ),
    ] {
        let (status, refusal) = server.http("POST", "/v1/instances", body);
        let error = &refusal["error"];
        assert_eq!((status, &error["code"]), (422, &code.into()), "{refusal:#}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{body}: {message}");
    }
}

#[test]
fn the_former_name_of_start_still_boots() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("16M@4G");
    server.ok("create web --memory 8M --kernel probe --cmdline spin");
    let run = server.run("exec web");
    run.expect_code(0);
    assert!(run.stderr.contains("now called `start`"), "{run}");
    server.ok("kill web --force");
    let (status, web) = server.http("POST", "/v1/instances/web/exec", "");
    assert_eq!((status, &web["state"]), (200, &"active".into()));
    server.ok("kill web --force");
}
