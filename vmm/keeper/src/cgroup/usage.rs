//! Reads the resources that a process or a cgroup used, from whichever file
//! provides them.

use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;

use crate::cgroup::error::{CgroupError, read, unexpected};

/// The source of a CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSource {
    /// The field `usage_usec` of a v2 cgroup's `cpu.stat`.
    V2,
    /// The file `cpuacct.usage` of a v1 cgroup.
    V1,
    /// The file `/proc/PID/stat`: one process, in clock ticks.
    Process,
}

/// The CPU time used so far, by user code, guest and kernel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTime {
    /// The CPU time that was used.
    pub used: Duration,
    /// The source of the number.
    pub source: CpuSource,
}

/// The source of a memory size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// The file `memory.current` of a v2 cgroup.
    V2,
    /// The file `memory.usage_in_bytes` of a v1 cgroup.
    V1,
    /// The proportional set size of one process.
    Proportional,
    /// The resident set size of one process, in which shared pages count in
    /// full.
    Resident,
}

/// The memory in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The number of bytes in use.
    pub bytes: u64,
    /// The source of the number.
    pub source: MemorySource,
}

/// Reads the CPU time of a v2 cgroup, which is available even without
/// controllers.
pub(super) fn v2_cpu_time(directory: &Path) -> Result<CpuTime, CgroupError> {
    let used = parsed(directory.join("cpu.stat"), parse_cpu_stat)?;
    let source = CpuSource::V2;
    Ok(CpuTime { used, source })
}

/// Reads the CPU time of a v1 `cpuacct` cgroup.
pub(super) fn v1_cpu_time(directory: &Path) -> Result<CpuTime, CgroupError> {
    let nanoseconds = parsed(directory.join("cpuacct.usage"), parse_number)?;
    Ok(CpuTime {
        used: Duration::from_nanos(nanoseconds),
        source: CpuSource::V1,
    })
}

/// Reads the memory of a v2 cgroup, which needs the memory controller.
pub(super) fn v2_memory(directory: &Path) -> Result<Memory, CgroupError> {
    let bytes = parsed(directory.join("memory.current"), parse_number)?;
    let source = MemorySource::V2;
    Ok(Memory { bytes, source })
}

/// Reads the memory of a v1 `memory` cgroup.
pub(super) fn v1_memory(directory: &Path) -> Result<Memory, CgroupError> {
    let bytes = parsed(directory.join("memory.usage_in_bytes"), parse_number)?;
    let source = MemorySource::V1;
    Ok(Memory { bytes, source })
}

/// Reads the CPU time of one process and all its threads, including ended ones.
///
/// # Errors
/// Returns [`CgroupError::Read`], probably because the process has ended, or
/// [`CgroupError::Content`].
pub fn process_cpu_time(pid: Pid) -> Result<CpuTime, CgroupError> {
    let hertz = rustix::param::clock_ticks_per_second();
    let used = parsed(file_of(pid, "stat"), |text| parse_stat(text, hertz))?;
    let source = CpuSource::Process;
    Ok(CpuTime { used, source })
}

/// Reads the memory of one process: its proportional set size if that is
/// readable (for a process that is not dumpable only root may read it),
/// otherwise its resident set size.
///
/// # Errors
/// Returns [`CgroupError::Read`], probably because the process has ended, or
/// [`CgroupError::Content`].
pub fn process_memory(pid: Pid) -> Result<Memory, CgroupError> {
    if let Ok(bytes) = parsed(file_of(pid, "smaps_rollup"), parse_pss) {
        let source = MemorySource::Proportional;
        return Ok(Memory { bytes, source });
    }
    let pages = parsed(file_of(pid, "statm"), parse_resident_pages)?;
    let page_size = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
    Ok(Memory {
        bytes: pages.saturating_mul(page_size),
        source: MemorySource::Resident,
    })
}

/// Returns the number of bytes of one process's private memory: the resident
/// set without pages of files. The kernel maintains both counts, so this is
/// quick and any user may read it.
///
/// # Errors
/// Returns [`CgroupError::Read`], probably because the process has ended, or
/// [`CgroupError::Content`].
pub fn private_memory(pid: Pid) -> Result<u64, CgroupError> {
    let pages = parsed(file_of(pid, "statm"), parse_private_pages)?;
    let page_size = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
    Ok(pages.saturating_mul(page_size))
}

/// Returns the state of one process as a letter, such as `T` for one that a
/// signal has stopped (proc_pid_stat(5), field 3).
///
/// # Errors
/// Returns [`CgroupError::Read`], probably because the process has ended, or
/// [`CgroupError::Content`].
pub fn process_state(pid: Pid) -> Result<char, CgroupError> {
    parsed(file_of(pid, "stat"), |text| {
        let (_, fields) = text.rsplit_once(')')?;
        fields.trim_start().chars().next()
    })
}

fn file_of(pid: Pid, name: &str) -> std::path::PathBuf {
    format!("/proc/{}/{name}", pid.as_raw_nonzero()).into()
}

fn parsed<T>(
    path: std::path::PathBuf,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, CgroupError> {
    let (path, text) = read(path)?;
    parse(&text).ok_or_else(|| unexpected(path, &text))
}

/// Parses a file that contains one number.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Parses `usage_usec` of a v2 `cpu.stat`.
pub(super) fn parse_cpu_stat(text: &str) -> Option<Duration> {
    let mut lines = text.lines();
    let microseconds = lines.find_map(|line| line.strip_prefix("usage_usec "))?;
    parse_number(microseconds).map(Duration::from_micros)
}

/// Parses utime and stime, in ticks of `hertz` per second, of `/proc/PID/stat`.
pub(super) fn parse_stat(text: &str, hertz: u64) -> Option<Duration> {
    // The name is in parentheses and may contain parentheses and spaces itself.
    let (_, fields) = text.rsplit_once(')')?;
    // utime and stime are fields 14 and 15 of proc_pid_stat(5); the name is 2.
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = u128::from(user) + u128::from(system);
    let nanoseconds = (ticks * 1_000_000_000).checked_div(hertz.into())?;
    u64::try_from(nanoseconds).ok().map(Duration::from_nanos)
}

/// Parses the proportional set size, in bytes, of `smaps_rollup`.
pub(super) fn parse_pss(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let pss = lines.find_map(|line| line.strip_prefix("Pss:"))?;
    parse_number(pss.strip_suffix("kB")?)?.checked_mul(1024)
}

/// Parses the number of resident pages without those of files in `statm`.
pub(super) fn parse_private_pages(text: &str) -> Option<u64> {
    let mut fields = text.split_ascii_whitespace().skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let of_files: u64 = fields.next()?.parse().ok()?;
    // The two numbers are not read at the same moment.
    Some(resident.saturating_sub(of_files))
}

/// Parses the number of resident pages in `statm`.
pub(super) fn parse_resident_pages(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}
