//! Which system calls may fail, and with which error.
//!
//! A call is in the table if a host in need, or one with a broken disk, may
//! refuse it. Left out are those that cannot fail for a program that passes
//! what it may pass, by the manual pages and the kernel's source:
//!
//! - `close`, `munmap`, `exit`, `rt_sig*`, `sigaltstack`, `arch_prctl`, `rseq`,
//!   `set_tid_address`, `set_robust_list`, `close_range`, `lseek`, `setsid` of a
//!   new process, and whatever only reads a number (`getpid`, clocks,
//!   `getrandom`, `sched_getaffinity`);
//! - `futex`, `epoll_wait`, `poll`, `nanosleep`: they wait, and end with what
//!   was waited for or with `EINTR`, which their callers know;
//! - `kill`, `tgkill`, `pidfd_send_signal` to a child, `shutdown`, `getsockopt`,
//!   `setsockopt`, `fcntl` except two of its commands, `ioctl` except KVM's,
//!   `epoll_ctl` that changes or removes, `landlock_create_ruleset` that
//!   only asks for the version: they allocate nothing;
//! - reading and writing of eventfds and timers, and reading of a pipe: only
//!   `EAGAIN` and `EINTR`;
//! - `brk`: its failure is a value that only the kernel knows. The C library
//!   goes on with `mmap`, which is in the table;
//! - `KVM_RUN`, which is asked a million times a second, is not watched.

use libc::{c_long, c_ulong};
use rustix::io::Errno;

use super::listener::Question;

/// When a call of this number may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    /// In any case.
    Ever,
    /// With this value as its argument of that index.
    With(usize, u64),
    /// As a request to KVM.
    Kvm,
    /// On a descriptor of which reading can fail.
    Readable,
    /// On a descriptor of which writing can fail.
    Writable,
}

/// The type of KVM's requests, bits 8 to 15 of their numbers.
const KVMIO: u64 = 0xae;

