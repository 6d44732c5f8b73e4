//! Tests of the metrics' values and of the OpenMetrics format.

use std::io::Write;
use std::process::{Command, Stdio};

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use serde_json::Value;

use crate::server::Server;

/// Returns the sample `name{labels}`; labels in any order.
#[track_caller]
fn sample(text: &str, name: &str, labels: &[&str]) -> f64 {
    let matches = |line: &&str| {
        let (key, _) = line.rsplit_once(' ').unwrap_or_default();
        let (found, rest) = key.split_once('{').unwrap_or((key, ""));
        found == name && labels.iter().all(|label| rest.contains(label))
    };
    let line = text.lines().find(matches);
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} {labels:?} in\n{text}"))
}

#[test]
fn counters_count_what_happens() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let metrics = || server.ok("metrics");
    server.ok("create web --memory 8M --kernel probe --cmdline touch=0x103000000");
    server.ok("create idle --memory 8M");
    let before = metrics();
    assert_eq!(
        sample(&before, "mkvmm_pool_avail_bytes", &[]),
        48e6 * 1.048_576
    );
    assert_eq!(
        sample(&before, "mkvmm_instances", &[r#"state="ready""#]),
        1.0
    );
    let name = r#"name="web",id="1""#;
    let exits = |text: &str, kind: &str| {
        sample(
            text,
            "mkvmm_instance_exits_total",
            &[name, &format!("kind=\"{kind}\"")],
        )
    };
    assert_eq!(exits(&before, "io_out"), 0.0);
    let main_ok = &[r#"pool="main""#, r#"outcome="ok""#];
    let allocations = "mkvmm_pool_allocations_total";
    assert_eq!(sample(&before, allocations, main_ok), 2.0);

    server.ok("start web");
    server.wait_for_state("web", "stopped");
    for (args, code) in [
        ("create big --memory 1G", 5),
        ("create big --memory 1G --dry-run", 5),
        ("pool alloc 4096 --align 3", 2),
    ] {
        server.run(args).expect_refusal(code);
    }
    server.ok("pool alloc 2M --dry-run");
    let after = metrics();
    assert!(exits(&after, "io_out") > 10.0, "{after}");
    assert_eq!(
        sample(&after, allocations, main_ok),
        2.0,
        "dry runs do not count"
    );
    assert_eq!(sample(&after, allocations, &[r#"outcome="too-big""#]), 1.0);
    assert_eq!(
        sample(&after, allocations, &[r#"outcome="bad-align""#]),
        1.0
    );
    assert!(sample(&after, "mkvmm_instance_violations_total", &[name]) > 0.0);
    assert!(exits(&after, "mmio_read") + exits(&after, "mmio_write") > 0.0);
    assert!(sample(&after, "mkvmm_instance_console_bytes_total", &[name]) > 20.0);
    for to in ["first_exit", "first_output", "ended"] {
        let labels = [r#"from="exec""#, &format!("to=\"{to}\"")];
        let count = sample(&after, "mkvmm_boot_stage_seconds_count", &labels);
        assert_eq!(count, 1.0, "{to}");
    }
    // Counters continue across boots, and are removed with the instance.
    server.ok("start web");
    server.wait_for_state("web", "stopped");
    let twice = metrics();
    assert!(exits(&twice, "io_out") > exits(&after, "io_out"));
    server.ok("delete web");
    server.ok("create web --memory 8M");
    let again = metrics();
    assert!(!again.contains(name), "{again}");
    let reborn = [r#"name="web",id=""#, r#"kind="io_out""#];
    assert_eq!(sample(&again, "mkvmm_instance_exits_total", &reborn), 0.0);
    let frees = "mkvmm_pool_frees_total";
    assert_eq!(sample(&again, frees, main_ok), 1.0);
}

#[test]
fn images_are_counted_by_what_became_of_them() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let scratch = Scratch::new();
    let file = scratch.file("kernel", mkvmm_guest_images::PROBE);
    for name in ["a", "b"] {
        server.ok(&format!(
            "create {name} --memory 8M --kernel {}",
            file.display()
        ));
    }
    let text = server.ok("metrics");
    let requests = |result: &str| {
        let label = format!("result=\"{result}\"");
        sample(&text, "mkvmm_image_cache_requests_total", &[&label])
    };
    assert_eq!(requests("miss"), 1.0);
    assert_eq!(requests("hit-by-file") + requests("hit-by-content"), 1.0);
    assert_eq!(sample(&text, "mkvmm_image_cache_entries", &[]), 1.0);
    assert!(sample(&text, "mkvmm_image_cache_size_bytes", &[]) > 4096.0);
}

/// Returns the python3 that has Prometheus's parser: Debian's, for which there
/// is a package, before the first one in PATH, which may be another.
fn python_with_prometheus() -> Option<&'static str> {
    let imports = |python: &&str| {
        let mut python = Command::new(python);
        python.args(["-c", "import prometheus_client.openmetrics.parser"]);
        let output = python.output();
        output.is_ok_and(|output| output.status.success())
    };
    ["/usr/bin/python3", "python3"].into_iter().find(imports)
}

#[test]
fn the_text_is_open_metrics() {
    if skips_without_kvm() {
        return;
    }
    let Some(python) = python_with_prometheus() else {
        skip("no python3 has prometheus_client: scripts/install-deps installs it");
        return;
    };
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M --kernel probe");
    server.ok("start web");
    server.wait_for_state("web", "stopped");
    server.run("create big --memory 1G").expect_refusal(5);
    let text = server.ok("metrics");
    let script = mkvmm_test_harness::root().join("tests/api/openmetrics.py");
    let mut parser = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = parser.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    let families: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, kind, unit) in [
        ("mkvmm_build", "info", ""),
        ("mkvmm_pool_size_bytes", "gauge", "bytes"),
        ("mkvmm_pool_allocations", "counter", ""),
        ("mkvmm_pool_frees", "counter", ""),
        ("mkvmm_instances", "gauge", ""),
        ("mkvmm_instance_memory_bytes", "gauge", "bytes"),
        ("mkvmm_instance_cpu_seconds", "counter", "seconds"),
        ("mkvmm_instance_memory_resident_bytes", "gauge", "bytes"),
        ("mkvmm_instance_process_memory_bytes", "gauge", "bytes"),
        ("mkvmm_instance_exits", "counter", ""),
        ("mkvmm_instance_violations", "counter", ""),
        ("mkvmm_instance_console_bytes", "counter", "bytes"),
        ("mkvmm_boot_stage_seconds", "histogram", "seconds"),
        ("mkvmm_image_cache_size_bytes", "gauge", "bytes"),
        ("mkvmm_image_cache_requests", "counter", ""),
    ] {
        let family = &families[name];
        assert_eq!(
            (&family["type"], &family["unit"]),
            (&kind.into(), &unit.into()),
            "{name}"
        );
        assert_ne!(
            family["samples"].as_array().map(Vec::len),
            Some(0),
            "{name}"
        );
    }
    assert!(text.ends_with("# EOF\n"));
}
