//! The seccomp filter: the system calls that a process may still make.
//!
//! Confined processes (worker, unpacker, cleaner) have an allow-list,
//! [`allowed`]; a manager, which must open, fork and execute, has a list of calls
//! that it and its children never need, [`denied`]. A helper inherits that one,
//! and has two short lists of its own, [`helper`].
//!
//! A confined process gets two programs. The kernel runs both and applies the
//! stricter result. So calls that the C library tries but can do without are
//! refused by a separate program, with the error that triggers its fallback
//! ([`FALLBACKS`]), while the main program handles all other calls according to
//! the mode.
//!
//! Every program is installed for all threads (`SECCOMP_FILTER_FLAG_TSYNC`):
//! threads share an address space, so the weakest filter would apply to all.

use seccompiler::{BpfProgram, SeccompAction};

use crate::error::SandboxError;
use crate::profile::{DiskCalls, Mode, Profile};
use crate::report::Outcome;

pub(crate) mod allowed;
mod chain;
pub(crate) mod denied;
pub(crate) mod helper;
pub(crate) mod kvm;
pub(crate) mod rules;
mod tree;

use chain::compile;
use rules::Rules;

/// Calls that return ENOSYS, in every mode, because libraries try them and have
/// a fallback.
pub(crate) const FALLBACKS: [(i64, &str); 4] = [
    (
        libc::SYS_clone3,
        "its flags are in memory, which filters cannot read; pthread_create falls back to clone",
    ),
    (
        libc::SYS_mremap,
        "grows a shared mapping into a neighbour's bytes; realloc falls back to a copy",
    ),
    (
        libc::SYS_statx,
        "looks up any path; std falls back to fstat, read_to_end to no size hint",
    ),
    (
        libc::SYS_newfstatat,
        "looks up any path; some versions of glibc use it for fstat",
    ),
];

/// Installs the filter of `profile` for all threads.
///
/// # Errors
/// Returns [`SandboxError::Rules`] or [`SandboxError::Seccomp`].
pub(crate) fn install(
    profile: Profile,
    disks: DiskCalls,
    mode: Mode,
) -> Result<Outcome, SandboxError> {
    // Install the main program last: it does not allow further `seccomp` calls.
    for program in programs(profile, disks, mode)? {
        seccompiler::apply_filter_all_threads(&program).map_err(SandboxError::Seccomp)?;
    }
    Ok(match mode {
        Mode::Log => Outcome::LogsOnly,
        Mode::Kill | Mode::Errno | Mode::Off => Outcome::Applied,
    })
}

/// Compiles the programs of `profile`, in the order of installation.
pub(crate) fn programs(
    profile: Profile,
    disks: DiskCalls,
    mode: Mode,
) -> Result<Vec<BpfProgram>, SandboxError> {
    let refusal = refusal(mode);
    if profile == Profile::Helper {
        let (pretended, refused) = (
            helper::pretended().into_map(),
            helper::refused()?.into_map(),
        );
        // In every mode: Landlock, which applies in every mode, refuses mounts.
        let success = SeccompAction::Errno(0);
        // A program that was not written for this filter is not to be killed by it.
        let refusal = match refusal {
            SeccompAction::KillProcess => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            other => other,
        };
        return Ok(vec![
            compile(pretended, SeccompAction::Allow, success)?,
            compile(refused, SeccompAction::Allow, refusal)?,
        ]);
    }
    if !profile.is_confined() {
        let denied = denied::rules()?.into_map();
        let program = tree::compile_tree(denied, SeccompAction::Allow, refusal)?;
        return Ok(vec![program]);
    }
    let mut fallbacks = Rules::default();
    fallbacks.always(FALLBACKS);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let mut allowed = allowed::rules(profile, disks)?;
    // The program of the fallbacks has the stricter result.
    allowed.always(FALLBACKS);
    let (fallbacks, allowed) = (fallbacks.into_map(), allowed.into_map());
    Ok(vec![
        compile(fallbacks, SeccompAction::Allow, missing)?,
        tree::compile_tree(allowed, refusal, SeccompAction::Allow)?,
    ])
}

/// Returns the result of the filter for forbidden calls in `mode`.
fn refusal(mode: Mode) -> SeccompAction {
    match mode {
        Mode::Kill => SeccompAction::KillProcess,
        Mode::Errno => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        Mode::Log => SeccompAction::Log,
        Mode::Off => SeccompAction::Allow,
    }
}

#[cfg(test)]
mod tests;
