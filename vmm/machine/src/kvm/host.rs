//! The host's KVM: opened once, asked once.

use std::os::fd::OwnedFd;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use mkvmm_base::{Class, Diagnose};

use crate::kvm::device::from_device;

/// The one version of the API there is (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// Everything the VMM builds on; all of it is in every x86 KVM of this decade.
const REQUIRED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The reason why this host's KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm cannot be opened")]
    Open(#[source] kvm_ioctls::Error),
    /// KVM speaks another version of the API.
    #[error("KVM speaks API version {found}, mkvmm needs {API_VERSION}")]
    ApiVersion {
        /// The version found.
        found: i32,
    },
    /// KVM lacks a capability.
    #[error("this KVM lacks {name}")]
    Missing {
        /// Name of the capability.
        name: &'static str,
    },
    /// KVM does not say which CPUID leaves it supports.
    #[error("KVM_GET_SUPPORTED_CPUID failed")]
    Cpuid(#[source] kvm_ioctls::Error),
}

impl Diagnose for HostError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }

    fn hint(&self) -> Option<String> {
        let Self::Open(errno) = self else { return None };
        let hint = match errno.errno() {
            libc::ENOENT => {
                "load the kvm module (modprobe kvm_intel or kvm_amd), or enable virtualization in the firmware"
            }
            libc::EACCES | libc::EPERM => {
                "your user needs read and write access to /dev/kvm (usually: membership in the group kvm)"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// An open `/dev/kvm` and what it answered.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    /// Asked for once per process: it is the most expensive call of all.
    supported_cpuid: CpuId,
}

impl Host {
    /// Opens `/dev/kvm` and checks that everything needed is there.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn open() -> Result<Self, HostError> {
        Self::check(Kvm::new().map_err(HostError::Open)?)
    }

    /// Takes over an open `/dev/kvm`, as [`Self::open`] does.
    ///
    /// # Errors
    /// [`HostError`], also for any other descriptor.
    pub fn of(device: OwnedFd) -> Result<Self, HostError> {
        Self::check(from_device(device))
    }

    fn check(kvm: Kvm) -> Result<Self, HostError> {
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(HostError::ApiVersion { found });
        }
        for (cap, name) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(HostError::Missing { name });
            }
        }
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(HostError::Cpuid)?;
        Ok(Self {
            kvm,
            supported_cpuid,
        })
    }

    /// Returns the open device.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Returns the CPUID that KVM can show to guests.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// Returns the bits of a guest-physical address (CPUID 0x8000_0008, EAX 7:0); 36, the
    /// least of any 64-bit processor, where KVM does not say.
    pub fn address_bits(&self) -> u32 {
        self.supported_cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == 0x8000_0008)
            .map_or(36, |e| e.eax & 0xff)
    }

    /// Returns whether guests have 1 GiB pages (CPUID 0x8000_0001, EDX bit 26).
    pub fn has_huge_pages(&self) -> bool {
        let mut leaves = self.supported_cpuid.as_slice().iter();
        leaves.any(|e| e.function == 0x8000_0001 && e.edx & (1 << 26) != 0)
    }

    /// Returns the number of memory slots that a VM may have.
    pub fn memory_slots(&self) -> usize {
        self.kvm.get_nr_memslots()
    }
}
