//! The guest's memory, as a device holds it.

use std::fmt::Debug;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// The guest-physical address space of one guest. Its memory stays mapped at
/// the same host addresses for as long as the value exists, which makes it safe
/// to hand parts of it to the host's kernel.
pub trait GuestSpace: Debug + Send + Sync {
    /// Returns bounds-checked access to the memory.
    fn guest(&self) -> &GuestMemoryMmap;
}

/// A shared handle on a guest's memory, which keeps it mapped.
pub type Memory = Arc<dyn GuestSpace>;

impl GuestSpace for GuestMemoryMmap {
    fn guest(&self) -> &GuestMemoryMmap {
        self
    }
}
