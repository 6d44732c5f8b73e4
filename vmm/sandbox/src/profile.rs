//! What a process is to be confined to: which kind of process it is, how a
//! refused system call is answered, and which layers apply.

use std::fmt;

use rustix::process::Pid;

/// The kinds of process that mkvmm consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// Runs one guest: its memory, KVM, vCPUs, devices, and nothing else.
    Worker,
    /// Reads one image from a descriptor and writes it, unpacked, to another.
    Unpacker,
    /// Zeroes, punches or populates the files that it is given.
    Cleaner,
    /// Decides everything, talks to clients, holds files and sockets, makes and
    /// reaps all other processes.
    Manager,
}

impl Profile {
    /// Returns whether processes of this kind handle what a guest or an image
    /// says, and therefore get an allow-list, a Landlock domain and no uid 0.
    pub fn is_confined(self) -> bool {
        matches!(self, Self::Worker | Self::Unpacker | Self::Cleaner)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Unpacker => "unpacker",
            Self::Cleaner => "cleaner",
            Self::Manager => "manager",
        })
    }
}

/// How a system call that the filter does not allow is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Ends the process with SIGSYS.
    #[default]
    Kill,
    /// Lets the call through and has the kernel log it: the filter does not
    /// confine. All other layers still do.
    Log,
    /// Refuses the call with EPERM.
    Errno,
    /// Applies neither filter, Landlock, limits, `no_new_privs` nor
    /// dumpability. Identity, capabilities and the parent's death are no
    /// matter of debugging and still apply.
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

/// Which layers apply. Each can be switched off by itself, so that a test can
/// show what the others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Supplementary groups, group and user ids.
    pub identity: bool,
    /// Bounding, ambient, inheritable, permitted and effective capabilities.
    pub capabilities: bool,
    /// `PR_SET_DUMPABLE` 0: no process of the same uid may look in.
    pub dumpable: bool,
    /// SIGKILL when the parent dies.
    pub parent_death: bool,
    /// `no_new_privs`, which seccomp and Landlock also bring with them.
    pub no_new_privs: bool,
    /// Resource limits (`setrlimit`).
    pub limits: bool,
    /// The Landlock domain.
    pub landlock: bool,
    /// The seccomp filter.
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

    /// No layer at all.
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

    /// Returns whether a layer is on that reaches only the calling thread.
    pub(crate) fn any_per_thread(self) -> bool {
        // `no_new_privs` is left out: seccomp's thread synchronisation carries it.
        self.identity || self.capabilities || self.landlock
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self::ALL
    }
}

/// The ids that a process started by root continues with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
}

/// Resource limits. `None` leaves a limit as it was inherited; a limit is only
/// ever lowered. Core dumps are always switched off.
///
/// What bounds what: see [`crate::limits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_NOFILE`: one more than the highest descriptor number.
    pub open_files: Option<u64>,
    /// `RLIMIT_FSIZE`: bytes that a regular file, memory files included, may
    /// grow to by this process's hand.
    pub file_bytes: Option<u64>,
    /// `RLIMIT_CPU` in seconds: SIGXCPU there, SIGKILL a second later.
    pub cpu_seconds: Option<u64>,
    /// `RLIMIT_AS` in bytes of address space.
    pub address_space_bytes: Option<u64>,
}

impl Limits {
    /// Returns the limits that processes of kind `profile` start from.
    pub fn of(profile: Profile) -> Self {
        let none = Self::default();
        match profile {
            // Memory files arrive in messages, are mapped and closed again;
            // what stays open are eventfds, KVM and back-ends.
            Profile::Worker => Self {
                open_files: Some(1024),
                ..none
            },
            // The image, the file it goes to, the channel, three of stdio.
            // The caller sets `file_bytes` to what it has reserved.
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
            Profile::Manager => none,
        }
    }
}

/// Everything that decides how a process is confined; [`enter`](Self::enter)
/// applies it.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// The kind of process.
    pub profile: Profile,
    /// The answer to refused system calls.
    pub mode: Mode,
    /// The layers that apply.
    pub layers: Layers,
    /// The ids to continue with. Confined processes started by root need it;
    /// others cannot change their ids and leave it `None`.
    pub identity: Option<Identity>,
    /// The process whose end ends this one. `None` asks for no such thing.
    ///
    /// The kernel means the *thread* that made this process: a manager makes
    /// its children on its main thread.
    pub parent: Option<Pid>,
    /// Resource limits (`setrlimit`), which the process keeps.
    pub limits: Limits,
    /// Leaves the process dumpable, so that gdb and perf of the same user can
    /// look in. The Landlock domain stays: it restricts whom this process may
    /// trace, never a debugger outside of it.
    pub debuggable: bool,
}

impl Confinement {
    /// Returns the confinement of `profile` with all layers on, refused calls
    /// answered by SIGSYS, the profile's own limits, no change of ids and no
    /// parent to follow into death.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            mode: Mode::default(),
            layers: Layers::default(),
            identity: None,
            parent: None,
            limits: Limits::of(profile),
            debuggable: false,
        }
    }
}
