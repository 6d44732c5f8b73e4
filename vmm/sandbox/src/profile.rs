//! The parameters of a confinement: the kind of process, the response to
//! forbidden system calls, and the layers to apply.

use std::fmt;

use rustix::process::Pid;

/// The kinds of process that mkvmm consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// Runs one guest: its memory, KVM, vCPUs and devices.
    Worker,
    /// Reads one image from a descriptor and writes it, unpacked, to another.
    Unpacker,
    /// Zeroes, punches or populates the files that it receives.
    Cleaner,
    /// Executes a program that is not mkvmm's, such as passt, for one guest. It may
    /// use the network, and read and execute programs and libraries.
    Helper,
    /// Makes all decisions, talks to clients, holds files and sockets, and starts
    /// and reaps all other processes.
    Manager,
}

impl Profile {
    /// Returns whether processes of this kind handle untrusted input from a
    /// guest or an image, and therefore get an allow-list, a Landlock domain
    /// and a user ID other than 0.
    pub fn is_confined(self) -> bool {
        !matches!(self, Self::Manager)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Unpacker => "unpacker",
            Self::Cleaner => "cleaner",
            Self::Helper => "helper",
            Self::Manager => "manager",
        })
    }
}

/// The response to a system call that the filter does not allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Kills the process with SIGSYS.
    #[default]
    Kill,
    /// Allows the call and has the kernel log it, so that the filter does not
    /// confine. All other layers still do.
    Log,
    /// Refuses the call with EPERM.
    Errno,
    /// Applies neither filter, Landlock, limits, `no_new_privs` nor
    /// dumpability. Identity, capabilities and the parent-death signal do not
    /// interfere with debugging and still apply.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Errno => "errno",
            Self::Off => "off",
        })
    }
}

/// The layers to apply. Each can be switched off separately, so that a test can
/// show what the others enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Supplementary groups, group and user ids.
    pub identity: bool,
    /// Bounding, ambient, inheritable, permitted and effective capabilities.
    pub capabilities: bool,
    /// `PR_SET_DUMPABLE` 0, so that no process of the same user can inspect
    /// this one.
    pub dumpable: bool,
    /// The parent-death signal SIGKILL.
    pub parent_death: bool,
    /// The `no_new_privs` flag, which seccomp and Landlock also set.
    pub no_new_privs: bool,
    /// The resource limits (`setrlimit`).
    pub limits: bool,
    /// The Landlock domain of the process.
    pub landlock: bool,
    /// The seccomp filter of the process.
    pub seccomp: bool,
}

impl Layers {
    /// Every layer is applied.
    pub const ALL: Self = Self {
        identity: true,
        capabilities: true,
        dumpable: true,
        parent_death: true,
        no_new_privs: true,
        limits: true,
        landlock: true,
        seccomp: true,
    };

    /// The value with all layers switched off.
    pub const NONE: Self = Self {
        identity: false,
        capabilities: false,
        dumpable: false,
        parent_death: false,
        no_new_privs: false,
        limits: false,
        landlock: false,
        seccomp: false,
    };

    /// Returns the layers that remain in `mode`.
    pub(crate) fn within(self, mode: Mode) -> Self {
        if mode != Mode::Off {
            return self;
        }
        Self {
            identity: self.identity,
            capabilities: self.capabilities,
            parent_death: self.parent_death,
            ..Self::NONE
        }
    }

    /// Returns whether a layer is on that only applies to the calling thread.
    pub(crate) fn any_per_thread(self) -> bool {
        // `no_new_privs` is excluded: seccomp's thread synchronisation sets it.
        self.identity || self.capabilities || self.landlock
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self::ALL
    }
}

/// The IDs to which a process started by root changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The real, effective and saved user ID.
    pub uid: u32,
    /// The real, effective and saved group ID.
    pub gid: u32,
}

/// The resource limits. `None` keeps the inherited limit; a limit is only ever
/// lowered. Core dumps are always disabled.
///
/// See [`crate::limits`] for what each limit covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_NOFILE`: one more than the highest descriptor number.
    pub open_files: Option<u64>,
    /// `RLIMIT_FSIZE`: the maximum size to which this process can grow a
    /// regular file, including memory files.
    pub file_bytes: Option<u64>,
    /// `RLIMIT_CPU` in seconds, at which SIGXCPU is sent, and SIGKILL a second
    /// later.
    pub cpu_seconds: Option<u64>,
    /// `RLIMIT_AS` in bytes of address space.
    pub address_space_bytes: Option<u64>,
}

impl Limits {
    /// Returns the default limits of processes with this profile.
    pub fn of(profile: Profile) -> Self {
        let none = Self::default();
        match profile {
            // Memory files arrive in messages and are mapped and closed; only
            // eventfds, KVM and back ends stay open.
            Profile::Worker => Self {
                open_files: Some(1024),
                ..none
            },
            // These are the image, the output file, the channel and three of
            // stdio. The caller sets `file_bytes` to what it has reserved.
            Profile::Unpacker => Self {
                open_files: Some(16),
                cpu_seconds: Some(60),
                address_space_bytes: Some(2 << 30),
                ..none
            },
            Profile::Cleaner => Self {
                open_files: Some(1024),
                ..none
            },
            // A helper raises its limit of descriptors for connections.
            Profile::Helper | Profile::Manager => none,
        }
    }
}

/// The calls that a worker makes for the disks of its guest, beside those that it
/// makes in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCalls {
    /// It uses rings (io_uring) that exist already. It can make no others, and
    /// what a ring can do is restricted when it is made.
    pub rings: bool,
    /// Its threads read and write the disks.
    pub threads: bool,
}

/// All parameters of a confinement; [`enter`](Self::enter) applies it.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// The kind of process.
    pub profile: Profile,
    /// The response to forbidden system calls.
    pub mode: Mode,
    /// The layers that apply.
    pub layers: Layers,
    /// The IDs to change to. Confined processes started by root need it; others
    /// cannot change their IDs and leave it `None`.
    pub identity: Option<Identity>,
    /// The process with which this one dies. `None` requests no parent-death
    /// signal.
    ///
    /// The kernel refers to the *thread* that started this process, so a manager
    /// starts its children on its main thread.
    pub parent: Option<Pid>,
    /// The resource limits (`setrlimit`) of the process.
    pub limits: Limits,
    /// Leaves the process dumpable, so that gdb and perf of the same user can
    /// inspect it. The Landlock domain still applies: it restricts whom this
    /// process may trace, never a debugger outside of it.
    pub debuggable: bool,
    /// The calls for disks, which only workers make.
    pub disks: DiskCalls,
}

impl Confinement {
    /// Returns the confinement of `profile` with all layers on, SIGSYS for
    /// forbidden calls, the profile's default limits, no change of IDs and no
    /// parent-death signal.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            mode: Mode::default(),
            layers: Layers::default(),
            identity: None,
            parent: None,
            limits: Limits::of(profile),
            debuggable: false,
            disks: DiskCalls::default(),
        }
    }
}
