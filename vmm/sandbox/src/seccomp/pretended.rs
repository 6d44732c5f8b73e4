//! The system calls of a helper that do nothing and succeed.
//!
//! passt confines itself when it starts: it enters new namespaces and an empty file
//! system, and ends if it cannot. The manager's filter, which its children inherit,
//! refuses both, and a Landlock domain refuses mounts. Giving the manager these
//! calls would weaken every process, and needs a host that lets ordinary users
//! create user namespaces. So the calls succeed without an effect. Landlock and the
//! loss of all capabilities, which a helper cannot undo, take their place; passt's
//! own filter, without any call that opens a file, comes on top.

use crate::seccomp::rules::Rules;

const NAMESPACES: &str = "a namespace of its own; Landlock keeps it from others";
const ROOT: &str = "an empty file system; Landlock denies what is in the real one";

/// The calls that succeed without an effect, and what they are for.
pub(crate) const PRETENDED: [(i64, &str); 4] = [
    (libc::SYS_unshare, NAMESPACES),
    (libc::SYS_mount, ROOT),
    (libc::SYS_pivot_root, ROOT),
    (libc::SYS_umount2, ROOT),
];

/// Returns the rules that match these calls.
pub(crate) fn rules() -> Rules {
    let mut rules = Rules::default();
    rules.always(PRETENDED);
    rules
}
