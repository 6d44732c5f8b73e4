//! One KVM VM: memory slots, irqchip and PIT, created in the cheapest order.
//!
//! Memory slots come before the irqchip and the vCPUs: once those exist, every
//! slot waits for a grace period of the host (measured on a 6.18 host: 0.13
//! against 4.8 ms for one slot).
//!
//! UNSAFETY: `KVM_SET_USER_MEMORY_REGION` takes a raw host address.
#![expect(unsafe_code, reason = "hands host addresses to KVM")]

use std::sync::Arc;

use kvm_bindings::{
    KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use mkpool::AddrRange;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::host::Host;
use crate::kvm::wires::Wires;
use crate::memory::{GuestMemory, SharedMemory};
use mkvmm_base::layout::{IDENTITY_MAP_START, TSS_START};
use mkvmm_base::{Class, Diagnose};

/// A reason why KVM could not create a VM, with the ioctl that failed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// An ioctl failed.
    #[error("{ioctl} failed")]
    Ioctl {
        /// The name of the ioctl.
        ioctl: &'static str,
        /// The underlying error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The sub-pool has more regions than KVM has slots.
    #[error("the instance needs {needed} memory slots, KVM has {limit}")]
    TooManySlots {
        /// The number of regions, including the low window.
        needed: usize,
        /// The value of KVM_CAP_NR_MEMSLOTS.
        limit: usize,
    },
}

impl Diagnose for VmError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }
}

/// Returns a function that adds the ioctl's name to its error.
pub(crate) fn ioctl(name: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Ioctl {
        ioctl: name,
        source,
    }
}

/// A VM whose memory is an instance's own chunks, and what it shares.
#[derive(Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    has_timer: bool,
    // After `fd`, so that the slots are removed before the memory.
    memory: Arc<GuestMemory>,
    shared: Vec<SharedMemory>,
}

/// A VM without memory. Creating it takes a third of the time of a whole
/// machine, so a worker creates it before it receives its order.
#[derive(Debug)]
pub struct BareVm {
    fd: VmFd,
    /// True if interrupt controllers and timer are there.
    has_devices: bool,
}

impl BareVm {
    /// Creates the VM without devices.
    ///
    /// # Errors
    /// Returns a [`VmError`].
    pub fn new(kvm: &Kvm) -> Result<Self, VmError> {
        let fd = create_vm(kvm)?;
        Ok(Self {
            fd,
            has_devices: false,
        })
    }

    /// Adds interrupt controllers and timer before there is any memory.
    ///
    /// Each slot waits for the grace periods that are still in progress then, so
    /// this is for a VM that has time until it gets its memory: some milliseconds
    /// later, a slot takes 0.1 ms.
    ///
    /// # Errors
    /// Returns a [`VmError`] that names what failed; nothing is left then.
    pub fn with_devices(self) -> Result<Self, VmError> {
        add_interrupts(&self.fd)?;
        add_timer(&self.fd)?;
        Ok(Self {
            has_devices: true,
            ..self
        })
    }

    /// Creates vCPU `index` before there is any memory.
    ///
    /// # Errors
    /// Returns a [`VmError`] that names the ioctl.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        create_vcpu(&self.fd, index)
    }
}

impl Vm {
    /// Adds the memory slots, and then interrupt controllers, unless it has them.
    /// The timer is to be [added](Self::add_timer) before the guest runs.
    ///
    /// # Errors
    /// Returns a [`VmError`] that names what failed; nothing is left then.
    pub fn new(
        host: &Host,
        bare: BareVm,
        memory: Arc<GuestMemory>,
        shared: Vec<SharedMemory>,
    ) -> Result<Self, VmError> {
        let needed = memory.ranges().count() + shared.len();
        let limit = host.memory_slots();
        if needed > limit {
            return Err(VmError::TooManySlots { needed, limit });
        }
        let vm = Self {
            fd: Arc::new(bare.fd),
            has_timer: bare.has_devices,
            memory,
            shared,
        };
        vm.set_memory_slots()?;
        if !bare.has_devices {
            add_interrupts(&vm.fd)?;
        }
        Ok(vm)
    }

