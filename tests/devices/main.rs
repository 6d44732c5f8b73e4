//! Tests of devices on this host's own KVM: the probe drives them by scripts,
//! as a driver would, and as none should.
//!
//! | module | behaviour |
//! |---|---|
//! | `driver` | a driver whose steps a probe carries out |
//! | `pci` | configuration space, BARs, doorbells and interrupts |
//! | `net` | network devices |
//! | `rng` | the entropy device |
//! | `console` | further consoles |
//! | `disk` | the disk |
//! | `power` | power cuts under a disk |
//! | `hostile` | queues that no correct driver makes |

mod console;
mod disk;
mod driver;
mod hostile;
mod net;
mod pci;
mod power;
mod rng;
