//! Tests of workers that lie, flood, hang or exit, beside an honest one.
//!
//! This program is its own worker: [`worker`] carries out the plan that a test
//! has set for one boot of an instance; without a plan it is honest.

mod children;
mod fixture;
mod worker;

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use mkvmm_api::{ImagesSpec, KernelSource, Size};
use mkvmm_base::InstanceName;
use mkvmm_base::state::{EndReason, OnStall, State};
use mkvmm_keeper::child;
use mkvmm_manager::config::InstanceConfig;
use mkvmm_test_harness::embedded;
use rustix::process::{Pid, Signal, kill_process};

use fixture::{Fixture, logged};
use worker::When;

/// With this variable set to 1, what would be skipped fails.
const SANDBOX_VARIABLE: &str = "MKVMM_SANDBOX";
/// With this variable set to 1, what would be skipped fails.
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
    match (child::role().as_deref(), worker::plan()) {
        (Some("worker"), Some((path, plan))) => return worker::serve(&path, &plan),
        (_, Some((path, plan))) => worker::instead(&path, &plan),
        (_, None) => {}
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
        let answered = ["an insult", "sleep", "spin"]
            .into_iter()
            .filter(|_| when != When::Run);
        for deed in deeds.chain(answered) {
            let name = format!("{when:?}: {deed}").to_lowercase();
            tests.push(trial(&name, move || one_falls(when, deed)));
        }
    }
    for deed in ["lines", "long lines", "violations", "marks", "noise"] {
        tests.push(trial(&format!("flood of {deed}"), move || flooded(deed)));
    }
    tests.push(trial(
        "one that is stopped can be killed",
        killed_while_stopped,
    ));
    tests.push(trial("one that cannot be confined says why", unconfined));
    for when in [When::Load, When::Boot] {
        let name = |what: &str| format!("{when:?}: {what}").to_lowercase();
        tests.push(trial(&name("one that is stopped goes on"), move || {
            goes_on(when)
        }));
        tests.push(trial(&name("one that is stopped is killed"), move || {
            killed_while_stalled(when)
        }));
    }
    for deed in ["garbage", "an insult", "hang up", "exit 3"] {
        let name = format!("prepare: {deed}");
        tests.push(trial(&name, move || never_waits(deed)));
    }
    for deed in ["hang up", "exit 3", "pause"] {
        let name = format!("one that has waited: {deed}");
        tests.push(trial(&name, move || is_replaced(deed)));
    }
    for deed in ["stop", "die", "hang"] {
        tests.push(trial(&format!("cleaner: {deed}"), move || {
            children::cleaner_falls(deed)
        }));
        tests.push(trial(
            &format!("cleaner: {deed}, again and again"),
            move || children::cleaners_fall(deed),
        ));
        tests.push(trial(&format!("unpacker: {deed}"), move || {
            children::unpacker_falls(deed)
        }));
        tests.push(trial(&format!("unpacker: {deed}, twice"), move || {
            children::unpackers_fall(deed)
        }));
    }
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

/// A worker fails before it waits: nobody gets it, and another one is made.
async fn never_waits(deed: &'static str) {
    let fixture = Fixture::new().await;
    fixture.fill_stock(When::Prepare, deed);
    fixture.load_and_start().await.expect("it needs no stock");
    let waiting = fixture.waiting().await;
    assert_ne!(fixture.pid_of_bad(), Some(waiting));
    fixture.kill_bad().await;
    fixture
        .load_and_start()
        .await
        .expect("the second one is honest");
    assert!(!fixture.manager.waiting_workers().contains(&waiting));
    fixture.kill_bad().await;
    fixture.tear_down().await;
}

