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
    /// What it shares, with the numbers of the slots, each above those of its own.
    shared: Vec<(u32, SharedMemory)>,
    /// The most slots that KVM has for it.
    slots_max: usize,
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
        let mut vm = Self {
            fd: Arc::new(bare.fd),
            has_timer: bare.has_devices,
            memory,
            shared: Vec::new(),
            slots_max: limit,
        };
        vm.set_memory_slots()?;
        for one in shared {
            vm.share(one)?;
        }
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

    /// Sets one slot per region of the instance's memory, numbered by address.
    fn set_memory_slots(&self) -> Result<(), VmError> {
        for (slot, region) in (0_u32..).zip(self.memory.guest().iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
                ..Default::default()
            };
            // SAFETY: userspace_addr is the start of memory_size bytes of the
            // guest's mapping, which `self.memory` keeps alive for longer than
            // the VM's descriptor; the mapping is shared memory that Rust code
            // accesses only through volatile accessors.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Adds memory that the guest shares, also while it runs, in the lowest slot that
    /// is free.
    ///
    /// # Errors
    /// Returns a [`VmError`]; nothing has changed then.
    pub fn share(&mut self, shared: SharedMemory) -> Result<(), VmError> {
        let own = self.memory.ranges().count();
        let (needed, limit) = (own + self.shared.len() + 1, self.slots_max);
        let first = u32::try_from(own).unwrap_or(u32::MAX);
        let is_free = |slot: &u32| self.shared.iter().all(|(used, _)| used != slot);
        let slot = (first..u32::MAX).find(is_free).filter(|_| needed <= limit);
        let slot = slot.ok_or(VmError::TooManySlots { needed, limit })?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: match shared.is_read_only() {
                true => KVM_MEM_READONLY,
                false => 0,
            },
            guest_phys_addr: shared.range().start(),
            memory_size: shared.range().size(),
            userspace_addr: shared.address(),
        };
        // SAFETY: userspace_addr is the start of memory_size bytes of a mapping that
        // `self.shared` keeps alive until the slot is deleted, or for longer than the
        // VM's descriptor; it is shared memory that Rust code does not access.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        self.shared.push((slot, shared));
        Ok(())
    }

    /// Takes memory away that the guest shares, also while it runs: when this
    /// returns, no vCPU reaches it. A range that the guest does not share is ignored.
    ///
    /// # Errors
    /// Returns a [`VmError`]; the guest has the memory then.
    pub fn unshare(&mut self, range: AddrRange) -> Result<(), VmError> {
        let mut shared = self.shared.iter();
        let Some(index) = shared.position(|(_, shared)| shared.range() == range) else {
            return Ok(());
        };
        let region = kvm_userspace_memory_region {
            slot: self.shared.get(index).map_or(u32::MAX, |(slot, _)| *slot),
            guest_phys_addr: range.start(),
            ..Default::default()
        };
        // SAFETY: a size of 0 deletes the slot; KVM reads no other memory.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        // KVM has waited until no vCPU uses the slot, so it may be unmapped.
        drop(self.shared.remove(index));
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
        let shared = self.shared.iter().map(|(_, shared)| shared.range());
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
