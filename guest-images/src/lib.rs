//! The guest kernels that are built into mkvmm.
//!
//! There is one, the *probe*: an ELF64 image for the 64-bit boot protocol of
//! Linux that prints the information it was given and checks it. The README of
//! this crate describes its command line and its output.

/// The ELF image of the probe.
///
/// Its segments lie at 2 MiB (`p_paddr` = `p_vaddr`), span less than 256 KiB
/// and may be loaded at any 2 MiB boundary of guest-physical memory; the entry
/// point moves accordingly.
pub static PROBE: &[u8] = include_bytes!(env!("MKVMM_PROBE"));

/// The SHA-256 of [`PROBE`], taken when the crate was built.
pub static PROBE_SHA256: &[u8; 32] = include_bytes!(concat!(env!("MKVMM_PROBE"), ".sha256"));

#[path = "../probe/src/pure/mod.rs"]
pub mod pure;

#[cfg(test)]
mod tests {
    use super::PROBE;

    #[test]
    fn the_probe_is_an_elf64_image_of_tens_of_kib() {
        assert!(PROBE.starts_with(b"\x7fELF\x02\x01"));
        assert!(PROBE.len() < 100 << 10);
    }
}
