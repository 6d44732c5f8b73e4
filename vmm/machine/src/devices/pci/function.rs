//! The interface of PCI functions to their bridge.

use std::fmt::Debug;
use std::sync::Arc;

use event_manager::EventSubscriber;

use crate::devices::pci::config::{Decoded, Windows};

/// A function on bus 0.
///
/// Several vCPUs may call it at once, as with a
/// [`Device`](crate::devices::device::Device). An access never crosses the end of
/// the BAR in which it begins.
pub trait Function: Debug + Send + Sync {
    /// Returns the name of the function for errors and logs.
    fn name(&self) -> &str;

    /// Reads configuration space: at most four bytes at `offset`.
    fn read_config(&self, offset: u8, data: &mut [u8]);

    /// Writes configuration space: at most four bytes at `offset`.
    fn write_config(&self, offset: u8, data: &[u8]);

    /// Returns the BARs that decode addresses at present.
    fn decoded(&self, windows: &Windows) -> Vec<Decoded>;

    /// Is told where its BARs decode now, each time that changes: doorbells
    /// move with them.
    fn moved(&self, decoded: &[Decoded]) {
        let _ = decoded;
    }

    /// Reads `data.len()` bytes of a BAR at `offset`; fills all of `data`.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes `data` to a BAR at `offset`.
    fn write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Returns the subscriber to add to the machine's event loop, if the
    /// function waits for descriptors.
    fn subscriber(self: Arc<Self>) -> Option<Arc<dyn EventSubscriber + Send + Sync>> {
        None
    }
}
