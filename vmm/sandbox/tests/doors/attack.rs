//! The attempts at each door. Code before `Ok(Box::new(…))` runs before the
//! sandbox is entered: a worker has descriptors and mappings of its own.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::size_of_val;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create as memory_file};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::door::{Attempt, Target};
use crate::syscall::{address, address_mut, call, exit_now, peek};
use crate::uring;
use crate::victim::{self, SECRET};

const PAGE: usize = 4096;
const READ_WRITE: usize = 3;
const EXECUTE: usize = 4;
const SHARED: usize = 1;
const PRIVATE_ANONYMOUS: usize = 0x22;
const NO_FD: usize = usize::MAX;

/// Boxes the attempt at a door.
fn attempt(run: impl FnOnce() -> io::Result<()> + 'static) -> io::Result<Attempt> {
    Ok(Box::new(run))
}

/// Converts a C constant or a descriptor into an argument.
fn arg(number: i32) -> usize {
    usize::try_from(number).expect("no negative constants are used")
}

fn done(result: io::Result<usize>) -> io::Result<()> {
    result.map(drop)
}

/// Succeeds if the secret was read, which means that the door is open.
fn read_secret(bytes: &[u8]) -> io::Result<()> {
    if bytes.starts_with(&SECRET) {
        return Ok(());
    }
    Err(io::Error::other("something else than the secret"))
}

fn open(path: &CStr, flags: i32) -> io::Result<usize> {
    let at = arg(0).wrapping_sub(100); // AT_FDCWD
    call(libc::SYS_openat, [at, address(path), arg(flags)])
}

/// Opens a file in `/proc` that belongs to the target.
fn open_of(target: &Target, name: &str, flags: i32) -> io::Result<usize> {
    let path = format!("/proc/{}/{name}\0", target.pid);
    let path = CStr::from_bytes_with_nul(path.as_bytes()).map_err(io::Error::other)?;
    open(path, flags)
}

pub fn proc_mem(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || {
        let mem = open_of(&target, "mem", libc::O_RDONLY)?;
        let mut bytes = [0_u8; 16];
        let to = address_mut(&mut bytes);
        call(libc::SYS_pread64, [mem, to, bytes.len(), target.secret])?;
        read_secret(&bytes)
    })
}

pub fn proc_maps(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || {
        let maps = open_of(&target, "maps", libc::O_RDONLY)?;
        let mut bytes = [0_u8; 16];
        done(call(libc::SYS_read, [maps, address_mut(&mut bytes), 16]))
    })
}

pub fn proc_fd(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    let name = format!("fd/{}", victim::MEMORY_FD);
    attempt(move || done(open_of(&target, &name, libc::O_RDWR)))
}

fn process_vm(number: i64, target: &Target, bytes: &mut [u8; 16]) -> io::Result<()> {
    let local = [address_mut(bytes), bytes.len()];
    let remote = [target.secret, bytes.len()];
    let (local, remote) = (address(&local), address(&remote));
    done(call(number, [target.pid, local, 1, remote, 1, 0]))
}

pub fn process_vm_readv(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || {
        let mut bytes = [0; 16];
        process_vm(libc::SYS_process_vm_readv, &target, &mut bytes)?;
        read_secret(&bytes)
    })
}

pub fn process_vm_writev(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || process_vm(libc::SYS_process_vm_writev, &target, &mut [0xee; 16]))
}

/// The requests of ptrace, since C libraries disagree on their type.
const PTRACE_ATTACH: usize = 16;
const PTRACE_DETACH: usize = 17;
const PTRACE_SEIZE: usize = 0x4206;

fn ptrace(request: usize, target: &Target) -> io::Result<usize> {
    call(libc::SYS_ptrace, [request, target.pid, 0, 0])
}

pub fn ptrace_attach(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || {
        ptrace(PTRACE_ATTACH, &target)?;
        // Let it continue, or the test would wait for its answer.
        let all = 0x4000_0000; // __WALL
        call(libc::SYS_wait4, [target.pid, 0, all, 0])?;
        done(ptrace(PTRACE_DETACH, &target))
    })
}

