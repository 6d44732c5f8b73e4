//! `run --pool job`: the largest pool that fits into the memory of the job in which
//! mkvmm runs.
//!
//! The limit is the lowest of the memory cgroup, with those above it, and of what
//! Slurm has granted: without cgroups, Slurm itself watches its jobs. What the
//! processes need besides the pool is subtracted; the numbers were measured, and
//! `docs/scale-out.md` has them.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;

use mkvmm_api::{InstanceSpec, Source};
use mkvmm_base::{Bytes, Class, Diagnose};
use mkvmm_keeper::cgroup::{Base, Cgroups, Controller};

/// The word in place of a size.
pub const JOB: &str = "job";

/// What the manager and the shell of the job need: 6 MiB.
const OWN: u64 = 6 << 20;
/// What the process of a guest needs: 2 MiB.
const GUEST: u64 = 2 << 20;
/// What each further vCPU needs: 256 KiB.
const VCPU: u64 = 256 << 10;
/// The share of page tables, in the processes and in KVM: eight bytes for each page
/// of 4 KiB in up to four tables.
const TABLES: u64 = 128;
/// How much larger than its file an unpacked kernel may be.
const UNPACKED: u64 = 6;
/// Pools of jobs are multiples of this, a huge page.
const GRANULE: u64 = 2 << 20;
/// What cgroups without a limit say in version 1: as many bytes as whole pages
/// can have. Nobody has this much.
const UNLIMITED: u64 = 1 << 60;

/// A reason why the pool of a job has no size.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The memory of the job is not limited.
    #[error("neither a cgroup nor Slurm limits the memory of this job")]
    NoLimit,
    /// Nothing would be left for a pool.
    #[error(
        "{source_name} limits this job to {}, and its guests need {} besides their pool", Bytes(*.limit), Bytes(*.overhead)
    )]
    Small {
        /// Who limits the job.
        source_name: &'static str,
        /// The memory of the job.
        limit: u64,
        /// What is needed besides the pool.
        overhead: u64,
    },
    /// The guests are not known.
    #[error("`job` is for `run`, which knows its guests")]
    Serve,
}

impl Diagnose for JobError {
    fn class(&self) -> Class {
        Class::Invalid
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoLimit => "give the job a limit (sbatch --mem), or a size to --pool",
            Self::Small { .. } => "ask for more memory (sbatch --mem), or for fewer guests",
            Self::Serve => "give a size to --pool",
        };
        Some(hint.to_owned())
    }
}

/// What the guests of a job need besides their pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The number of guests.
    guests: u64,
    /// The number of their vCPUs.
    vcpus: u64,
    /// The bytes that images take until their guests end.
    images: u64,
}

impl Needs {
    /// Returns what these guests need. An image that several have counts once.
    pub fn of(specs: &[InstanceSpec]) -> Self {
        let mut seen = BTreeSet::new();
        let mut bytes = 0_u64;
        for images in specs.iter().filter_map(|spec| spec.images().ok().flatten()) {
            let archives = images.initrd.len();
            let count = images.sources().count();
            for (at, source) in images.sources().enumerate() {
                let path = match source {
                    Source::Path(path) => path.clone(),
                    Source::Fd(fd) => format!("/proc/self/fd/{fd}").into(),
                };
                // What cannot be read is refused later, with its name.
                let size = fs::metadata(&path).map_or(0, |file| file.len());
                // The kernel comes before the archives.
                let factor = if at + archives < count { UNPACKED } else { 1 };
                if seen.insert(path) {
                    bytes = bytes.saturating_add(size.saturating_mul(factor));
                }
            }
        }
        Self {
            guests: specs.len() as u64,
            vcpus: specs.iter().map(|spec| u64::from(spec.cpus)).sum(),
            images: bytes,
        }
    }

    /// Returns the bytes that are needed besides a pool in `limit`.
    fn overhead(self, limit: u64) -> u64 {
        let further = self.vcpus.saturating_sub(self.guests);
        let processes = OWN + self.guests * GUEST + further * VCPU;
        processes
            .saturating_add(self.images)
            .saturating_add(limit / TABLES)
    }

    /// Returns the pool in `limit`.
    fn pool(self, Limit { bytes, source }: Limit) -> Result<JobPool, JobError> {
        let overhead = self.overhead(bytes);
        let left = bytes.saturating_sub(overhead) / GRANULE * GRANULE;
        if left == 0 {
            return Err(JobError::Small {
                source_name: source,
                limit: bytes,
                overhead,
            });
        }
        let (shown, limit, overhead) = (Bytes(left), Bytes(bytes), Bytes(overhead));
        Ok(JobPool {
            size: left,
            note: format!("the pool has {shown}: {source} allows {limit}, less {overhead}"),
        })
    }
}

/// The pool of a job.
#[derive(Debug)]
pub struct JobPool {
    /// The size of the pool in bytes.
    pub size: u64,
    /// What it was computed from, for the log.
    pub note: String,
}

/// The memory of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    /// Who limits it.
    source: &'static str,
}

