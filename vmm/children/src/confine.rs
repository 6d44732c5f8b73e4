//! Confines a child according to the environment that its parent set.

use std::env;
use std::str::FromStr;

use mkvmm_machine::worker::Rings;
use mkvmm_sandbox::{Confinement, DiskCalls, Identity, Mode, Profile};
use mkvmm_wire::devices::{DISK_RINGS_VARIABLE, DISK_THREADS_VARIABLE};

use crate::failure::Failure;

/// The variable with the response to forbidden system calls: `kill` (the
/// default), `errno`, `log` or `off`.
pub const SANDBOX_VARIABLE: &str = "MKVMM_SANDBOX";
/// The variable that, set to `1`, lets processes of the same user inspect this
/// one.
pub const DEBUGGABLE_VARIABLE: &str = "MKVMM_DEBUGGABLE";
/// The variable with the user ID to which a child of root changes.
pub const UID_VARIABLE: &str = "MKVMM_UID";
/// The variable with the group ID to which a child of root changes.
pub const GID_VARIABLE: &str = "MKVMM_GID";

/// Finds the value of a variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Finds variables in the environment.
pub fn environment(variable: &str) -> Option<String> {
    env::var(variable).ok()
}

/// Makes the rings that the variables request, and confines this process, a
/// worker, so that it can use them.
pub fn confine_worker(variables: Lookup<'_>) -> Result<Rings, Failure> {
    let wanted = number(variables, DISK_RINGS_VARIABLE)?.unwrap_or(0);
    let rings = Rings::prepare(wanted);
    let disks = DiskCalls {
        rings: rings.count() > 0,
        // Threads do what there is no ring for.
        threads: rings.count() < wanted
            || variables(DISK_THREADS_VARIABLE).is_some_and(|value| value == "1"),
    };
    confine_with(Profile::Worker, variables, disks)?;
    Ok(rings)
}

/// Confines this process as the variables specify. It must have one thread and
/// must not have read any input yet.
pub fn confine(profile: Profile, variables: Lookup<'_>) -> Result<(), Failure> {
    confine_with(profile, variables, DiskCalls::default())
}

fn confine_with(profile: Profile, variables: Lookup<'_>, disks: DiskCalls) -> Result<(), Failure> {
    let mut confinement = Confinement::new(profile);
    confinement.disks = disks;
    confinement.mode = mode(variables)?;
    confinement.debuggable = variables(DEBUGGABLE_VARIABLE).is_some_and(|value| value == "1");
    let number = |variable| number(variables, variable);
    let (uid, gid) = (number(UID_VARIABLE)?, number(GID_VARIABLE)?);
    confinement.identity = uid.zip(gid).map(|(uid, gid)| Identity { uid, gid });
    confinement.parent = rustix::process::getppid();
    // rustix looks up the vDSO at its first use of a clock, by calls that are
    // forbidden afterwards.
    mkvmm_base::timeline::monotonic();
    confinement.enter()?;
    Ok(())
}

fn mode(variables: Lookup<'_>) -> Result<Mode, Failure> {
    let Some(value) = variables(SANDBOX_VARIABLE) else {
        return Ok(Mode::Kill);
    };
    Ok(match value.as_str() {
        "kill" => Mode::Kill,
        "errno" => Mode::Errno,
        "log" => Mode::Log,
        "off" => Mode::Off,
        _ => {
            let variable = SANDBOX_VARIABLE;
            return Err(Failure::Variable { variable, value });
        }
    })
}

fn number<T: FromStr>(variables: Lookup<'_>, variable: &'static str) -> Result<Option<T>, Failure> {
    let Some(value) = variables(variable) else {
        return Ok(None);
    };
    let wrong = |value| Failure::Variable { variable, value };
    value.parse().map(Some).or(Err(wrong(value)))
}
