//! What a manager needs of its host.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use mkvmm_keeper::process::Output;

use crate::leaves::Leaves;

/// What a manager needs of its host, opened and checked by its caller.
#[derive(Debug)]
pub struct Host {
    /// `/dev/kvm`, open. Only handed on.
    pub kvm: OwnedFd,
    /// The program that children run; this one when `None`.
    pub program: Option<PathBuf>,
    /// Bits of a guest-physical address.
    pub address_bits: u32,
    /// Whether guests have 1 GiB pages.
    pub has_huge_pages: bool,
    /// The environment of children.
    pub environment: Vec<(String, String)>,
    /// Where the output of children goes.
    pub child_output: Output,
    /// Where guests have cgroups of their own.
    pub leaves: Leaves,
}
