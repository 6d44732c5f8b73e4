//! The table: which guests out of which pool, and what must hold.
//!
//! A new scenario is a row here; a new property is a function in `checks` and
//! a row in a list of checks.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Failed, Trial};

use crate::checks;
use crate::launch::Launch;

/// One guest of a scenario.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// Which of Debian's kernels: `6.1` or `6.12`.
    pub kernel: &'static str,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// Its vCPUs.
    pub cpus: u32,
    /// What the spec has besides, beginning with a comma.
    pub more: &'static str,
}

/// One launch and what must hold of it.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, the first part of its tests' names.
    pub name: &'static str,
    /// `--pool`.
    pub pool: &'static str,
    /// The guests, all at the same time.
    pub guests: &'static [Guest],
    /// The exit status of mkvmm.
    pub status: i32,
    /// What must hold.
    pub checks: &'static [Check],
}

/// A property of a launch.
#[derive(Debug)]
pub struct Check {
    /// The last part of a test's name.
    pub name: &'static str,
    /// Panics where it does not hold.
    pub holds: fn(&Launch),
}

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        &[$(Check { name: stringify!($name), holds: checks::$name }),*]
    };
}

/// What holds of every launch of guests that boot and restart.
const EVERY: &[Check] = checks![
    all_guests_reach_their_init_and_end_well,
    each_guest_runs_the_kernel_it_was_given,
    bios_e820_equals_the_map_announced,
    firmware_memmap_equals_the_map_announced,
    system_ram_is_what_the_guest_was_given,
    the_rest_of_the_pool_is_reserved,
    memory_and_cpus_are_plausible,
    no_guest_touched_what_is_not_its_own,
];

/// Both of Debian's kernels at once.
const BOTH: &[Guest] = &[
    Guest {
        name: "deb61",
        kernel: "6.1",
        memory_mib: 256,
        cpus: 1,
        more: "",
    },
    Guest {
        name: "deb612",
        kernel: "6.12",
        memory_mib: 192,
        cpus: 1,
        more: "",
    },
];

/// All scenarios, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "pool_above_4_gib",
        pool: "1G@0x100000000",
        guests: BOTH,
        status: 0,
        checks: EVERY,
    },
    Scenario {
        name: "pool_below_the_hole",
        pool: "512M@0x40000000",
        guests: BOTH,
        status: 0,
        checks: EVERY,
    },
    Scenario {
        name: "pool_without_an_address",
        pool: "512M",
        guests: BOTH,
        status: 0,
        checks: EVERY,
    },
];

impl Scenario {
    /// The names of its tests.
    pub fn tests(&self) -> impl Iterator<Item = String> {
        let name = |check: &Check| format!("{}::{}", self.name, check.name);
        self.checks.iter().map(name)
    }
}

/// The tests of all scenarios. Each scenario is launched once, by the first of
/// its checks that runs.
pub fn trials(images: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for scenario in SCENARIOS {
        let launch: Arc<OnceLock<Result<Launch, String>>> = Arc::default();
        for (check, name) in scenario.checks.iter().zip(scenario.tests()) {
            let (launch, images) = (Arc::clone(&launch), images.to_owned());
            trials.push(Trial::test(name, move || {
                let launch = launch.get_or_init(|| Launch::of(scenario, &images));
                match launch {
                    Ok(launch) => (check.holds)(launch),
                    Err(why) => return Err(Failed::from(why)),
                }
                Ok(())
            }));
        }
    }
    trials
}
