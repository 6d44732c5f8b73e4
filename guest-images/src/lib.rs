//! The guest kernels that mkvmm carries with it.
