//! The system calls that confined processes may make, and their purposes.
//!
//! The lists were derived from `strace -f` of a program that does what a worker
//! does (`tests/doors/guest.rs`: VM, vCPU threads, event loop, channels,
//! panics) with glibc, then completed by rare calls of glibc and std: a heap
//! arena per thread, a guard page, a wait interrupted by SIGSTOP, an abort. The
//! calls of musl were added from its source.

use rustix::process::getpid;

use crate::error::SandboxError;
use crate::profile::{DiskCalls, Profile};
use crate::seccomp::kvm;
use crate::seccomp::rules::{Arg, Rules};

/// Calls that every confined process may make with any arguments. None of them
/// reaches beyond the memory and descriptors that the process has. `sendmsg` is
/// absent on purpose: descriptors in a message keep their files alive in the
/// socket, make the receiver pay for the last close, and count against the
/// limits of its user.
const COMMON: [(i64, &str); 33] = [
    (libc::SYS_read, "channel, eventfd, timerfd, image"),
    (libc::SYS_readv, "vectored reads of std"),
    (libc::SYS_pread64, "memory files, images"),
    (libc::SYS_write, "channel, eventfd, panic message"),
    (libc::SYS_writev, "vectored writes of std"),
    (libc::SYS_pwrite64, "memory files"),
    (libc::SYS_lseek, "sizes of files"),
    (libc::SYS_fstat, "sizes of files"),
    (libc::SYS_close, "descriptors that were mapped"),
    (libc::SYS_recvmsg, "channel, with descriptors"),
    (libc::SYS_recvfrom, "channel"),
    (libc::SYS_sendto, "channel"),
    (libc::SYS_poll, "channel"),
    (libc::SYS_ppoll, "channel"),
    (libc::SYS_munmap, "heap, stacks, memory files"),
    (libc::SYS_madvise, "heap, stacks, giving memory back"),
    (libc::SYS_brk, "heap"),
    (libc::SYS_futex, "locks, channels, joins"),
    (
        libc::SYS_sched_yield,
        "spinning locks of std and its channels",
    ),
    (libc::SYS_rt_sigaction, "kick handler, abort"),
    (libc::SYS_rt_sigprocmask, "thread start, abort"),
    (libc::SYS_rt_sigreturn, "return from a handler"),
    (libc::SYS_sigaltstack, "stack overflow handler of std"),
    (libc::SYS_restart_syscall, "a wait goes on after SIGCONT"),
    (libc::SYS_exit_group, "the end"),
    (libc::SYS_getpid, "raise, abort, kicks"),
    (libc::SYS_gettid, "raise, abort, names in messages"),
    (libc::SYS_getrandom, "keys of hash tables"),
    (libc::SYS_clock_gettime, "if the vDSO has no clock"),
    (libc::SYS_clock_getres, "if the vDSO has no clock"),
    (libc::SYS_gettimeofday, "if the vDSO has no clock"),
    (libc::SYS_nanosleep, "pauses"),
    (libc::SYS_clock_nanosleep, "pauses"),
];

/// Calls of a worker: for threads and the event loop.
const WORKER: [(i64, &str); 13] = [
    (libc::SYS_exit, "the end of a thread"),
    (libc::SYS_set_robust_list, "thread start"),
    (libc::SYS_rseq, "thread start"),
    (libc::SYS_eventfd2, "interrupts, wake-ups of the loop"),
    (
        libc::SYS_preadv2,
        "doorbells that another worker may have made block",
    ),
    (libc::SYS_epoll_create1, "the event loop"),
    (libc::SYS_epoll_ctl, "the event loop"),
    (libc::SYS_epoll_wait, "the event loop"),
    (libc::SYS_epoll_pwait, "the event loop"),
    (libc::SYS_timerfd_create, "timers of the event loop"),
    (libc::SYS_timerfd_settime, "timers of the event loop"),
    (libc::SYS_shutdown, "the end of the channel"),
    (
        libc::SYS_copy_file_range,
        "images into memory files, without a fault for each page",
    ),
];

/// Calls of a worker whose disks have rings. `io_uring_setup` is absent on
/// purpose: a ring that is made inside has no restrictions, and opens files
/// without a system call that a filter sees.
const RINGS: [(i64, &str); 1] = [(libc::SYS_io_uring_enter, "operations on disks")];

/// `IORING_REGISTER_FILES_UPDATE` (linux/io_uring.h): the ring gets its disk.
const REGISTER_FILES_UPDATE: i32 = 6;

/// Calls of a worker whose threads read and write disks.
const DISK_THREADS: [(i64, &str); 4] = [
    (libc::SYS_preadv, "reads of disks"),
    (libc::SYS_pwritev, "writes to disks"),
    (libc::SYS_fdatasync, "flushes of disks"),
    (libc::SYS_fallocate, "discards, zeros"),
];

/// Calls of an unpacker: for writing the unpacked file.
const UNPACKER: [(i64, &str); 4] = [
    (libc::SYS_ftruncate, "size of the file written"),
    (libc::SYS_fallocate, "space for the file written"),
    (
        libc::SYS_copy_file_range,
        "std::io::copy of an unpacked image",
    ),
    (libc::SYS_sendfile, "std::io::copy, its next choice"),
];

/// Calls of a cleaner: for zeroing or populating memory files.
const CLEANER: [(i64, &str); 1] = [(libc::SYS_fallocate, "zeroing, punching, populating")];

