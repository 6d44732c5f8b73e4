//! Tests of `run` as the command of a batch job: its end, its result, its memory.

use std::fs;
use std::path::PathBuf;

use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Mkvmm, Running, Scratch, Stdout};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

/// What the job of a test has in MiB.
const JOB_MIB: &str = "64";
/// The pool of one guest in it: 6 MiB for mkvmm, 2 MiB for the guest's process, and
/// page tables are subtracted.
const POOL: &str = "100000000-1035fffff : Multikernel Memory Pool";

/// Returns a run of one guest with a result in `scratch`.
fn with_result(scratch: &Scratch, guest: &str) -> Mkvmm {
    Mkvmm::run("16M@0x100000000")
        .guest(format!("name=a,kernel=probe,memory=8M,{guest}"))
        .arg("--result")
        .arg(scratch.path("result"))
}

fn result(scratch: &Scratch) -> Value {
    let text = fs::read(scratch.path("result")).expect("it was written");
    serde_json::from_slice(&text).expect("it is JSON")
}

/// Waits until guest `a` runs.
fn running(run: Mkvmm) -> Running {
    let mut run = run.spawn();
    run.wait_for_lines("probe: pass", 1);
    run
}

#[test]
fn the_result_says_how_the_guests_have_ended() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let run = with_result(&scratch, "cmdline=end=poweroff").finish();
    run.expect_code(0);
    let ended = result(&scratch);
    assert_eq!(ended["status"], 0);
    assert_eq!(ended["reason"], "poweroff");
    assert_eq!(
        (&ended["boots"], &ended["error"]),
        (&1.into(), &Value::Null)
    );
    let guest = &ended["guests"][0];
    assert_eq!(
        (&guest["name"], &guest["state"]),
        (&"a".into(), &"stopped".into())
    );
    assert!(guest["vcpu_seconds"].as_f64().unwrap() > 0.0, "{ended:#}");
    let console = guest["console"].as_str().unwrap();
    assert!(console.contains("probe: pass"), "{console}");

    let run = with_result(&scratch, "cmdline=end=panic").finish();
    run.expect_code(6);
    let ended = result(&scratch);
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&6.into(), &"panic".into())
    );
}

#[test]
fn a_run_that_is_refused_has_a_result_with_the_error() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let run = with_result(&scratch, "cpus=2").guest("name=b,memory=9M,kernel=probe");
    run.finish().expect_refusal(5);
    let ended = result(&scratch);
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&5.into(), &Value::Null)
    );
    assert!(
        ended["error"].as_str().unwrap().starts_with("error: "),
        "{ended:#}"
    );
    assert_eq!(ended["guests"], Value::Array(Vec::new()));

    let nowhere = Mkvmm::run("16M")
        .guest("name=a,kernel=probe,memory=8M")
        .arg("--result")
        .arg("/no/such/directory/result");
    nowhere.finish().expect_refusal(3);
}

#[test]
fn an_end_by_signal_is_told_apart() {
    if skips_without_kvm() {
        return;
    }
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let scratch = Scratch::new();
        let run = running(with_result(&scratch, "cmdline=spin"));
        // It is empty as long as nothing is known.
        assert_eq!(fs::read(scratch.path("result")).unwrap(), b"");
        run.signal(signal);
        run.wait().expect_code(code);
        let ended = result(&scratch);
        assert_eq!(
            (&ended["status"], &ended["reason"]),
            (&code.into(), &"killed".into())
        );
    }
}

#[test]
fn a_guest_whose_process_was_lost_may_be_run_again() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let run = running(with_result(&scratch, "cmdline=spin"));
    let workers = run.children_named("mkvmm-worker");
    kill_process(workers[0], Signal::KILL).unwrap();
    run.wait().expect_code(75);
    let ended = result(&scratch);
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&75.into(), &"vmm".into())
    );
}

