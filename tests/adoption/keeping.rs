//! The keeper alone, with the test as its manager.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mkvmm_keeper::client::{Inventory, Keeper, Start};
use mkvmm_keeper::process::Exit;
use mkvmm_test_harness::Kept;
use mkvmm_test_harness::kept::{expect_gone, is_alive};
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair,
};
use tokio::task::LocalSet;

const POOL: &str = "32M@4G";
/// Longer than a test takes.
const LONGEST: Duration = Duration::from_secs(180);

/// Does `work` with the keeper of a manager that was killed, whose children execute
/// `program`.
fn with_keeper<T>(
    kept: &Kept,
    program: &File,
    work: impl AsyncFnOnce(Keeper, Inventory) -> T,
) -> T {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let socket: OwnedFd = socket.expect("there are sockets");
    let address = SocketAddrUnix::new(kept.state_dir().join("keeper.sock"));
    connect(&socket, &address.expect("it is short")).expect("it has a keeper");
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("there are threads");
    LocalSet::new().block_on(&runtime, async {
        let connected = Keeper::connect(socket, program.as_fd(), |_, _, _| {}).await;
        let (keeper, inventory) = connected.expect("it has no manager");
        work(keeper, inventory).await
    })
}

#[test]
fn a_child_that_cannot_execute_its_program_says_why() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &[]);
    kept.kill_manager();
    let text = kept.path("text");
    fs::write(&text, "no program").expect("the directory is ours");
    let program = File::open(&text).expect("it is there");
    let expected = Exit::NotExecuted(rustix::io::Errno::ACCESS.raw_os_error());
    let serial = with_keeper(&kept, &program, async |keeper, _| {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let pair = socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.expect("there are sockets");
        let start = Start {
            role: "worker",
            label: "nobody",
            environment: &[],
            has_output: false,
            cgroup: None,
            theirs: theirs.as_fd(),
            ours: ours.as_fd(),
        };
        let (serial, mut child) = keeper.start(&start).await.expect("it is born");
        let exit = child.ended().await.expect("it ends");
        assert_eq!(exit, expected);
        assert!(exit.to_string().contains("Permission denied"), "{exit}");
        let error = exit.not_executed("worker").expect("it was not");
        let source = std::error::Error::source(&error).expect("the kernel's");
        let source = source.downcast_ref::<std::io::Error>().expect("its number");
        assert_eq!(source.kind(), ErrorKind::PermissionDenied);
        serial
    });
    // The next manager is told, too: nobody was interested so far.
    with_keeper(&kept, &program, async |_, mut inventory| {
        let mut kept = inventory
            .children
            .remove(&serial)
            .expect("it was not forgotten");
        assert_eq!(
            (kept.role.as_str(), kept.label.as_str()),
            ("worker", "nobody")
        );
        assert_eq!(kept.child.try_wait().expect("it is known"), Some(expected));
    });
    kept.serve();
    kept.expect_audit();
    assert!(kept.children().is_empty());
    kept.end();
}

#[test]
fn the_last_manager_says_what_happens_at_its_end() {
    if skips_without_kvm() {
        return;
    }
    for (first, last) in [("keep", "kill"), ("kill", "keep")] {
        let mut kept = Kept::start(POOL, &["--on-manager-exit", first]);
        kept.ok("create a --memory 8M --kernel probe --cmdline spin");
        kept.ok("start a");
        let (pid, keeper) = (kept.worker_pid("a"), kept.keeper());
        kept.leave();
        kept.set_options(&["--on-manager-exit", last]);
        assert!(is_alive(pid), "it was told to stay");
        kept.serve();
        assert_eq!(kept.worker_pid("a"), pid);
        kept.kill_manager();
        match last {
            "kill" => {
                expect_gone(pid);
                expect_gone(keeper);
            }
            _ => {
                kept.serve();
                assert_eq!(kept.worker_pid("a"), pid);
                kept.tear_down();
                kept.end();
            }
        }
    }
}

#[test]
fn locked_memory_is_locked_without_a_manager() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::new(POOL, &["--lock"], LONGEST);
    let running = kept.serving().spawn();
    if !kept.try_take(running) {
        return skip("this user may not lock memory");
    }
    let locked = |kept: &Kept| {
        let status = fs::read_to_string(format!("/proc/{}/status", kept.keeper().as_raw_pid()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("a number") << 10
    };
    kept.ok("create a --memory 8M --kernel probe --cmdline spin");
    kept.ok("start a");
    assert!(locked(&kept) >= 32 << 20, "all of the pool");
    kept.kill_manager();
    assert!(locked(&kept) >= 32 << 20, "still");
    kept.serve();
    kept.tear_down();
    assert!(locked(&kept) >= 32 << 20, "and what is free again");
    kept.end();
}
