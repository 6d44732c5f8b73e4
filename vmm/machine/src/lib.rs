//! One guest: loads its images, writes the data that its kernel reads at entry,
//! and runs its VM, vCPUs and devices.
//!
//! This crate handles one guest and knows nothing about others, about the
//! ledger or about the control socket. It reports to a [`news::NewsSink`], and
//! its serial line is a [`console::Console`].
//!
//! Files only import from files above them (checked by `tests/order.rs`):
//!
//! | files, in order | what they are |
//! |---|---|
//! | `memory::window`, `memory` | the files of a guest's memory, mapped in the guest's layout |
//! | `loading` | copies images to their planned places |
//! | `boot::gdt`, `boot::page_tables`, `boot::acpi`, `boot::boot_params`, `boot::writer`, `boot` | the data that a kernel reads at entry |
//! | `kvm::device`, `kvm::host`, `kvm::wires`, `kvm::vm`, `kvm::cpuid`, `kvm::msrs`, `kvm::regs`, `kvm::snapshot`, `kvm::clock`, `kvm::kick`, `kvm::run`, `kvm` | a typed layer over KVM |
//! | `news`, `progress`, `kernel_log`, `console` | notifications about a guest, and its serial line |
//! | `vcpu::exit`, `vcpu::stop`, `vcpu::thread_clock`, `vcpu::sleep`, `vcpu::round`, `vcpu::modes`, `vcpu::command`, `vcpu::run`, `vcpu::handle`, `vcpu::cpu`, `vcpu::halt`, `vcpu::standstill`, `vcpu::pause`, `vcpu` | a thread per vCPU |
//! | `devices::irq`, `devices::device`, `devices::range_map`, `devices::violation`, `devices::bus` | the interface of devices, and the bus |
//! | `devices::platform::acpi_pm`, `devices::platform::i8042`, `devices::platform::marks`, `devices::platform::pvpanic`, `devices::platform::serial`, `devices::platform` | devices at the fixed addresses of a PC |
//! | `devices::pci::wiring`, `devices::pci::config`, `devices::pci::line`, `devices::pci::msix`, `devices::pci::function`, `devices::pci::doorbell_line`, `devices::pci::channel_config`, `devices::pci::channel_port`, `devices::pci::channels`, `devices::pci::host_bridge`, `devices::pci` | PCI |
//! | `devices::virtio::interrupts`, `devices::virtio::registers`, `devices::virtio::space`, `devices::virtio::function`, `devices::virtio::console`, `devices::virtio` | virtio devices as PCI functions |
//! | `devices::board`, `devices` | creation of a guest's devices |
//! | `machine` | a guest as a whole: its VM, vCPUs and devices |
//! | `worker::channels`, `worker::console`, `worker::disks`, `worker::segment`, `worker::devices`, `worker::news`, `worker::orders`, `worker` | the process that runs a machine on the manager's orders |

pub mod boot;
pub mod console;
pub mod devices;
pub mod kernel_log;
pub mod kvm;
pub mod loading;
pub mod machine;
pub mod memory;
pub mod news;
pub mod progress;
pub mod vcpu;
pub mod worker;
