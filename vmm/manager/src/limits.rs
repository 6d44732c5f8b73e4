//! How much is allowed at once, out of what the host allows this process.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::budget::Amounts;

/// Clients that may be connected at once when nobody says.
const CONNECTIONS: u64 = 128;
/// Unpackers that may run at once.
const UNPACKERS: u64 = 16;
/// Boots by policy that may be under way at once.
const RESTARTS: usize = 4;
/// Images that are kept though no instance has them.
const KEPT_IMAGES: u64 = 256;
/// Descriptors of a connection: its own, and a console's watch over it.
const PER_CONNECTION: u64 = 2;
/// Descriptors of an unpacker: image, output, both once more, channel, process.
const PER_UNPACKER: u64 = 8;
/// Descriptors that are nobody's: files being opened, processes being made.
const SPARE_DESCRIPTORS: u64 = 32;
/// Threads and processes that are no guest's.
const SPARE_TASKS: u64 = 128;
/// Mappings of the program itself, its libraries and its heap.
const SPARE_MAPPINGS: u64 = 2048;

/// How much is allowed at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients that may be connected.
    pub connections: usize,
    /// Unpackers that may run.
    pub unpackers: usize,
    /// Boots by policy that may be under way.
    pub restarts: usize,
    /// Images that are kept though no instance has them.
    pub kept_images: usize,
    /// What all instances together may take.
    pub instances: Amounts,
}

/// More clients were to be allowed than there are descriptors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{connections} connections need more descriptors than the limit of {limit} open files has")]
pub struct TooManyConnections {
    /// Clients that were to be allowed.
    pub connections: usize,
    /// The limit of open files.
    pub limit: u64,
}

impl Limits {
    /// Derives limits from what this process may have, and has already.
    /// Without a wish for `connections` they are as many as leave most of the
    /// descriptors to instances.
    ///
    /// # Errors
    /// [`TooManyConnections`].
    pub fn of_host(connections: Option<usize>) -> Result<Self, TooManyConnections> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::of(limit, open_files(), connections)
    }

    /// The same for a limit of open files, of which `open` are.
    fn of(limit: u64, open: u64, wish: Option<usize>) -> Result<Self, TooManyConnections> {
        let connections = wish.map_or(CONNECTIONS.min(limit / 8), |wish| wish as u64);
        let unpackers = UNPACKERS.min(limit / 64).max(1);
        let kept_images = KEPT_IMAGES.min(limit / 8);
        let others = connections
            .saturating_mul(PER_CONNECTION)
            .saturating_add(unpackers * PER_UNPACKER + kept_images + SPARE_DESCRIPTORS + open);
        let connections = count(connections);
        if wish.is_some_and(|wish| wish > 0) && others >= limit {
            return Err(TooManyConnections { connections, limit });
        }
        Ok(Self {
            connections,
            unpackers: count(unpackers),
            restarts: RESTARTS,
            kept_images: count(kept_images),
            instances: Amounts {
                descriptors: limit.saturating_sub(others),
                tasks: tasks().saturating_sub(SPARE_TASKS),
                mappings: mappings().saturating_sub(SPARE_MAPPINGS),
            },
        })
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Descriptors that are open now.
fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64)
}

/// Threads that this process and its children may have; what others of the
/// same user or host have nobody can know beforehand.
fn tasks() -> u64 {
    let of_user = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    let of_host = number("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX);
    of_user.min(of_host).min(tasks_of_cgroup())
}

/// The limit of the cgroup that this process is in, under cgroup v2.
fn tasks_of_cgroup() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let file = path.map(|path| format!("/sys/fs/cgroup{path}/pids.max"));
    // `max` is no number.
    file.and_then(|file| number(&file)).unwrap_or(u64::MAX)
}

fn mappings() -> u64 {
    number("/proc/sys/vm/max_map_count").unwrap_or(u64::MAX)
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_get_most_of_the_descriptors_whatever_the_limit() {
        for limit in [256, 1024, 20_000, 1 << 20] {
            let limits = Limits::of(limit, 24, None).unwrap();
            let left = limits.instances.descriptors;
            assert!(left > limit / 6 && left < limit, "{limit}: {left}");
            assert!(limits.connections >= 32);
        }
    }

    #[test]
    fn more_connections_than_descriptors_are_refused() {
        let refused = Limits::of(256, 24, Some(200)).unwrap_err();
        assert_eq!((refused.connections, refused.limit), (200, 256));
        assert_eq!(Limits::of(1024, 24, Some(200)).unwrap().connections, 200);
    }
}
