//! What somebody allocated by name of a route or command.

use mkpool::AddrRange;
use mkpool::resource::ResourceId;

/// Name of what somebody allocated, in the tree.
pub const ALLOCATION_NAME: &str = "allocation";

/// An allocation that somebody asked for by name of a route or command.
#[derive(Debug, Clone, Copy)]
pub struct Allocation {
    pub range: AddrRange,
    pub entry: ResourceId,
    /// Whether it lies in the control block.
    pub in_control: bool,
}
