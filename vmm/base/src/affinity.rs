//! The host processors that a guest's vCPUs may use.

use std::str::FromStr;

use rustix::thread::{self, Pid};
use serde::{Deserialize, Serialize};

use crate::diagnose::{Class, Diagnose};

/// The highest processor number that fits into Linux's affinity mask.
const MAX_CPU: usize = thread::CpuSet::MAX_CPU;

/// A list of processors in the syntax of `taskset` and cpusets: `2-5,7`.
///
/// It keeps the ranges as they were written; [`CpuSet::check`] checks that they
/// ascend and that the host has the processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(Vec<(u16, u16)>);

/// A reason why a list of processors was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuSetError {
    /// The text does not consist of numbers and ranges.
    #[error("`{text}` is not a list of processors such as 2-5,7")]
    Syntax {
        /// The text as it was given.
        text: String,
    },
    /// A range ends before it begins.
    #[error("the processors {first}-{last} are in descending order")]
    Descending {
        /// The first number of the range.
        first: u16,
        /// The last number of the range.
        last: u16,
    },
    /// A processor is not available to this process.
    #[error("processor {cpu} is not available here (available: {available})")]
    Unavailable {
        /// The number of the processor.
        cpu: usize,
        /// The processors that are available.
        available: CpuSet,
    },
}

impl Diagnose for CpuSetError {
    fn class(&self) -> Class {
        Class::Affinity
    }
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for &(first, last) in &self.0 {
            write!(f, "{separator}{first}")?;
            if last != first {
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
        let number = |digits: &str| {
            let is_number = matches!(digits.len(), 1..=4) && !digits.starts_with('+');
            digits.parse().ok().filter(|_: &u16| is_number)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((number(first)?, number(last)?))
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| CpuSetError::Syntax {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for CpuSet {
    type Error = CpuSetError;

    fn try_from(text: String) -> Result<Self, CpuSetError> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> Self {
        set.to_string()
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for CpuSet {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some("A list of host processors such as `0-3,8`."))
            .pattern(Some(
                "^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$",
            ))
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for CpuSet {
    fn name() -> std::borrow::Cow<'static, str> {
        "CpuList".into()
    }
}

/// Returns the processors that this process may use, in ascending order; empty
/// if the host does not tell.
fn available() -> Vec<usize> {
    let Ok(set) = thread::sched_getaffinity(None::<Pid>) else {
        return Vec::new();
    };
    (0..MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

impl CpuSet {
    /// Creates the set of processors with these ascending numbers, merging
    /// adjacent ones into ranges.
    fn of(cpus: &[usize]) -> Self {
        let follows = |a: &usize, b: &usize| a + 1 == *b;
        let range = |run: &[usize]| {
            let (first, last) = (*run.first()?, *run.last()?);
            Some((u16::try_from(first).ok()?, u16::try_from(last).ok()?))
        };
        Self(cpus.chunk_by(follows).filter_map(range).collect())
    }

    /// Returns the processors that this process may use; `None` if the host does not
    /// tell.
    pub fn of_process() -> Option<Self> {
        let available = available();
        (!available.is_empty()).then(|| Self::of(&available))
    }

    /// Returns the numbers of the processors, in the order written.
    fn cpus(&self) -> impl Iterator<Item = usize> {
        let ranges = self.0.iter();
        ranges.flat_map(|&(first, last)| usize::from(first)..=usize::from(last))
    }

    /// Checks that every range ascends and every processor is available.
    ///
    /// # Errors
    /// Returns [`CpuSetError::Descending`] or [`CpuSetError::Unavailable`] for
    /// the first invalid range or processor.
    pub fn check(&self) -> Result<(), CpuSetError> {
        if let Some(&(first, last)) = self.0.iter().find(|(first, last)| first > last) {
            return Err(CpuSetError::Descending { first, last });
        }
        let available = available();
        match self.cpus().find(|cpu| !available.contains(cpu)) {
            Some(cpu) if !available.is_empty() => {
                let available = Self::of(&available);
                Err(CpuSetError::Unavailable { cpu, available })
            }
            _ => Ok(()),
        }
    }

    /// Restricts the current thread to the set.
    pub fn apply(&self) {
        let mut set = thread::CpuSet::new();
        for cpu in self.cpus().filter(|cpu| *cpu < MAX_CPU) {
            set.set(cpu);
        }
        if let Err(error) = thread::sched_setaffinity(None, &set) {
            log::warn!("a vCPU thread cannot be restricted to processors {self}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_alike() {
        for text in ["0", "2-5,7", "7,5,4", "3-1"] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), text);
        }
        for bad in ["", "a", "1,,2", "-1", "1-", "99999", "+1"] {
            assert!(
                matches!(bad.parse::<CpuSet>(), Err(CpuSetError::Syntax { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn processors_that_are_not_there_are_named() {
        let set = CpuSet::of(&available());
        set.check().unwrap();
        assert!(set.cpus().eq(available()));
        let high: CpuSet = (MAX_CPU - 1).to_string().parse().unwrap();
        assert!(matches!(high.check(), Err(CpuSetError::Unavailable { .. })));
        let down: CpuSet = "3-1".parse().unwrap();
        assert!(matches!(down.check(), Err(CpuSetError::Descending { .. })));
    }
}
