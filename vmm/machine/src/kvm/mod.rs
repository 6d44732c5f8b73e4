//! ⑥ A typed layer over kvm-ioctls: the host's KVM, VMs and vCPU state.

pub mod clock;
pub mod cpuid;
pub(crate) mod device;
pub mod host;
pub mod kick;
pub mod msrs;
pub mod regs;
pub mod run;
pub mod snapshot;
pub mod vm;
pub mod wires;

pub use host::{Host, HostError};
pub use vm::{BareVm, Vm, VmError};
