//! The system calls that neither the manager nor its children, which inherit its
//! filter, ever need.
//!
//! The manager is trusted, and must open, fork and execute. The list only limits
//! the effect of a bug in it: no tracing, no kernel programs, no mounts. Rings
//! (io_uring) are not on it, although they bypass the filter: workers, which
//! inherit it, make those of their disks before they confine themselves, and no
//! operation of a ring does what is refused here. `clone3` is not on it, since a manager uses it to start
//! workers inside their cgroups; nor is `pidfd_getfd`, by which `run` takes a
//! descriptor that its parent has left open.

use crate::error::SandboxError;
use crate::seccomp::rules::Rules;

const TRACING: &str = "reads or controls other processes";
const KERNEL: &str = "changes the kernel or the machine";
const MOUNTS: &str = "changes what paths mean";
const KEYS: &str = "kernel keyrings";
const MEMORY: &str = "changes mappings without the owner's knowledge";

/// Calls that are refused with any arguments, and the reasons.
pub(crate) const DENIED: [(i64, &str); 49] = [
    (libc::SYS_ptrace, TRACING),
    (libc::SYS_process_vm_readv, TRACING),
    (libc::SYS_process_vm_writev, TRACING),
    (libc::SYS_kcmp, TRACING),
    (libc::SYS_perf_event_open, TRACING),
    (libc::SYS_process_madvise, TRACING),
    (libc::SYS_bpf, KERNEL),
    (libc::SYS_init_module, KERNEL),
    (libc::SYS_finit_module, KERNEL),
    (libc::SYS_delete_module, KERNEL),
    (libc::SYS_kexec_load, KERNEL),
    (libc::SYS_kexec_file_load, KERNEL),
    (libc::SYS_reboot, KERNEL),
    (libc::SYS_swapon, KERNEL),
    (libc::SYS_swapoff, KERNEL),
    (libc::SYS_acct, KERNEL),
    (libc::SYS_syslog, KERNEL),
    (libc::SYS_settimeofday, KERNEL),
    (libc::SYS_adjtimex, KERNEL),
    (libc::SYS_clock_adjtime, KERNEL),
    (libc::SYS_sethostname, KERNEL),
    (libc::SYS_setdomainname, KERNEL),
    (libc::SYS_quotactl, KERNEL),
    (libc::SYS_vhangup, KERNEL),
    (libc::SYS_clock_settime, KERNEL),
    (libc::SYS_iopl, KERNEL),
    (libc::SYS_ioperm, KERNEL),
    (libc::SYS_modify_ldt, KERNEL),
    (libc::SYS_mount, MOUNTS),
    (libc::SYS_umount2, MOUNTS),
    (libc::SYS_pivot_root, MOUNTS),
    (libc::SYS_chroot, MOUNTS),
    (libc::SYS_fsopen, MOUNTS),
    (libc::SYS_fsconfig, MOUNTS),
    (libc::SYS_fspick, MOUNTS),
    (libc::SYS_fsmount, MOUNTS),
    (libc::SYS_move_mount, MOUNTS),
    (libc::SYS_open_tree, MOUNTS),
    (libc::SYS_mount_setattr, MOUNTS),
    (libc::SYS_unshare, MOUNTS),
    (libc::SYS_setns, MOUNTS),
    (libc::SYS_open_by_handle_at, MOUNTS),
    (libc::SYS_fanotify_init, MOUNTS),
    (libc::SYS_add_key, KEYS),
    (libc::SYS_request_key, KEYS),
    (libc::SYS_keyctl, KEYS),
    (libc::SYS_userfaultfd, MEMORY),
    (libc::SYS_remap_file_pages, MEMORY),
    (libc::SYS_personality, MEMORY),
];

/// Returns the rules that match the refused calls.
///
/// # Errors
/// Never fails at present; the signature is that of the allow-lists.
pub(crate) fn rules() -> Result<Rules, SandboxError> {
    let mut rules = Rules::default();
    rules.always(DENIED);
    Ok(rules)
}
