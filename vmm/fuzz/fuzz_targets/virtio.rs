//! Any accesses to the configuration space and the registers of PCI functions,
//! any contents of the queues that their drivers set up, and turns of the event
//! loop in between: of each virtio device.
#![no_main]

use std::io;
use std::sync::{Arc, OnceLock};

use event_manager::{EventManager, EventSubscriber, SubscriberOps};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mkvmm_base::layout::pci_slot_start;
use mkvmm_machine::console::{Console, Terminal};
use mkvmm_machine::devices::device::{Device, Place};
use mkvmm_machine::devices::pci::config::Windows;
use mkvmm_machine::devices::pci::host_bridge::{HostBridge, Slot};
use mkvmm_machine::devices::pci::line::Lines;
use mkvmm_machine::devices::pci::wiring::Wiring;
use mkvmm_machine::devices::virtio::console::VirtioConsole;
use mkvmm_machine::devices::virtio::function::{Surroundings, VirtioFunction};
use mkvmm_machine::kvm::wires::Message;
use mkvmm_virtio::VirtioDevice;
use mkvmm_virtio::rng::Rng;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::board::Board;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// The size of the guest's memory: small, so that addresses are found.
const MEMORY: usize = 64 << 10;
/// The slot of the device, and its claims at the bridge.
const SLOT: u8 = 1;
const PORTS: usize = 0;
const WINDOW: usize = 1;
/// The most events that the loop handles after one action: a device that has
/// more to do is called again with the next.
const TURNS: usize = 8;

#[derive(Debug)]
struct Nowhere;

impl Wiring for Nowhere {
    fn connect_doorbell(&self, _event: &EventFd, _addr: u64) -> io::Result<()> {
        Ok(())
    }

    fn disconnect_doorbell(&self, _event: &EventFd, _addr: u64) -> io::Result<()> {
        Ok(())
    }

    fn connect_number(&self, _event: &EventFd, _addr: u64, _value: u32) -> io::Result<()> {
        Ok(())
    }

    fn disconnect_number(&self, _event: &EventFd, _addr: u64, _value: u32) -> io::Result<()> {
        Ok(())
    }

    fn mute(&self, _event: &EventFd, _number: u32) -> io::Result<()> {
        Ok(())
    }

    fn unmute(&self, _event: &EventFd, _number: u32) -> io::Result<()> {
        Ok(())
    }

    fn connect_message(&self, _event: &EventFd, _message: Message) -> io::Result<u32> {
        Ok(24)
    }

    fn change_message(&self, _number: u32, _message: Message) -> io::Result<()> {
        Ok(())
    }

