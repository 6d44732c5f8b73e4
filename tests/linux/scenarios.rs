//! The table of guests, pools and the properties that must hold.
//!
//! A new scenario is a row here; a new property is a function in `checks`,
//! `kernel_checks` or `manifest_checks`, and a row in [`EVERY`].

use std::path::Path;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Failed, Trial};

use crate::guest::{Form, Guest, LARGE};
use crate::launch::Launch;
use crate::{
    channels, checks, deaths, devices, ends, kernel_checks, manifest_checks, pauses, rotation,
    session, survivor,
};

/// One launch and its properties.
#[derive(Debug)]
pub struct Scenario {
    /// The name of the scenario, which is the first part of its tests' names.
    pub name: &'static str,
    /// The value of `--pool`.
    pub pool: &'static str,
    /// The values of `--hold`.
    pub holds: &'static [&'static str],
    /// The guests, which run at the same time.
    pub guests: &'static [Guest],
}

/// A property of a launch.
#[derive(Debug)]
pub struct Check {
    /// The last part of a test's name.
    pub name: &'static str,
    /// Panics if the property does not hold.
    pub holds: fn(&Launch),
}

macro_rules! checks {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$(Check { name: stringify!($name), holds: $module::$name }),*]
    };
}

/// The properties of every launch.
const EVERY: &[Check] = checks![
    checks::all_guests_reach_their_init_and_end_as_asked,
    checks::each_guest_runs_the_kernel_it_was_given,
    checks::bios_e820_equals_the_map_announced,
    checks::firmware_memmap_equals_the_map_announced,
    checks::system_ram_is_what_the_guest_was_given,
    checks::the_rest_of_the_pool_is_reserved,
    checks::the_kernel_counts_every_page,
    checks::no_guest_touched_what_is_not_its_own,
    kernel_checks::each_guest_has_the_cpus_it_was_given,
    kernel_checks::the_kernel_runs_where_it_was_placed,
    kernel_checks::time_comes_from_kvm_clock,
    kernel_checks::entropy_is_ready_before_the_first_program,
    kernel_checks::the_acpi_tables_are_found,
    kernel_checks::a_large_initramfs_is_unpacked_whole,
    manifest_checks::the_manifest_names_the_instance,
    manifest_checks::the_manifest_equals_the_tree_announced,
    manifest_checks::the_manifest_has_the_images_exact_facts,
    rotation::linuxs_tools_find_what_is_there_and_nothing_else,
    rotation::a_guest_may_start_its_next_kernel_itself,
];

/// All scenarios, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    // This combines everything. The last guest gets what the others and the
    // holds have left: four times 8 MiB, and 96.
    Scenario {
        name: "pool_above_4_gib",
        pool: "1G@0x100000000",
        holds: &[
            "8M@0x130800000",
            "8M@0x131800000",
            "8M@0x132800000",
            "8M@0x133800000",
            "96M@0x13a000000",
        ],
        guests: &[
            Guest::new("large-initramfs", "6.1", 352).initramfs(LARGE),
            Guest::new("elf-4-cpus", "6.12", 160)
                .form(Form::Elf)
                .cpus(4)
                .end("poweroff"),
            Guest::new("unpacks-itself", "6.12", 160).form(Form::InGuest),
            Guest::new("small", "6.1", 96).end("poweroff"),
            Guest::new("fragmented", "6.1", 128).regions(5),
        ],
    },
    Scenario {
        name: "pool_below_the_hole",
        pool: "512M@0x40000000",
        holds: &[],
        guests: &[
            Guest::new("deb61", "6.1", 256).form(Form::Elf).cpus(4),
            Guest::new("deb612", "6.12", 192),
        ],
    },
    Scenario {
        name: "pool_without_an_address",
        pool: "512M",
        holds: &[],
        guests: &[
            Guest::new("deb61", "6.1", 192).form(Form::InGuest),
            Guest::new("deb612", "6.12", 256),
        ],
    },
];

/// The test of the control socket.
const SESSION: &str = "session::three_guests_from_an_empty_pool_to_an_empty_pool";