    /// Adds the timer, unless it has one. The kernel starts a thread for it, which
    /// takes 0.1 ms, and milliseconds where the processors are busy: so this is for a
    /// moment in which nobody waits.
    ///
    /// # Errors
    /// Returns a [`VmError`] that names the ioctl.
    pub fn add_timer(&mut self) -> Result<(), VmError> {
        if !self.has_timer {
            add_timer(&self.fd)?;
            self.has_timer = true;
        }
        Ok(())
    }

    /// Sets one slot per region of the instance's memory, then one for each range
    /// that it shares.
    fn set_memory_slots(&self) -> Result<(), VmError> {
        let own = self.memory.guest().iter();
        let own = own.map(|region| kvm_userspace_memory_region {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
            ..Default::default()
        });
        let shared = self.shared.iter();
        let shared = shared.map(|shared| kvm_userspace_memory_region {
            flags: if shared.is_read_only() {
                KVM_MEM_READONLY
            } else {
                0
            },
            guest_phys_addr: shared.range().start(),
            memory_size: shared.range().size(),
            userspace_addr: shared.address(),
            ..Default::default()
        });
        for (slot, region) in (0_u32..).zip(own.chain(shared)) {
            let slot = kvm_userspace_memory_region { slot, ..region };
            // SAFETY: userspace_addr is the start of memory_size bytes of a
            // mapping of the guest's memory, or of memory that it shares, which
            // `self.memory` and `self.shared` keep alive for longer than the
            // VM's descriptor; both are shared memory that Rust code accesses
            // only through volatile accessors, or not at all.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Creates vCPU `index`.
    ///
    /// # Errors
    /// Returns a [`VmError`] that names the ioctl.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        create_vcpu(&self.fd, index)
    }

    /// Makes writes to `event` raise interrupt line `gsi`.
    ///
    /// # Errors
    /// Returns a [`VmError`] that names the ioctl.
    pub fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(ioctl("KVM_IRQFD"))
    }

    /// Returns what connects PCI functions to this VM. There must be only one
    /// for each VM.
    pub fn wires(&self) -> Wires {
        Wires::new(Arc::clone(&self.fd))
    }

    /// Returns the VM's descriptor, for ioctls that change no memory slot.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Returns the ranges of its memory slots, in ascending order.
    pub fn slots(&self) -> Vec<AddrRange> {
        let shared = self.shared.iter().map(SharedMemory::range);
        let mut slots: Vec<AddrRange> = self.memory.ranges().chain(shared).collect();
        slots.sort_by_key(AddrRange::start);
        slots
    }

    /// Returns the instance's own memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

fn add_interrupts(fd: &VmFd) -> Result<(), VmError> {
    fd.set_identity_map_address(IDENTITY_MAP_START)
        .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(TSS_START).unwrap_or(usize::MAX);
    fd.set_tss_address(tss).map_err(ioctl("KVM_SET_TSS_ADDR"))?;
    fd.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))
}

fn add_timer(fd: &VmFd) -> Result<(), VmError> {
    let pit = kvm_pit_config {
        // The speaker's port is handled in the kernel, not by an exit.
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    };
    fd.create_pit2(pit).map_err(ioctl("KVM_CREATE_PIT2"))
}

fn create_vcpu(fd: &VmFd, index: u8) -> Result<VcpuFd, VmError> {
    fd.create_vcpu(index.into())
        .map_err(ioctl("KVM_CREATE_VCPU"))
}

/// Repeats KVM_CREATE_VM whenever a signal interrupts it.
fn create_vm(kvm: &Kvm) -> Result<VmFd, VmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(ioctl("KVM_CREATE_VM")),
        }
    }
}