/// A worker waits, and is lost when it gets a guest: another one takes its place,
/// and nobody notices.
async fn is_replaced(deed: &'static str) {
    let fixture = Fixture::new().await;
    fixture.fill_stock(When::Load, deed);
    let waiting = fixture.waiting().await;
    fixture
        .load_and_start()
        .await
        .expect("another one is honest");
    assert_ne!(fixture.pid_of_bad(), Some(waiting));
    fixture.expect_gone(waiting).await;
    fixture.kill_bad().await;
    fixture.tear_down().await;
}

/// A worker is stopped while something is waited for: its instance is stalled,
/// and goes on where it was when the process does.
async fn goes_on(when: When) {
    let fixture = Fixture::new().await;
    fixture.plan(when, "pause");
    let mut work = Box::pin(fixture.load_and_start());
    tokio::select! {
        _ = &mut work => panic!("it is stopped"),
        () = fixture.wait_for(State::Stalled) => {}
    }
    fixture.expect_peace();
    let pid = Pid::from_raw(fixture.liar().await).expect("a number");
    fixture.forget_the_deed();
    kill_process(pid, Signal::CONT).expect("it is there");
    work.await.expect("it is honest");
    assert_eq!(fixture.state_of_bad(), (State::Active, None));
    fixture.kill_bad().await;
    fixture.tear_down().await;
}

/// The same, but somebody has had enough.
async fn killed_while_stalled(when: When) {
    let fixture = Fixture::new().await;
    fixture.plan(when, "pause");
    let mut work = Box::pin(fixture.load_and_start());
    tokio::select! {
        _ = &mut work => panic!("it is stopped"),
        () = fixture.wait_for(State::Stalled) => {}
    }
    let ((), result) = tokio::join!(fixture.kill_bad(), work);
    let text = mkvmm_base::chain(&result.expect_err("it was killed"));
    assert!(text.contains("killed meanwhile"), "{text}");
    let state = match when {
        When::Load => State::Ready,
        _ => State::Loaded,
    };
    assert_eq!(fixture.state_of_bad(), (state, None));
    fixture.expect_gone(fixture.liar().await).await;
    fixture.expect_peace();
    fixture.tear_down().await;
}

/// A worker misbehaves once: its instance alone has the damage, and none the
/// next time.
async fn one_falls(when: When, deed: &str) {
    // One that says nothing at all is killed where the policy says so, and
    // otherwise waited for.
    let fixture = Fixture::with(OnStall::Kill, false).await;
    fixture.plan(when, deed);
    let result = fixture.load_and_start().await;
    let liar = fixture.liar().await;
    let (state, reason) = match when {
        When::Prepare | When::Load => (State::Ready, None),
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
    for stream in [1, 2] {
        let leads_to = std::fs::read_link(format!("/proc/{liar}/fd/{stream}"));
        assert_eq!(leads_to.expect("it is there"), Path::new("/dev/null"));
    }
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
    if ["lines", "long lines", "violations"].contains(&deed) {
        let is_count = |line: &String| line.contains("of its lines were dropped");
        assert!(lines.iter().any(is_count), "{lines:?}");
    }
    fixture.tear_down().await;
}

/// A worker that cannot be confined says so over its channel.
async fn unconfined() {
    let sandbox = (SANDBOX_VARIABLE.to_owned(), "none".to_owned());
    let manager = embedded::ManagerSetup::new(fixture::POOL).manager_with(vec![sandbox]);
    let name: InstanceName = "odd".parse().expect("a name");
    let config = InstanceConfig::new(name.clone(), Size::mib(8));
    let spec = ImagesSpec {
        kernel: KernelSource::Probe,
        boot: None,
        initrd: Vec::new(),
        cmdline: None,
    };
    let images = manager.read_images(&name, spec, config.memory()).await;
    let images = images.expect("the probe needs no file");
    let created = manager.create(config, Some(images)).await;
    created.expect_err("its worker ends");
    let why = format!("odd: {SANDBOX_VARIABLE}=none is out of range");
    assert!(logged().contains(&why), "{:?}", logged());
    assert!(manager.registry().is_empty());
}

/// A worker is stopped: nothing but a kill is asked of it.
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
