//! Leaves that processes have left behind which were killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, getpid, test_kill_process};

use crate::cgroup::leaf::HOUSE;
use crate::cgroup::locate::Cgroups;

/// Removes the leaves below `base` that mkvmms of this user have left which
/// were killed. What has a process in it, or a live mkvmm, stays.
pub fn remove_stale(base: &Cgroups) {
    for house in base.directories() {
        let house = house.join(HOUSE);
        for of_process in directories_in(&house).filter(|path| is_stale(path)) {
            for leaf in directories_in(&of_process) {
                remove_logged(&leaf);
            }
            remove_logged(&of_process);
        }
        // Fails where others have leaves, and that is right.
        let _others = fs::remove_dir(&house);
    }
}

/// Whether a directory is named after a process that is no more, or after this
/// one, which has made none yet; and is this user's.
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

/// Removes one directory that nobody is to miss.
fn remove_logged(path: &Path) {
    if let Err(error) = fs::remove_dir(path) {
        log::debug!("the cgroup {} stays: {error}", path.display());
    }
}