pub fn ptrace_seize(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || done(ptrace(PTRACE_SEIZE, &target)))
}

pub fn pidfd_getfd(target: &Target) -> io::Result<Attempt> {
    let target = target.clone();
    attempt(move || {
        let process = call(libc::SYS_pidfd_open, [target.pid, 0])?;
        let fd = arg(victim::MEMORY_FD);
        done(call(libc::SYS_pidfd_getfd, [process, fd, 0]))
    })
}

pub fn kill(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    attempt(move || done(call(libc::SYS_kill, [pid, arg(libc::SIGTERM)])))
}

pub fn tkill(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    attempt(move || done(call(libc::SYS_tkill, [pid, arg(libc::SIGTERM)])))
}

pub fn tgkill(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    attempt(move || done(call(libc::SYS_tgkill, [pid, pid, arg(libc::SIGTERM)])))
}

pub fn sigqueue(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    attempt(move || {
        // The fields are signo, errno, code SI_QUEUE (-1), then zeroes.
        let mut info = [0_i32; 32];
        info[0] = libc::SIGTERM;
        info[2] = -1;
        let args = [pid, arg(libc::SIGTERM), address(&info)];
        done(call(libc::SYS_rt_sigqueueinfo, args))
    })
}

pub fn pidfd_send_signal(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    // This is a received pidfd; opening one is tried by `pidfd_getfd`.
    let process = call(libc::SYS_pidfd_open, [pid, 0])?;
    attempt(move || {
        let args = [process, arg(libc::SIGTERM), 0, 0];
        done(call(libc::SYS_pidfd_send_signal, args))
    })
}

/// Makes the kernel send SIGIO to the victim when bytes arrive. Setting the
/// owner succeeds with and without Landlock; whether the victim dies shows the
/// result.
pub fn signal_by_owner(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    let (mut sender, receiver) = UnixStream::pair()?;
    attempt(move || {
        let fd = arg(receiver.as_raw_fd());
        let own = [fd, arg(libc::F_SETOWN), pid];
        call(libc::SYS_fcntl, own)?;
        let flags = [fd, arg(libc::F_SETFL), arg(libc::O_ASYNC)];
        call(libc::SYS_fcntl, flags)?;
        sender.write_all(b"x")?;
        Err(io::Error::other("see whether the victim lives"))
    })
}

pub fn open_path(_target: &Target) -> io::Result<Attempt> {
    attempt(|| done(open(c"/etc/passwd", libc::O_RDONLY)))
}

/// Makes a file, of which nothing is left.
pub fn write_path(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let flags = libc::O_WRONLY | libc::O_TMPFILE;
        let at = arg(0).wrapping_sub(100); // AT_FDCWD
        let args = [at, address(c"/tmp"), arg(flags), 0o600];
        done(call(libc::SYS_openat, args))
    })
}

pub fn open_device(_target: &Target) -> io::Result<Attempt> {
    attempt(|| done(open(c"/dev/zero", libc::O_RDWR)))
}

pub fn list_directory(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let root = open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut entries = [0_u8; 1024];
        let to = address_mut(&mut entries);
        done(call(libc::SYS_getdents64, [root, to, entries.len()]))
    })
}

pub fn stat_path(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let mut stat = [0_u64; 64];
        let at = arg(0).wrapping_sub(100); // AT_FDCWD
        let path = address(c"/etc/passwd");
        let args = [at, path, address_mut(&mut stat), 0];
        done(call(libc::SYS_newfstatat, args))
    })
}

pub fn readlink_path(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let mut link = [0_u8; 256];
        let args = [address(c"/proc/self/cwd"), address_mut(&mut link), 256];
        done(call(libc::SYS_readlink, args))
    })
}

