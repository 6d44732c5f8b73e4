//! The main function of benchmarks that are programs of their own: what they measure
//! happens in other processes, so they are none of criterion's.

use std::env;
use std::fmt::Display;
use std::process::ExitCode;

/// Calls `work` with the arguments of this program, without those of cargo; reports its
/// error with the `name` of the benchmark.
pub fn run<E: Display>(name: &str, work: impl FnOnce(&[String]) -> Result<(), E>) -> ExitCode {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let all = arguments.len();
    arguments.retain(|word| word != "--bench");
    if arguments.len() == all {
        // `cargo test --benches` calls every benchmark to see whether it starts.
        return ExitCode::SUCCESS;
    }
    match work(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
