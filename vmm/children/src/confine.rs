//! How a child is confined, by what its parent put into its environment.

use std::env;
use std::str::FromStr;

use mkvmm_sandbox::{Confinement, Identity, Mode, Profile};

use crate::failure::Failure;

/// How refused system calls are answered: `kill` (the default), `errno`, `log`
/// or `off`.
pub const SANDBOX_VARIABLE: &str = "MKVMM_SANDBOX";
/// Set to `1`, processes of the same user may look into this one.
pub const DEBUGGABLE_VARIABLE: &str = "MKVMM_DEBUGGABLE";
/// The user id that a child of root continues with.
pub const UID_VARIABLE: &str = "MKVMM_UID";
/// The group id that goes with it.
pub const GID_VARIABLE: &str = "MKVMM_GID";

/// Finds the value of a variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Finds variables in the environment.
pub fn environment(variable: &str) -> Option<String> {
    env::var(variable).ok()
}

/// Confines this process, which has one thread and has looked at nothing yet,
/// as the variables say.
pub fn confine(profile: Profile, variables: Lookup<'_>) -> Result<(), Failure> {
    let mut confinement = Confinement::new(profile);
    confinement.mode = mode(variables)?;
    confinement.debuggable = variables(DEBUGGABLE_VARIABLE).is_some_and(|value| value == "1");
    let number = |variable| number(variables, variable);
    let (uid, gid) = (number(UID_VARIABLE)?, number(GID_VARIABLE)?);
    confinement.identity = uid.zip(gid).map(|(uid, gid)| Identity { uid, gid });
    confinement.parent = rustix::process::getppid();
    // rustix looks for the vDSO at its first use of a clock, by calls that are
    // refused afterwards.
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
