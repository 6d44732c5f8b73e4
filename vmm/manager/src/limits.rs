//! Limits of simultaneous use, derived from the host's limits for this process.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::budget::Amounts;

/// The default number of clients that may be connected at once.
const CONNECTIONS: u64 = 128;
/// The maximum number of simultaneous unpackers.
const UNPACKERS: u64 = 16;
/// The maximum number of restarts in progress.
const RESTARTS: usize = 4;
/// The number of images that are cached without an instance using them.
const KEPT_IMAGES: u64 = 256;
/// The descriptors of a connection: its own, and one to watch it for hang-ups.
const PER_CONNECTION: u64 = 2;
/// The descriptors of an unpacker: image, output, a duplicate of both, channel,
/// process.
const PER_UNPACKER: u64 = 8;
/// Descriptors for other purposes: files being opened, processes being started.
const SPARE_DESCRIPTORS: u64 = 32;
/// Threads and processes that belong to no guest.
const SPARE_TASKS: u64 = 128;
/// Mappings of the program itself, its libraries and its heap.
const SPARE_MAPPINGS: u64 = 2048;

/// The limits of simultaneous use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of connected clients.
    pub connections: usize,
    /// The maximum number of running unpackers.
    pub unpackers: usize,
    /// The maximum number of restarts in progress.
    pub restarts: usize,
    /// The number of images that are cached without an instance using them.
    pub kept_images: usize,
    /// The resources that all instances together may use.
    pub instances: Amounts,
}

/// More connections were requested than there are descriptors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{connections} connections need more descriptors than the limit of {limit} open files allows"
)]
pub struct TooManyConnections {
    /// The number of connections requested.
    pub connections: usize,
    /// The limit of open files.
    pub limit: u64,
}

impl Limits {
    /// Derives limits from the resources that this process may use, and already
    /// uses. If `connections` is `None`, their number leaves most of the
    /// descriptors to instances.
    ///
    /// # Errors
    /// Returns [`TooManyConnections`] if there are not enough descriptors.
    pub fn of_host(connections: Option<usize>) -> Result<Self, TooManyConnections> {
        Self::of_successor(connections, 0)
    }

    /// Derives limits for a process that has taken over `inherited` descriptors of
    /// instances, which are counted with these.
    ///
    /// # Errors
    /// Returns the errors of [`Self::of_host`].
    pub fn of_successor(
        connections: Option<usize>,
        inherited: usize,
    ) -> Result<Self, TooManyConnections> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let open = open_files().saturating_sub(inherited as u64);
        Self::of(limit, open, connections)
    }

    /// Derives limits from a limit of open files, of which `open` are open.
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

/// Returns the number of descriptors that are open now.
fn open_files() -> u64 {
    const FILES: &str = "/proc/self/fd";
    // Since Linux 6.2 the size is the number. To list them takes tens of
    // milliseconds where thousands of guests were taken over.
    match fs::metadata(FILES).map_or(0, |files| files.len()) {
        0 => fs::read_dir(FILES).map_or(0, |files| files.count() as u64),
        number => number,
    }
}

/// Returns the number of threads that this process and its children may have;
/// the use by other processes of the same user or host cannot be predicted.
fn tasks() -> u64 {
    let of_user = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    let of_host = number("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX);
    of_user.min(of_host).min(tasks_of_cgroup())
}

/// Returns the limit of the cgroup that this process is in, under cgroup v2.
fn tasks_of_cgroup() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let file = path.map(|path| format!("/sys/fs/cgroup{path}/pids.max"));
    // The value `max` is not a number.
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
    fn open_files_are_counted() {
        let files: Vec<_> = (0..200)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(open_files() > files.len() as u64);
        assert!(open_files() < 2 * files.len() as u64);
    }

    #[test]
    fn more_connections_than_descriptors_are_refused() {
        let refused = Limits::of(256, 24, Some(200)).unwrap_err();
        assert_eq!((refused.connections, refused.limit), (200, 256));
        assert_eq!(Limits::of(1024, 24, Some(200)).unwrap().connections, 200);
    }
}
