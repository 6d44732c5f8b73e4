//! One guest: images copied into its memory, the data that its kernel reads at
//! entry, its VM, vCPUs and devices.
//!
//! This crate knows one guest and nothing of others, of the ledger's owner or
//! of the control socket. What it has to tell goes to a [`news::NewsSink`], and
//! its serial line is a [`console::Console`].
//!
//! Files import from files above them only (`tests/order.rs` holds that):
//!
//! | files, in order | what they are |
//! |---|---|
//! | `memory::window`, `memory` | the files of a guest's memory, mapped as it sees them |
//! | `loading` | images copied to where the plan says |
//! | `boot::gdt`, `boot::page_tables`, `boot::acpi`, `boot::boot_params`, `boot::writer`, `boot` | what a kernel finds when it starts |
//! | `kvm::device`, `kvm::host`, `kvm::vm`, `kvm::cpuid`, `kvm::msrs`, `kvm::regs`, `kvm::snapshot`, `kvm::clock`, `kvm::kick`, `kvm::run`, `kvm` | the typed edge over KVM |
//! | `news`, `progress`, `console` | what a guest tells, and its serial line |
//! | `vcpu::exit`, `vcpu::stop`, `vcpu::thread_clock`, `vcpu::sleep`, `vcpu::round`, `vcpu::command`, `vcpu::run`, `vcpu::handle`, `vcpu::cpu`, `vcpu::halt`, `vcpu::pause`, `vcpu` | a thread per vCPU |
//! | `devices::irq`, `devices::device`, `devices::range_map`, `devices::violation`, `devices::bus` | what every device has, and the bus |
//! | `devices::platform::acpi_pm`, `devices::platform::i8042`, `devices::platform::marks`, `devices::platform::pvpanic`, `devices::platform::serial`, `devices::platform` | devices at a PC's fixed places |
//! | `devices::pci::host_bridge`, `devices::pci` | PCI |
//! | `devices::board`, `devices` | the devices of a guest, put together |
//! | `machine` | a guest as a whole: its VM, vCPUs and devices |
//! | `worker::console`, `worker::news`, `worker::orders`, `worker` | the process that has one, and obeys its manager |

pub mod boot;
pub mod console;
pub mod devices;
pub mod kvm;
pub mod loading;
pub mod machine;
pub mod memory;
pub mod news;
pub mod progress;
pub mod vcpu;
pub mod worker;