/// Returns the pool for guests with these needs.
///
/// # Errors
/// Returns a [`JobError`].
pub fn pool(needs: Needs) -> Result<JobPool, JobError> {
    let cgroup = of_cgroup().map(|bytes| Limit {
        bytes,
        source: "its cgroup",
    });
    let slurm = of_slurm(|name| env::var(name).ok()).map(|bytes| Limit {
        bytes,
        source: "Slurm",
    });
    let limits = cgroup.into_iter().chain(slurm);
    let lowest = limits.min_by_key(|limit| limit.bytes);
    needs.pool(lowest.ok_or(JobError::NoLimit)?)
}

/// Returns the limit of this process's memory cgroup, and of those above it.
fn of_cgroup() -> Option<u64> {
    let cgroups = Cgroups::find(&Base::Own).ok()?;
    let v1 = cgroups.v1.get(&Controller::Memory);
    let v2 = cgroups.v2.as_deref();
    let limits = v1
        .map(|path| lowest(path, "memory.limit_in_bytes"))
        .into_iter()
        .chain(v2.map(|path| lowest(path, "memory.max")));
    limits.flatten().min()
}

/// Returns the lowest number that `file` has in `directory` and those above it.
/// The topmost cgroup of version 2 has no such file.
fn lowest(directory: &Path, file: &str) -> Option<u64> {
    let texts = directory.ancestors().map(|path| path.join(file));
    let texts = texts.filter_map(|path| fs::read_to_string(path).ok());
    texts.filter_map(|text| limit(&text)).min()
}

/// Parses a limit of a cgroup; `None` if there is none.
fn limit(text: &str) -> Option<u64> {
    // Version 2 says `max`.
    text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED)
}

/// Returns what Slurm has granted on this host, according to the variables of the job.
fn of_slurm(variable: impl Fn(&str) -> Option<String>) -> Option<u64> {
    // In MiB; 0 stands for all memory of the host.
    let number = |name: &str| variable(name)?.trim().parse().ok().filter(|n| *n > 0);
    let mib = number("SLURM_MEM_PER_NODE").or_else(|| {
        let cpus: u64 = number("SLURM_CPUS_ON_NODE")?;
        number("SLURM_MEM_PER_CPU")?.checked_mul(cpus)
    })?;
    mib.checked_mul(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs {
        guests: 1,
        vcpus: 1,
        images: 0,
    };

    fn size(bytes: u64) -> Result<u64, JobError> {
        let source = "a test";
        Ok(NEEDS.pool(Limit { bytes, source })?.size)
    }

    #[test]
    fn limits_are_numbers_unless_there_are_none() {
        assert_eq!(limit("67108864\n"), Some(64 << 20));
        assert_eq!(limit("max\n"), None);
        // As many pages as a page counter has.
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("0\n"), Some(0));
    }

    #[test]
    fn slurm_grants_per_host_or_per_processor() {
        let job = |all: &'static [(&str, &str)]| {
            of_slurm(|name| {
                let found = all.iter().find(|(known, _)| *known == name)?;
                Some(found.1.to_owned())
            })
        };
        assert_eq!(job(&[]), None);
        assert_eq!(job(&[("SLURM_MEM_PER_NODE", "64")]), Some(64 << 20));
        let per_cpu = &[("SLURM_MEM_PER_CPU", "32"), ("SLURM_CPUS_ON_NODE", "3")];
        assert_eq!(job(per_cpu), Some(96 << 20));
        assert_eq!(job(&[("SLURM_MEM_PER_CPU", "32")]), None);
        assert_eq!(job(&[("SLURM_MEM_PER_NODE", "0")]), None);
        assert_eq!(job(&[("SLURM_MEM_PER_NODE", "64G")]), None);
        assert_eq!(job(&[("SLURM_MEM_PER_NODE", "99999999999999999")]), None);
    }

    #[test]
    fn the_pool_is_what_the_processes_leave() {
        // 6 + 2 MiB, and half a MiB of tables.
        assert_eq!(size(64 << 20).unwrap(), 54 << 20);
        assert_eq!(size(1 << 30).unwrap(), 1008 << 20);
        for bytes in [0, 8 << 20, 9 << 20] {
            assert!(
                matches!(size(bytes), Err(JobError::Small { .. })),
                "{bytes}"
            );
        }
        let more = Needs {
            guests: 3,
            vcpus: 7,
            images: 5 << 20,
        };
        assert_eq!(more.overhead(0), (6 + 3 * 2 + 1 + 5) << 20);
    }

    #[test]
    fn an_image_of_several_guests_counts_once() {
        let path = env::temp_dir().join(format!("mkvmm-job-{}", std::process::id()));
        fs::write(&path, vec![0; 1000]).unwrap();
        let spec = |text: &str| format!("{text},kernel={0},initrd={0}", path.display());
        let specs: Vec<InstanceSpec> = ["name=a", "name=b,cpus=3"]
            .iter()
            .map(|text| spec(text).parse().unwrap())
            .collect();
        let needs = Needs::of(&specs);
        fs::remove_file(&path).unwrap();
        // It is a kernel first.
        assert_eq!((needs.guests, needs.vcpus, needs.images), (2, 4, 6000));
        let probe: InstanceSpec = "name=a,kernel=probe".parse().unwrap();
        assert_eq!(Needs::of(&[probe]), NEEDS);
    }
}
