//! The rules of this crate: a system call and its condition.

use std::collections::BTreeMap;

use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::error::SandboxError;

/// A condition on one argument of a system call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    /// The lower 32 bits of argument `.0` equal `.1`: the part that the kernel
    /// uses of an `int` or `unsigned int`.
    Is(u8, u32),
    /// The lower 32 bits of argument `.0` are not `.1`.
    Not(u8, u32),
    /// All 64 bits of argument `.0` equal `.1`.
    IsLong(u8, u64),
    /// Argument `.0` equals `.2` in the bits of mask `.1`.
    Masked(u8, u64, u64),
}

impl Arg {
    fn condition(self) -> Result<SeccompCondition, SandboxError> {
        let condition = match self {
            Self::Is(index, value) => SeccompCondition::new(
                index,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                value.into(),
            ),
            Self::Not(index, value) => SeccompCondition::new(
                index,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Ne,
                value.into(),
            ),
            Self::IsLong(index, value) => {
                SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
            }
            Self::Masked(index, mask, value) => SeccompCondition::new(
                index,
                SeccompCmpArgLen::Qword,
                SeccompCmpOp::MaskedEq(mask),
                value,
            ),
        };
        condition.map_err(SandboxError::Rules)
    }
}

/// System calls with the conditions under which they match.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    map: BTreeMap<i64, Vec<SeccompRule>>,
}

impl Rules {
    /// Matches `calls` with any arguments. The text beside each call states its
    /// purpose.
    pub(crate) fn always(&mut self, calls: impl IntoIterator<Item = (i64, &'static str)>) {
        let calls = calls.into_iter().map(|(call, _)| (call, Vec::new()));
        self.map.extend(calls);
    }

    /// Matches `call` if all of `args` hold; a second rule for the same call is
    /// an alternative.
    ///
    /// # Errors
    /// Returns [`SandboxError::Rules`] for an invalid argument index.
    pub(crate) fn when(
        &mut self,
        call: i64,
        args: &[Arg],
        _why: &'static str,
    ) -> Result<(), SandboxError> {
        let conditions = args.iter().map(|arg| arg.condition());
        let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
        let rule = SeccompRule::new(conditions).map_err(SandboxError::Rules)?;
        self.map.entry(call).or_default().push(rule);
        Ok(())
    }

    /// Returns the numbers of all calls that match under some condition.
    #[cfg(test)]
    pub(crate) fn calls(&self) -> impl Iterator<Item = i64> + '_ {
        self.map.keys().copied()
    }

    /// Returns the rules in the form that the compiler takes.
    pub(crate) fn into_map(self) -> BTreeMap<i64, Vec<SeccompRule>> {
        self.map
    }
}
