//! Linux gen_pool behaviour (work in progress).
#![no_std]
#![forbid(unsafe_code)]
