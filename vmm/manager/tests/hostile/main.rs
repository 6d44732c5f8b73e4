//! Tests of workers that lie, flood, hang or exit, beside an honest one.
//!
//! This program is its own worker: [`worker`] carries out the plan that a test
//! has set for one boot of an instance; without a plan it is honest.

mod fixture;
mod worker;

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use mkvmm_base::state::{EndReason, State};
use mkvmm_test_harness::embedded;

use fixture::{Fixture, logged};
use worker::When;

/// If this variable is 1, tests that would be skipped fail.
const REQUIRE: &str = "MKVMM_REQUIRE_KVM";
/// The duration of each flood.
const FLOOD: Duration = Duration::from_secs(1);
/// The upper limit of the median time of a look during a flood, on a busy
/// machine. Without a flood it is the millisecond for which they sleep.
const LOOK: Duration = Duration::from_millis(50);

/// Deeds of a worker, at any moment, that end it.
const DEEDS: [&str; 9] = [
    "garbage",
    "nothing",
    "too much",
    "another number",
    "descriptors",
    "an end",
    "hang up",
    "exit",
    "exit 3",
];

fn main() -> ExitCode {
    if let Some((path, plan)) = worker::plan() {
        return worker::serve(&path, &plan);
    }
    if let Some(exit) = embedded::child() {
        return exit;
    }
    fixture::log_here();
    let mut arguments = Arguments::from_args();
    // Workers live as long as the thread that starts them.
    arguments.test_threads = Some(1);
    let mut tests = Vec::new();
    for when in [When::Load, When::Boot, When::Run] {
        let deeds = DEEDS.into_iter().chain(["another answer"]);
        let answered = ["an insult", "stop"]
            .into_iter()
            .filter(|_| when != When::Run);
        for deed in deeds.chain(answered) {
            let name = format!("{when:?}: {deed}").to_lowercase();
            tests.push(trial(&name, move || one_falls(when, deed)));
        }
    }
    for deed in ["lines", "long lines", "violations", "marks"] {
        tests.push(trial(&format!("flood of {deed}"), move || flooded(deed)));
    }
    tests.push(trial(
        "one that is stopped can be killed",
        killed_while_stopped,
    ));
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Creates a test that needs KVM.
fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        let why = "there is no /dev/kvm";
        if Path::new("/dev/kvm").exists() {
            embedded::block_on(test());
            Ok(Completion::Completed)
        } else if env::var_os(REQUIRE).is_some_and(|value| value == "1") {
            Err(Failed::from(why))
        } else {
            Ok(Completion::ignored_with(why))
        }
    })
}

/// A worker misbehaves once: only its own instance is affected, and the next
/// boot is not.
async fn one_falls(when: When, deed: &str) {
    let fixture = Fixture::new().await;
    fixture.plan(when, deed);
    let result = fixture.load_and_start().await;
    let liar = fixture.liar().await;
    let (state, reason) = match when {
        When::Load => (State::Ready, None),
        When::Boot => (State::Loaded, None),
        When::Run => (State::Failed, Some(EndReason::Vmm)),
    };
    if when == When::Run {
        fixture.wait_for(state).await;
    } else {
        let error = result.expect_err("the worker has not done what it was told");
        let text = mkvmm_base::chain(&error);
        assert!(!text.contains('\x1b') && text.len() < 2000, "{text}");
    }
    assert_eq!(fixture.state_of_bad(), (state, reason));
    fixture.expect_gone(liar).await;
    fixture.expect_peace();
    // Repeat with an honest worker.
    fixture.forget_the_deed();
    let result = fixture.load_and_start().await;
    result.expect("an honest worker does it");
    fixture.wait_for(State::Stopped).await;
    assert_eq!(
        fixture.state_of_bad(),
        (State::Stopped, Some(EndReason::Reboot))
    );
    fixture.tear_down().await;
}

/// A worker sends notifications as fast as they are received: the others do not
/// notice, and the log contains only a limited number of its lines.
async fn flooded(deed: &str) {
    let fixture = Fixture::new().await;
    fixture.plan(When::Run, deed);
    let result = fixture.load_and_start().await;
    result.expect("it is honest until then");
    let liar = fixture.liar().await;
    let lines_before = logged().len();
    let (begin, mut looks) = (Instant::now(), Vec::new());
    while begin.elapsed() < FLOOD {
        let asked = Instant::now();
        tokio::time::sleep(Duration::from_millis(1)).await;
        fixture.expect_peace();
        looks.push(asked.elapsed());
    }
    fixture.bother_the_neighbour().await;
    let elapsed = begin.elapsed();
    looks.sort_unstable();
    let (median, worst) = (looks[looks.len() / 2], looks[looks.len() - 1]);
    println!(
        "{deed}: {} looks, median {median:?}, worst {worst:?}",
        looks.len()
    );
    assert!(
        looks.len() >= 10 && median < LOOK,
        "{median:?} of {}",
        looks.len()
    );

    fixture.kill_bad().await;
    assert_eq!(
        fixture.state_of_bad(),
        (State::Stopped, Some(EndReason::Killed))
    );
    fixture.expect_gone(liar).await;
    let lines = logged().split_off(lines_before);
    let most = 200 + 10 * elapsed.as_secs();
    assert!(
        lines.len() as u64 <= most,
        "{} lines in {elapsed:?}",
        lines.len()
    );
    assert!(!lines.iter().any(|line| line.contains('\x1b')), "{lines:?}");
    if deed != "marks" {
        let is_count = |line: &String| line.contains("of its lines were dropped");
        assert!(lines.iter().any(is_count), "{lines:?}");
    }
    fixture.tear_down().await;
}

/// A worker hangs: only a kill is requested of it.
async fn killed_while_stopped() {
    let fixture = Fixture::new().await;
    fixture.plan(When::Run, "stop");
    let result = fixture.load_and_start().await;
    result.expect("it is honest until then");
    let liar = fixture.liar().await;
    fixture.wait_until_stopped(liar).await;
    assert_eq!(fixture.state_of_bad(), (State::Active, None));
    fixture.kill_bad().await;
    assert_eq!(
        fixture.state_of_bad(),
        (State::Stopped, Some(EndReason::Killed))
    );
    fixture.expect_gone(liar).await;
    fixture.expect_peace();
    fixture.tear_down().await;
}
