//! Plays traces made for one rule each, and the recorded ones.

use super::*;

const GOOD: &str = r#"
{"op":"create","pool":"p","order":12,"want":"ok"}
{"op":"add","pool":"p","base":"0x1000","size":8192,"want":"ok"}
{"op":"alloc","pool":"p","size":1,"want":"0x1000","note":"unknown keys are ignored"}
"#;

#[test]
fn a_good_trace_has_no_mismatch() {
    let report = play(GOOD.as_bytes(), "good", true).unwrap();
    assert_eq!((report.ops, report.mismatches), (3, 0));
    assert_eq!(report.times.unwrap()["alloc"].ops, 1);
}

#[test]
fn the_first_mismatch_is_reported_with_its_line() {
    let bad = GOOD.replace(r#""want":"0x1000""#, r#""want":"0x2000""#);
    let report = play(bad.as_bytes(), "bad", false).unwrap();
    let first = report.first_mismatch.unwrap();
    assert_eq!((report.mismatches, first.line), (1, 4));
    assert_eq!(first.got, "0x1000");
    assert!(report.times.is_none());
}

#[test]
fn chunks_and_the_start_are_compared_too() {
    let trace = r#"{"op":"mk_setup","param":"1M@16M","want":"ok","start":"0x1000000","size":1048576}
{"op":"instance_create","id":1,"size":8192,"order":12,"want":true,"chunks":[["0x1000000",8192]]}"#;
    let edits = [
        (r#"start":"0x1000000""#, r#"start":"0x2000000""#),
        ("1048576", "1048577"),
        ("8192]]", "4096]]"),
    ];
    for (good, bad) in edits {
        assert_eq!(play(trace.as_bytes(), "good", false).unwrap().mismatches, 0);
        let wrong = trace.replace(good, bad);
        assert_eq!(
            play(wrong.as_bytes(), "bad", false).unwrap().mismatches,
            1,
            "{bad}"
        );
    }
}

#[test]
fn nonsense_is_an_error_with_its_line() {
    let junk = play("{\"op\":\"dance\"}\n".as_bytes(), "junk", false).unwrap_err();
    assert_eq!(junk.to_string(), "junk:1: not an operation");
    let lost = r#"{"op":"avail","pool":"nobody","want":0}"#;
    let lost = play(lost.as_bytes(), "lost", false).unwrap_err();
    assert_eq!(lost.to_string(), "lost:1: there is no pool `nobody`");
}

#[test]
fn every_recorded_trace_replays_without_a_mismatch() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/traces");
    let mut files: Vec<PathBuf> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(
        files.len() >= 15,
        "the recorded traces are in {}",
        dir.display()
    );
    let mut printed = Vec::new();
    let outcome = run(&files, Options::default(), &mut printed).unwrap();
    assert!(
        outcome.is_clean(),
        "{:?}\n{}",
        outcome.errors,
        String::from_utf8_lossy(&printed)
    );
    assert!(outcome.reports.iter().map(|report| report.ops).sum::<u64>() > 150_000);
}

#[test]
fn json_names_what_could_not_be_read() {
    let options = Options {
        json: true,
        time: false,
    };
    let mut printed = Vec::new();
    let outcome = run(&[PathBuf::from("/nonexistent")], options, &mut printed).unwrap();
    assert!(!outcome.is_clean());
    let all: serde_json::Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!(all["errors"][0], "/nonexistent: cannot be read");
}
