//! The common code of the integration tests.
//!
//! | module | purpose |
//! |---|---|
//! | [`mkvmm`] | runs the binary: arguments, timeouts, signals, both streams |
//! | [`console`] | parses the prefixed lines of many guests |
//! | [`report`] | parses the output of `run --show` |
//! | [`tier`] | the abilities of this host, which determine the tests that can run |
//! | [`embedded`] | a manager in the test's own process |
//! | [`walk`] | what walks through those calls have in common |
//! | [`freezer`] | processes that not even SIGKILL ends |
//! | [`faults`] | system calls of mkvmm's processes that fail because a test says so |
//! | [`images`] | ELF kernels and bzImages made by the tests |
//! | [`instance`] | an instance's memory in the test's own process, without KVM |
//! | [`server`] | a VMM that serves, and two ways to talk to it |
//! | [`kept`] | one that leaves its guests to a keeper, and is killed and started again |
//! | [`terminal`] | a client attached to a guest's console |
//! | [`pty`] | terminals without a window |
//! | [`random`] | reproducible pseudo-random numbers |
//! | [`scratch`] | temporary files |
//!
//! Everything here panics with an explanation if a result is not as expected,
//! which fails the test.

pub mod console;
pub mod embedded;
pub mod faults;
mod finished;
pub mod freezer;
pub mod images;
pub mod instance;
pub mod kept;
pub mod mkvmm;
pub mod pty;
pub mod random;
pub mod report;
pub mod scratch;
pub mod server;
pub mod terminal;
pub mod tier;
pub mod walk;

use std::path::Path;

pub use console::Consoles;
pub use finished::Finished;
pub use kept::Kept;
pub use mkvmm::{Mkvmm, Process, Running, Stdout};
pub use random::Random;
pub use report::Report;
pub use scratch::Scratch;
pub use server::Server;
pub use terminal::Terminal;

/// Returns the repository's top directory.
pub fn root() -> &'static Path {
    // Avoid `..`: an emulated host has the files that it is given at their
    // paths, and no other directories.
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = harness.parent().expect("it lies in tests/");
    tests.parent().expect("tests/ lies in the repository")
}
