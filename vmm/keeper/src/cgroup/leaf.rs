//! One leaf cgroup per guest: created before its worker touches memory, removed
//! after its last process is gone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, getpid};

use crate::cgroup::controller::Controller;
use crate::cgroup::error::CgroupError;
use crate::cgroup::locate::Cgroups;
use crate::cgroup::usage::{self, CpuTime, Memory};

/// The directory below a base that contains the leaves of all mkvmm processes.
pub(super) const HOUSE: &str = "mkvmm";

/// The number of attempts to create a leaf whose parents another mkvmm has just
/// removed.
const ATTEMPTS: usize = 4;

/// Milliseconds that a leaf which is busy is waited for, each time that it is.
const PAUSES_MS: [u64; 3] = [1, 5, 20];

/// Controllers that are asked of a v2 tree for its children.
const V2_CONTROLLERS: [&str; 3] = ["+cpu", "+memory", "+pids"];

/// The period of CPU limits, which is the kernel's default.
const PERIOD_US: u64 = 100_000;

/// The limits of a guest's cgroup. `None` sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// The CPU time per second of all threads together, in thousandths of a
    /// CPU.
    pub cpu_milli: Option<u64>,
    /// The number of bytes of memory, including page tables and other kernel
    /// memory.
    pub memory_bytes: Option<u64>,
    /// The number of threads.
    pub threads: Option<u64>,
}

/// The process whose ID is in the path of leaves; 0 for this process.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Names leaves that are created from now on after `keeper`, which is the parent
/// of their processes and outlives this one.
pub fn name_after(keeper: Pid) {
    OWNER.store(keeper.as_raw_pid(), Ordering::Relaxed);
}

/// True if leaves that are dropped are another process's from then on.
static KEPT: AtomicBool = AtomicBool::new(false);

/// Sets whether leaves remain when they are dropped, because another process
/// continues with them.
pub fn keep_leaves(are_kept: bool) {
    KEPT.store(are_kept, Ordering::Relaxed);
}

/// The cgroup of one guest: `mkvmm/PID/NAME` below its base, in every hierarchy
/// in which it can be created. PID is the process ID of this process, or of its
/// [keeper](name_after).
#[derive(Debug)]
pub struct Leaf {
    directories: Cgroups,
    /// The reasons why the leaf is missing in some hierarchies.
    missed: Vec<CgroupError>,
}

impl Leaf {
    /// Creates a leaf named `name` below `base`, with the v2 controllers that
    /// can be enabled for it.
    ///
    /// # Errors
    /// Returns [`CgroupError::Name`], or [`CgroupError::Create`] if no
    /// hierarchy permits a leaf. It is not an error if only some hierarchies
    /// do; see [`missed`](Self::missed).
    pub fn create(base: &Cgroups, name: &str) -> Result<Self, CgroupError> {
        Self::make_all(base, name, &V2_CONTROLLERS)
    }

    /// Creates a leaf named `name` below `base` for accounting only, without
    /// any cost: only in v2, where processes can be started in it directly, and
    /// without controllers, so that neither the distribution of CPU time nor
    /// the limits of its parents change.
    ///
    /// # Errors
    /// Returns the errors of [`create`](Self::create), and
    /// [`CgroupError::NoHierarchy`].
    pub fn account(base: &Cgroups, name: &str) -> Result<Self, CgroupError> {
        let v2 = base.v2.clone();
        let base = Cgroups { v2, v1: [].into() };
        Self::make_all(&base, name, &[])
    }

    fn make_all(base: &Cgroups, name: &str, controllers: &[&str]) -> Result<Self, CgroupError> {
        let owner = Pid::from_raw(OWNER.load(Ordering::Relaxed)).unwrap_or_else(getpid);
        let below = Path::new(HOUSE).join(owner.as_raw_nonzero().to_string());
        let below = below.join(checked(name)?);
        let mut leaf = Self {
            directories: Cgroups::default(),
            missed: Vec::new(),
        };
        if let Some(parent) = &base.v2 {
            leaf.directories.v2 = leaf.make(parent, &below, controllers);
        }
        for (controller, parent) in &base.v1 {
            let path = parent.join(&below);
            // Several controllers may share a hierarchy.
            let made = leaf.directories.v1.values().any(|known| *known == path);
            let directory = match made {
                true => Some(path),
                false => leaf.make(parent, &below, &[]),
            };
            if let Some(directory) = directory {
                leaf.directories.v1.insert(*controller, directory);
            }
        }
        if leaf.directories == Cgroups::default() {
            return Err(leaf.missed.pop().unwrap_or(CgroupError::NoHierarchy));
        }
        Ok(leaf)
    }

