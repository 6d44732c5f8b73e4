//! Tests of the socket for metrics: HTTP over TCP, and a Prometheus that scrapes it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Mkvmm, Scratch};
use serde_json::Value;

use crate::server::Server;

/// The interval of polling.
const POLL: Duration = Duration::from_millis(50);

/// Starts a server with metrics on a free port; returns the port's address.
fn serve() -> (Server, SocketAddr) {
    let mut server = Server::start_with("64M@4G", &["--metrics-listen", "0"]);
    let address = |said: &str| {
        let (_, rest) = said.split_once("metrics: http://")?;
        rest.split_once('/')?.0.parse().ok()
    };
    server
        .running
        .wait_until("an address", |r| address(&r.stderr()).is_some());
    let address = address(&server.running.stderr()).expect("it was said");
    (server, address)
}

/// Sends one request; returns the head and the body of the response.
fn http(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream
        .set_read_timeout(Some(EVENT_TIMEOUT))
        .expect("a socket");
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_lowercase(), body.to_owned())
}

#[test]
fn metrics_are_served_over_tcp_and_nothing_else_is() {
    if skips_without_kvm() {
        return;
    }
    let (server, address) = serve();
    assert!(address.ip().is_loopback());
    server.ok("create web --memory 8M");
    let (head, body) = http(address, "GET /metrics");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(
        body.contains("mkvmm_instances{state=\"ready\"} 1"),
        "{body}"
    );
    assert!(body.contains("mkvmm_start_time_seconds 1"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    for (request, status) in [
        ("GET /", "404"),
        ("GET /v1/instances", "404"),
        ("POST /v1/apply", "404"),
        ("POST /metrics", "405"),
        ("DELETE /metrics", "405"),
    ] {
        let (head, _) = http(address, request);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{head}");
    }
    // Clients that say nothing make way for those that ask.
    let silent: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(address).expect("it listens"))
        .collect();
    let (head, _) = http(address, "GET /metrics");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    drop(silent);

    let serve = |listen: &str| {
        let serve = Mkvmm::new(["serve", "--pool", "64M@4G", "--metrics-listen", listen]);
        serve.arg("--socket").arg("/nowhere/sock").finish()
    };
    serve("localhost").expect_refusal(2);
    // It is taken, which is found out after the control socket was.
    let scratch = Scratch::new();
    let taken = Mkvmm::new(["serve", "--pool", "64M@4G", "--metrics-listen"])
        .arg(address.to_string())
        .arg("--socket")
        .arg(scratch.path("sock"))
        .finish();
    taken.expect_code(1);
    assert!(taken.stderr.contains("name another port"), "{taken}");
    assert!(!scratch.path("sock").exists());
    server.tear_down();
}

/// A Prometheus, killed when this is dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It has no data that anybody needs.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_prometheus_scrapes_it() {
    if skips_without_kvm() {
        return;
    }
    let (server, address) = serve();
    let scratch = Scratch::new();
    let config = format!(
        "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n  \
         - job_name: mkvmm\n    static_configs:\n      - targets: ['{address}']\n"
    );
    let config = scratch.file("prometheus.yml", config.as_bytes());
    let free = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let own = free.local_addr().expect("a port");
    drop(free);
    let prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            scratch.path("data").display()
        ))
        .arg(format!("--web.listen-address={own}"))
        .arg("--log.level=error")
        .stdin(Stdio::null())
        .spawn();
    let Ok(prometheus) = prometheus else {
        skip("no prometheus: scripts/install-deps installs it");
        return;
    };
    let _prometheus = Prometheus(prometheus);
    server.ok("create web --memory 8M --kernel probe --start");
    let end = Instant::now() + EVENT_TIMEOUT;
    // The last value of a series, once there is one.
    let query = |query: &str| {
        TcpStream::connect(own).ok()?;
        let (_, body) = http(own, &format!("GET /api/v1/query?query={query}"));
        let answer: Value = serde_json::from_str(&body).ok()?;
        let value = answer["data"]["result"][0]["value"][1].as_str()?;
        value.parse::<f64>().ok()
    };
    for (series, at_least) in [
        ("up", 1.0),
        ("mkvmm_pool_size_bytes", 67_108_864.0),
        ("mkvmm_instance_console_bytes_total{name=\"web\"}", 20.0),
        ("sum(mkvmm_instances)", 1.0),
        ("mkvmm_boot_stage_seconds_count{to=\"first_output\"}", 1.0),
        ("mkvmm_start_time_seconds", 1e9),
    ] {
        let series = series
            .replace('"', "%22")
            .replace('{', "%7B")
            .replace('}', "%7D");
        while query(&series).is_none_or(|value| value < at_least) {
            assert!(Instant::now() < end, "{series}: {:?}", query(&series));
            thread::sleep(POLL);
        }
    }
    server.tear_down();
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
    if skips_without_kvm() {
        return;
    }
    let (server, address) = serve();
    let scratch = Scratch::new();
    let disk = scratch.file("disk", &[0; 1 << 20]).display().to_string();
    server.ok(&format!(
        "create web --memory 8M --kernel probe --disk {disk} --start"
    ));
    server.ok("wait web");
    let (_, metrics) = http(address, "GET /metrics");
    let contrib = mkvmm_test_harness::root().join("contrib");
    for file in ["grafana.json", "prometheus-alerts.yml"] {
        let text = std::fs::read_to_string(contrib.join(file)).expect("it is there");
        let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
        let names = text.split(|c| !is_part(c));
        let names: Vec<&str> = names.filter(|name| name.starts_with("mkvmm_")).collect();
        assert!(names.len() >= 5, "{file}: {names:?}");
        for name in names {
            let is_there = |line: &str| {
                let rest = line.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            assert!(metrics.lines().any(is_there), "{file}: {name}\n{metrics}");
        }
        if file.ends_with("json") {
            serde_json::from_str::<Value>(&text).expect("JSON");
        }
    }
    server.tear_down();
}

