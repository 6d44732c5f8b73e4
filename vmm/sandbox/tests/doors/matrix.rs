//! Tries every door under every combination of layers that a promise names.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::{Confinement, Layers, Mode, Profile};

use crate::door::{DOORS, Door, Holder, LOOKING_IN, holders_of_helper};
use crate::setup::{Role, Setup, User};
use crate::syscall::call;
use crate::victim::Victim;

use Holder::{Dumpable, Landlock, Privileges, Seccomp};

/// The Landlock version that closes all doors which it is claimed to close.
const LANDLOCK_WANTED: usize = 6;
/// The first version that also covers connections to a path.
const LANDLOCK_OF_PATHS: usize = 9;

/// The layers that are on, and the mode of the filter.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    on: &'static [Holder],
    mode: Mode,
}

const fn case(name: &'static str, on: &'static [Holder]) -> Case {
    let mode = Mode::Kill;
    Case { name, on, mode }
}

const CASES: [Case; 11] = [
    case("all_kill", &[Seccomp, Landlock, Dumpable, Privileges]),
    Case {
        name: "all_errno",
        on: &[Seccomp, Landlock, Dumpable, Privileges],
        mode: Mode::Errno,
    },
    case("without_seccomp", &[Landlock, Dumpable, Privileges]),
    case("without_landlock", &[Seccomp, Dumpable, Privileges]),
    case("without_dumpable", &[Seccomp, Landlock, Privileges]),
    case("without_privileges", &[Seccomp, Landlock, Dumpable]),
    case("seccomp_alone", &[Seccomp, Privileges]),
    case("landlock_alone", &[Landlock, Privileges]),
    case("dumpable_alone", &[Dumpable, Privileges]),
    // The control case: same user ID, no layers. Doors that can open do open.
    case("control", &[Privileges]),
    case("control_as_root", &[]),
];

/// The processes of an attack.
#[derive(Clone, Copy)]
struct Sides {
    attacker: Profile,
    victim: Profile,
}

/// Returns one test per user, kind of attacker and victim, and case.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for &user in User::available() {
        for (attacker, victim) in [
            (Profile::Worker, Profile::Manager),
            (Profile::Worker, Profile::Worker),
            (Profile::Helper, Profile::Manager),
        ] {
            // An ordinary user has no privileges that could be left on.
            let of_user = |case: &&Case| user == User::Dropped || case.on.contains(&Privileges);
            // No helper is killed by its filter.
            let of_attacker = |case: &&Case| attacker == Profile::Worker || case.name != "all_kill";
            for case in CASES.iter().filter(of_user).filter(of_attacker) {
                let user_name = format!("{user:?}").to_lowercase();
                let name = case.name;
                let name = format!("doors::{user_name}::{name}::{attacker}_at_{victim}");
                let sides = Sides { attacker, victim };
                let mode = match attacker {
                    Profile::Worker => case.mode,
                    _ => Mode::Errno,
                };
                let case = Case { mode, ..*case };
                trials.push(Trial::test(name, move || all_doors(user, sides, &case)));
            }
        }
    }
    trials
}

