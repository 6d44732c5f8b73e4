//! The second step, *edit*: the effect of taking or giving granules on the leaves.
//!
//! These are pure functions from runs to [`Change`]s; they look nothing up and change nothing. A
//! run belongs to the leaf in which it begins, so at most two leaves change: the one in which the
//! run around the granules begins, and the one in which the run after them begins.

use super::run::{Change, Pair, Run, leaf_base};

/// The changes caused by one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit {
    /// The change of the leaf in which the whole run begins.
    pub here: Change,
    /// The run after the granules, if it begins in another leaf. Cutting creates it, joining
    /// removes it.
    pub apart: Option<Run>,
}

/// Cuts `a..b` out of the run `whole`: at most a lower and a higher part of it remain.
#[inline(always)]
pub(super) fn cut(whole: Run, a: u64, b: u64) -> Edit {
    let low = (whole.start < a).then_some(Run { end: a, ..whole });
    let high = (b < whole.end).then_some(Run { start: b, ..whole });
    let together = leaf_base(b) == leaf_base(whole.start);
    let (beside, apart) = if together { (high, None) } else { (None, high) };
    let end = if together { b } else { whole.end };
    Edit {
        here: Change {
            out: Pair::new(Some(whole), None),
            into: Pair::new(low, beside),
            flipped: Run { start: a, end },
        },
        apart,
    }
}

/// Joins `a..b` with the run that ends at `a` and the run that begins at `b`, where these exist.
#[inline(always)]
pub(super) fn join(left: Option<Run>, right: Option<Run>, a: u64, b: u64) -> Edit {
    let whole = Run {
        start: left.map_or(a, |left| left.start),
        end: right.map_or(b, |right| right.end),
    };
    let together = leaf_base(b) == leaf_base(whole.start);
    let (beside, apart) = if together {
        (right, None)
    } else {
        (None, right)
    };
    let end = if together { b } else { whole.end };
    Edit {
        here: Change {
            out: Pair::new(left, beside),
            into: Pair::new(Some(whole), None),
            flipped: Run { start: a, end },
        },
        apart,
    }
}

/// Returns the change of a leaf in which `run` now begins.
pub(super) fn begin(run: Run) -> Change {
    Change {
        out: Pair::NONE,
        into: Pair::new(Some(run), None),
        flipped: run,
    }
}

/// Returns the change of a leaf in which `run` no longer begins.
pub(super) fn end(run: Run) -> Change {
    Change {
        out: Pair::new(Some(run), None),
        into: Pair::NONE,
        flipped: run,
    }
}