/// Creates a memory file of `pages` pages, of which the first belongs to the
/// attacker and the next to a neighbour.
fn shared_file(pages: u64) -> io::Result<OwnedFd> {
    let file = memory_file(c"test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)?;
    ftruncate(&file, pages * PAGE as u64)?;
    rustix::io::pwrite(&file, &SECRET, PAGE as u64)?;
    Ok(file)
}

/// Reopens a read-only descriptor for writing.
pub fn reopen_descriptor(_target: &Target) -> io::Result<Attempt> {
    let file = shared_file(1)?;
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    drop(file);
    let path = format!("/proc/self/fd/{}\0", read_only.as_raw_fd());
    attempt(move || {
        let _kept_open = read_only;
        let path = CStr::from_bytes_with_nul(path.as_bytes()).map_err(io::Error::other)?;
        done(open(path, libc::O_RDWR))
    })
}

/// Connects a socket that the worker was given.
fn connect(to: SocketAddrUnix) -> io::Result<Attempt> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    attempt(move || Ok(rustix::net::connect(&socket, &to)?))
}

pub fn connect_path(target: &Target) -> io::Result<Attempt> {
    connect(SocketAddrUnix::new(victim::socket_path(&target.socket))?)
}

pub fn connect_abstract(target: &Target) -> io::Result<Attempt> {
    let name = victim::abstract_name(&target.socket);
    connect(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

pub fn bind_tcp(_target: &Target) -> io::Result<Attempt> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    attempt(move || Ok(rustix::net::bind(&socket, &any_port)?))
}

pub fn socket(_target: &Target) -> io::Result<Attempt> {
    let (unix, stream) = (arg(libc::AF_UNIX), arg(libc::SOCK_STREAM));
    attempt(move || done(call(libc::SYS_socket, [unix, stream, 0])))
}

pub fn memfd_create(_target: &Target) -> io::Result<Attempt> {
    attempt(|| done(call(libc::SYS_memfd_create, [address(c"more"), 0])))
}

pub fn add_seal(_target: &Target) -> io::Result<Attempt> {
    let file = shared_file(1)?;
    attempt(move || {
        let seal = arg(libc::F_SEAL_FUTURE_WRITE);
        let args = [arg(file.as_raw_fd()), arg(libc::F_ADD_SEALS), seal];
        done(call(libc::SYS_fcntl, args))
    })
}

/// Executes a program; on success it replaces this process and prints nothing.
pub fn execve(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let arguments = [address(c"/bin/true"), 0];
        let args = [address(c"/bin/true"), address(&arguments), 0];
        done(call(libc::SYS_execve, args))
    })
}

/// Executes a program that the worker wrote into its own memory.
pub fn execveat_memfd(_target: &Target) -> io::Result<Attempt> {
    let file = memory_file(c"program", MemfdFlags::empty())?;
    File::from(file.try_clone()?).write_all(&tiny_program())?;
    attempt(move || {
        let arguments = [address(c"true"), 0];
        let empty_path = arg(libc::AT_EMPTY_PATH);
        let fd = arg(file.as_raw_fd());
        let args = [fd, address(c""), address(&arguments), 0, empty_path];
        done(call(libc::SYS_execveat, args))
    })
}

