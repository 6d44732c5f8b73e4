//! Tests of devices on this host's own KVM: the probe drives them by scripts,
//! as a driver would, and as none should.
//!
//! | module | behaviour |
//! |---|---|
//! | `driver` | a driver whose steps a probe carries out |
//! | `pci` | configuration space, BARs, doorbells and interrupts |
//! | `rng` | the entropy device |
//! | `console` | further consoles |
//! | `hostile` | queues that no correct driver makes |

mod console;
mod driver;
mod hostile;
mod pci;
mod rng;