#[test]
fn what_happens_to_an_instance_is_logged_with_its_time() {
    if skips_without_kvm() {
        return;
    }
    let mut server = Server::start_with("64M@4G", &["--log-format", "json"]);
    server.ok("create web --memory 8M --kernel probe --start");
    server.ok("wait web");
    server.ok("delete web");
    server.run("start web").expect_code(4);
    let lines = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(serde_json::from_str);
        lines.map(|line| line.expect("JSON")).collect()
    };
    let has_refusal = |text: &str| text.contains("refused: start web") && text.ends_with('\n');
    server
        .running
        .wait_until("a refusal", |r| has_refusal(&r.stderr()));
    let lines = lines(&server.running.stderr());
    let messages: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["message"].as_str())
        .filter(|message| message.contains("web") && !message.contains("violation:"))
        .map(|message| message.split(" after ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        messages,
        [
            "web: loaded",
            "web: active",
            "web: stopped (reboot)",
            "web: deleted",
            "refused: start web: there is no instance web"
        ]
    );
    let active = lines.iter().find(|line| line["message"] == "web: active");
    let active = active.expect("it was logged");
    assert_eq!(active["event"]["state"], "active");
    let ms = active["event"]["unix_ms"].as_u64().expect("a time");
    assert!(ms > 1_600_000_000_000, "{active}");
    assert!(
        active["time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );

    // Quiet ones say only what is wrong.
    let quiet = Server::start_with("64M@4G", &["-q"]);
    quiet.ok("create web --memory 8M");
    quiet.tear_down();
    assert_eq!(quiet.running.stderr(), "");
    let mut timed = Server::start_with("64M@4G", &["--log-format", "time"]);
    timed.ok("create web --memory 8M");
    timed
        .running
        .wait_until("a time", |r| r.stderr().contains("Z web: ready\n"));
    timed.tear_down();
    server.tear_down();
}