    fn set_level(&self, _line: u32, _high: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Creates the devices, one of which each input is for.
const DEVICES: [fn() -> Box<dyn VirtioDevice>; 2] = [
    || Box::new(Rng::new().expect("descriptors")),
    || {
        let bell = Bell::pair().expect("descriptors").0;
        Box::new(VirtioConsole::new(Arc::new(Screen), bell))
    },
];

/// A console on which there is always something typed.
#[derive(Debug)]
struct Screen;

impl Console for Screen {
    fn print(&self, _bytes: &[u8]) {}

    fn take_input(&self, most: usize) -> Vec<u8> {
        vec![b'x'; most.min(16)]
    }
}

impl Terminal for Screen {
    fn await_input(&self) -> bool {
        true
    }
}

struct Guest {
    bridge: Arc<HostBridge>,
    events: EventManager<Arc<dyn EventSubscriber + Send + Sync>>,
    memory: Arc<GuestMemoryMmap>,
}

impl Guest {
    fn new(which: usize) -> Self {
        static BOARD: OnceLock<Board> = OnceLock::new();
        let board = BOARD.get_or_init(|| Board::create().expect("memory").0);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        let memory = Arc::new(memory.expect("memory"));
        let wiring: Arc<dyn Wiring> = Arc::new(Nowhere);
        let surroundings = Surroundings {
            slot: SLOT,
            memory: memory.clone(),
            wiring: Arc::clone(&wiring),
            lines: &Lines::new(wiring),
            counters: board.writer().device(0).expect("there is one"),
        };
        let function = VirtioFunction::new(DEVICES[which](), surroundings).expect("descriptors");
        let slot = Slot {
            number: SLOT,
            function,
        };
        let bridge = Arc::new(HostBridge::new(Windows::default(), vec![slot]));
        let mut events = EventManager::new().expect("descriptors");
        for subscriber in Arc::clone(&bridge).subscribers() {
            events.add_subscriber(subscriber);
        }
        Self {
            bridge,
            events,
            memory,
        }
    }

    fn config(&self, offset: u8, data: &[u8]) {
        let address = 0x8000_0000 | u32::from(SLOT) << 11 | u32::from(offset & !3);
        let at = |offset| Place {
            claim: PORTS,
            offset,
        };
        self.bridge.write(at(0), &address.to_le_bytes());
        self.bridge.write(at(4 + u64::from(offset & 3)), data);
        let mut read = [0; 4];
        self.bridge.read(at(4), &mut read);
    }

    fn register(&self, offset: u64, data: &[u8]) {
        let offset = pci_slot_start(SLOT) - Windows::LOW.0 + offset;
        let at = Place {
            claim: WINDOW,
            offset,
        };
        if self.bridge.answers(at, data.len()) {
            self.bridge.write(at, data);
            let mut read = [0; 8];
            self.bridge.read(at, &mut read[..data.len()]);
        }
    }

    /// Sets the device up as a driver does, with `size` entries in each queue.
    fn set_up(&self, size: u16, features: u32) {
        self.config(4, &[6, 0]);
        self.config(
            0x10,
            &u32::try_from(pci_slot_start(SLOT))
                .expect("low")
                .to_le_bytes(),
        );
        self.register(0x14, &[0]);
        self.register(0x14, &[3]);
        self.register(0x08, &[0; 4]);
        self.register(0x0c, &features.to_le_bytes());
        self.register(0x08, &[1, 0, 0, 0]);
        self.register(0x0c, &[1, 0, 0, 0]);
        self.register(0x14, &[11]);
        for queue in 0..3_u16 {
            self.register(0x16, &queue.to_le_bytes());
            self.register(0x18, &size.to_le_bytes());
            for (field, step) in [(0x20, 0), (0x28, 0x1000_u64), (0x30, 0x2000)] {
                let at = u64::from(queue) * 0x3000 + 0x1000 + step;
                self.register(field, &at.to_le_bytes());
            }
            self.register(0x1c, &[1, 0]);
        }
        self.register(0x14, &[15]);
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let mut guest = Guest::new(input.choose_index(DEVICES.len())?);
    while !input.is_empty() {
        let data: [u8; 8] = input.arbitrary()?;
        let width = *input.choose(&[1, 2, 4, 8])?;
        let data = &data[..width];
        match input.int_in_range(0..=5)? {
            0 => guest.config(input.arbitrary()?, &data[..width.min(4)]),
            1 => guest.register(input.int_in_range(0..=0x7fff)?, data),
            // The common registers, and the doorbells.
            2 => guest.register(input.int_in_range(0..=0x40)?, data),
            3 => guest.register(
                0x3000 + 4 * input.int_in_range(0..=3)?,
                &data[..width.min(4)],
            ),
            4 => {
                let at = input.int_in_range(0..=MEMORY as u64 - 8)?;
                let _ = guest.memory.write_slice(data, GuestAddress(at));
            }
            _ => guest.set_up(1 << input.int_in_range(0..=6)?, input.arbitrary()?),
        }
        for _ in 0..TURNS {
            if guest.events.run_with_timeout(0).expect("a loop") == 0 {
                break;
            }
        }
    }
    Ok(())
}