/// Returns an ELF file that exits at once with status 0. It has no interpreter,
/// which Landlock would not allow to open.
fn tiny_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE_AT: u64 = 64 + 56;
    // The code is: mov eax, SYS_exit; xor edi, edi; syscall.
    const CODE: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    put(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    put(&(BASE + CODE_AT).to_le_bytes()); // entry
    put(&64_u64.to_le_bytes()); // program headers
    put(&[0; 12]); // no section headers, no flags
    put(&[64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // sizes: one program header
    put(&[1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    let size = CODE_AT + CODE.len() as u64;
    for word in [0, BASE, BASE, size, size, 4096] {
        put(&word.to_le_bytes());
    }
    put(&CODE);
    elf
}

/// Maps the first page of a file whose second page is a neighbour's, and closes
/// the descriptor.
fn map_own_page() -> io::Result<usize> {
    let file = shared_file(2)?;
    let fd = arg(file.as_raw_fd());
    call(libc::SYS_mmap, [0, PAGE, READ_WRITE, SHARED, fd, 0])
}

pub fn mremap(_target: &Target) -> io::Result<Attempt> {
    let own = map_own_page()?;
    attempt(move || {
        let may_move = 1;
        let args = [own, PAGE, 2 * PAGE, may_move];
        let grown = call(libc::SYS_mremap, args)?;
        read_secret(&peek::<16>(grown + PAGE))
    })
}

pub fn remap_file_pages(_target: &Target) -> io::Result<Attempt> {
    let own = map_own_page()?;
    attempt(move || {
        let second_page = 1;
        call(libc::SYS_remap_file_pages, [own, PAGE, 0, second_page, 0])?;
        read_secret(&peek::<16>(own))
    })
}

pub fn io_uring_openat(_target: &Target) -> io::Result<Attempt> {
    attempt(|| uring::open(c"/etc/passwd"))
}

pub fn fork(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let child = call(libc::SYS_clone, [arg(libc::SIGCHLD), 0, 0, 0, 0])?;
        if child == 0 {
            exit_now();
        }
        Ok(())
    })
}

pub fn clone3(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let mut args = [0_u64; 8]; // struct clone_args, first version
        args[4] = libc::SIGCHLD.cast_unsigned().into();
        let child = call(libc::SYS_clone3, [address(&args), size_of_val(&args)])?;
        if child == 0 {
            exit_now();
        }
        Ok(())
    })
}

pub fn unshare_user(_target: &Target) -> io::Result<Attempt> {
    attempt(|| done(call(libc::SYS_unshare, [arg(libc::CLONE_NEWUSER)])))
}

pub fn setuid_back(_target: &Target) -> io::Result<Attempt> {
    attempt(|| done(call(libc::SYS_setresuid, [0, 0, 0])))
}

/// Lowers a neighbour's limit of descriptors to those that it has.
pub fn prlimit_other(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    attempt(move || {
        let nofile = 7;
        let none = [3_u64, 3];
        done(call(libc::SYS_prlimit64, [pid, nofile, address(&none), 0]))
    })
}

pub fn affinity_other(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    let mut now = [0_u64; 16];
    let to = address_mut(&mut now);
    call(libc::SYS_sched_getaffinity, [0, size_of_val(&now), to])?;
    attempt(move || {
        let args = [pid, size_of_val(&now), address(&now)];
        done(call(libc::SYS_sched_setaffinity, args))
    })
}

pub fn priority_other(target: &Target) -> io::Result<Attempt> {
    let pid = target.pid;
    attempt(move || done(call(libc::SYS_setpriority, [0, pid, 19])))
}

pub fn mmap_executable(_target: &Target) -> io::Result<Attempt> {
    attempt(|| {
        let protection = READ_WRITE | EXECUTE;
        let args = [0, PAGE, protection, PRIVATE_ANONYMOUS, NO_FD, 0];
        done(call(libc::SYS_mmap, args))
    })
}

pub fn mprotect_executable(_target: &Target) -> io::Result<Attempt> {
    let args = [0, PAGE, READ_WRITE, PRIVATE_ANONYMOUS, NO_FD, 0];
    let own = call(libc::SYS_mmap, args)?;
    attempt(move || done(call(libc::SYS_mprotect, [own, PAGE, 1 | EXECUTE])))
}

pub fn dumpable_back(_target: &Target) -> io::Result<Attempt> {
    attempt(|| done(call(libc::SYS_prctl, [arg(libc::PR_SET_DUMPABLE), 1])))
}

/// Tries FIOASYNC, which stands for all ioctls that are not KVM's.
pub fn ioctl_of_no_kvm(_target: &Target) -> io::Result<Attempt> {
    let (one, other) = UnixStream::pair()?;
    attempt(move || {
        let _kept_open = other;
        let off = 0_i32;
        let args = [arg(one.as_raw_fd()), 0x5452, address(&off)];
        done(call(libc::SYS_ioctl, args))
    })
}
