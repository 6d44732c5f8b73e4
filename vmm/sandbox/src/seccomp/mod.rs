//! The seccomp filter: which system calls a process may still make.
//!
//! Confined processes (worker, unpacker, cleaner) have an allow-list,
//! [`allowed`]; a manager, which must open, fork and execute, a list of what it
//! and its children never need, [`denied`].
//!
//! A confined process gets two programs. The kernel runs both and obeys the
//! stricter answer, so calls that the C library tries and can do without are
//! refused by a program of their own, with the error that makes it fall back
//! ([`FALLBACKS`]), while the main program answers everything unknown as the
//! mode wants it.
//!
//! Every program is installed for all threads (`SECCOMP_FILTER_FLAG_TSYNC`):
//! threads share an address space, so the weakest filter is everybody's.

use seccompiler::{BpfProgram, SeccompAction};

use crate::error::SandboxError;
use crate::profile::{Mode, Profile};
use crate::report::Outcome;

pub(crate) mod allowed;
mod chain;
pub(crate) mod denied;
pub(crate) mod kvm;
pub(crate) mod rules;
mod tree;

use chain::compile;
use rules::Rules;

/// Calls that are answered with ENOSYS, in every mode, because libraries try
/// them and have another way.
pub(crate) const FALLBACKS: [(i64, &str); 4] = [
    (
        libc::SYS_clone3,
        "its flags lie in memory, where no filter sees them; pthread_create falls back to clone",
    ),
    (
        libc::SYS_mremap,
        "grows a shared mapping into the neighbour's bytes; realloc falls back to a copy",
    ),
    (
        libc::SYS_statx,
        "looks up any path; std falls back to fstat, read_to_end to no size hint",
    ),
    (
        libc::SYS_newfstatat,
        "looks up any path; what fstat becomes in some versions of glibc",
    ),
];

/// Installs the filter of `profile` for all threads.
///
/// # Errors
/// [`SandboxError::Rules`] or [`SandboxError::Seccomp`].
pub(crate) fn install(profile: Profile, mode: Mode) -> Result<Outcome, SandboxError> {
    // The main program last: it allows no further `seccomp`.
    for program in programs(profile, mode)? {
        seccompiler::apply_filter_all_threads(&program).map_err(SandboxError::Seccomp)?;
    }
    Ok(match mode {
        Mode::Log => Outcome::LogsOnly,
        Mode::Kill | Mode::Errno | Mode::Off => Outcome::Applied,
    })
}

/// Compiles the programs of `profile`, in the order in which to install them.
pub(crate) fn programs(profile: Profile, mode: Mode) -> Result<Vec<BpfProgram>, SandboxError> {
    let refusal = refusal(mode);
    if !profile.is_confined() {
        let denied = denied::rules()?.into_map();
        let program = tree::compile_tree(denied, SeccompAction::Allow, refusal)?;
        return Ok(vec![program]);
    }
    let mut fallbacks = Rules::default();
    fallbacks.always(FALLBACKS);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let mut allowed = allowed::rules(profile)?;
    // The program of the fallbacks has the stricter answer.
    allowed.always(FALLBACKS);
    let (fallbacks, allowed) = (fallbacks.into_map(), allowed.into_map());
    Ok(vec![
        compile(fallbacks, SeccompAction::Allow, missing)?,
        tree::compile_tree(allowed, refusal, SeccompAction::Allow)?,
    ])
}

/// Returns the answer to what is refused in `mode`.
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
