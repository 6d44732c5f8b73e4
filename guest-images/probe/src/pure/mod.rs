//! The parts of the probe that only compute.
//!
//! The probe compiles them into its kernel and the `mkvmm-guest-images`
//! library into its unit tests; whoever starts probes may use them too, to
//! know what a probe will print.

pub mod cmdline;
pub mod crc32;
pub mod e820;
pub mod fdt;
pub mod manifest;
pub mod range;
