//! Removes leaves left behind by processes that were killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, getpid, test_kill_process};

use crate::cgroup::leaf::HOUSE;
use crate::cgroup::locate::Cgroups;

/// Removes the leaves below `base` that killed mkvmm processes of this user
/// have left behind. Leaves with a process in them, or of a live mkvmm, remain.
pub fn remove_stale(base: &Cgroups) {
    for house in base.directories() {
        let house = house.join(HOUSE);
        for of_process in directories_in(&house).filter(|path| is_stale(path)) {
            for leaf in directories_in(&of_process) {
                remove_logged(&leaf);
            }
            remove_logged(&of_process);
        }
        // This fails if others have leaves here, as it should.
        let _others = fs::remove_dir(&house);
    }
}

/// Returns whether a directory belongs to this user and is named after a
/// process that no longer exists, or after this process, which has not created
/// one yet.
fn is_stale(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let pid = name.and_then(|name| name.parse().ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return false;
    };
    let is_gone = pid == getpid() || test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
    let owner = fs::symlink_metadata(path).map(|metadata| metadata.uid());
    is_gone && owner.is_ok_and(|uid| uid == geteuid().as_raw())
}

fn directories_in(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(is_directory).map(|entry| entry.path())
}

/// Removes one stale directory.
fn remove_logged(path: &Path) {
    if let Err(error) = fs::remove_dir(path) {
        log::debug!("the cgroup {} remains: {error}", path.display());
    }
}
