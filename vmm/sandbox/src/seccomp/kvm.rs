//! The KVM ioctls that a worker uses.
//!
//! The numbers are those of `linux/kvm.h`, composed as in
//! `asm-generic/ioctl.h`; the sizes come from the structures themselves. Absent
//! on purpose: `KVM_CREATE_DEVICE` (VFIO), encrypted guests,
//! `KVM_CREATE_GUEST_MEMFD`, nested state, SMI, and everything that is not x86.

use std::mem::size_of;

use kvm_bindings as kvm;

/// The type byte of KVM's ioctls.
const KVMIO: u32 = 0xae;

/// The directions of an ioctl's argument, from the point of view of user space.
const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// Composes an ioctl number like `_IOC`.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    assert!(size < 1 << 14, "the size field of an ioctl has 14 bits");
    #[expect(clippy::cast_possible_truncation, reason = "below 2^14, as asserted")]
    let size = size as u32;
    direction << 30 | size << 16 | KVMIO << 8 | number
}

const fn io(number: u32) -> u32 {
    ioc(NONE, number, 0)
}

const fn ior<T>(number: u32) -> u32 {
    ioc(READ, number, size_of::<T>())
}

const fn iow<T>(number: u32) -> u32 {
    ioc(WRITE, number, size_of::<T>())
}

const fn iowr<T>(number: u32) -> u32 {
    ioc(READ | WRITE, number, size_of::<T>())
}

const SETUP: &str = "creating a VM";
const SLOTS: &str = "memory slots";
const INTERRUPTS: &str = "interrupt lines and messages of devices";
const VCPU: &str = "initial state of a vCPU";
/// The offset of a vCPU's TSC, which a pause shifts.
const CLOCKS: &str = "the clocks of a guest that was paused";
const REGISTERS: &str = "registers for debugging and after the end";

/// Requests and their purposes; the most frequent one comes first, since a
/// filter is evaluated from the top.
pub(crate) const IOCTLS: [(u32, &str); 46] = [
    (io(0x80), "KVM_RUN: the vCPU threads"),
    (iow::<kvm::kvm_irq_level>(0x61), INTERRUPTS),
    (iow::<kvm::kvm_msi>(0xa5), INTERRUPTS),
    (iow::<kvm::kvm_irqfd>(0x76), INTERRUPTS),
    (iow::<kvm::kvm_ioeventfd>(0x79), INTERRUPTS),
    (iow::<kvm::kvm_irq_routing>(0x6a), INTERRUPTS),
    (io(0x00), SETUP),                         // KVM_GET_API_VERSION
    (io(0x01), SETUP),                         // KVM_CREATE_VM
    (iowr::<kvm::kvm_msr_list>(0x02), SETUP),  // KVM_GET_MSR_INDEX_LIST
    (io(0x03), SETUP),                         // KVM_CHECK_EXTENSION
    (io(0x04), SETUP),                         // KVM_GET_VCPU_MMAP_SIZE
    (iowr::<kvm::kvm_cpuid2>(0x05), SETUP),    // KVM_GET_SUPPORTED_CPUID
    (io(0x41), SETUP),                         // KVM_CREATE_VCPU
    (io(0x47), SETUP),                         // KVM_SET_TSS_ADDR
    (iow::<u64>(0x48), SETUP),                 // KVM_SET_IDENTITY_MAP_ADDR
    (io(0x60), SETUP),                         // KVM_CREATE_IRQCHIP
    (iow::<kvm::kvm_pit_config>(0x77), SETUP), // KVM_CREATE_PIT2
    (iow::<kvm::kvm_enable_cap>(0xa3), SETUP), // KVM_ENABLE_CAP
    (iow::<kvm::kvm_userspace_memory_region>(0x46), SLOTS),
    (iow::<kvm::kvm_dirty_log>(0x42), SLOTS),
    (ior::<kvm::kvm_regs>(0x81), REGISTERS),
    (iow::<kvm::kvm_regs>(0x82), VCPU),
    (ior::<kvm::kvm_sregs>(0x83), REGISTERS),
    (iow::<kvm::kvm_sregs>(0x84), VCPU),
    (iowr::<kvm::kvm_translation>(0x85), REGISTERS),
    (iowr::<kvm::kvm_msrs>(0x88), REGISTERS),
    (iow::<kvm::kvm_msrs>(0x89), VCPU),
    (ior::<kvm::kvm_fpu>(0x8c), REGISTERS),
    (iow::<kvm::kvm_fpu>(0x8d), VCPU),
    (ior::<kvm::kvm_lapic_state>(0x8e), VCPU),
    (iow::<kvm::kvm_lapic_state>(0x8f), VCPU),
    (iow::<kvm::kvm_cpuid2>(0x90), VCPU),
    (ior::<kvm::kvm_mp_state>(0x98), REGISTERS),
    (iow::<kvm::kvm_mp_state>(0x99), VCPU),
    (io(0x9a), "KVM_NMI: a panic on request"),
    (iow::<kvm::kvm_guest_debug>(0x9b), "single-stepping"),
    (ior::<kvm::kvm_vcpu_events>(0x9f), REGISTERS),
    (iow::<kvm::kvm_vcpu_events>(0xa0), VCPU),
    (io(0xa2), VCPU), // KVM_SET_TSC_KHZ
    (io(0xa3), VCPU), // KVM_GET_TSC_KHZ
    (io(0xad), "KVM_KVMCLOCK_CTRL: a guest was paused"),
    (iow::<kvm::kvm_clock_data>(0x7b), VCPU),
    (ior::<kvm::kvm_clock_data>(0x7c), REGISTERS),
    (iow::<kvm::kvm_xcrs>(0xa7), VCPU),
    (iow::<kvm::kvm_device_attr>(0xe1), CLOCKS), // KVM_SET_DEVICE_ATTR
    (iow::<kvm::kvm_device_attr>(0xe2), CLOCKS), // KVM_GET_DEVICE_ATTR
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        // The numbers were printed by a C program with linux/kvm.h.
        assert_eq!(io(0x80), 0xae80); // KVM_RUN
        assert_eq!(iow::<kvm::kvm_userspace_memory_region>(0x46), 0x4020_ae46);
        assert_eq!(iowr::<kvm::kvm_cpuid2>(0x05), 0xc008_ae05);
        assert_eq!(ior::<kvm::kvm_sregs>(0x83), 0x8138_ae83);
        assert_eq!(iow::<kvm::kvm_lapic_state>(0x8f), 0x4400_ae8f);
        assert_eq!(iow::<kvm::kvm_irqfd>(0x76), 0x4020_ae76);
    }

    #[test]
    fn no_request_stands_twice_and_all_are_of_kvm() {
        let mut requests: Vec<_> = IOCTLS.iter().map(|(request, _)| *request).collect();
        assert!(requests.iter().all(|request| request >> 8 & 0xff == KVMIO));
        requests.sort_unstable();
        requests.dedup();
        assert_eq!(requests.len(), IOCTLS.len());
    }
}
