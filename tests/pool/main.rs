//! Replays Linux's recorded allocator traces through `mkvmm replay`.

use std::process::{Command, Output};

fn replay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mkvmm"))
        .arg("replay")
        .args(args)
        .output()
        .expect("mkvmm starts")
}

fn traces() -> Vec<String> {
    let dir = mkvmm_test_harness::root().join("tests/traces");
    let mut traces: Vec<String> = std::fs::read_dir(dir)
        .expect("the traces are in the repository")
        .map(|entry| entry.expect("a trace").path().display().to_string())
        .collect();
    traces.sort();
    traces
}

#[test]
fn every_recorded_trace_replays_without_a_mismatch() {
    let traces = traces();
    assert_eq!(traces.len(), 15);
    let files: Vec<&str> = traces.iter().map(String::as_str).collect();
    let output = replay(&[&["--json"], files.as_slice()].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{report:#}");
    let reports = report["files"].as_array().expect("a report for each");
    assert_eq!(reports.len(), 15);
    for report in reports {
        assert_eq!(report["mismatches"], 0, "{report}");
        assert!(report["ops"].as_u64() > Some(0), "{report}");
    }
}

#[test]
fn a_wrong_answer_is_found_with_its_line() {
    let file = std::env::temp_dir().join(format!("mkvmm-trace-{}.jsonl", std::process::id()));
    let lines = [
        r#"{"op":"mk_setup","param":"1M@4G","want":"ok","size":1048576,"start":"0x100000000"}"#,
        r#"{"op":"mk_alloc","size":4096,"want":"0x100001000"}"#,
    ];
    std::fs::write(&file, lines.join("\n")).expect("a temporary file");
    let path = file.display().to_string();
    let output = replay(&[&path]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    std::fs::remove_file(&file).expect("the file is still there");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("line 2"), "{text}");
}

#[test]
fn a_missing_trace_is_one_error_and_status_3() {
    let output = replay(&["/no/such/trace.jsonl"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.starts_with("error: /no/such/trace.jsonl"), "{text}");
}
