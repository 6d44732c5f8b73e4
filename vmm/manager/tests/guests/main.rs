//! Tests of the manager as a library, with this very program as its workers.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use mkvmm_api::{ImagesSpec, KernelSource, Size};
use mkvmm_base::InstanceName;
use mkvmm_base::state::{EndReason, State};
use mkvmm_manager::config::InstanceConfig;
use mkvmm_test_harness::embedded::{self, ManagerSetup};

const MIB: u64 = 1 << 20;
/// If this variable is 1, tests that would be skipped fail.
const REQUIRE: &str = "MKVMM_REQUIRE_KVM";

fn main() -> ExitCode {
    if let Some(exit) = embedded::child() {
        return exit;
    }
    let mut arguments = Arguments::from_args();
    // Workers live as long as the thread that starts them.
    arguments.test_threads = Some(1);
    let tests = vec![Trial::ignorable_test("a_probe_runs_to_its_end", || {
        run(a_probe_runs_to_its_end())
    })];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Runs `test` if there is KVM.
fn run(test: impl Future<Output = ()>) -> Result<Completion, Failed> {
    let why = "there is no /dev/kvm";
    if Path::new("/dev/kvm").exists() {
        embedded::block_on(test);
        Ok(Completion::Completed)
    } else if env::var_os(REQUIRE).is_some_and(|value| value == "1") {
        Err(Failed::from(why))
    } else {
        Ok(Completion::ignored_with(why))
    }
}

async fn a_probe_runs_to_its_end() {
    let manager = ManagerSetup::new(256 * MIB).manager();
    let name: InstanceName = "a".parse().expect("a name");
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
    let id = created.expect("it fits");
    let state = |id| manager.registry().guest(id).map(|guest| guest.state());
    assert_eq!(state(id), Some(State::Loaded));
    manager.start(&name).await.expect("it starts");
    loop {
        let changed = manager.changed();
        if matches!(state(id), Some(State::Stopped | State::Failed)) {
            break;
        }
        changed.await;
    }
    {
        let registry = manager.registry();
        let guest = registry.guest(id).expect("nobody deletes it");
        let text = String::from_utf8_lossy(&guest.console().bytes()).into_owned();
        assert_eq!(guest.reason(), Some(EndReason::Reboot), "{text}");
        assert!(text.contains("probe: pass"), "{text}");
    }
    manager.delete(&name).await.expect("it has ended");
    assert_eq!(manager.registry().pool().avail(), 256 * MIB);
}
