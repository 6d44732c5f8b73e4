//! Confinement of mkvmm's processes.
//!
//! mkvmm is a manager and one process per guest. A worker executes
//! what a hostile guest makes it execute, an unpacker parses what a stranger
//! wrote; either may be taken over. This crate holds what is then left to
//! them: a process says which [`Profile`] it has and [enters](Confinement::enter),
//! while it has one thread, and gets a [`Report`] of what that came to.
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
//! # Promises of a confined process, and what holds each
//!
//! Tests are trials of `tests/doors` (`cargo test -p mkvmm-sandbox --test doors`).
//! `doors::*` tries every door at the same user id, started by root and not,
//! with all layers, with each layer off in turn, with each layer alone, and
//! with none: what is said to hold a door holds it alone, and a door that only
//! one layer holds is shown to open without it.
//!
//! | nobody in the sandbox can | held by | doors |
//! |---|---|---|
//! | read, write or trace another process, or take its descriptors | seccomp; Landlock; the other is not dumpable | `proc_mem` `proc_maps` `proc_fd` `process_vm_*` `ptrace_*` `pidfd_getfd` |
//! | signal another process | seccomp; Landlock | `kill` `tkill` `tgkill` `sigqueue` `pidfd_send_signal` `signal_by_owner` |
//! | open, list or execute a path | seccomp; Landlock | `open_path` `getdents` `execve` `io_uring_openat` |
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
//! And of every process: it ends with its parent (`process::ends_with_its_parent`),
//! is never left half-confined by a second thread (`process::refuses_several_threads`,
//! `process::filter_reaches_all_threads`), never goes on as root
//! (`process::never_stays_root`), leaves no core and keeps no capability
//! (`process::status_is_as_reported`), and is as open as its report says
//! (`process::log_mode_says_so`, `process::is_not_dumpable`,
//! `process::debuggable_is_dumpable`). What it needs it may do: `worker::*`,
//! `unpacker::*`, `cleaner::*`.
//!
//! # What the caller has to see to
//!
//! - `enter` comes before the first thread, and before the first byte from a
//!   guest, an image or a client is looked at.
//! - Memory files are sealed (SHRINK, GROW, SEAL) and have one owner each:
//!   seccomp alone keeps a worker from reaching beyond its part of a shared one.
//!   Making them with `MFD_NOEXEC_SEAL` puts a second layer before executing them.
//! - Children are executed with an environment of their own: the default panic
//!   hook opens files where `RUST_BACKTRACE` is set, which ends the process by
//!   SIGSYS after the message. A hook that prints no backtrace is safe.
//! - Inside, no `File::metadata` (use `rustix::fs::fstat`), no
//!   `available_parallelism`, no `isatty`: they open files or make other calls
//!   that are refused. Heap blocks grow by copying, as `mremap` is refused.
//! - `PR_SET_PDEATHSIG` means the parent's thread: the manager makes its
//!   children on a thread that lasts.
//! - A manager enters before it has threads; its filter and `no_new_privs` hold
//!   for its children as well, and each of them adds its own.
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
pub use profile::{Confinement, Identity, Layers, Limits, Mode, Profile};
pub use report::{Layer, Outcome, Report};
