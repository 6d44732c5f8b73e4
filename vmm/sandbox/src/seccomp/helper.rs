//! The system calls of a helper that do nothing and succeed, and those that are
//! refused.
//!
//! passt confines itself when it starts: it enters new namespaces and an empty file
//! system, and ends if it cannot. The manager's filter, which its children inherit,
//! refuses both, and a Landlock domain refuses mounts. Giving the manager these
//! calls would weaken every process, and needs a host that lets ordinary users
//! create user namespaces. So the calls succeed without an effect. Landlock and the
//! loss of all capabilities, which a helper cannot undo, take their place; passt's
//! own filter, without any call that opens a file, comes on top.
//!
//! What reaches other processes of its user, where Landlock does not cover it or is
//! too old, is refused: their limits and priorities, signals, and sockets with paths,
//! among them that of the manager, which believes its own user. passt does without
//! them: it logs to its standard error.

use crate::error::SandboxError;
use crate::seccomp::rules::{Arg, Rules};

const NAMESPACES: &str = "a namespace of its own; Landlock keeps it from others";
const ROOT: &str = "an empty file system; Landlock denies what is in the real one";

/// The calls that succeed without an effect, and what they are for.
pub(crate) const PRETENDED: [(i64, &str); 4] = [
    (libc::SYS_unshare, NAMESPACES),
    (libc::SYS_mount, ROOT),
    (libc::SYS_pivot_root, ROOT),
    (libc::SYS_umount2, ROOT),
];

const SIGNALS: &str = "signals to other processes";
const HANDLES: &str = "descriptors of other processes";
const SCHEDULING: &str = "priorities and memory of other processes";
const RINGS: &str = "operations that no filter sees";

/// The calls that are refused with any arguments, and what they are.
const REFUSED: [(i64, &str); 15] = [
    (libc::SYS_kill, SIGNALS),
    (libc::SYS_tkill, SIGNALS),
    (libc::SYS_rt_sigqueueinfo, SIGNALS),
    (libc::SYS_rt_tgsigqueueinfo, SIGNALS),
    (libc::SYS_pidfd_send_signal, SIGNALS),
    (libc::SYS_pidfd_open, HANDLES),
    (libc::SYS_pidfd_getfd, HANDLES),
    (libc::SYS_setpriority, SCHEDULING),
    (libc::SYS_sched_setaffinity, SCHEDULING),
    (libc::SYS_sched_setparam, SCHEDULING),
    (libc::SYS_sched_setscheduler, SCHEDULING),
    (libc::SYS_sched_setattr, SCHEDULING),
    (libc::SYS_ioprio_set, SCHEDULING),
    (libc::SYS_move_pages, SCHEDULING),
    (libc::SYS_io_uring_setup, RINGS),
];

/// Returns the rules that match the refused calls.
///
/// # Errors
/// Returns [`SandboxError::Rules`], which is a bug in this file.
pub(crate) fn refused() -> Result<Rules, SandboxError> {
    let mut rules = Rules::default();
    rules.always(REFUSED);
    let local = [Arg::Is(0, libc::AF_UNIX.cast_unsigned())];
    rules.when(libc::SYS_socket, &local, "sockets with paths")?;
    let others = [Arg::Not(0, 0)];
    rules.when(libc::SYS_prlimit64, &others, "limits of other processes")?;
    Ok(rules)
}

/// Returns the rules that match the calls without an effect.
pub(crate) fn pretended() -> Rules {
    let mut rules = Rules::default();
    rules.always(PRETENDED);
    rules
}
