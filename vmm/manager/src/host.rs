//! The resources and properties of the host that a manager needs.

use std::cell::LazyCell;
use std::fmt;
use std::os::fd::OwnedFd;

use mkvmm_wire::messages::CpuidLeaf;

use crate::child::Children;

/// The resources and properties of the host, opened and checked by the caller.
#[derive(Debug)]
pub struct Host {
    /// The open `/dev/kvm`, which is only passed on to workers.
    pub kvm: OwnedFd,
    /// The properties that KVM reports.
    pub facts: Facts,
    /// The parameters for starting children.
    pub children: Children,
}

/// The properties of the guests' processor that KVM reports.
#[derive(Debug, Default)]
pub struct KvmFacts {
    /// The supported CPUID, which is only passed on to workers; empty if each
    /// of them has to query it.
    pub cpuid: Vec<CpuidLeaf>,
    /// The number of bits of a guest-physical address.
    pub address_bits: u32,
    /// True if guests support 1 GiB pages.
    pub has_huge_pages: bool,
}

/// The properties that KVM reports, queried when they are first needed, since
/// that takes almost a millisecond.
pub struct Facts(LazyCell<KvmFacts, Box<dyn FnOnce() -> KvmFacts>>);

impl Facts {
    /// Creates the facts that `ask` will return.
    pub fn new(ask: impl FnOnce() -> KvmFacts + 'static) -> Self {
        Self(LazyCell::new(Box::new(ask)))
    }

    /// Returns the facts.
    pub fn get(&self) -> &KvmFacts {
        &self.0
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}