/// The flags with which pthread_create calls `clone`.
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// A flag that musl adds and the kernel ignores.
const DETACHED: u64 = libc::CLONE_DETACHED as u64;

/// Operations of `fcntl` on one's own descriptors. `F_SETOWN` and `F_SETSIG`
/// are absent on purpose, since they send signals to any process.
const FCNTL: [(i32, &str); 5] = [
    (libc::F_GETFD, "std checks descriptors it closes"),
    (libc::F_SETFD, "close-on-exec"),
    (libc::F_GETFL, "nonblocking descriptors"),
    (libc::F_DUPFD_CLOEXEC, "try_clone"),
    (libc::F_GET_SEALS, "checking that a received file is sealed"),
];

/// Operations of `prctl`. `PR_SET_DUMPABLE`, `PR_SET_PTRACER` and
/// `PR_SET_PDEATHSIG` are absent on purpose.
const PRCTL: [(i32, &str); 2] = [
    (libc::PR_SET_NAME, "names of threads"),
    (libc::PR_SET_VMA, "names of mappings, newer glibc"),
];

/// Returns the rules of a confined `profile`, and of a worker's `disks`.
///
/// # Errors
/// Returns [`SandboxError::Rules`], which is a bug in this file.
pub(crate) fn rules(profile: Profile, disks: DiskCalls) -> Result<Rules, SandboxError> {
    let mut rules = Rules::default();
    rules.always(COMMON);
    memory(&mut rules)?;
    own_process(&mut rules)?;
    for (operation, why) in FCNTL {
        rules.when(libc::SYS_fcntl, &[int(1, operation)], why)?;
    }
    // A ring's direct reads may outlive their process, and write to memory that
    // has its next owner then: so nobody makes a file one of direct access.
    let not_direct = Arg::Masked(2, bits(libc::O_DIRECT), 0);
    let flags = [int(1, libc::F_SETFL), not_direct];
    rules.when(libc::SYS_fcntl, &flags, "nonblocking descriptors")?;
    for (operation, why) in PRCTL {
        rules.when(libc::SYS_prctl, &[int(0, operation)], why)?;
    }
    match profile {
        Profile::Worker => worker(&mut rules, disks)?,
        Profile::Unpacker => {
            rules.always(UNPACKER);
            let seals = [int(1, libc::F_ADD_SEALS)];
            rules.when(libc::SYS_fcntl, &seals, "seals the file written")?;
        }
        Profile::Cleaner => rules.always(CLEANER),
        Profile::Helper | Profile::Manager => {}
    }
    Ok(rules)
}

/// Mappings, which are never executable, so that no new code can be created.
fn memory(rules: &mut Rules) -> Result<(), SandboxError> {
    let not_executable = [Arg::Masked(2, bits(libc::PROT_EXEC), 0)];
    rules.when(
        libc::SYS_mmap,
        &not_executable,
        "heap, stacks, memory files",
    )?;
    rules.when(libc::SYS_mprotect, &not_executable, "heap, guard pages")
}

/// Calls that name a process, restricted to this one.
fn own_process(rules: &mut Rules) -> Result<(), SandboxError> {
    let own = [int(0, getpid().as_raw_nonzero().get())];
    rules.when(libc::SYS_tgkill, &own, "kicks, abort")?;
    rules.when(libc::SYS_kill, &own, "raise of some C libraries")?;
    if cfg!(target_env = "musl") {
        // A thread ID does not reveal its process, so here only the Landlock
        // scope keeps signals inside.
        rules.always([(libc::SYS_tkill, "kicks, abort")]);
    }
    // Reading one's own limits is allowed. With a new limit, or for another
    // process, the call could lower a neighbour's.
    let own_limits = [int(0, 0), Arg::IsLong(2, 0)];
    rules.when(libc::SYS_prlimit64, &own_limits, "stack sizes")
}

fn worker(rules: &mut Rules, disks: DiskCalls) -> Result<(), SandboxError> {
    rules.always(WORKER);
    if disks.rings {
        rules.always(RINGS);
        let of_file = [int(1, REGISTER_FILES_UPDATE)];
        rules.when(libc::SYS_io_uring_register, &of_file, "disks of rings")?;
    }
    if disks.threads {
        rules.always(DISK_THREADS);
    }
    let thread = [Arg::Masked(0, !DETACHED, THREAD_FLAGS)];
    rules.when(libc::SYS_clone, &thread, "pthread_create")?;
    // pthread_getattr_np names the new thread; reading is harmless.
    rules.always([(libc::SYS_sched_getaffinity, "thread start")]);
    let self_only = [int(0, 0)];
    rules.when(libc::SYS_sched_setaffinity, &self_only, "pinned vCPUs")?;
    for (request, why) in kvm::IOCTLS {
        rules.when(libc::SYS_ioctl, &[Arg::Is(1, request)], why)?;
    }
    rules.when(libc::SYS_ioctl, &[Arg::Is(1, FIONBIO)], "set_nonblocking")
}

/// `libc::FIONBIO` in the 32 bits that the kernel uses.
const FIONBIO: u32 = 0x5421;

/// Compares argument `index`, which the kernel treats as an `int`.
fn int(index: u8, value: i32) -> Arg {
    Arg::Is(index, value.cast_unsigned())
}

/// Returns the bits of a C flag.
fn bits(flag: i32) -> u64 {
    flag.cast_unsigned().into()
}
