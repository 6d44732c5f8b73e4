//! What stops a device: requests that no correct driver makes, or a host that
//! fails it.

/// A reason why a device stops. The transport tells the driver that the device
/// needs a reset, and the host of the reason, once.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A ring does not lie in the guest's memory, or its size or alignment is
    /// invalid.
    #[error("queue {queue}: the rings of {size} entries are not in the guest's memory")]
    Setup {
        /// The number of the queue.
        queue: u16,
        /// The number of entries that the driver chose.
        size: u16,
    },
    /// The driver's index is further ahead than there are entries.
    #[error("queue {queue}: the driver's index is more than {size} entries ahead")]
    Index {
        /// The number of the queue.
        queue: u16,
        /// The number of entries of the ring.
        size: u16,
    },
    /// A chain has no end, leaves its table, exceeds the ring's size or 4 GiB,
    /// or has a table inside a table.
    #[error("queue {queue}: the chain of descriptor {head} is invalid")]
    Chain {
        /// The number of the queue.
        queue: u16,
        /// The first descriptor of the chain.
        head: u16,
    },
    /// A descriptor refers to bytes that the guest does not have.
    #[error("queue {queue}: a descriptor has {len} bytes at {addr:#x}, outside of its memory")]
    Address {
        /// The number of the queue.
        queue: u16,
        /// The guest-physical address of the descriptor's first byte.
        addr: u64,
        /// The length of the descriptor in bytes.
        len: u32,
    },
    /// A descriptor for the driver's data follows one for the device's.
    #[error("queue {queue}: in the chain of {head}, a readable descriptor follows a writable one")]
    Order {
        /// The number of the queue.
        queue: u16,
        /// The first descriptor of the chain.
        head: u16,
    },
    /// A chain is made available while the device still has it.
    #[error("queue {queue}: the chain of {head} is made available twice")]
    Twice {
        /// The number of the queue.
        queue: u16,
        /// The first descriptor of the chain.
        head: u16,
    },
    /// A request is not one of the device's protocol.
    #[error("queue {queue}: {what}")]
    Request {
        /// The number of the queue.
        queue: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The host has failed the device.
    #[error("{what}")]
    Host {
        /// What the device could not do.
        what: &'static str,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
}
