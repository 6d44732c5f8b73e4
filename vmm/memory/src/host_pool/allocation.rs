//! Allocations that clients request through the API or the command line.

use mkpool::AddrRange;
use mkpool::resource::ResourceId;

/// The name of an allocation in the resource tree.
pub const ALLOCATION_NAME: &str = "allocation";

/// An allocation that a client requested.
#[derive(Debug, Clone, Copy)]
pub struct Allocation {
    pub range: AddrRange,
    pub entry: ResourceId,
    /// True if the allocation lies in the control block.
    pub in_control: bool,
}
