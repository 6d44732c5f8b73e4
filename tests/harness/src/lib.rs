//! What the integration tests share.
//!
//! | module | what for |
//! |---|---|
//! | [`mkvmm`] | runs the binary: arguments, timeouts, signals, both streams |
//! | [`console`] | takes the prefixed lines of many guests apart |
//! | [`report`] | reads what `run --show` prints |
//! | [`tier`] | what this host can do, and so which tests can run |
//! | [`embedded`] | a manager in the test's own process |
//! | [`images`] | ELF kernels and bzImages made by the tests |
//! | [`instance`] | an instance's memory in the test's own process, without KVM |
//! | [`server`] | a VMM that serves, and two ways to talk to it |
//! | [`random`] | numbers that look random, the same every time |
//! | [`scratch`] | files that are gone when the test is |
//!
//! Everything here panics with what it saw when that is not what a test may
//! expect: a panic is how a test fails.

pub mod console;
pub mod embedded;
pub mod images;
pub mod instance;
pub mod mkvmm;
pub mod random;
pub mod report;
pub mod scratch;
pub mod server;
pub mod tier;

use std::path::Path;

pub use console::Consoles;
pub use mkvmm::{Finished, Mkvmm, Running, Stdout};
pub use random::Random;
pub use report::Report;
pub use scratch::Scratch;
pub use server::Server;

/// Returns the repository's top directory.
pub fn root() -> &'static Path {
    // Without `..`: an emulated host has the files that it is given at their
    // paths, and no other directories.
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = harness.parent().expect("it lies in tests/");
    tests.parent().expect("tests/ lies in the repository")
}
