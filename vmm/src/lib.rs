//! **mkvmm**: several guest kernels out of one reserved memory pool, on KVM.
//!
//! One memfd is the pool. An allocator with the behaviour of Linux's gen_pool
//! hands out chunks of it; each instance's chunks are the only memory slots
//! of a KVM VM of its own, at guest addresses equal to their pool addresses.
//! Open the files in this order and you have followed one guest from reserved
//! host memory to a running kernel:
//!
//! | stage | modules | what happens |
//! |---|---|---|
//! | ⓪ | [`layout`] | where things lie in a guest's address space |
//! | ① | [`machine`], [`reservation`] | the pool gets its place and its memory |
//! | ② | [`host_pool`] | allocator, resource tree and memory as one ledger |
//! | ③ | [`instance`] | a sub-pool becomes a guest's address space |
//! | ④ | [`placement`], [`loader`] | images are checked, placed, copied |
//! | ⑤ | [`boot`] | e820, boot_params, page tables, descriptors |
//! | ⑥ | [`kvm`], [`vcpu`] | a VM with those slots, a thread per vCPU |
//! | ⑦ | [`devices`], [`event_loop`] | ports, consoles, violations, events |
//! | – | [`builder`], [`guest`], [`manager`] | the recipe, one instance's life, all instances |
//! | – | [`audit`] | proof that ledger, slots and maps agree |
//! | – | [`fleet`] | `run`: all guests or none |
//! | ⑧ | [`control`], [`event_log`] | `serve`: the control socket |
//! | – | [`debug`] | what registers and page tables of a guest mean |
//! | – | [`spec`] | what users write, checked |
//!
//! ```text
//!   main thread                      vcpu0:web            vcpu0:db
//!   event loop ◄── channel+eventfd ── KVM_RUN ◄─ kick ──┐  KVM_RUN
//!   owns pool, guests ────────────── commands ──────────┘     │
//!        │                              │ serial lines        │
//!        └ signals                      ▼                     ▼
//!                           console thread: name: line → stdout
//! ```
//!
//! A stage imports earlier stages only; what it
//! needs of a later one it states as a trait ([`vcpu::ExitBus`],
//! [`event_loop::Supervisor`]). Design: `docs/design.md`; addresses:
//! `docs/memory-map.md`.

pub mod audit;
pub mod boot;
pub mod boot_spans;
pub mod builder;
pub mod console_log;
pub mod control;
pub mod debug;
pub mod devices;
pub mod doctor;
pub mod event_log;
pub mod event_loop;
pub mod fleet;
pub mod guest;
pub mod instance;
pub mod loader;
pub mod manager;
pub mod spec;

pub use mkvmm_base::layout;
pub use mkvmm_machine::kvm;
pub use mkvmm_machine::vcpu;
pub use mkvmm_memory::{host_pool, place as machine, placement, reservation};
/// Errors for people.
pub mod error_chain {
    pub use mkvmm_base::chain;
}
