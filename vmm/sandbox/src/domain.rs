//! The Landlock domain: denies the file system, TCP, and signals and abstract
//! sockets of processes outside.
//!
//! Entering a domain has another effect that no ruleset names: the process can
//! only trace, read or take descriptors from processes of its own domain, which
//! is only itself.
//!
//! Descriptors that were opened before, or that others send, keep their access
//! rights. Landlock does not cover files of kernel-internal file systems,
//! including memory files: only seccomp prevents reopening one's own through
//! `/proc/self/fd` and executing it. Before version 9 it does not cover
//! `connect` to a path.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope, path_beneath_rules,
};

use crate::error::SandboxError;
use crate::report::Outcome;

/// The newest version whose rights are denied if the kernel knows them. All of
/// them are denied without exception, so denying too many does no harm.
const NEWEST: ABI = ABI::V10;

/// The version that supports everything this crate promises about Landlock.
const WANTED: u32 = 6;

/// The additions of each version that the promises rely on.
const ADDED: [(u32, &str); 6] = [
    (1, "files, tracing of other processes"),
    (2, "linking and renaming across directories"),
    (3, "truncating files by path"),
    (4, "TCP"),
    (5, "ioctl on devices opened later"),
    (6, "signals and abstract sockets of other processes"),
];

/// Enters a domain that allows nothing.
///
/// # Errors
/// Returns [`SandboxError::Landlock`]. It is not an error if the kernel
/// supports only parts of Landlock, or none; the outcome lists what is missing.
pub(crate) fn enter() -> Result<Outcome, SandboxError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(SandboxError::Landlock)?;
    Ok(outcome(&status))
}

/// The places from which a helper reads itself, its libraries and its settings.
/// Those that do not exist are skipped.
const PROGRAMS: [&str; 11] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/opt",
    "/nix/store",
    "/etc",
    "/proc/sys/net",
    "/proc/self",
    // To which /etc/resolv.conf may lead.
    "/run/systemd/resolve",
    "/run/NetworkManager",
];

/// Enters a domain in which programs can be read and executed and the network can
/// be used. Nothing can be written but `/dev/null`.
///
/// # Errors
/// Returns the errors of [`enter`].
pub(crate) fn enter_for_helper() -> Result<Outcome, SandboxError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let programs = path_beneath_rules(PROGRAMS, read);
    let null = path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(programs))
        .and_then(|ruleset| ruleset.add_rules(null))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(SandboxError::Landlock)?;
    Ok(outcome(&status))
}

fn outcome(status: &RestrictionStatus) -> Outcome {
    outcome_of(match status.landlock {
        LandlockStatus::Available {
            effective_abi: abi, ..
        } => version_of(abi),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    })
}

fn version_of(abi: ABI) -> u32 {
    // `ABI` numbers its variants as the kernel numbers its versions.
    abi as u32
}

fn outcome_of(abi: u32) -> Outcome {
    if abi >= WANTED {
        return Outcome::Applied;
    }
    let missing = ADDED.iter().filter(|(version, _)| *version > abi);
    Outcome::LandlockPartial {
        abi,
        missing: missing.map(|(_, what)| *what).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_apart_by_what_it_lacks() {
        assert_eq!(outcome_of(7), Outcome::Applied);
        let Outcome::LandlockPartial { abi, missing } = outcome_of(4) else {
            panic!("version 4 has no scopes");
        };
        assert_eq!((abi, missing.len()), (4, 2));
        let Outcome::LandlockPartial { missing, .. } = outcome_of(0) else {
            panic!("a kernel without Landlock denies nothing");
        };
        assert_eq!(missing.len(), ADDED.len());
    }

    #[test]
    fn versions_are_the_kernels_numbers() {
        assert_eq!(version_of(ABI::V1), 1);
        assert_eq!(version_of(ABI::V7), 7);
    }
}
