//! PCI: the host bridge, through which functions are configured.

pub mod host_bridge;
