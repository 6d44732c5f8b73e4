//! `mkvmm run` on a terminal: what guests print is shown, and not obeyed.

use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Scratch, Stdout};

/// What `bad` prints, each a line: attempts to write a line of `db`'s.
const ATTEMPTS: &[&[u8]] = &[
    b"\x1b[1G\x1b[2Kdb: all data lost",
    // The same in eight bits, alone and as UTF-8.
    b"\x9b1G\x9b2Kdb: all data lost",
    b"\xc2\x9b1G\xc2\x9b2Kdb: all data lost",
    b"\rdb: all data lost",
    b"\x08\x08\x08\x08\x08db: all data lost",
    b"\x0bdb: all data lost",
    b"\x0cdb: all data lost",
    b"\xc2\x85db: all data lost",
    // From right to left.
    b"\xe2\x80\xaetsol atad lla :bd",
    // A title and a sequence that never end, and half a character.
    b"\x1b]0;db: all data lost",
    b"\x1bP",
    b"\x1b[",
    b"\xe2\x82",
    // Into the other character set, and up by a line.
    b"\x0edb: all data lost",
    b"\x1b(0db: all data lost",
    b"\x1bMdb: all data lost",
];
/// What `db` prints, with what a terminal does not obey.
const OWN: &str = "tab\there, \u{c4}rger, 42 \u{20ac}";

/// Runs both guests, with standard output of this kind.
fn run(stdout: Stdout) -> Finished {
    let scratch = Scratch::new();
    let guest = |name: &str, lines: &[&[u8]]| {
        let text: Vec<u8> = lines
            .iter()
            .flat_map(|l| [l, &b"\r\n"[..]].concat())
            .collect();
        let image = elf(&[&code::print(&text), code::HALT].concat());
        let kernel = scratch.file(name, &image);
        format!("name={name},memory=8M,kernel={}", kernel.display())
    };
    Mkvmm::run("64M@4G")
        .stdout(stdout)
        .guest(guest("bad", ATTEMPTS))
        .guest(guest("db", &[OWN.as_bytes()]))
        .finish()
}

#[test]
fn no_guest_writes_anothers_line_on_a_terminal() {
    if skips_without_kvm() {
        return;
    }
    let run = run(Stdout::Terminal);
    run.expect_code(0);
    // A line ends with what the terminal makes of a newline, and nothing else
    // moves the cursor: what a line begins with is where it is from.
    let lines: Vec<&str> = run.stdout.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), ATTEMPTS.len() + 1, "{run}");
    let obeyed = |c: char| c.is_control() && c != '\t' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!lines.iter().any(|line| line.contains(obeyed)), "{lines:?}");
    let (of_db, of_bad): (Vec<&str>, Vec<&str>) =
        lines.iter().partition(|line| line.starts_with("db: "));
    assert_eq!(of_db, [format!("db: {OWN}")]);
    assert!(
        of_bad.iter().all(|line| line.starts_with("bad: ")),
        "{lines:?}"
    );
    assert_eq!(of_bad[0], "bad: db: all data lost");
}

#[test]
fn a_guests_bytes_go_into_a_pipe_as_they_are() {
    if skips_without_kvm() {
        return;
    }
    let run = run(Stdout::Kept);
    run.expect_code(0);
    let consoles = run.consoles(&["bad", "db"]);
    assert_eq!(consoles.of("db"), [OWN]);
    // Except `\r`, which belongs to a console's line ends. The harness reads
    // text.
    let printed: Vec<String> = ATTEMPTS
        .iter()
        .map(|line| String::from_utf8_lossy(line).replace('\r', ""))
        .collect();
    assert_eq!(consoles.of("bad"), printed);
}
