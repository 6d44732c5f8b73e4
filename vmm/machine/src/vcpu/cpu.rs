//! A vCPU before it runs: created, configured, and moved into its thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::Builder;

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::kvm::cpuid::{self, CpuidError, MkvmmLeaves, Topology};
use crate::kvm::host::Host;
use crate::kvm::vm::{BareVm, Vm, VmError, ioctl};
use crate::kvm::{kick, msrs, regs};
use crate::loading::BootEntry;
use crate::news::NewsSink;
use crate::vcpu::exit::ExitBus;
use crate::vcpu::handle::VcpuHandle;
use crate::vcpu::run;
use crate::vcpu::sleep::ThreadTime;
use crate::vcpu::stop::StopFlag;
use mkvmm_base::InstanceName;
use mkvmm_base::affinity::CpuSet;
use mkvmm_wire::shared::board::VcpuWriter;

/// A reason why a vCPU was not created.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// An operation of KVM failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The vCPU's CPUID has too many entries.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
}

/// The parameters that all vCPUs of a guest have in common.
#[derive(Debug, Clone, Copy)]
pub struct VcpuSetup {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The start state of the first vCPU.
    pub entry: BootEntry,
    /// The contents of mkvmm's CPUID leaves.
    pub leaves: MkvmmLeaves,
}

impl VcpuSetup {
    fn cpuid(&self, host: &Host, index: u8) -> Result<CpuId, CpuidError> {
        let cpus = self.cpus;
        cpuid::for_vcpu(host, Topology { index, cpus }, self.leaves)
    }
}

/// A configured vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
}

/// The first vCPU of a guest that is not known yet, configured for one that has no
/// other.
#[derive(Debug)]
pub struct FirstVcpu {
    fd: VcpuFd,
    /// What it was told about its processor.
    cpuid: CpuId,
}

impl FirstVcpu {
    /// Creates the vCPU in a VM without memory.
    ///
    /// # Errors
    /// Returns a [`VcpuError`] that names the ioctl.
    pub fn new(host: &Host, vm: &BareVm, leaves: MkvmmLeaves) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(0)?;
        let topology = Topology { index: 0, cpus: 1 };
        let cpuid = cpuid::for_vcpu(host, topology, leaves)?;
        configure(&fd, &cpuid)?;
        regs::set_fpu(&fd)?;
        Ok(Self { fd, cpuid })
    }
}

/// Sets what does not depend on the images of a guest.
fn configure(fd: &VcpuFd, cpuid: &CpuId) -> Result<(), VmError> {
    // Set CPUID first: hosts from 6.13 on check MSRs against it.
    fd.set_cpuid2(cpuid).map_err(ioctl("KVM_SET_CPUID2"))?;
    msrs::set(fd)?;
    regs::set_lapic(fd)
}

impl Vcpu {
    /// Creates vCPU `index` of `vm`. The first one has the state of the 64-bit
    /// boot protocol; the others wait in the kernel's local APIC until the
    /// first one starts them (INIT, SIPI).
    ///
    /// # Errors
    /// Returns a [`VcpuError`] that names the ioctl.
    pub fn new(host: &Host, vm: &Vm, index: u8, setup: &VcpuSetup) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(index)?;
        configure(&fd, &setup.cpuid(host, index)?)?;
        if index == 0 {
            regs::set_fpu(&fd)?;
            regs::set_boot_state(&fd, setup.entry)?;
        }
        Ok(Self { fd, index })
    }

    /// Makes the first vCPU of a guest of one that was created before.
    ///
    /// # Errors
    /// Returns a [`VcpuError`] that names the ioctl.
    pub fn of_first(first: FirstVcpu, host: &Host, setup: &VcpuSetup) -> Result<Self, VcpuError> {
        let FirstVcpu { fd, cpuid } = first;
        let due = setup.cpuid(host, 0)?;
        if due.as_slice() != cpuid.as_slice() {
            fd.set_cpuid2(&due).map_err(ioctl("KVM_SET_CPUID2"))?;
        }
        regs::set_boot_state(&fd, setup.entry)?;
        Ok(Self { fd, index: 0 })
    }

    /// Moves the vCPU into its own thread, which waits for a command.
    ///
    /// # Errors
    /// Fails if the host has run out of threads.
    pub fn start(
        self,
        name: &InstanceName,
        affinity: Option<CpuSet>,
        slot: VcpuWriter,
        bus: Arc<dyn ExitBus>,
        news: &Arc<dyn NewsSink>,
    ) -> io::Result<VcpuHandle> {
        kick::install()?;
        let (commands, receiver) = mpsc::channel();
        let thread_time = Arc::new(ThreadTime::default());
        let stop = StopFlag::default();
        let body = run::Body {
            index: self.index,
            name: name.clone(),
            commands: receiver,
            bus,
            slot,
            thread_time: Arc::clone(&thread_time),
            stop: stop.clone(),
            news: Arc::clone(news),
        };
        // The kernel keeps 15 bytes of a thread's name.
        let thread = Builder::new()
            .name(format!("vcpu{}:{name}", self.index))
            .spawn(move || {
                if let Some(affinity) = affinity {
                    affinity.apply();
                }
                body.run(self.fd)
            })?;
        Ok(VcpuHandle::new(commands, thread, thread_time, stop))
    }
}
