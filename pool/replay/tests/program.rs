//! Tests of the program: its output and its exit status.

use std::process::{Command, Output};

fn replay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mkpool-replay"))
        .args(args)
        .output()
        .expect("the program starts")
}

#[test]
fn recorded_traces_end_with_status_0() {
    let trace = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/traces/90_quirks.jsonl.gz"
    );
    let output = replay(&["--time", trace]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains(" 0 mismatches\n") && text.contains(" ns/op\n"),
        "{text}"
    );
}

#[test]
fn a_wrong_answer_is_status_1_with_its_line() {
    let file = std::env::temp_dir().join(format!("mkpool-trace-{}.jsonl", std::process::id()));
    let lines = [
        r#"{"op":"mk_setup","param":"1M@4G","want":"ok","size":1048576,"start":"0x100000000"}"#,
        r#"{"op":"mk_alloc","size":4096,"want":"0x100001000"}"#,
    ];
    std::fs::write(&file, lines.join("\n")).expect("a temporary file");
    let output = replay(&[&file.display().to_string()]);
    std::fs::remove_file(&file).expect("the file is still there");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("line 2: got \"0x100000000\""), "{text}");
}

#[test]
fn what_cannot_be_played_is_status_2() {
    for args in [&["/no/such/trace.jsonl"][..], &["--dance"], &[]] {
        let output = replay(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.starts_with("error: "), "{text}");
    }
    let text = replay(&["/no/such/trace.jsonl"]).stderr;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("cannot be read: No such file"), "{text}");
}
