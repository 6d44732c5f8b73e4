//! Checks that report what they found, and the users for whom tests run.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use libtest_mimic::Failed;

use crate::setup::{Setup, User};

/// Returns the first user as which this process can run tests.
pub fn any_user() -> User {
    User::available()[0]
}

pub fn check(holds: bool, what: impl Into<Failed>) -> Result<(), Failed> {
    match holds {
        true => Ok(()),
        false => Err(what.into()),
    }
}

pub fn expect<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), Failed> {
    match (found, expected) {
        (found, expected) if found == expected => Ok(()),
        (found, expected) => Err(format!("found {found:?}, expected {expected:?}").into()),
    }
}

/// Runs one role to its end and returns its signal and its output.
pub fn outcome_of(setup: &Setup) -> io::Result<(Option<i32>, String)> {
    let output = setup.command().stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.signal(), said))
}