#[test]
fn grace_is_for_guests_that_hear_their_power_button() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // This guest does not: it is killed in the end, and not before.
    let spinning = with_result(&scratch, "cmdline=spin")
        .arg("--grace")
        .arg("1s");
    let run = running(spinning);
    let sent = std::time::Instant::now();
    run.signal(Signal::TERM);
    run.wait().expect_code(143);
    assert!(sent.elapsed() >= std::time::Duration::from_secs(1));
    assert_eq!(result(&scratch)["reason"], "killed");
    // A second signal does not wait.
    let patient = with_result(&scratch, "cmdline=spin")
        .arg("--grace")
        .arg("1h");
    let run = running(patient);
    run.signal(Signal::TERM);
    // So that it has seen the first one before the second.
    std::thread::sleep(std::time::Duration::from_secs(1));
    run.signal(Signal::TERM);
    run.wait().expect_code(143);
}

#[test]
fn consoles_that_nobody_reads_do_not_keep_a_job_longer_than_its_grace() {
    if skips_without_kvm() {
        return;
    }
    let mut run = (0..12)
        .fold(Mkvmm::run("64M@0x100000000"), |run, i| {
            run.guest(format!("name=s{i},kernel=probe,memory=4M,cmdline=spin"))
        })
        .arg("--grace")
        .arg("200ms")
        .stdout(Stdout::Unread)
        .spawn();
    run.wait_for_full_pipe();
    run.signal(Signal::TERM);
    run.wait().expect_code(143);
}

/// Returns a dry run whose pool is that of its job.
fn in_job(variables: &[&str]) -> Mkvmm {
    let mut wrapper = vec!["env", "-u", "SLURM_MEM_PER_NODE", "-u", "SLURM_MEM_PER_CPU"];
    wrapper.extend(variables);
    Mkvmm::run("job@4G")
        .guest("name=a,kernel=probe,memory=8M")
        .show()
        .arg("--dry-run")
        .by(wrapper)
}

#[test]
fn the_pool_of_a_job_is_what_slurm_has_granted() {
    if skips_without_kvm() {
        return;
    }
    let run = in_job(&[&format!("SLURM_MEM_PER_NODE={JOB_MIB}")]).finish();
    run.expect_code(0);
    assert!(run.stderr.contains(POOL), "{run}");
    let per_cpu = ["SLURM_MEM_PER_CPU=16", "SLURM_CPUS_ON_NODE=4"];
    let run = in_job(&per_cpu).finish();
    run.expect_code(0);
    assert!(run.stderr.contains(POOL), "{run}");
    let run = in_job(&["SLURM_MEM_PER_NODE=8"]).finish();
    assert!(
        run.expect_refusal(2).contains("limits this job to 8M"),
        "{run}"
    );
    let serve = Mkvmm::new(["serve", "--pool", "job"]).finish();
    assert!(serve.expect_refusal(2).contains("`run`"), "{serve}");
}

/// A memory cgroup of this test's own, removed when this is dropped.
struct Limited(PathBuf);

impl Limited {
    /// Makes one with a limit in bytes, in either version.
    fn new(limit: &str) -> Option<Self> {
        for (top, file) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ] {
            let dir = PathBuf::from(top).join(format!("mkvmm-job-{}", std::process::id()));
            if fs::create_dir(&dir).is_ok() {
                let made = Self(dir);
                if fs::write(made.0.join(file), limit).is_ok() {
                    return Some(made);
                }
            }
        }
        None
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_pool_of_a_job_fits_into_its_cgroup() {
    if skips_without_kvm() {
        return;
    }
    let Some(limited) = Limited::new(&(64 << 20).to_string()) else {
        skip("no memory cgroup can be made here");
        return;
    };
    let enter = format!("echo $$ > {}/cgroup.procs", limited.0.display());
    // All of the pool is populated, which the kernel would kill if it were too much.
    let run = Mkvmm::run("job@4G")
        .guest("name=a,kernel=probe,memory=8M")
        .guest("name=b,kernel=probe,memory=8M,cpus=4")
        .arg("--prealloc")
        .show()
        .after(&enter)
        .finish();
    run.expect_code(0);
    // Two guests and three more vCPUs: 64 MiB less 6, 4, 0.75 and 0.5, in whole 2 MiB.
    assert!(
        run.stderr.contains("100000000-1033fffff : Multikernel"),
        "{run}"
    );
}
