//! Confines a child according to the environment that its parent set.

use std::env;
use std::str::FromStr;

use mkvmm_sandbox::{Confinement, Identity, Mode, Profile};

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

/// Confines this process as the variables specify. It must have one thread and
/// must not have read any input yet.
pub fn confine(profile: Profile, variables: Lookup<'_>) -> Result<(), Failure> {
    let mut confinement = Confinement::new(profile);
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
