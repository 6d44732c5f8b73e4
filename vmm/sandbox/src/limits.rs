//! Resource limits, and which limit applies to which resource.
//!
//! | resource | limited by | not limited by |
//! |---|---|---|
//! | heap, stacks and all mappings of an unpacker | `RLIMIT_AS` | |
//! | bytes of a memory file that an unpacker grows | `RLIMIT_FSIZE`, or the grow seal, if the file was received with its final size | `RLIMIT_AS`: pages written through the descriptor are in no address space |
//! | a worker's memory | its guest's files, sealed; heap and page tables by the cgroup of the guest | `RLIMIT_AS`: it would count reserved addresses of guest memory |
//! | CPU time of an unpacker | `RLIMIT_CPU`: SIGXCPU, a second later SIGKILL | |
//! | CPU time of a worker | the cgroup of the guest | `RLIMIT_CPU`: guests run for months |
//! | threads of a worker | the `pids` controller of the guest's cgroup | `RLIMIT_NPROC`: it counts all workers of the uid as one |
//! | descriptors | `RLIMIT_NOFILE`; those in flight on a socket count against the sender's | |
//! | core dumps | `RLIMIT_CORE` 0: guest memory stays out of files | |
//!
//! Tests: `unpacker::cpu_time`, `unpacker::address_space`, `unpacker::file_size`
//! in `tests/doors`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{SandboxError, failed};
use crate::profile::Limits;

/// Lowers the limits of this process. None is ever raised.
///
/// # Errors
/// Returns the system call that failed.
pub(crate) fn apply(limits: &Limits) -> Result<(), SandboxError> {
    lower(Resource::Core, 0, 0)?;
    let plain = [
        (Resource::Nofile, limits.open_files),
        (Resource::Fsize, limits.file_bytes),
        (Resource::As, limits.address_space_bytes),
    ];
    for (resource, limit) in plain {
        if let Some(limit) = limit {
            lower(resource, limit, limit)?;
        }
    }
    if let Some(seconds) = limits.cpu_seconds {
        lower(Resource::Cpu, seconds, seconds.saturating_add(1))?;
    }
    Ok(())
}

/// Lowers both values of one limit to at most `soft` and `hard`.
fn lower(resource: Resource, soft: u64, hard: u64) -> Result<(), SandboxError> {
    let now = getrlimit(resource);
    let at_most = |value: Option<u64>, limit: u64| value.map_or(limit, |value| value.min(limit));
    let maximum = at_most(now.maximum, hard);
    let new = Rlimit {
        current: Some(at_most(now.current, soft).min(maximum)),
        maximum: Some(maximum),
    };
    setrlimit(resource, new).map_err(failed("setrlimit"))
}
