use super::*;

const CONFINED: [Profile; 3] = [Profile::Worker, Profile::Unpacker, Profile::Cleaner];

/// No disks, and disks of both kinds.
const DISKS: [DiskCalls; 2] = [
    DiskCalls {
        rings: false,
        threads: false,
    },
    DiskCalls {
        rings: true,
        threads: true,
    },
];

fn calls(profile: Profile, disks: DiskCalls) -> Vec<i64> {
    allowed::rules(profile, disks).unwrap().calls().collect()
}

/// Calls that no confined process may make with any arguments.
const NEVER: [i64; 33] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_creat,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_remap_file_pages,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_setresuid,
    libc::SYS_seccomp,
    libc::SYS_pkey_mprotect,
];

#[test]
fn doors_stand_on_no_allow_list() {
    for profile in CONFINED {
        for disks in DISKS {
            let mut found = calls(profile, disks);
            found.retain(|call| NEVER.contains(call));
            assert_eq!(found, [], "{profile}");
        }
    }
}

#[test]
fn only_workers_with_disks_make_the_calls_for_them() {
    let of_disks = [
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_fdatasync,
    ];
    let [without, with] = DISKS;
    for call in of_disks {
        assert!(!calls(Profile::Worker, without).contains(&call), "{call}");
        assert!(calls(Profile::Worker, with).contains(&call), "{call}");
        for profile in [Profile::Unpacker, Profile::Cleaner] {
            assert!(!calls(profile, with).contains(&call), "{profile}: {call}");
        }
    }
}

#[test]
fn only_workers_make_threads_and_ioctls() {
    for profile in [Profile::Unpacker, Profile::Cleaner] {
        let calls = calls(profile, DISKS[1]);
        assert!(!calls.contains(&libc::SYS_clone), "{profile}");
        assert!(!calls.contains(&libc::SYS_ioctl), "{profile}");
    }
}

#[test]
fn fallbacks_stand_on_no_list_of_their_own() {
    for profile in CONFINED {
        let calls = calls(profile, DISKS[1]);
        for (call, why) in FALLBACKS {
            assert!(!calls.contains(&call), "{profile}: {call}, {why}");
        }
    }
}

#[test]
fn every_profile_compiles_in_every_mode() {
    for profile in CONFINED.into_iter().chain([Profile::Manager]) {
        for mode in [Mode::Kill, Mode::Log, Mode::Errno] {
            let programs = programs(profile, DISKS[1], mode).unwrap();
            assert!(programs.iter().all(|program| !program.is_empty()));
            let expected = if profile.is_confined() { 2 } else { 1 };
            assert_eq!(programs.len(), expected, "{profile} in mode {mode}");
        }
    }
}

#[test]
fn nothing_is_denied_twice() {
    let mut calls = denied::DENIED.map(|(call, _)| call);
    calls.sort_unstable();
    assert!(calls.windows(2).all(|pair| pair[0] != pair[1]));
}
