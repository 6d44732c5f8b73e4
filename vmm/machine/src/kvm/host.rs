//! The host's KVM: opened once, asked once.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

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

/// Why this host's KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm cannot be opened")]
    Open(#[source] kvm_ioctls::Error),
    /// It speaks another version.
    #[error("KVM speaks API version {found}, mkvmm needs {API_VERSION}")]
    ApiVersion {
        /// The version found.
        found: i32,
    },
    /// It lacks something.
    #[error("this KVM lacks {name}")]
    Missing {
        /// Name of the capability.
        name: &'static str,
    },
    /// KVM_GET_SUPPORTED_CPUID failed.
    #[error("KVM_GET_SUPPORTED_CPUID failed")]
    Cpuid(#[source] kvm_ioctls::Error),
}

impl HostError {
    /// What the user can do about it.
    pub fn help(&self) -> Option<&'static str> {
        let Self::Open(errno) = self else { return None };
        Some(match errno.errno() {
            libc::ENOENT => {
                "load the kvm module (modprobe kvm_intel or kvm_amd), or enable virtualization in the firmware"
            }
            libc::EACCES | libc::EPERM => {
                "your user needs read and write access to /dev/kvm (usually: membership in the group kvm)"
            }
            _ => return None,
        })
    }
}

/// An open `/dev/kvm` and what it answered.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    /// Asked once per process: it is the dearest single call of all.
    supported_cpuid: CpuId,
}

impl Host {
    /// Opens `/dev/kvm` and checks that everything needed is there.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(HostError::Open)?;
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

    /// The open device.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What KVM can show to guests.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// Bits of a guest-physical address (CPUID 0x8000_0008, EAX 7:0); 36, the
    /// least of any 64-bit processor, where KVM does not say.
    pub fn address_bits(&self) -> u32 {
        self.supported_cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == 0x8000_0008)
            .map_or(36, |e| e.eax & 0xff)
    }

    /// Whether guests have 1 GiB pages (CPUID 0x8000_0001, EDX bit 26).
    pub fn has_huge_pages(&self) -> bool {
        let mut leaves = self.supported_cpuid.as_slice().iter();
        leaves.any(|e| e.function == 0x8000_0001 && e.edx & (1 << 26) != 0)
    }

    /// Memory slots a VM may have.
    pub fn memory_slots(&self) -> usize {
        self.kvm.get_nr_memslots()
    }
}
