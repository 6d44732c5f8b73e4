//! Finds the cgroup of a process: joins `/proc/PID/cgroup` with the mount
//! table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::cgroup::controller::Controller;
use crate::cgroup::error::{CgroupError, read};

/// The cgroup below which a guest's leaf is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The cgroup of the calling process.
    Own,
    /// The cgroup of another process: `mine` of a client, which is then
    /// charged.
    Process(Pid),
    /// A path below the mount point of each hierarchy.
    Path(PathBuf),
}

/// The directories of one cgroup in the hierarchies of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// The directory in the v2 hierarchy, if it is mounted.
    pub v2: Option<PathBuf>,
    /// The directories in v1 hierarchies, by controller.
    pub v1: BTreeMap<Controller, PathBuf>,
}

impl Cgroups {
    /// Finds the cgroup that `base` names.
    ///
    /// # Errors
    /// Returns [`CgroupError::Read`] if `/proc` cannot be read (the process may
    /// have ended), [`CgroupError::NoHierarchy`] or
    /// [`CgroupError::NoSuchCgroup`].
    pub fn find(base: &Base) -> Result<Self, CgroupError> {
        let (_, mounts) = read("/proc/self/mountinfo".into())?;
        let process = match base {
            Base::Own => "self".to_owned(),
            Base::Process(pid) => pid.as_raw_nonzero().to_string(),
            Base::Path(path) => return Self::named(path, &mounts),
        };
        let (_, membership) = read(format!("/proc/{process}/cgroup").into())?;
        Self::locate(&membership, &mounts)
    }

    /// Finds the cgroup of a process from the texts of its `/proc/PID/cgroup`
    /// and of this process's `/proc/self/mountinfo`. Malformed lines are
    /// ignored.
    ///
    /// # Errors
    /// Returns [`CgroupError::NoHierarchy`] if there is none.
    pub fn locate(membership: &str, mountinfo: &str) -> Result<Self, CgroupError> {
        let mut found = Self::default();
        let mounts: Vec<_> = mountinfo.lines().filter_map(Mount::parse).collect();
        for line in membership.lines() {
            // hierarchy-ID:controller-list:cgroup-path; the path may contain
            // colons.
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            found.add(&mounts, |mount| mount.directory(id, controllers, path));
        }
        if found == Self::default() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(found)
    }

    /// Returns every directory once: several v1 controllers may share a
    /// hierarchy.
    pub fn directories(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = self.v1.values().chain(&self.v2).cloned().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Finds the cgroup of one path in all hierarchies that have it. A path
    /// with `..` is refused: it could name a directory outside.
    fn named(path: &Path, mountinfo: &str) -> Result<Self, CgroupError> {
        let mut found = Self::default();
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mounts: Vec<_> = mountinfo.lines().filter_map(Mount::parse).collect();
        found.add(&mounts, |mount| {
            let directory = mount.point.join(relative);
            let there = !climbs(relative) && directory.join("cgroup.procs").exists();
            there.then_some(directory)
        });
        if found == Self::default() {
            let path = path.to_owned();
            return Err(CgroupError::NoSuchCgroup { path });
        }
        Ok(found)
    }

    /// Adds the directory that `directory_in` finds in each mount; the first
    /// mount of a hierarchy takes precedence.
    fn add(&mut self, mounts: &[Mount], directory_in: impl Fn(&Mount) -> Option<PathBuf>) {
        for mount in mounts {
            let Some(directory) = directory_in(mount) else {
                continue;
            };
            if mount.v2 {
                self.v2.get_or_insert(directory);
                continue;
            }
            let named = |each: &&Controller| mount.options.iter().any(|have| have == each.name());
            for controller in Controller::ALL.iter().filter(named) {
                let known = self.v1.entry(*controller);
                known.or_insert_with(|| directory.clone());
            }
        }
    }
}

/// A mounted hierarchy, as mountinfo describes it.
#[derive(Debug)]
struct Mount {
    v2: bool,
    /// The cgroup that is visible at the mount point.
    root: PathBuf,
    point: PathBuf,
    /// The options of the super block; for v1 they include the controllers.
    options: Vec<String>,
}

impl Mount {
    /// Parses one line of mountinfo (proc_pid_mountinfo(5)); `None` if it
    /// describes another file system, or is malformed.
    fn parse(line: &str) -> Option<Self> {
        let (mount, super_block) = line.split_once(" - ")?;
        let mut super_block = super_block.split(' ');
        let v2 = match super_block.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let mut mount = mount.split(' ').skip(3);
        let root = unescape(mount.next()?);
        let point = unescape(mount.next()?);
        let options = super_block.nth(1).unwrap_or_default();
        Some(Self {
            v2,
            root,
            point,
            options: options.split(',').map(str::to_owned).collect(),
        })
    }

    /// Returns the directory of cgroup `path` of the hierarchy described by
    /// `id` and `controllers`, if this is a mount of that hierarchy which shows
    /// the cgroup.
    fn directory(&self, id: &str, controllers: &str, path: &str) -> Option<PathBuf> {
        let same = match self.v2 {
            true => id == "0" && controllers.is_empty(),
            false => {
                let have = |wanted| self.options.iter().any(|have| have == wanted);
                !controllers.is_empty() && controllers.split(',').all(have)
            }
        };
        // A path above the root of a cgroup namespace begins with /.. and is
        // not visible in any mount in it.
        let inside = Path::new(path).strip_prefix(&self.root).ok()?;
        (same && !climbs(inside)).then(|| self.point.join(inside))
    }
}

/// Returns whether a path has a `..` component.
fn climbs(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "..")
}

/// Decodes the octal escapes of mountinfo: space, tab, newline, backslash.
fn unescape(field: &str) -> PathBuf {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let plain = escapes
        .iter()
        .fold(field.to_owned(), |text, (escape, plain)| {
            text.replace(escape, plain)
        });
    plain.into()
}
