//! The library in this process: what is left after guests have come and gone.
//!
//! Descriptors, threads and resident memory are the process's, so these tests
//! run one after the other on the main thread, which libtest does not do.

mod leftovers;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use mkvmm_test_harness::tier;

fn main() -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let tests: [(&str, fn()); 4] = [
        (
            "a_launch_leaves_nothing_behind",
            leftovers::a_launch_leaves_nothing_behind,
        ),
        (
            "a_failed_launch_leaves_nothing_behind",
            leftovers::a_failed_launch_leaves_nothing_behind,
        ),
        (
            "guests_that_are_killed_leave_nothing_behind",
            leftovers::guests_that_are_killed_leave_nothing_behind,
        ),
        (
            "guests_that_never_start_leave_nothing_behind",
            leftovers::guests_that_never_start_leave_nothing_behind,
        ),
    ];
    let trial = |(name, test): (&'static str, fn())| Trial::ignorable_test(name, move || run(test));
    let trials = tests.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs `test` where KVM lets it.
fn run(test: fn()) -> Result<Completion, Failed> {
    match tier::probe() {
        Ok(()) => {
            test();
            Ok(Completion::Completed)
        }
        Err(why) if tier::is_required() => Err(Failed::from(why)),
        Err(why) => Ok(Completion::ignored_with(why)),
    }
}
