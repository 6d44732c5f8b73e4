//! Tests of devices on this host's own KVM: the probe drives them by scripts,
//! as a driver would, and as none should.
//!
//! | module | behaviour |
//! |---|---|
//! | `adoption` | devices under one manager after the other |
//! | `counters` | the counters of devices in the metrics |
//! | `driver` | a driver whose steps a probe carries out |
//! | `pci` | configuration space, BARs, doorbells and interrupts |
//! | `channel` | channels between guests |
//! | `net` | network devices |
//! | `rng` | the entropy device |
//! | `console` | further consoles |
//! | `descriptors` | the descriptors of processes |
//! | `disk` | the disk |
//! | `passt` | programs in place of passt that misbehave |
//! | `pauses` | devices of paused guests |
//! | `power` | power cuts under a disk |
//! | `hostile` | queues that no correct driver makes |
//!
//! | variable | what it sets |
//! |---|---|
//! | `MKVMM_POWER_CUTS`, `MKVMM_WORKER_KILLS` | how often `power` cuts and kills |

mod adoption;
mod channel;
mod console;
mod counters;
mod descriptors;
mod disk;
mod driver;
mod hostile;
mod net;
mod passt;
mod pauses;
mod pci;
mod power;
mod rng;
