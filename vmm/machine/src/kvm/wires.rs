//! The connections between PCI functions and KVM: doorbells that become events
//! without an exit to this process, messages and levels that become interrupts.
//!
//! KVM knows interrupts by number. Those up to 23 are pins of the interrupt
//! controllers; each message of a function gets one above. KVM replaces the
//! whole table of numbers at once, so the pins are part of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// The number of pins of the IOAPIC, and of the two PICs together.
const IOAPIC_PINS: u32 = 24;
const PIC_PINS: u32 = 16;
/// The most messages that a guest's functions may have; KVM's limit of routes
/// is 4096.
const MESSAGES_MAX: usize = 2048;

/// A message-signalled interrupt: where a function would write what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Message {
    /// The address that is written to.
    pub address: u64,
    /// The data that is written.
    pub data: u32,
}

/// The connections of one VM.
#[derive(Debug)]
pub struct Wires {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<Message>>,
}

fn error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Returns the routes to the pins, as KVM has them in the beginning.
fn pins() -> Vec<kvm_irq_routing_entry> {
    let to = |gsi: u32, chip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let pic = |pin: u32| match pin {
        0..8 => to(pin, KVM_IRQCHIP_PIC_MASTER, pin),
        _ => to(pin, KVM_IRQCHIP_PIC_SLAVE, pin - 8),
    };
    let ioapic = (0..IOAPIC_PINS).map(|pin| to(pin, KVM_IRQCHIP_IOAPIC, pin));
    (0..PIC_PINS).map(pic).chain(ioapic).collect()
}

/// Returns the route of a message.
fn route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([a, b, c, d]);
    entry.u.msi.address_hi = u32::from_le_bytes([e, f, g, h]);
    entry.u.msi.data = message.data;
    entry
}

impl Wires {
    /// Creates the connections of `vm`, which has interrupt controllers.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            messages: Mutex::default(),
        }
    }

    /// Makes writes of any width to `addr` signal `event` instead of leaving the
    /// guest.
    ///
    /// # Errors
    /// Fails if another doorbell is there, or KVM has no room for more.
    pub fn connect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()> {
        let addr = IoEventAddress::Mmio(addr);
        let connected = self.vm.register_ioevent(event, &addr, NoDatamatch);
        connected.map_err(error)
    }

    /// Ends the effect of [`Self::connect_doorbell`].
    ///
    /// # Errors
    /// Fails if there is no such doorbell.
    pub fn disconnect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()> {
        let addr = IoEventAddress::Mmio(addr);
        let disconnected = self.vm.unregister_ioevent(event, &addr, NoDatamatch);
        disconnected.map_err(error)
    }

    /// Makes writes of the 32-bit number `value` to `addr` signal `event` instead
    /// of leaving the guest.
    ///
    /// # Errors
    /// Fails if there is such a doorbell, or KVM has no room for more.
    pub fn connect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()> {
        let addr = IoEventAddress::Mmio(addr);
        let connected = self.vm.register_ioevent(event, &addr, value);
        connected.map_err(error)
    }

    /// Ends the effect of [`Self::connect_number`].
    ///
    /// # Errors
    /// Fails if there is no such doorbell.
    pub fn disconnect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()> {
        let addr = IoEventAddress::Mmio(addr);
        let disconnected = self.vm.unregister_ioevent(event, &addr, value);
        disconnected.map_err(error)
    }

    /// Ends the effect of `event` on the message with number `gsi`.
    ///
    /// # Errors
    /// Fails if it has none.
    pub fn mute(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.vm.unregister_irqfd(event, gsi).map_err(error)
    }

    /// Makes `event` send the message with number `gsi` again, and at once if it
    /// was signalled meanwhile.
    ///
    /// # Errors
    /// Fails if the host has no memory.
    pub fn unmute(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.vm.register_irqfd(event, gsi).map_err(error)
    }

    /// Makes `event` send `message`. Returns its number, for
    /// [`Self::change_message`].
    ///
    /// # Errors
    /// Fails if there are too many messages, or the host has no room.
    pub fn connect_message(&self, event: &EventFd, message: Message) -> io::Result<u32> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() >= MESSAGES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        messages.push(message);
        let gsi = IOAPIC_PINS + u32::try_from(messages.len() - 1).unwrap_or(0);
        let connected = self
            .set_routes(&messages)
            .and_then(|()| self.vm.register_irqfd(event, gsi).map_err(error));
        if connected.is_err() {
            messages.pop();
        }
        connected.map(|()| gsi)
    }

    /// Replaces the message with number `gsi`.
    ///
    /// # Errors
    /// Fails if the host has no memory.
    pub fn change_message(&self, gsi: u32, message: Message) -> io::Result<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(gsi - IOAPIC_PINS).unwrap_or(usize::MAX);
        if let Some(known) = messages.get_mut(index) {
            *known = message;
        }
        self.set_routes(&messages)
    }

    /// Sets the level of the pin `gsi` of the IOAPIC.
    ///
    /// # Errors
    /// Fails if there is no such pin.
    pub fn set_level(&self, gsi: u32, high: bool) -> io::Result<()> {
        self.vm.set_irq_line(gsi, high).map_err(error)
    }

    fn set_routes(&self, messages: &[Message]) -> io::Result<()> {
        let own = (IOAPIC_PINS..).zip(messages);
        let own = own.map(|(gsi, message)| route(gsi, *message));
        let all: Vec<_> = pins().into_iter().chain(own).collect();
        let routing = KvmIrqRouting::from_entries(&all);
        let routing = routing.map_err(|_too_many| io::ErrorKind::QuotaExceeded)?;
        self.vm.set_gsi_routing(&routing).map_err(error)
    }
}
