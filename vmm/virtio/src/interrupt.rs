//! How a device reaches its driver.

use std::fmt::Debug;

/// The interrupts of one device. Neither method waits, and a device may call
/// them from any thread.
pub trait Interrupt: Debug + Send + Sync {
    /// Tells the driver that chains of `queue` were returned.
    fn used(&self, queue: u16);

    /// Tells the driver that the device's configuration or status has changed.
    fn config_changed(&self);
}