/// A row: the call, its name, when it may fail, and how.
type Row = (c_long, &'static str, Only, Errno);

macro_rules! rows {
    ($($call:ident $name:literal $only:expr, $errno:ident;)*) => {
        &[$((libc::$call, $name, $only, Errno::$errno)),*]
    };
}

use Only::{Ever, Kvm, Readable, With, Writable};

/// One error for each: the one that a host in need would give.
const TABLE: &[Row] = rows![
    // No descriptors.
    SYS_open "open" Ever, MFILE;
    SYS_openat "openat" Ever, MFILE;
    SYS_openat2 "openat2" Ever, MFILE;
    SYS_memfd_create "memfd_create" Ever, MFILE;
    SYS_pipe2 "pipe2" Ever, MFILE;
    SYS_socket "socket" Ever, MFILE;
    SYS_socketpair "socketpair" Ever, MFILE;
    SYS_accept4 "accept4" Ever, MFILE;
    SYS_dup "dup" Ever, MFILE;
    SYS_dup2 "dup2" Ever, BUSY;
    SYS_dup3 "dup3" Ever, BUSY;
    SYS_fcntl "fcntl(F_DUPFD_CLOEXEC)" With(1, of_int(libc::F_DUPFD_CLOEXEC)), MFILE;
    SYS_fcntl "fcntl(F_ADD_SEALS)" With(1, of_int(libc::F_ADD_SEALS)), BUSY;
    SYS_epoll_create1 "epoll_create1" Ever, MFILE;
    SYS_eventfd2 "eventfd2" Ever, MFILE;
    SYS_timerfd_create "timerfd_create" Ever, MFILE;
    SYS_pidfd_open "pidfd_open" Ever, MFILE;
    SYS_landlock_create_ruleset "landlock_create_ruleset" With(2, 0), MFILE;
    // No memory.
    SYS_mmap "mmap" Ever, NOMEM;
    SYS_mremap "mremap" Ever, NOMEM;
    SYS_mprotect "mprotect" Ever, NOMEM;
    SYS_madvise "madvise" Ever, NOMEM;
    SYS_mlock "mlock" Ever, NOMEM;
    SYS_mlock2 "mlock2" Ever, NOMEM;
    SYS_mbind "mbind" Ever, NOMEM;
    SYS_ftruncate "ftruncate" Ever, NOMEM;
    SYS_fallocate "fallocate" Ever, NOSPC;
    SYS_epoll_ctl "epoll_ctl(EPOLL_CTL_ADD)" With(1, of_int(libc::EPOLL_CTL_ADD)), NOMEM;
    SYS_sendmsg "sendmsg" Ever, NOBUFS;
    SYS_recvmsg "recvmsg" Ever, NOMEM;
    SYS_sendto "sendto" Ever, NOBUFS;
    SYS_recvfrom "recvfrom" Ever, NOMEM;
    SYS_ioctl "ioctl(KVM)" Kvm, NOMEM;
    SYS_seccomp "seccomp" Ever, NOMEM;
    SYS_landlock_add_rule "landlock_add_rule" Ever, NOMEM;
    SYS_landlock_restrict_self "landlock_restrict_self" Ever, NOMEM;
    SYS_execve "execve" Ever, NOMEM;
    SYS_mkdir "mkdir" Ever, NOMEM;
    SYS_mkdirat "mkdirat" Ever, NOMEM;
    SYS_capset "capset" Ever, NOMEM;
    SYS_setgroups "setgroups" Ever, NOMEM;
    // No processes.
    SYS_clone "clone" Ever, AGAIN;
    SYS_clone3 "clone3" Ever, AGAIN;
    SYS_fork "fork" Ever, AGAIN;
    SYS_vfork "vfork" Ever, AGAIN;
    SYS_setuid "setuid" Ever, AGAIN;
    SYS_setgid "setgid" Ever, AGAIN;
    SYS_setresuid "setresuid" Ever, AGAIN;
    SYS_setresgid "setresgid" Ever, AGAIN;
    // A disk that is broken, or slow to let go.
    SYS_read "read" Readable, IO;
    SYS_pread64 "pread64" Readable, IO;
    SYS_readv "readv" Readable, IO;
    SYS_write "write" Writable, IO;
    SYS_pwrite64 "pwrite64" Writable, IO;
    SYS_writev "writev" Writable, IO;
    SYS_copy_file_range "copy_file_range" Ever, IO;
    SYS_sendfile "sendfile" Ever, IO;
    SYS_getdents64 "getdents64" Ever, IO;
    SYS_stat "stat" Ever, IO;
    SYS_lstat "lstat" Ever, IO;
    SYS_fstat "fstat" Ever, IO;
    SYS_newfstatat "newfstatat" Ever, IO;
    SYS_statx "statx" Ever, IO;
    SYS_readlink "readlink" Ever, IO;
    SYS_readlinkat "readlinkat" Ever, IO;
    SYS_rename "rename" Ever, IO;
    SYS_renameat2 "renameat2" Ever, IO;
    SYS_rmdir "rmdir" Ever, BUSY;
    SYS_unlink "unlink" Ever, IO;
    SYS_unlinkat "unlinkat" Ever, IO;
    // A container that allows less.
    SYS_prctl "prctl" Ever, PERM;
    SYS_prlimit64 "prlimit64" Ever, PERM;
    SYS_setrlimit "setrlimit" Ever, PERM;
    SYS_sched_setaffinity "sched_setaffinity" Ever, INVAL;
    SYS_setpriority "setpriority" Ever, PERM;
    SYS_unshare "unshare" Ever, PERM;
    // A signal comes first.
    SYS_waitid "waitid" Ever, INTR;
    SYS_wait4 "wait4" Ever, INTR;
];

const fn of_int(value: i32) -> u64 {
    value.unsigned_abs() as u64
}

/// The names of all calls that may be made to fail.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(_, name, ..)| *name)
}

/// The numbers of the calls that the filter is to ask about.
pub(super) fn numbers() -> Vec<u32> {
    let numbers = TABLE
        .iter()
        .filter_map(|(call, ..)| u32::try_from(*call).ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The request that the filter does not ask about.
pub(super) const KVM_RUN: u32 = 0xae80;
/// The number of the call ioctl.
pub(super) const IOCTL: u32 = 16;

/// A call that may fail.
#[derive(Debug)]
pub(super) struct Call(&'static Row);

impl Call {
    /// Finds the call; `None` where it cannot fail whatever its descriptor is.
    pub fn new(question: &Question) -> Option<Self> {
        let row = TABLE.iter().find(|(call, _, only, _)| {
            let fits = match *only {
                With(index, value) => question.arguments[index] == value,
                Kvm => (question.arguments[1] >> 8) & 0xff == KVMIO,
                Ever | Readable | Writable => true,
            };
            c_ulong::try_from(*call).is_ok_and(|call| call == question.call) && fits
        });
        row.map(Self)
    }

    /// Returns the name of the call.
    pub fn name(&self) -> &'static str {
        self.0.1
    }

    /// How it fails, on what its first argument stands for; `None` where it
    /// cannot.
    pub fn error_on(&self, descriptor: &str) -> Option<Errno> {
        let is_quiet = ["anon_inode:[eventfd]", "anon_inode:[timerfd]"].contains(&descriptor);
        let can_fail = match self.0.2 {
            Readable => !is_quiet && !descriptor.starts_with("pipe:"),
            Writable => !is_quiet,
            _ => true,
        };
        can_fail.then_some(self.0.3)
    }
}
