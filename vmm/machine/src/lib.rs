//! One guest: images copied into its memory, the data that its kernel reads at
//! entry, its VM, vCPUs and devices.
//!
//! This crate knows one guest and nothing of others, of the ledger's owner or
//! of the control socket. What it has to tell goes to a [`news::NewsSink`].

pub mod boot;
pub mod devices;
pub mod kvm;
pub mod loading;
pub mod memory;
pub mod news;
pub mod vcpu;
