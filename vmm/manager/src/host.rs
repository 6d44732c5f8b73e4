//! What a manager needs of its host.

use std::cell::LazyCell;
use std::fmt;
use std::os::fd::OwnedFd;

use mkvmm_wire::messages::CpuidLeaf;

use crate::child::Children;

/// What a manager needs of its host, opened and checked by its caller.
#[derive(Debug)]
pub struct Host {
    /// `/dev/kvm`, open. Only handed on to workers.
    pub kvm: OwnedFd,
    /// What KVM says when it is asked.
    pub facts: Facts,
    /// How children are made.
    pub children: Children,
}

/// What KVM says of the processor that guests see.
#[derive(Debug, Default)]
pub struct KvmFacts {
    /// The CPUID that it supports, which is only handed on to workers; empty
    /// where each of them is to ask.
    pub cpuid: Vec<CpuidLeaf>,
    /// Bits of a guest-physical address.
    pub address_bits: u32,
    /// Whether guests have 1 GiB pages.
    pub has_huge_pages: bool,
}

/// The facts, asked for when they are first needed: KVM takes most of a
/// millisecond to answer.
pub struct Facts(LazyCell<KvmFacts, Box<dyn FnOnce() -> KvmFacts>>);

impl Facts {
    /// Makes the facts that `ask` will return.
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
