//! The host's KVM: opened and queried once.

use std::cell::OnceCell;
use std::os::fd::OwnedFd;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use mkvmm_base::{Class, Diagnose};
use mkvmm_wire::messages::CpuidLeaf;

use crate::kvm::device::from_device;

/// The only version of the API (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// The capabilities that the VMM requires, which every x86 KVM of this decade
/// has.
const REQUIRED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The minimum number of physical address bits of any 64-bit processor.
pub const ADDRESS_BITS_MIN: u32 = 36;

/// A reason why this host's KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm cannot be opened")]
    Open(#[source] kvm_ioctls::Error),
    /// KVM has another version of the API.
    #[error("KVM has API version {found}, mkvmm needs {API_VERSION}")]
    ApiVersion {
        /// The version of KVM's API.
        found: i32,
    },
    /// KVM lacks a capability.
    #[error("this KVM lacks {name}")]
    Missing {
        /// The name of the capability.
        name: &'static str,
    },
    /// Another process passed on more leaves than KVM's limit.
    #[error("{count} CPUID leaves exceed KVM's limit")]
    Leaves {
        /// The number of leaves.
        count: usize,
    },
    /// KVM does not report the CPUID leaves that it supports.
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

/// An open `/dev/kvm` with its properties.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    /// The supported CPUID. It is queried when it is needed, and once for all
    /// processes, since it is the most expensive ioctl: in a virtual machine,
    /// each CPUID instruction exits to its host.
    supported_cpuid: OnceCell<CpuId>,
}

impl Host {
    /// Opens `/dev/kvm` and checks that it has all required capabilities.
    ///
    /// # Errors
    /// Returns a [`HostError`] if it cannot be used.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(HostError::Open)?;
        check_version(&kvm)?;
        for (cap, name) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(HostError::Missing { name });
            }
        }
        Ok(Self {
            kvm,
            supported_cpuid: OnceCell::new(),
        })
    }

    /// Takes ownership of an open `/dev/kvm` that another process has examined,
    /// with the CPUID that it supports; queries that again if there are no
    /// leaves.
    ///
    /// # Errors
    /// Returns [`HostError::ApiVersion`] for any other descriptor, and
    /// [`HostError::Leaves`] for too many leaves.
    pub fn examined(device: OwnedFd, leaves: &[CpuidLeaf]) -> Result<Self, HostError> {
        let kvm = from_device(device);
        check_version(&kvm)?;
        let supported_cpuid = OnceCell::new();
        if !leaves.is_empty() {
            let entries: Vec<_> = leaves.iter().map(entry).collect();
            let count = entries.len();
            let cpuid = CpuId::from_entries(&entries);
            let _first = supported_cpuid.set(cpuid.or(Err(HostError::Leaves { count }))?);
        }
        Ok(Self {
            kvm,
            supported_cpuid,
        })
    }

    /// Returns the open `/dev/kvm` device.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Returns the CPUID that KVM supports for guests. The first call takes
    /// almost a millisecond.
    ///
    /// # Errors
    /// Returns [`HostError::Cpuid`].
    pub fn supported_cpuid(&self) -> Result<&CpuId, HostError> {
        if let Some(cpuid) = self.supported_cpuid.get() {
            return Ok(cpuid);
        }
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(HostError::Cpuid)?;
        Ok(self.supported_cpuid.get_or_init(|| cpuid))
    }

    /// Returns the supported CPUID as the leaves that [`Self::examined`] takes
    /// in another process.
    ///
    /// # Errors
    /// Returns the errors of [`Self::supported_cpuid`].
    pub fn cpuid_leaves(&self) -> Result<Vec<CpuidLeaf>, HostError> {
        let cpuid = self.supported_cpuid()?;
        Ok(cpuid.as_slice().iter().map(leaf).collect())
    }

    /// Returns the number of bits of a guest-physical address (CPUID
    /// 0x8000_0008, EAX 7:0); [`ADDRESS_BITS_MIN`] if KVM does not report it.
    pub fn address_bits(&self) -> u32 {
        let entry = self.entry(0x8000_0008);
        entry.map_or(ADDRESS_BITS_MIN, |entry| entry.eax & 0xff)
    }

    /// Returns whether guests support 1 GiB pages (CPUID 0x8000_0001, EDX bit
    /// 26).
    pub fn has_huge_pages(&self) -> bool {
        let entry = self.entry(0x8000_0001);
        entry.is_some_and(|entry| entry.edx & (1 << 26) != 0)
    }

    fn entry(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        let mut entries = self.supported_cpuid().ok()?.as_slice().iter();
        entries.find(|entry| entry.function == function)
    }

    /// Returns the maximum number of memory slots of a VM.
    pub fn memory_slots(&self) -> usize {
        self.kvm.get_nr_memslots()
    }
}

fn check_version(kvm: &Kvm) -> Result<(), HostError> {
    match kvm.get_api_version() {
        API_VERSION => Ok(()),
        found => Err(HostError::ApiVersion { found }),
    }
}

fn entry(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: leaf.flags,
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    }
}

fn leaf(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    CpuidLeaf {
        function: entry.function,
        index: entry.index,
        flags: entry.flags,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}
