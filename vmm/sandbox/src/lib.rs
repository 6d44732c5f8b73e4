//! Confinement of mkvmm's processes.
//!
//! mkvmm consists of a manager and one process per guest. A worker
//! executes a possibly hostile guest, and an unpacker parses untrusted input;
//! either may be compromised. This crate limits what they can do then: a
//! process selects its [`Profile`] and [enters](Confinement::enter) the sandbox
//! while it has one thread, and gets a [`Report`] of the result.
//!
//! ```no_run
//! use mkvmm_sandbox::{Confinement, Identity, Profile};
//!
//! # fn main() -> Result<(), mkvmm_sandbox::SandboxError> {
//! let mut confinement = Confinement::new(Profile::Worker);
//! confinement.identity = Some(Identity { uid: 990, gid: 990 });
//! confinement.parent = rustix::process::getppid();
//! let report = confinement.enter()?;
//! for warning in report.warnings() {
//!     eprintln!("{warning}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Promises about a confined process, and what enforces each
//!
//! The tests are in `tests/doors` (`cargo test -p mkvmm-sandbox --test doors`).
//! `doors::*` tries every door (a way out of the sandbox) at the same user ID,
//! started by root and not, with all layers, with each layer off in turn, with
//! each layer alone, and with none: each layer listed for a door is shown to
//! close it alone, and a door with only one layer is shown to be open without
//! it.
//!
//! | no process in the sandbox can | enforced by | doors |
//! |---|---|---|
//! | read, write or trace another process, or take its descriptors | seccomp; Landlock; the other is not dumpable | `proc_mem` `proc_maps` `proc_fd` `process_vm_*` `ptrace_*` `pidfd_getfd` |
//! | signal another process | seccomp; Landlock | `kill` `tkill` `tgkill` `sigqueue` `pidfd_send_signal` `signal_by_owner` |
//! | open, list or execute a path | seccomp; Landlock | `open_path` `getdents` `execve` `io_uring_openat` |
//! | use a ring of io_uring but to read and write its disk | the ring's own restrictions; **seccomp alone** for making another | `rings::*` |
//! | connect to an abstract socket, use TCP | seccomp; Landlock | `connect_abstract` `bind_tcp` |
//! | connect to a socket by path | **seccomp alone** before Landlock 9 | `connect_path` |
//! | look at a path without opening it | **seccomp alone** | `stat_path` `readlink_path` |
//! | widen the rights of its own descriptors | **seccomp alone** | `reopen_descriptor` `add_seal` |
//! | see beyond its part of a shared file | **seccomp alone**, hence one owner per file | `mremap` `remap_file_pages` |
//! | get memory, sockets or processes of its own making | **seccomp alone** | `memfd_create` `socket` `fork` `clone3` |
//! | execute code that it wrote | **seccomp alone** | `execveat_memfd` `mmap_executable` `mprotect_executable` |
//! | change limits, affinity or priority of another process | **seccomp alone** | `prlimit_other` `affinity_other` `priority_other` |
//! | become root | seccomp; ids and capabilities | `setuid_back` |
//! | gain rights in a namespace of its own | **seccomp alone** | `unshare_user` |
//! | open itself to others | **seccomp alone** | `dumpable_back` |
//! | reach other parts of the kernel | **seccomp alone** | `ioctl_of_no_kvm`, `sweep::*` |
//!
//! The following applies to every process: it dies with its parent
//! (`process::ends_with_its_parent`), is never left partly confined because of
//! a second thread (`process::refuses_several_threads`,
//! `process::filter_reaches_all_threads`), never continues as root
//! (`process::never_stays_root`), leaves no core dump and keeps no capability
//! (`process::status_is_as_reported`), and its report states how open it is
//! (`process::log_mode_says_so`, `process::is_not_dumpable`,
//! `process::debuggable_is_dumpable`). Everything it needs is permitted:
//! `worker::*`, `unpacker::*`, `cleaner::*`.
//!
//! # Obligations of the caller
//!
//! - `enter` must be called before the first thread starts, and before any data
//!   from a guest, an image or a client is read.
//! - Memory files must be sealed (SHRINK, GROW, SEAL) and have one owner each:
//!   only seccomp keeps a worker from accessing more than its part of a shared
//!   one. Creating them with `MFD_NOEXEC_SEAL` adds a second layer against
//!   executing them.
//! - Children must be started with an environment of their own: the default
//!   panic hook opens files if `RUST_BACKTRACE` is set, which kills the process
//!   with SIGSYS after the message. A hook that prints no backtrace is safe.
//! - Inside, do not use `File::metadata` (use `rustix::fs::fstat`),
//!   `available_parallelism` or `isatty`: they open files or make other
//!   forbidden calls. Heap blocks grow by copying, as `mremap` is refused.
//! - `PR_SET_PDEATHSIG` refers to the parent's thread: the manager must
//!   start its children on a thread that keeps running.
//! - A manager must call `enter` before it has threads; its filter and
//!   `no_new_privs` apply to its children as well, and each adds its own.
#![forbid(unsafe_code)]

mod domain;
mod enter;
mod error;
mod identity;
pub mod limits;
mod profile;
mod report;
mod seccomp;

pub use error::SandboxError;
pub use profile::{Confinement, DiskCalls, Identity, Layers, Limits, Mode, Profile};
pub use report::{Layer, Outcome, Report};
