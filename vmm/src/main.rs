//! The `mkvmm` binary.
fn main() {}
