//! Why a process could not be confined.

use std::io;

use rustix::io::Errno;

/// Why [`enter`](crate::Confinement::enter) failed. The process may then be
/// confined in part, and must end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The threads of this process cannot be counted.
    #[error("cannot count the threads of this process in /proc/self/task")]
    Threads(#[source] io::Error),
    /// Ids, capabilities and Landlock reach the calling thread only.
    #[error("{count} threads are running; confine a process while it has one")]
    SeveralThreads {
        /// Number of threads found.
        count: usize,
    },
    /// A confined process must not go on as root.
    #[error("a {profile} must not run as uid 0; give it a user id of its own")]
    RootWorker {
        /// The kind of process.
        profile: crate::Profile,
    },
    /// Only root can take on other ids.
    #[error("cannot change from uid {from} to uid {to}: not started by root")]
    NotRoot {
        /// The present user id.
        from: u32,
        /// The user id asked for.
        to: u32,
    },
    /// A system call that the sandbox is made of failed.
    #[error("{call} failed")]
    Call {
        /// Name of the call and what it was to do.
        call: &'static str,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// The ids are not what was asked for, though the kernel reported success.
    #[error("still uid {uid} and gid {gid} after the change of ids")]
    IdsKept {
        /// The user id found.
        uid: u32,
        /// The group id found.
        gid: u32,
    },
    /// The parent died before its death could be watched.
    #[error("parent {expected} is gone, the parent is now {found}")]
    ParentGone {
        /// Process id of the parent that was to be watched.
        expected: i32,
        /// Process id of the parent found; 0 where it is in another namespace.
        found: i32,
    },
    /// The Landlock domain could not be made.
    #[error("cannot enter a Landlock domain")]
    Landlock(#[source] landlock::RulesetError),
    /// A filter rule is malformed: a mistake in this crate.
    #[error("internal error in the seccomp rules, please report it")]
    Rules(#[source] seccompiler::BackendError),
    /// A filter has more instructions than a jump can skip, or a negative
    /// number for a call: a mistake in this crate.
    #[error("internal error in the seccomp filter, please report it")]
    TooLong {
        /// The underlying error.
        #[source]
        source: std::num::TryFromIntError,
    },
    /// The filter could not be installed.
    #[error("cannot install the seccomp filter")]
    Seccomp(#[source] seccompiler::Error),
}

/// Returns a closure that names the failed call.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |source| SandboxError::Call { call, source }
}
