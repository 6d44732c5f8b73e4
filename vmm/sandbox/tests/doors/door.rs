//! The doors: all ways in which a process could access what it does not own.
//!
//! Each door lists the layers that close it. The matrix shows that each of them
//! closes it alone, and that it is open without any of them, so the claim that
//! only one layer closes a door is tested as well.

use std::io;

use crate::attack;

/// A protection that can close a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The seccomp filter of the attacker.
    Seccomp,
    /// The Landlock domain of the attacker.
    Landlock,
    /// The victim is not dumpable.
    Dumpable,
    /// The attacker is not root and has no capabilities.
    Privileges,
}

use Holder::{Dumpable, Landlock, Privileges, Seccomp};

/// The location of the victim and the information that an attacker has about
/// it.
#[derive(Clone, Debug)]
pub struct Target {
    pub pid: usize,
    /// The address of [`crate::victim::SECRET`] in the victim's memory.
    pub secret: usize,
    /// A number that identifies the victim's sockets.
    pub socket: String,
}

/// An attempt, made inside the sandbox. `Ok` means that the door is open.
pub type Attempt = Box<dyn FnOnce() -> io::Result<()>>;

/// A way out of the sandbox.
pub struct Door {
    pub name: &'static str,
    pub holders: &'static [Holder],
    /// Prepares, outside of the sandbox, what a worker would have.
    pub prepare: fn(&Target) -> io::Result<Attempt>,
    /// True if the call fails with an error in every mode, since libraries try
    /// it.
    pub falls_back: bool,
    /// The error of a kernel that was built without the feature.
    pub absent: Option<i32>,
}

const fn door(
    name: &'static str,
    holders: &'static [Holder],
    prepare: fn(&Target) -> io::Result<Attempt>,
) -> Door {
    Door {
        name,
        holders,
        prepare,
        falls_back: false,
        absent: None,
    }
}

impl Door {
    const fn falls_back(mut self) -> Self {
        self.falls_back = true;
        self
    }

    const fn absent(mut self, errno: i32) -> Self {
        self.absent = Some(errno);
        self
    }
}

/// The three layers that prevent inspecting another process.
pub const LOOKING_IN: &[Holder] = &[Seccomp, Landlock, Dumpable];
/// The two layers that deny signals, files, abstract sockets and TCP.
const REACHING_OUT: &[Holder] = &[Seccomp, Landlock];
/// The doors that only the filter closes.
const FILTER_ALONE: &[Holder] = &[Seccomp];

/// The list of all doors.
pub const DOORS: [Door; 43] = [
    door("proc_mem", LOOKING_IN, attack::proc_mem),
    door("proc_maps", LOOKING_IN, attack::proc_maps),
    door("proc_fd", LOOKING_IN, attack::proc_fd),
    door("process_vm_readv", LOOKING_IN, attack::process_vm_readv),
    door("process_vm_writev", LOOKING_IN, attack::process_vm_writev),
    door("ptrace_attach", LOOKING_IN, attack::ptrace_attach),
    door("ptrace_seize", LOOKING_IN, attack::ptrace_seize),
    door("pidfd_getfd", LOOKING_IN, attack::pidfd_getfd),
    door("kill", REACHING_OUT, attack::kill),
    door("tkill", REACHING_OUT, attack::tkill),
    door("tgkill", REACHING_OUT, attack::tgkill),
    door("sigqueue", REACHING_OUT, attack::sigqueue),
    door("pidfd_send_signal", REACHING_OUT, attack::pidfd_send_signal),
    door("signal_by_owner", REACHING_OUT, attack::signal_by_owner),
    door("open_path", REACHING_OUT, attack::open_path),
    door("write_path", REACHING_OUT, attack::write_path),
    door("open_device", REACHING_OUT, attack::open_device),
    door("stat_path", FILTER_ALONE, attack::stat_path).falls_back(),
    door("readlink_path", FILTER_ALONE, attack::readlink_path),
    door("reopen_descriptor", FILTER_ALONE, attack::reopen_descriptor),
    door("connect_path", FILTER_ALONE, attack::connect_path),
    door("connect_abstract", REACHING_OUT, attack::connect_abstract),
    door("bind_tcp", REACHING_OUT, attack::bind_tcp),
    door("socket", FILTER_ALONE, attack::socket),
    door("memfd_create", FILTER_ALONE, attack::memfd_create),
    door("add_seal", FILTER_ALONE, attack::add_seal),
    door("execve", REACHING_OUT, attack::execve),
    door("execveat_memfd", FILTER_ALONE, attack::execveat_memfd),
    door("mremap", FILTER_ALONE, attack::mremap).falls_back(),
    door("remap_file_pages", FILTER_ALONE, attack::remap_file_pages),
    door("io_uring_openat", REACHING_OUT, attack::io_uring_openat).absent(libc::ENOSYS),
    door("fork", FILTER_ALONE, attack::fork),
    door("clone3", FILTER_ALONE, attack::clone3).falls_back(),
    door("unshare_user", FILTER_ALONE, attack::unshare_user).absent(libc::EINVAL),
    door("setuid_back", &[Seccomp, Privileges], attack::setuid_back),
    door("prlimit_other", FILTER_ALONE, attack::prlimit_other),
    door("affinity_other", FILTER_ALONE, attack::affinity_other),
    door("priority_other", FILTER_ALONE, attack::priority_other),
    door("mmap_executable", FILTER_ALONE, attack::mmap_executable),
    door(
        "mprotect_executable",
        FILTER_ALONE,
        attack::mprotect_executable,
    ),
    door("dumpable_back", FILTER_ALONE, attack::dumpable_back),
    door("ioctl_of_no_kvm", FILTER_ALONE, attack::ioctl_of_no_kvm),
    door("getdents", REACHING_OUT, attack::list_directory),
];

/// The layers that close a door to a helper. Those that are not named are open to it
/// by design: it executes programs, reads them and their settings, and uses the network,
/// and it has no memory that another process shares.
pub fn holders_of_helper(door: &Door) -> &'static [Holder] {
    match door.name {
        "proc_mem" | "proc_maps" | "proc_fd" => &[Landlock, Dumpable],
        "process_vm_readv" | "process_vm_writev" | "ptrace_attach" | "ptrace_seize"
        | "pidfd_getfd" => LOOKING_IN,
        "kill" | "tkill" | "sigqueue" | "pidfd_send_signal" => REACHING_OUT,
        "tgkill" | "signal_by_owner" | "connect_abstract" => &[Landlock],
        "write_path" | "open_device" | "getdents" => &[Landlock],
        "socket" | "io_uring_openat" | "remap_file_pages" => FILTER_ALONE,
        "prlimit_other" | "affinity_other" | "priority_other" => FILTER_ALONE,
        "setuid_back" => &[Privileges],
        _ => &[],
    }
}
