//! Tests of Debian's kernels, several at a time from one pool.
//!
//! | module | contents |
//! |---|---|
//! | `scenarios` | the table of guests, pools and properties |
//! | `guest` | a guest of a scenario, and the `--guest` that creates it |
//! | `checks`, `kernel_checks`, `manifest_checks` | checks of the guests' reports |
//! | `kernels` | Debian's kernels, and which of them this run tests |
//! | `rotation` | these kernels, unpacked, in their own form, and by kexec |
//! | `pauses` | the same kernels, paused for a minute |
//! | `deaths` | failures of a Linux: the third table of docs/ends.md |
//! | `ends` | four guests that end in four ways, beside one that continues |
//! | `survivor` | one beside four that die, one of them attacking, one killed; twice |
//! | `session` | three guests through the control socket, with console input |
//! | `devices` | a Debian on a disk with all devices, a second guest, and a passt that dies |
//! | `channels` | two guests that exchange messages through UIO, one of which is killed |
//! | `cuts` | power cuts under a file system of that Debian |
//! | `shell` | consoles with a shell in the guest |
//! | `launch` | one run of mkvmm, whose result several checks examine |
//! | `guest_report` | parses the output of the guests' init |
//! | `place` | where tests run: here, in an emulated host, or nowhere |
//!
//! The same code runs in both places: if this host's KVM cannot run an
//! unmodified Linux, this executable runs itself again inside `scripts/nested`,
//! for all tests together, and passes on its output and status.

mod channels;
mod checks;
mod cuts;
mod deaths;
mod devices;
mod ends;
mod guest;
mod guest_report;
mod kernel_checks;
mod kernels;
mod launch;
mod manifest_checks;
mod pauses;
mod place;
mod rotation;
mod scenarios;
mod session;
mod shell;
mod survivor;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};
use mkvmm_test_harness::{embedded, tier};

use place::Place;
use scenarios::tests;

fn main() -> ExitCode {
    if let Some(exit) = embedded::child() {
        return exit;
    }
    let mut arguments = Arguments::from_args();
    // A scenario is launched by the first of its checks.
    arguments.test_threads = Some(1);
    if arguments.list || !tests().any(|name| is_selected(&arguments, &name)) {
        return libtest_mimic::run(&arguments, ignored("")).exit_code();
    }
    eprintln!(
        "linux: kernels of this run: {}",
        kernels::in_turn().join(", ")
    );
    let why = match place::find() {
        Place::Here(images) => {
            let trials = scenarios::trials(&images);
            return libtest_mimic::run(&arguments, trials).exit_code();
        }
        Place::Nested(images) => match place::run_nested(&images) {
            Ok(status) => return status,
            Err(why) => why,
        },
        Place::Off(why) => return libtest_mimic::run(&arguments, ignored(&why)).exit_code(),
        Place::Nowhere(why) => why,
    };
    if tier::is_required() {
        eprintln!(
            "error: {}=1, but Linux guests cannot run: {why}",
            tier::REQUIRE
        );
        return ExitCode::from(101);
    }
    eprintln!("linux: skipped: {why}");
    libtest_mimic::run(&arguments, ignored(&why)).exit_code()
}

/// Returns all tests, each ignored with the reason.
fn ignored(why: &str) -> Vec<Trial> {
    let trial = |name| {
        let why = why.to_owned();
        Trial::ignorable_test(name, move || Ok(Completion::ignored_with(why)))
    };
    tests().map(trial).collect()
}

/// Returns whether libtest-mimic would run `name`, since starting an emulated
/// host takes a minute.
fn is_selected(arguments: &Arguments, name: &str) -> bool {
    let matches = |pattern: &String| match arguments.exact {
        true => name == pattern,
        false => name.contains(pattern.as_str()),
    };
    !arguments.ignored
        && arguments.filter.as_ref().is_none_or(matches)
        && !arguments.skip.iter().any(matches)
}
