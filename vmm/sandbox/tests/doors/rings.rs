//! The ring of a worker's disk: it serves the disk in the sandbox, and does
//! nothing else, also for an attacker who has all of its memory and descriptors.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, Fixed};
use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::{Confinement, DiskCalls, Layers, Profile};
use mkvmm_virtio::block::engine::{Buffers, Operation};
use mkvmm_virtio::block::{Engine, PreparedRing};
use rustix::event::{PollFd, PollFlags, poll};

use crate::check::{check, expect};
use crate::setup::{Role, Setup, User};
use crate::syscall::{call, through_ring};

/// Returns the tests of this file. They are ignored, with a message, if the host
/// has no io_uring; `MKVMM_REQUIRE_IO_URING=1` makes them fail.
pub fn trials() -> Vec<Trial> {
    let missing = PreparedRing::new().err();
    let required = env::var_os("MKVMM_REQUIRE_IO_URING").is_some_and(|value| value == "1");
    if let Some(error) = &missing {
        eprintln!("io_uring: {error}; rings of disks are not tested");
    }
    let is_ignored = missing.is_some() && !required;
    let mut trials = Vec::new();
    for &user in User::available() {
        let mut add = |name: &str, test: fn(User) -> Result<(), Failed>| {
            let name = format!("rings::{name}::{user:?}").to_lowercase();
            let trial = Trial::test(name, move || test(user));
            trials.push(trial.with_ignored_flag(is_ignored));
        };
        add("do_nothing_but_their_work", nothing_else);
        add("do_nothing_else_without_other_layers", nothing_else_alone);
        add("serve_their_disk", serves);
        add("are_not_made_inside", |user| is_killed(user, "make"));
        add("disks_are_not_made_direct_inside", |user| {
            is_killed(user, "direct")
        });
        add("get_no_other_rights_inside", |user| {
            is_killed(user, "register")
        });
    }
    trials
}

fn nothing_else(user: User) -> Result<(), Failed> {
    nothing_else_with(user, Layers::ALL)
}

/// The restrictions are the ring's own.
fn nothing_else_alone(user: User) -> Result<(), Failed> {
    nothing_else_with(user, Layers::NONE)
}

fn nothing_else_with(user: User, layers: Layers) -> Result<(), Failed> {
    let mut setup = Setup::new("ring", Profile::Worker, user).word("try");
    setup.layers = layers;
    let output = setup.command().stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check(output.status.success(), said.as_str())?;
    expect(said.as_str(), "all refused\n")
}

fn serves(user: User) -> Result<(), Failed> {
    let path = env::temp_dir().join(format!("mkvmm-ring-{}-{user:?}", std::process::id()));
    fs::write(&path, [7; 4096])?;
    let disk = File::options().read(true).write(true).open(&path)?;
    let setup = Setup::new("ring", Profile::Worker, user).word("serve");
    let output = setup.command().stdin(Stdio::from(disk)).output();
    let contents = fs::read(&path);
    fs::remove_file(&path)?;
    let output = output?;
    expect(String::from_utf8_lossy(&output.stdout).as_ref(), "served\n")?;
    expect(contents?, [[0; 512].as_slice(), &[7; 3584]].concat())
}

fn is_killed(user: User, word: &'static str) -> Result<(), Failed> {
    use std::os::unix::process::ExitStatusExt;
    let setup = Setup::new("ring", Profile::Worker, user).word(word);
    let output = setup.command().stdin(Stdio::null()).output()?;
    expect(output.status.signal(), Some(libc::SIGSYS))
}

/// Plays the worker.
pub fn play(role: &Role) -> io::Result<()> {
    let ring = PreparedRing::new()?;
    let disks = DiskCalls {
        rings: true,
        threads: false,
    };
    let confinement = Confinement {
        disks,
        ..role.confinement
    };
    confinement.enter().map_err(io::Error::other)?;
    match role.word::<String>(0).as_str() {
        "try" => try_everything(ring),
        "serve" => serve(ring),
        "make" => call(libc::SYS_io_uring_setup, [4, 0]).map(drop),
        "direct" => {
            let number = |flag: i32| usize::try_from(flag).unwrap_or(0);
            let flags = [0, number(libc::F_SETFL), number(libc::O_DIRECT)];
            call(libc::SYS_fcntl, flags).map(drop)
        }
        _ => {
            // IORING_REGISTER_EVENTFD
            let register = 4;
            call(libc::SYS_io_uring_register, [0, register, 0, 0]).map(drop)
        }
    }
}

/// Submits what an attacker could want.
fn try_everything(mut ring: PreparedRing) -> io::Result<()> {
    let path = c"/etc/passwd".as_ptr();
    let here = Fd(libc::AT_FDCWD);
    let empty = std::ptr::null_mut::<u8>();
    let open = || {
        opcode::OpenAt::new(here, path)
            .flags(libc::O_RDONLY)
            .build()
    };
    let entries: [(&str, Entry); 12] = [
        ("openat", open()),
        (
            "openat with the required flag",
            open().flags(Flags::FIXED_FILE),
        ),
        (
            "socket",
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
        ),
        (
            "connect",
            opcode::Connect::new(Fd(0), std::ptr::null(), 0).build(),
        ),
        ("unlinkat", opcode::UnlinkAt::new(here, path).build()),
        ("mkdirat", opcode::MkDirAt::new(here, path).build()),
        (
            "statx",
            opcode::Statx::new(here, path, empty.cast()).build(),
        ),
        ("close", opcode::Close::new(Fd(0)).build()),
        (
            "splice",
            opcode::Splice::new(Fd(0), -1, Fd(1), -1, 1).build(),
        ),
        (
            "read of a descriptor",
            opcode::Readv::new(Fd(0), std::ptr::null(), 0).build(),
        ),
        ("fixed read", opcode::Read::new(Fixed(0), empty, 0).build()),
        ("nop", opcode::Nop::new().build()),
    ];
    let mut all = true;
    for (name, entry) in entries {
        let result = through_ring(&mut ring, &entry).map_err(|error| error.raw_os_error());
        if result != Err(Some(libc::EACCES)) {
            println!("{name}: {result:?}");
            all = false;
        }
    }
    if all {
        println!("all refused");
    }
    Ok(())
}

/// Does what the engine does.
fn serve(ring: PreparedRing) -> io::Result<()> {
    let mut engine = ring.with_file(io::stdin().as_fd())?;
    let operations = [
        Operation::Write {
            at: 0,
            buffers: Buffers::zeros(512),
            durable: true,
        },
        Operation::Sync,
        Operation::Read {
            at: 0,
            buffers: Buffers::zeros(0),
        },
        Operation::Deallocate { at: 0, len: 512 },
    ];
    let mut failed = Vec::new();
    for (tag, operation) in (0..).zip(operations) {
        engine.begin(tag, operation);
        engine.submit()?;
        let mut ended = Vec::new();
        while ended.is_empty() {
            poll(
                &mut [PollFd::from_borrowed_fd(engine.event(), PollFlags::IN)],
                None,
            )?;
            engine.reap(&mut ended);
        }
        failed.extend(ended.into_iter().filter(|ended| ended.result.is_err()));
    }
    match failed.as_slice() {
        [] => println!("served"),
        failed => println!("{failed:?}"),
    }
    Ok(())
}
