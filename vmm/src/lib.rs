//! mkvmm (work in progress).
