//! Host processors that a guest's vCPUs may use.

use std::collections::BTreeSet;
use std::str::FromStr;

use rustix::thread::{self, Pid};

/// Highest processor number that Linux's affinity mask of this size holds.
const MAX_CPU: usize = thread::CpuSet::MAX_CPU;

/// A list of processors as `taskset` and cpusets write it: `2-5,7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<usize>);

/// Why a list of processors was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuSetError {
    /// Not numbers and ranges.
    #[error("`{text}` is no list of processors such as 2-5,7")]
    Syntax {
        /// The text.
        text: String,
    },
    /// A processor that this process may not use.
    #[error("processor {cpu} is not available here (available: {available})")]
    Unavailable {
        /// The processor.
        cpu: usize,
        /// Those that are.
        available: CpuSet,
    },
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        let mut cpus = self.0.iter().copied().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let syntax = || CpuSetError::Syntax {
            text: text.to_owned(),
        };
        let number = |s: &str| s.parse().ok().filter(|&cpu: &usize| cpu < MAX_CPU);
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(syntax());
            };
            if first > last {
                return Err(syntax());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl CpuSet {
    /// Those that this process may use.
    fn available() -> Self {
        let Ok(set) = thread::sched_getaffinity(None::<Pid>) else {
            return Self(BTreeSet::new()); // then nothing can be checked
        };
        Self((0..MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
    }

    /// Checks that every processor is there.
    ///
    /// # Errors
    /// [`CpuSetError::Unavailable`] names the first that is not.
    pub fn check(&self) -> Result<(), CpuSetError> {
        let available = Self::available();
        match self.0.difference(&available.0).next() {
            Some(&cpu) if !available.0.is_empty() => {
                Err(CpuSetError::Unavailable { cpu, available })
            }
            _ => Ok(()),
        }
    }

    /// Confines the current thread to the set.
    pub fn apply(&self) {
        let mut set = thread::CpuSet::new();
        for &cpu in &self.0 {
            set.set(cpu);
        }
        if let Err(error) = thread::sched_setaffinity(None, &set) {
            log::warn!("a vCPU thread cannot be confined to processors {self}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_alike() {
        for (text, canonical) in [("0", "0"), ("2-5,7", "2-5,7"), ("7,5,4", "4-5,7")] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), canonical);
        }
        for bad in ["", "a", "3-1", "1,,2", "-1", "1-", "99999999"] {
            assert!(
                matches!(bad.parse::<CpuSet>(), Err(CpuSetError::Syntax { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn processors_that_are_not_there_are_named() {
        CpuSet::available().check().unwrap();
        let high: CpuSet = (MAX_CPU - 1).to_string().parse().unwrap();
        assert!(matches!(high.check(), Err(CpuSetError::Unavailable { .. })));
    }
}
