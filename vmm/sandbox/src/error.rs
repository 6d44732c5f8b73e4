//! Errors of confining a process.

use std::io;

use rustix::io::Errno;

/// A reason why [`enter`](crate::Confinement::enter) failed. The process may
/// then be partly confined, and must exit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The threads of this process cannot be counted.
    #[error("cannot count the threads of this process in /proc/self/task")]
    Threads(#[source] io::Error),
    /// IDs, capabilities and Landlock only apply to the calling thread.
    #[error("{count} threads are running; confine a process while it has one")]
    SeveralThreads {
        /// The number of threads found.
        count: usize,
    },
    /// A confined process must not run as root.
    #[error("a {profile} must not run as uid 0; give it a user id of its own")]
    RootWorker {
        /// The kind of process.
        profile: crate::Profile,
    },
    /// Only root can change to other IDs.
    #[error("cannot change from uid {from} to uid {to}: not started by root")]
    NotRoot {
        /// The current user ID.
        from: u32,
        /// The requested user ID.
        to: u32,
    },
    /// A system call of the sandbox failed.
    #[error("{call} failed")]
    Call {
        /// The name and the purpose of the system call.
        call: &'static str,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// The IDs were not changed, although the kernel reported success.
    #[error("still uid {uid} and gid {gid} after changing the ids")]
    IdsKept {
        /// The user ID that was found.
        uid: u32,
        /// The group ID that was found.
        gid: u32,
    },
    /// The parent died before it could be watched.
    #[error("parent {expected} is gone, the parent is now {found}")]
    ParentGone {
        /// The process ID of the expected parent.
        expected: i32,
        /// The process ID of the actual parent; 0 if it is in another
        /// namespace.
        found: i32,
    },
    /// The Landlock domain could not be created.
    #[error("cannot enter a Landlock domain")]
    Landlock(#[source] landlock::RulesetError),
    /// A filter rule is malformed: a bug in this crate.
    #[error("internal error in the seccomp rules, please report it")]
    Rules(#[source] seccompiler::BackendError),
    /// A filter has more instructions than a jump can skip, or a negative
    /// system call number: a bug in this crate.
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
