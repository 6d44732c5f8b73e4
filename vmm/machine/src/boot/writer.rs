//! Writes the data that a kernel reads at entry into the low window.

use mkpool::AddrRange;
use mkpool::range::RangeError;
use mkvmm_base::layout;
use mkvmm_memory::e820::E820Entry;

use crate::boot::acpi::{self, AcpiError};
use crate::boot::boot_params::{self, BootParamsError, BootParamsFacts, SetupData};
use crate::boot::gdt;
use crate::boot::page_tables::{self, PageTableError};
use crate::loading::{self, LoadError};
use crate::memory::GuestMemory;

/// The type of a `setup_data` node with random bytes for the kernel's entropy
/// pool (`SETUP_RNG_SEED`, Linux 6.0 and later).
const SETUP_RNG_SEED: u32 = 9;
/// The size of the seed in bytes, as in Linux's own boot loaders.
const RNG_SEED_SIZE: usize = 32;

/// The data that a kernel gets at entry.
#[derive(Debug, Clone)]
pub struct BootData<'a> {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The range of the kernel.
    pub kernel: AddrRange,
    /// The range of the initramfs with its exact size.
    pub initramfs: Option<AddrRange>,
    /// The setup header of a bzImage.
    pub setup_header: Option<&'a [u8]>,
    /// The memory map of the guest.
    pub e820: &'a [E820Entry],
    /// The manifest that the guest finds as `setup_data`.
    pub manifest: &'a [u8],
    /// The command line without its NUL.
    pub cmdline: &'a [u8],
    /// The windows of the PCI bridge above 4 GiB, one of which is the channel area.
    pub pci_high: &'a [AddrRange],
}

/// A reason why boot data could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootDataError {
    /// No identity map can cover the images.
    #[error(transparent)]
    PageTables(#[from] PageTableError),
    /// The memory map has too many rows.
    #[error(transparent)]
    BootParams(#[from] BootParamsError),
    /// The ACPI tables are too large.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The low window has no memory.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A range is invalid: an internal error.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The host provides no random bytes.
    #[error("the host provides no random bytes")]
    Random(#[source] rustix::io::Errno),
}

impl BootDataError {
    /// Returns whether a smaller memory map or another placement would help.
    pub fn is_room(&self) -> bool {
        matches!(self, Self::PageTables(_) | Self::BootParams(_))
    }
}

/// Writes all boot data.
///
/// # Errors
/// Returns a [`BootDataError`]; some of the data may have been written.
pub fn write(memory: &GuestMemory, data: &BootData<'_>) -> Result<(), BootDataError> {
    let mut seed = vec![0; RNG_SEED_SIZE];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(BootDataError::Random)?;
    let node = |kind, data| SetupData { kind, data };
    let params = boot_params::build(&BootParamsFacts {
        setup_header: data.setup_header,
        e820: data.e820,
        cmdline_len: data.cmdline.len(),
        initramfs: data.initramfs,
        rsdp: layout::ACPI_START,
        // The manifest must come first: CPUID contains its address.
        setup_data: &[
            node(layout::MANIFEST_TYPE, data.manifest.to_vec()),
            node(SETUP_RNG_SEED, seed),
        ],
    })?;
    let mut mapped = vec![
        AddrRange::with_size(0, layout::LOW_WINDOW_SIZE)?,
        data.kernel,
    ];
    mapped.extend(data.initramfs);
    let tables = words(page_tables::build(&mapped)?.as_flattened());
    let mut cmdline = data.cmdline.to_vec();
    cmdline.push(0);
    for (addr, bytes) in [
        (layout::GDT_START, words(&gdt::table()).as_slice()),
        (layout::IDT_START, &[0; 8]),
        (layout::BOOT_PARAMS_START, &params.page),
        (layout::PAGE_TABLES_START, &tables),
        (layout::CMDLINE_START, &cmdline),
        (layout::SETUP_DATA_START, &params.setup_data),
        (layout::ACPI_START, &acpi::build(data.cpus, data.pci_high)?),
    ] {
        loading::write(memory, addr, bytes)?;
    }
    Ok(())
}

/// Converts 64-bit words to bytes as stored in the guest's memory.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
