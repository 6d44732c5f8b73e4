//! Every system call that can fail fails once, in each kind of process, in each
//! verb of an instance's life.
//!
//! | module | what |
//! |---|---|
//! | `walk` | the walk: from call to call, verb by verb |
//! | `apply` | fleets, which are applied as a whole or not at all |
//! | `verb` | the verbs: asked for, looked at, made up for |
//! | `house` | an mkvmm with a neighbour, and what must be as before |
//! | `tally` | what was visited, and what came of it |
//!
//! What can fail stands in `mkvmm_test_harness::faults`. The calls of a verb are
//! not the same every time, since threads take turns: the walk goes on until
//! there are no more, and says how many it visited.
//!
//! `MKVMM_FAULT_STRIDE` says how many calls it goes on by; 1 visits all of them.
//! `MKVMM_FAULT_VERBOSE=1` prints each fault with its answer.

mod apply;
mod house;
mod tally;
mod verb;
mod walk;

use mkvmm_test_harness::faults::{MANAGER, NEWBORN};
use mkvmm_test_harness::tier::skips_without_kvm;

use verb::Verb;
use walk::Walk;

#[test]
fn every_call_may_fail_while_memory_comes_lazily() {
    if skips_without_kvm() {
        return;
    }
    let mut walk = Walk::begin(&[]);
    for role in [MANAGER, NEWBORN, "worker", "unpacker"] {
        walk.visit(role, &Verb::ALL);
    }
    walk.end();
}

#[test]
fn every_call_may_fail_while_memory_is_populated() {
    if skips_without_kvm() {
        return;
    }
    let mut walk = Walk::begin(&["--prealloc"]);
    // The other verbs do the same there.
    let verbs = [
        Verb::Create,
        Verb::Restart,
        Verb::Connect,
        Verb::Disconnect,
        Verb::Delete,
    ];
    for role in [MANAGER, NEWBORN, "cleaner"] {
        walk.visit(role, &verbs);
    }
    walk.end();
}

#[test]
fn a_fleet_is_applied_as_a_whole_or_not_at_all_whichever_call_fails() {
    if skips_without_kvm() {
        return;
    }
    let roles = [MANAGER, NEWBORN, "worker", "unpacker"];
    apply::walk(&[], &roles);
    apply::walk(&["--prealloc"], &[MANAGER, "cleaner"]);
}
