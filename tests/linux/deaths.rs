//! What goes wrong in a Linux, and how its instance ends: the third table of
//! docs/ends.md, all of it at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mkvmm_test_harness::{Consoles, Finished, Mkvmm, root};

use crate::guest::{LARGE, SMALL};
use crate::launch::TIMEOUT;

/// A row of the table.
struct Row {
    name: &'static str,
    kernel: &'static str,
    initramfs: Option<&'static str>,
    memory_mib: u64,
    /// Behind the default command line.
    cmdline: &'static str,
    /// What its console says.
    says: &'static str,
    end: &'static str,
}

const DEFAULT: &str = mkvmm_base::cmdline::DEFAULT_LINUX;
const PANIC: &str = "failed (panic)";
const KILLED_INIT: &str = "Kernel panic - not syncing: Attempted to kill init!";
const REBOOT: &str = "reboot: Restarting system";

/// Rows that need nothing but a panic in the first program, or a reboot by it.
const fn row(name: &'static str, cmdline: &'static str, says: &'static str) -> Row {
    Row {
        name,
        kernel: "6.1",
        initramfs: Some(SMALL),
        memory_mib: 112,
        cmdline,
        says,
        end: PANIC,
    }
}

impl Row {
    const fn reboots(self) -> Self {
        Self {
            end: "stopped (reboot)",
            ..self
        }
    }

    const fn of_612(self) -> Self {
        Self {
            kernel: "6.12",
            memory_mib: 128,
            ..self
        }
    }

    fn spec(&self, images: &Path) -> String {
        let file = |name: String| -> PathBuf { images.join(name) };
        let kernel = file(format!("vmlinuz-{}", self.kernel));
        let initramfs = self.initramfs.map(|name| file(name.to_owned()));
        let initramfs = initramfs.map(|path| format!("initrd={},", path.display()));
        format!(
            "name={},kernel={},{}memory={}M,cmdline={DEFAULT} quiet {}",
            self.name,
            kernel.display(),
            initramfs.unwrap_or_default(),
            self.memory_mib,
            self.cmdline
        )
    }
}

const ROWS: &[Row] = &[
    Row {
        initramfs: None,
        ..row("no-root", "", "VFS: Unable to mount root fs")
    },
    row("no-init", "rdinit=/none", "VFS: Unable to mount root fs"),
    row("init-dies", "rdinit=/bin/false", KILLED_INIT).of_612(),
    Row {
        initramfs: Some(LARGE),
        memory_mib: 208,
        ..row(
            "deadlock",
            "rootfstype=ramfs",
            "System is deadlocked on memory",
        )
    },
    row("early", "mem=1M", "Kernel panic - not syncing"),
    row(
        "panic-0",
        "rdinit=/bin/false panic=0",
        "---[ end Kernel panic",
    )
    .of_612(),
    row("reboot-kbd", "rdinit=/bin/false reboot=k", KILLED_INIT),
    row("reboot-pci", "rdinit=/bin/false reboot=p", KILLED_INIT).of_612(),
    row("reboot-triple", "rdinit=/bin/false reboot=t", KILLED_INIT),
    row(
        "sysrq-pvpanic",
        "mkvmm.brief mkvmm.end=panic",
        "sysrq triggered crash",
    ),
    row(
        "hung-task",
        "mkvmm.brief mkvmm.end=hung",
        "hung_task: blocked tasks",
    )
    .of_612(),
    row("orderly-kbd", "mkvmm.brief reboot=k", REBOOT).reboots(),
    row("orderly-pci", "mkvmm.brief reboot=p", REBOOT)
        .of_612()
        .reboots(),
    row("orderly-triple", "mkvmm.brief reboot=t", REBOOT).reboots(),
];

/// A property of what was watched.
pub struct Check {
    /// The last part of a test's name.
    pub name: &'static str,
    /// Panics where it does not hold.
    pub holds: fn(&Deaths),
}

/// What must hold.
pub const CHECKS: &[Check] = &[
    Check {
        name: "each_guest_says_what_went_wrong_and_ends_for_that_reason",
        holds: each_guest_says_what_went_wrong_and_ends_for_that_reason,
    },
    Check {
        name: "the_documented_rows_are_those_that_are_tested",
        holds: the_documented_rows_are_those_that_are_tested,
    },
];

/// What became of them.
pub struct Deaths {
    run: Finished,
    consoles: Consoles,
    /// The repository's document, which an emulated host does not have.
    document: String,
}

impl Deaths {
    /// Launches all of them, and waits for the last end.
    ///
    /// # Errors
    /// When that could not be watched.
    pub fn watch(images: &Path) -> Result<Self, String> {
        let started = Instant::now();
        let run = Mkvmm::run("2G@0x100000000").timeout(TIMEOUT);
        let guests = ROWS.iter().map(|row| row.spec(images));
        let run = guests.fold(run, Mkvmm::guest).finish();
        eprintln!(
            "linux: deaths took {:.1} s",
            started.elapsed().as_secs_f64()
        );
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        let consoles = Consoles::parse(&run.stdout, &names);
        let document = root().join("docs/ends.md");
        Ok(Self {
            consoles: consoles.map_err(|why| format!("{why}\n{run}"))?,
            run,
            document: fs::read_to_string(document).map_err(|error| error.to_string())?,
        })
    }
}

fn each_guest_says_what_went_wrong_and_ends_for_that_reason(deaths: &Deaths) {
    let run = &deaths.run;
    let mut wrong = Vec::new();
    for row in ROWS {
        let end = format!("{}: {}", row.name, row.end);
        let ended = run.stderr.lines().any(|line| line.contains(&end));
        let mut said = deaths.consoles.of(row.name).iter();
        if !ended || !said.any(|line| line.contains(row.says)) {
            wrong.push(row.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}\n{run}");
    run.expect_code(6);
}

fn the_documented_rows_are_those_that_are_tested(deaths: &Deaths) {
    let (_, table) = deaths
        .document
        .split_once("## By what goes wrong")
        .expect("the table");
    let documented = table.lines().flat_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, names, _, says, end, _] = cells.as_slice() else {
            return Vec::new();
        };
        let row = |name: &str| format!("{} {says} {end}", name.trim());
        names
            .split(',')
            .filter(|n| n.contains('`'))
            .map(row)
            .collect()
    });
    let documented: Vec<String> = documented.collect();
    assert_eq!(documented.len(), ROWS.len(), "{documented:#?}");
    for row in ROWS {
        let start = format!("`{}` ", row.name);
        let end = format!(" `{}`", row.end);
        let found = documented.iter().find(|line| line.starts_with(&start));
        let found = found.unwrap_or_else(|| panic!("{} is not documented", row.name));
        assert!(found.ends_with(&end), "{found}");
    }
}
