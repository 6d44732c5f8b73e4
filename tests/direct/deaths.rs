//! The rows of docs/ends.md: how a guest ended, by what it did and what its
//! kernel had said before.

use std::fs;

use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Scratch, root};

/// `mov dx, port; mov al, value; out dx, al; hlt`, in a loop.
fn outb(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd]
}

/// `mov dx, 0x604; mov ax, 0x3400; out dx, ax`: SLP_TYP 5 and SLP_EN.
const SOFT_OFF: &[u8] = &[
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xeb, 0xfe,
];

const PANIC: &str = "[    1.234567] Kernel panic - not syncing: hung_task: blocked tasks\n";
const STANDS: &str =
    "[    1.3] ---[ end Kernel panic - not syncing: hung_task: blocked tasks ]---\n";
const VERSION: &str = "[    0.000000] Linux version 6.1.0-56-cloud-amd64\n";
const RESTARTS: &str = "[   99.000000] reboot: Restarting system\n";
const HALTS: &str = "[   99.000000] reboot: System halted\n";

/// A row of the first two tables.
struct Row {
    name: &'static str,
    says: String,
    does: Vec<u8>,
    end: &'static str,
    status: i32,
    /// The policy that applies, and no other.
    policy: Option<&'static str>,
}

fn rows() -> Vec<Row> {
    let row = |name, says: &[&str], does: &[u8], end, policy| Row {
        name,
        says: says.concat(),
        does: does.to_vec(),
        end,
        status: if str::starts_with(end, "failed") {
            6
        } else {
            0
        },
        policy,
    };
    let (cf9, pvpanic) = (outb(0xcf9, 6), outb(0x505, 1));
    let (reboot, panic) = (Some("on-reboot"), Some("on-panic"));
    let shown = [PANIC, STANDS, "# ", RESTARTS];
    vec![
        row("i8042", &[], code::RESET, "stopped (reboot)", reboot),
        row("cf9", &[], &cf9, "stopped (reboot)", reboot),
        row("triple", &[], code::CRASH, "failed (triple-fault)", None),
        row("soft-off", &[], SOFT_OFF, "stopped (poweroff)", None),
        row("halt", &[], code::HALT, "stopped (halt)", None),
        row("pvpanic", &[], &pvpanic, "failed (panic)", panic),
        // Memory of the pool that it does not own.
        row(
            "violation",
            &[],
            &code::attack(0x1_0180_0000),
            "failed (violation)",
            None,
        ),
        row(
            "panic-i8042",
            &[PANIC],
            code::RESET,
            "failed (panic)",
            panic,
        ),
        row("panic-cf9", &[PANIC], &cf9, "failed (panic)", panic),
        row(
            "panic-triple",
            &[PANIC],
            code::CRASH,
            "failed (panic)",
            panic,
        ),
        row(
            "panic-soft-off",
            &[PANIC],
            SOFT_OFF,
            "failed (panic)",
            panic,
        ),
        row("panic-halt", &[PANIC], code::HALT, "failed (panic)", panic),
        row(
            "panic-stands",
            &[PANIC, STANDS],
            code::SPIN,
            "failed (panic)",
            panic,
        ),
        row(
            "panic-crash-kernel",
            &[PANIC, VERSION, RESTARTS],
            &cf9,
            "failed (panic)",
            panic,
        ),
        row(
            "orderly-i8042",
            &shown,
            code::RESET,
            "stopped (reboot)",
            reboot,
        ),
        row(
            "orderly-triple",
            &[RESTARTS],
            code::CRASH,
            "stopped (reboot)",
            reboot,
        ),
        row("orderly-halt", &[HALTS], code::HALT, "stopped (halt)", None),
    ]
}

impl Row {
    /// A launch of it, with `policies`.
    fn run(&self, scratch: &Scratch, policies: &str) -> Mkvmm {
        let code = [code::print(self.says.as_bytes()), self.does.clone()].concat();
        // Another launch of the row may be reading its file.
        let name = format!("{}-{}", self.name, policies.len());
        let kernel = scratch.file(&name, &elf(&code));
        Mkvmm::run("32M@0x100000000").guest(format!(
            "name=a,kernel={},memory=8M,violation=stop{policies}",
            kernel.display()
        ))
    }

    fn expect(&self, run: &Finished) {
        assert_eq!(run.code(), Some(self.status), "{}\n{run}", self.name);
        run.expect_said("a", self.end);
        let consoles = run.consoles(&["a"]);
        let said = self.says.lines().all(|line| consoles.has("a", line));
        assert!(said, "{}\n{run}", self.name);
    }
}

#[test]
fn every_end_has_the_reason_and_the_status_of_its_row() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // At the same time: some of them take seconds to be seen.
    let runs: Vec<_> = rows()
        .into_iter()
        .map(|row| (row.run(&scratch, "").spawn(), row))
        .collect();
    for (run, row) in runs {
        row.expect(&run.wait());
    }
}

#[test]
fn every_end_obeys_the_policy_of_its_row_and_no_other() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let policies = ["on-reboot", "on-panic"];
    let again = |row: &Row| {
        let own = row.policy.map(|policy| format!(",{policy}=restart"));
        row.run(&scratch, &own.unwrap_or_default()).spawn()
    };
    let others = |row: &Row| {
        let others = policies
            .into_iter()
            .filter(|policy| row.policy != Some(policy));
        let others: String = others.map(|other| format!(",{other}=restart")).collect();
        row.run(&scratch, &others).spawn()
    };
    let runs: Vec<_> = rows()
        .into_iter()
        .map(|row| (again(&row), others(&row), row))
        .collect();
    for (mut again, others, row) in runs {
        row.expect(&others.wait());
        if row.policy.is_some() {
            // The second end of it: it was booted again after the first.
            again.wait_until("a second end", |run| {
                run.stderr().matches(row.end).count() >= 2
            });
        } else {
            row.expect(&again.wait());
        }
    }
}

#[test]
fn the_documented_rows_are_those_that_are_tested() {
    let text = fs::read_to_string(root().join("docs/ends.md")).expect("it is there");
    let (of_probes, _of_linux) = text
        .split_once("## By what goes wrong")
        .expect("three parts");
    let documented = of_probes.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        let [.., end, status, policy, _] = cells.as_slice() else {
            return None;
        };
        let policy = (*policy != "none").then_some(*policy);
        Some(format!("{name} {end} {status} {policy:?}"))
    });
    let documented: Vec<String> = documented.collect();
    let tested = rows().into_iter().map(|row| {
        let policy = row.policy.map(|policy| format!("`{policy}`"));
        format!("{} `{}` {} {policy:?}", row.name, row.end, row.status)
    });
    assert_eq!(documented, tested.collect::<Vec<_>>());
}
