//! The disk, driven by a made-up driver: what requests do, what hostile ones
//! do, what happens when the host's disk fails or stalls, when the power
//! is cut and when the process is killed.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod disk;
mod driver;
mod hostile;
mod kills;
mod power;
mod record;
mod requests;
mod trouble;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use disk::Kind;

/// A test of both engines.
type OfBoth = (&'static str, fn(Kind));

fn main() -> ExitCode {
    if let Some(code) = kills::play() {
        return code;
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let lists: [&[OfBoth]; 4] = [
        requests::TESTS,
        hostile::TESTS,
        trouble::TESTS,
        power::TESTS,
    ];
    for (name, test) in lists.into_iter().flatten() {
        for kind in Kind::all() {
            let name = format!("{name}::{kind:?}").to_lowercase();
            let trial = Trial::test(name, move || {
                test(kind);
                Ok(())
            });
            trials.push(trial);
        }
    }
    trials.extend(kills::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}
