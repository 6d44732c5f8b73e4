//! Makes every system call that no worker needs once: they are refused with any
//! arguments, before the kernel examines them.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;

use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::{Mode, Profile};

use crate::setup::{Role, Setup, User};
use crate::syscall::call;

/// The bit that turns a number into one of the x32 ABI.
const X32: i64 = 0x4000_0000;

const REFUSED: [(&str, i64); 49] = [
    ("open", libc::SYS_open),
    ("openat2", libc::SYS_openat2),
    ("creat", libc::SYS_creat),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("openat of x32", libc::SYS_openat | X32),
    ("read of x32", libc::SYS_read | X32),
    ("access", libc::SYS_access),
    ("unlink", libc::SYS_unlink),
    ("rename", libc::SYS_rename),
    ("chdir", libc::SYS_chdir),
    ("chmod", libc::SYS_chmod),
    ("fchmod", libc::SYS_fchmod),
    ("socketpair", libc::SYS_socketpair),
    ("bind", libc::SYS_bind),
    ("listen", libc::SYS_listen),
    ("accept4", libc::SYS_accept4),
    ("setsockopt", libc::SYS_setsockopt),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("keyctl", libc::SYS_keyctl),
    ("add_key", libc::SYS_add_key),
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("setns", libc::SYS_setns),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("seccomp", libc::SYS_seccomp),
    ("capset", libc::SYS_capset),
    ("setgroups", libc::SYS_setgroups),
    ("setsid", libc::SYS_setsid),
    ("pkey_mprotect", libc::SYS_pkey_mprotect),
    ("process_madvise", libc::SYS_process_madvise),
    ("move_pages", libc::SYS_move_pages),
    ("kcmp", libc::SYS_kcmp),
    ("shmget", libc::SYS_shmget),
    ("mq_open", libc::SYS_mq_open),
    ("inotify_init1", libc::SYS_inotify_init1),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("personality", libc::SYS_personality),
    ("modify_ldt", libc::SYS_modify_ldt),
    ("arch_prctl", libc::SYS_arch_prctl),
    ("vfork", libc::SYS_vfork),
    ("finit_module", libc::SYS_finit_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("reboot", libc::SYS_reboot),
];

const CONFINED: [Profile; 3] = [Profile::Worker, Profile::Unpacker, Profile::Cleaner];

/// Returns one test per confined profile and mode.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for profile in CONFINED {
        trials.push(Trial::test(format!("sweep::errno::{profile}"), move || {
            refused_with_an_error(profile)
        }));
        trials.push(Trial::test(format!("sweep::kill::{profile}"), move || {
            ended_by_sigsys(profile)
        }));
    }
    trials
}

fn setup(profile: Profile, mode: Mode, first: usize, count: usize) -> Setup {
    let mut setup = Setup::new("sweep", profile, User::available()[0]);
    setup.mode = mode;
    setup.word(first).word(count)
}

fn refused_with_an_error(profile: Profile) -> Result<(), Failed> {
    let all = setup(profile, Mode::Errno, 0, REFUSED.len());
    let output = all.command().output()?;
    let said = String::from_utf8(output.stdout)?;
    let expected: String = REFUSED
        .iter()
        .map(|(name, _)| format!("{name}: {}\n", libc::EPERM))
        .collect();
    if said != expected {
        return Err(format!("the process said:\n{said}\nexpected:\n{expected}").into());
    }
    Ok(())
}

fn ended_by_sigsys(profile: Profile) -> Result<(), Failed> {
    for (index, (name, _)) in REFUSED.iter().enumerate() {
        let output = setup(profile, Mode::Kill, index, 1).command().output()?;
        if output.status.signal() != Some(libc::SIGSYS) {
            let said = String::from_utf8_lossy(&output.stdout);
            return Err(format!("{name}: ended with {}, said {said}", output.status).into());
        }
    }
    Ok(())
}

/// The main function of a sweep's process: makes the calls with zero arguments.
pub fn run(role: &Role) -> io::Result<()> {
    let (first, count): (usize, usize) = (role.word(0), role.word(1));
    role.enter();
    for (name, number) in &REFUSED[first..first + count] {
        let error = match call(*number, [0; 6]) {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(0),
        };
        let line = format!("{name}: {error}\n");
        io::stdout().write_all(line.as_bytes())?;
    }
    Ok(())
}