/// The test of a Debian with all devices.
const DEVICES: &str = "devices::a_debian_works_with_its_disks_networks_and_consoles";
/// The test of two that exchange messages.
const CHANNELS: &str = "channels::two_guests_talk_by_uio_and_one_is_killed_and_comes_back";
/// The test of one that goes on beside four deaths.
const SURVIVOR: &str = "survivor::four_die_in_four_ways_and_the_fifth_never_notices";
/// The test of pauses.
const PAUSES: &str = "pauses::guests_do_not_notice_that_they_were_paused";

/// Returns the fixed scenarios and those of the kernels of this run.
fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    SCENARIOS.iter().chain(rotation::scenarios())
}

/// Returns the names of all tests, in the order in which they run.
pub fn tests() -> impl Iterator<Item = String> {
    let of_launch = |scenario: &'static Scenario| {
        let launch = scenario.name;
        EVERY.iter().map(move |c| format!("{launch}::{}", c.name))
    };
    let of_ends = ends::CHECKS.iter().map(|c| format!("ends::{}", c.name));
    let of_deaths = deaths::CHECKS.iter().map(|c| format!("deaths::{}", c.name));
    let all = scenarios()
        .flat_map(of_launch)
        .chain(of_ends)
        .chain(of_deaths);
    all.chain([PAUSES, SESSION, DEVICES, CHANNELS, SURVIVOR].map(str::to_owned))
}

/// Returns all tests. Each scenario is launched once, by the first of its
/// checks that runs.
pub fn trials(images: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for scenario in scenarios() {
        let images = images.to_owned();
        let launch = shared(move || Launch::of(scenario, &images));
        for check in EVERY {
            let launch = Arc::clone(&launch);
            let name = format!("{}::{}", scenario.name, check.name);
            trials.push(Trial::test(name, move || launch(&check.holds)));
        }
    }
    let images = images.to_owned();
    let of_ends = images.clone();
    let ends = shared(move || ends::Ends::watch(&of_ends));
    for check in ends::CHECKS {
        let ends = Arc::clone(&ends);
        let name = format!("ends::{}", check.name);
        trials.push(Trial::test(name, move || ends(&check.holds)));
    }
    let of_deaths = images.clone();
    let deaths = shared(move || deaths::Deaths::watch(&of_deaths));
    for check in deaths::CHECKS {
        let deaths = Arc::clone(&deaths);
        let name = format!("deaths::{}", check.name);
        trials.push(Trial::test(name, move || deaths(&check.holds)));
    }
    let of_pauses = images.clone();
    trials.push(Trial::test(PAUSES, move || {
        pauses::guests_do_not_notice_that_they_were_paused(&of_pauses);
        Ok(())
    }));
    let of_session = images.clone();
    trials.push(Trial::test(SESSION, move || {
        session::three_guests_from_an_empty_pool_to_an_empty_pool(&of_session);
        Ok(())
    }));
    let of_devices = images.clone();
    trials.push(Trial::test(DEVICES, move || {
        devices::a_debian_works_with_its_disks_networks_and_consoles(&of_devices);
        Ok(())
    }));
    let of_channels = images.clone();
    trials.push(Trial::test(CHANNELS, move || {
        channels::two_guests_talk_by_uio_and_one_is_killed_and_comes_back(&of_channels);
        Ok(())
    }));
    trials.push(Trial::test(SURVIVOR, move || {
        survivor::four_die_in_four_ways_and_the_fifth_never_notices(&images);
        Ok(())
    }));
    trials
}

/// A value that several checks examine.
type Shared<T> = Arc<dyn Fn(&dyn Fn(&T)) -> Result<(), Failed> + Send + Sync>;

/// Creates the value when the first check needs it.
fn shared<T: Send + Sync + 'static>(
    make: impl Fn() -> Result<T, String> + Send + Sync + 'static,
) -> Shared<T> {
    let made = OnceLock::new();
    Arc::new(move |check| match made.get_or_init(&make) {
        Ok(value) => {
            check(value);
            Ok(())
        }
        Err(why) => Err(Failed::from(why)),
    })
}