    /// Takes over a leaf that an earlier process has created.
    pub fn adopt(directories: Cgroups) -> Self {
        Self {
            directories,
            missed: Vec::new(),
        }
    }

    /// Creates one directory, recording the error if that fails.
    fn make(&mut self, parent: &Path, below: &Path, controllers: &[&str]) -> Option<PathBuf> {
        let path = parent.join(below);
        let mut made = make_below(parent, below, controllers);
        for _ in 1..ATTEMPTS {
            match &made {
                // Another mkvmm has removed the parents because they were
                // empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    made = make_below(parent, below, controllers);
                }
                _ => break,
            }
        }
        match made {
            Ok(()) => Some(path),
            Err(source) => {
                self.missed.push(CgroupError::Create { path, source });
                None
            }
        }
    }

    /// Returns the directories of the leaf.
    pub fn directories(&self) -> &Cgroups {
        &self.directories
    }

    /// Returns the reasons why the leaf is missing in some hierarchies of the
    /// base.
    pub fn missed(&self) -> &[CgroupError] {
        &self.missed
    }

    /// Opens the leaf for processes to be started in it; `None` if it is not in
    /// a v2 hierarchy. Such processes must then be [moved](Self::move_born)
    /// into the other hierarchies.
    ///
    /// # Errors
    /// Returns [`CgroupError::Open`] if it cannot be opened.
    pub fn birthplace(&self) -> Result<Option<File>, CgroupError> {
        let Some(path) = &self.directories.v2 else {
            return Ok(None);
        };
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(source) => {
                let path = path.clone();
                Err(CgroupError::Open { path, source })
            }
        }
    }

    /// Returns whether a process that was started in the leaf must still be
    /// moved.
    pub fn is_to_be_moved(&self) -> bool {
        !self.directories.v1.is_empty()
    }

    /// Moves a process with all its threads into the leaf. Pages that it has
    /// touched remain charged to the previous cgroup. Waits for the kernel's
    /// grace periods.
    ///
    /// # Errors
    /// Returns [`CgroupError::Move`] for the first hierarchy that refuses; the
    /// process may then be in the leaves of others.
    pub fn admit(&self, pid: Pid) -> Result<(), CgroupError> {
        move_to(&self.directories.directories(), pid)
    }

    /// Moves a process that was started in the [birthplace](Self::birthplace)
    /// into the other hierarchies, like [`admit`](Self::admit).
    ///
    /// # Errors
    /// Returns the errors of [`admit`](Self::admit).
    pub fn move_born(&self, pid: Pid) -> Result<(), CgroupError> {
        let others = Cgroups {
            v2: None,
            v1: self.directories.v1.clone(),
        };
        move_to(&others.directories(), pid)
    }

    /// Sets the limits that are given.
    ///
    /// # Errors
    /// Returns [`CgroupError::NoController`] if no hierarchy of the leaf
    /// supports a requested limit, or [`CgroupError::Limit`] if it is refused.
    /// Limits set before remain.
    pub fn limit(&self, limits: &ResourceLimits) -> Result<(), CgroupError> {
        if let Some(bytes) = limits.memory_bytes {
            let v1 = ["memory.limit_in_bytes"];
            self.set(Controller::Memory, "memory.max", v1, bytes.to_string())?;
        }
        if let Some(threads) = limits.threads {
            self.set(
                Controller::Pids,
                "pids.max",
                ["pids.max"],
                threads.to_string(),
            )?;
        }
        if let Some(milli) = limits.cpu_milli {
            let quota = milli.saturating_mul(PERIOD_US / 1000).max(1000);
            match self.v2_with("cpu.max") {
                Some(file) => write_limit(file, format!("{quota} {PERIOD_US}"))?,
                None => {
                    let v1 = ["cpu.cfs_quota_us"];
                    self.set(Controller::Cpu, "cpu.max", v1, quota.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// Writes `value` to the v2 file, or else to the v1 file of `controller`.
    fn set(
        &self,
        controller: Controller,
        v2: &str,
        [v1]: [&str; 1],
        value: String,
    ) -> Result<(), CgroupError> {
        if let Some(file) = self.v2_with(v2) {
            return write_limit(file, value);
        }
        let directory = self.directories.v1.get(&controller);
        let directory = directory.ok_or(CgroupError::NoController { controller })?;
        write_limit(directory.join(v1), value)
    }

    /// Returns the path of `file` in the v2 leaf, if its controller is enabled.
    fn v2_with(&self, file: &str) -> Option<PathBuf> {
        let file = self.directories.v2.as_ref()?.join(file);
        file.exists().then_some(file)
    }

    /// Returns the CPU time used in the leaf so far, including ended processes;
    /// if no cgroup provides it, that of process `pid`.
    ///
    /// # Errors
    /// Returns the error of the last source that was tried.
    pub fn cpu_time(&self, pid: Pid) -> Result<CpuTime, CgroupError> {
        let v1 = self.directories.v1.get(&Controller::CpuAcct);
        let v2 = self.directories.v2.as_ref();
        v1.and_then(|directory| usage::v1_cpu_time(directory).ok())
            .or_else(|| v2.and_then(|directory| usage::v2_cpu_time(directory).ok()))
            .map_or_else(|| usage::process_cpu_time(pid), Ok)
    }

    /// Returns the memory charged to the leaf; if no cgroup provides it, that
    /// of process `pid`.
    ///
    /// # Errors
    /// Returns the error of the last source that was tried.
    pub fn memory(&self, pid: Pid) -> Result<Memory, CgroupError> {
        let v1 = self.directories.v1.get(&Controller::Memory);
        let v2 = self.directories.v2.as_ref();
        v2.and_then(|directory| usage::v2_memory(directory).ok())
            .or_else(|| v1.and_then(|directory| usage::v1_memory(directory).ok()))
            .map_or_else(|| usage::process_memory(pid), Ok)
    }

    /// Removes the leaf, and the directories above it that are empty then.
    ///
    /// # Errors
    /// Returns [`CgroupError::Remove`] for the first directory that cannot be
    /// removed, probably because a process is still in it. The others are
    /// removed nevertheless.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for path in self.directories.directories() {
            match remove_patiently(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    result = result.and(Err(CgroupError::Remove { path, source }));
                }
                _ => remove_empty_parents(&path),
            }
        }
        self.directories = Cgroups::default();
        result
    }
}

impl Drop for Leaf {
    /// Removes the leaf as far as possible, unless leaves are
    /// [kept](keep_leaves); [`Leaf::remove`] also reports errors.
    fn drop(&mut self) {
        if KEPT.load(Ordering::Relaxed) {
            return;
        }
        let _kept = self.remove_all();
    }
}

fn move_to(directories: &[PathBuf], pid: Pid) -> Result<(), CgroupError> {
    let pid = pid.as_raw_nonzero().get();
    for directory in directories {
        let file = directory.join("cgroup.procs");
        fs::write(file, pid.to_string()).map_err(|source| CgroupError::Move {
            pid,
            path: directory.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Creates a new leaf, so that it accounts for its own processes only, and
/// enables `controllers` for it if that is permitted. If it is not, setting a
/// limit fails later because the file is missing.
fn make_below(parent: &Path, below: &Path, controllers: &[&str]) -> io::Result<()> {
    let mut directory = parent.to_owned();
    for part in below {
        for controller in controllers {
            let _refused = fs::write(directory.join("cgroup.subtree_control"), controller);
        }
        directory.push(part);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            // A dead process with the same process ID left this leaf.
            Err(_there) if directory == parent.join(below) => {
                fs::remove_dir(&directory)?;
                fs::create_dir(&directory)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes a directory that the kernel may take for busy for a moment longer:
/// until the last process of it is dead for everybody. To be called where
/// waiting does no harm.
fn remove_patiently(path: &Path) -> io::Result<()> {
    for pause in PAUSES_MS.map(Duration::from_millis) {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(pause),
            other => return other,
        }
    }
    fs::remove_dir(path)
}

/// Removes `mkvmm/PID` and `mkvmm` above a leaf, if they are empty. Where
/// others have a leaf there, rmdir refuses, and that is right.
fn remove_empty_parents(leaf: &Path) {
    for parent in leaf.ancestors().skip(1).take(2) {
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
}

fn write_limit(path: PathBuf, value: String) -> Result<(), CgroupError> {
    fs::write(&path, &value).map_err(|source| CgroupError::Limit {
        path,
        value,
        source,
    })
}

/// Refuses names that would denote another directory, or a file of the kernel.
fn checked(name: &str) -> Result<&str, CgroupError> {
    let odd = name.is_empty() || name.starts_with('.') || name.contains(['/', '\n', '\0']);
    if odd || name.starts_with("cgroup.") || name.len() > 200 {
        return Err(CgroupError::Name {
            name: name.to_owned(),
        });
    }
    Ok(name)
}
