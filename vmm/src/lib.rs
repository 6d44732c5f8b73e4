//! mkvmm (work in progress).

pub mod replay;
