//! Looking into a guest from outside: what its registers mean, where its page
//! tables lead, what lies in its memory.
//!
//! | module | what it knows |
//! |---|---|
//! | [`bits`] | names of the bits of RFLAGS, CR0, CR4 and EFER; modes |
//! | [`paging`] | every kind of page table an x86 processor walks |
//!
//! All of it is pure. Registers come from a vCPU's own thread
//! ([`crate::kvm::snapshot`]), memory through [`mkvmm_base::memory`],
//! which has nothing but the instance's own chunks.

pub mod bits;
pub mod paging;
