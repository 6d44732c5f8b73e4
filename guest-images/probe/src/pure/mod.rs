//! The pure computations of the probe.
//!
//! The probe compiles them into its kernel and the `mkvmm-guest-images` library
//! into its unit tests; programs that start probes may use them too, to predict
//! what a probe will print.

pub mod cmdline;
pub mod crc32;
pub mod e820;
pub mod fdt;
pub mod manifest;
pub mod range;
pub mod script;