fn all_doors(user: User, sides: Sides, case: &Case) -> Result<(), Failed> {
    let mut wrong = Vec::new();
    // For root the doors for everybody are different ones; its cases only have
    // to show that dropping privileges matters.
    let of_case = |door: &&Door| !case.on.is_empty() || door.holders.contains(&Privileges);
    for door in DOORS.iter().filter(of_case) {
        let seen = try_door(user, sides, case, door)?;
        if let Err(message) = judge(sides.attacker, case, door, &seen) {
            wrong.push(format!("{}: {message}", door.name));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(wrong.join("\n").into())
}

/// The result of an attempt.
#[derive(Debug)]
enum Seen {
    Opened(String),
    Refused(i32),
    Killed,
}

/// Compares the result with what the layers promise.
fn judge(attacker: Profile, case: &Case, door: &Door, seen: &Seen) -> Result<(), String> {
    let by_filter = case.on.contains(&Seccomp);
    let held = holders(attacker, door)
        .iter()
        .any(|holder| case.on.contains(holder));
    match seen {
        Seen::Opened(how) if held => Err(format!("OPENED ({how})")),
        Seen::Opened(_) => Ok(()),
        Seen::Killed if by_filter && case.mode == Mode::Kill && !door.falls_back => Ok(()),
        Seen::Killed => Err("killed, though not by intent".to_owned()),
        Seen::Refused(errno) if by_filter && case.mode == Mode::Kill && !door.falls_back => {
            Err(format!("refused with error {errno} instead of SIGSYS"))
        }
        Seen::Refused(_) if held => Ok(()),
        Seen::Refused(errno) if closed_by_host(door, *errno) => Ok(()),
        Seen::Refused(errno) => Err(format!("error {errno}, but nothing should hold it")),
    }
}

/// Returns the layers that close a door on this kernel.
fn holders(attacker: Profile, door: &Door) -> Vec<Holder> {
    let version = landlock_version();
    let mut holders = match attacker {
        Profile::Worker => door.holders.to_vec(),
        _ => holders_of_helper(door).to_vec(),
    };
    if version < LANDLOCK_WANTED {
        holders.retain(|holder| *holder != Landlock);
    }
    if version >= LANDLOCK_OF_PATHS && door.name == "connect_path" {
        holders.push(Landlock);
    }
    holders
}

/// Returns the kernel's Landlock version; 0 if it has none.
pub fn landlock_version() -> usize {
    let version_flag = 1;
    call(libc::SYS_landlock_create_ruleset, [0, 0, version_flag]).unwrap_or(0)
}

/// Returns whether the host itself closes a door: its kernel lacks the system
/// call, or its administrator disabled it for everybody.
fn closed_by_host(door: &Door, errno: i32) -> bool {
    let set = |path: &str, open: &str| fs::read_to_string(path).is_ok_and(|is| is.trim() != open);
    let closed = door.absent == Some(errno)
        || door.holders == LOOKING_IN && set("/proc/sys/kernel/yama/ptrace_scope", "0")
        || door.name == "io_uring_openat" && set("/proc/sys/kernel/io_uring_disabled", "0")
        || door.name == "unshare_user" && set("/proc/sys/kernel/unprivileged_userns_clone", "1");
    if closed {
        println!("{}: shut on this host by itself, error {errno}", door.name);
    }
    closed
}

/// Starts a victim and an attacker, and returns the result of the attempt.
fn try_door(user: User, sides: Sides, case: &Case, door: &Door) -> io::Result<Seen> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut setup = Setup::new("victim", sides.victim, user);
    setup.debuggable = !case.on.contains(&Dumpable);
    let mut victim = Victim::start(&setup, NUMBER.fetch_add(1, Ordering::Relaxed))?;

    let target = &victim.target;
    let attacker = Setup {
        mode: case.mode,
        layers: Layers {
            identity: case.on.contains(&Privileges),
            capabilities: case.on.contains(&Privileges),
            landlock: case.on.contains(&Landlock),
            seccomp: case.on.contains(&Seccomp),
            ..Layers::ALL
        },
        ..Setup::new("attacker", sides.attacker, user)
    };
    let attacker = attacker.word(door.name).word(target.pid);
    let attacker = attacker.word(target.secret).word(&target.socket);
    let output = attacker.command().stderr(Stdio::inherit()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match victim.harm()? {
        Some(harm) => Ok(Seen::Opened(format!("the victim {harm}"))),
        None => interpret(output.status, &said),
    }
}

fn interpret(status: ExitStatus, said: &str) -> io::Result<Seen> {
    if status.signal() == Some(libc::SIGSYS) {
        return Ok(Seen::Killed);
    }
    let odd = || {
        io::Error::other(format!(
            "the attacker ended with {status} and said {said:?}"
        ))
    };
    match said.trim().split_once(' ') {
        Some(("refused", errno)) => Ok(Seen::Refused(errno.parse().map_err(io::Error::other)?)),
        Some(("opened", how)) => Ok(Seen::Opened(how.to_owned())),
        // Another program was executed, which printed nothing and succeeded.
        None if said.is_empty() && status.success() => {
            Ok(Seen::Opened("another program ran".to_owned()))
        }
        _ => Err(odd()),
    }
}

/// The main function of the attacker's process.
pub fn attack(role: &Role) -> io::Result<()> {
    let name: String = role.word(0);
    let target = crate::door::Target {
        pid: role.word(1),
        secret: role.word(2),
        socket: role.word(3),
    };
    let door = DOORS.iter().find(|door| door.name == name);
    let door = door.ok_or_else(|| io::Error::other("no such door"))?;
    let attempt = (door.prepare)(&target)?;
    if role.confinement.profile == Profile::Helper && role.confinement.layers.seccomp {
        inherit_filter(role)?;
    }
    role.enter();
    let words = match attempt() {
        Ok(()) => "opened as asked\n".to_owned(),
        Err(error) => format!("refused {}\n", error.raw_os_error().unwrap_or(0)),
    };
    io::stdout().write_all(words.as_bytes())
}

/// Installs the filter that a helper has from its manager.
fn inherit_filter(role: &Role) -> io::Result<()> {
    let manager = Confinement {
        mode: role.confinement.mode,
        layers: Layers {
            seccomp: true,
            ..Layers::NONE
        },
        ..Confinement::new(Profile::Manager)
    };
    manager.enter().map(drop).map_err(io::Error::other)
}
