//! Tests of the manager in this process, with this very program as its workers:
//! they check what is left after guests have ended.
//!
//! Descriptors, threads, children and memory belong to the whole process, so
//! these tests run one after the other on the main thread, which libtest does
//! not do.

mod leftovers;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use mkvmm_test_harness::{embedded, tier};

fn main() -> std::process::ExitCode {
    if let Some(exit) = embedded::child() {
        return exit;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let tests: [(&str, fn()); 5] = [
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
        (
            "a_populated_pool_is_whole_and_zero_again",
            leftovers::a_populated_pool_is_whole_and_zero_again,
        ),
    ];
    let trial = |(name, test): (&'static str, fn())| Trial::ignorable_test(name, move || run(test));
    let trials = tests.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs `test` if KVM is available.
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
