//! Inspects a guest from outside: decodes its registers, walks its page tables,
//! and reads its memory.
//!
//! | module | contents |
//! |---|---|
//! | [`bits`] | names of the bits of RFLAGS, CR0, CR4 and EFER; modes |
//! | [`paging`] | every kind of page table an x86 processor walks |
//!
//! All of it consists of pure functions. Registers come from a vCPU's own
//! thread ([`crate::kvm::snapshot`]), memory from [`mkvmm_base::memory`], which
//! contains only the instance's own chunks.

pub mod bits;
pub mod paging;
