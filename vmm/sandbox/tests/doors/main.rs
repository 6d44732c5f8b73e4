//! An attacker in the sandbox of a worker tries every door to other processes
//! and to the host; and a worker, an unpacker and a cleaner do their work in
//! the same sandboxes.
//!
//! The program executes itself for each process of a test and passes the role
//! in the environment. As root it runs everything twice: started by root and
//! dropped by the sandbox, and as an ordinary user from the start.

mod attack;
mod check;
mod door;
mod guest;
mod images;
mod matrix;
mod process;
mod rings;
mod setup;
mod sweep;
mod syscall;
mod uring;
mod victim;
mod work;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use setup::Role;

fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return play(&role);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let mut trials = matrix::trials();
    trials.extend(sweep::trials());
    trials.extend(process::trials());
    trials.extend(rings::trials());
    trials.extend(images::trials());
    trials.extend(work::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn other(role: &Role) -> std::io::Result<()> {
    unreachable!("no test starts a process as {}", role.name)
}

/// Runs the role that the starting test assigned to this process.
fn play(role: &Role) -> ExitCode {
    let result = match role.name.as_str() {
        "victim" => victim::run(role),
        "attacker" => matrix::attack(role),
        "worker" => guest::run(role).map_err(std::io::Error::other),
        "abort" => guest::abort(role),
        "unpacker" => images::play_unpacker(role),
        "cleaner" => images::play_cleaner(role),
        "sweep" => sweep::run(role),
        "ring" => rings::play(role),
        _ => process::play(role).unwrap_or_else(|| other(role)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} failed: {error}", role.name);
            ExitCode::FAILURE
        }
    }
}
