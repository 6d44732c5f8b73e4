//! Wide accesses to every port, checked against the rules that [`super::bus`]
//! states: a wide access equals a sequence of byte accesses in ascending order,
//! except at the registers that accept it at once.

use std::sync::Arc;

use crate::console::tests::Recorder;
use crate::devices::board::Board;
use crate::devices::pci::host_bridge::HostBridge;
use crate::devices::violation::ViolationCounter;
use crate::news::tests::Heard;
use crate::progress::Progress;
use crate::vcpu::exit::ExitBus;
use mkvmm_base::layout::{COM1_BASE, GPE0, PCI_BASE, PCI_PORTS, PM_BASE, PM_PORTS, PM_TIMER};
use mkvmm_base::violation::ViolationPolicy;
use mkvmm_wire::shared::board::Board as StatusBoard;

/// A guest's devices in their initial state, and their output.
struct Guest {
    board: Board,
    console: Arc<Recorder>,
    heard: Arc<Heard>,
}

impl Guest {
    fn new() -> Self {
        let (console, heard) = (Arc::new(Recorder::default()), Arc::new(Heard::default()));
        let violations = ViolationCounter::new(
            ViolationPolicy::Log,
            StatusBoard::create().unwrap().0.writer(),
            heard.clone(),
        );
        let progress = Arc::new(Progress::new(heard.clone()));
        let board = Board::new(
            console.clone(),
            &progress,
            &Arc::default(),
            Arc::new(violations),
            HostBridge::default(),
        )
        .unwrap();
        Self {
            board,
            console,
            heard,
        }
    }

    fn read(&self, port: u16, width: u16) -> Vec<u8> {
        let mut data = vec![0xaa; width.into()];
        self.board.bus().pio_read(port, &mut data);
        data
    }

    fn byte(&self, port: u32) -> u8 {
        match u16::try_from(port) {
            Ok(port) => self.read(port, 1)[0],
            Err(_beyond_the_last) => 0xff,
        }
    }

    /// Returns the externally visible state of the devices, except for the
    /// timer, which changes by itself.
    fn state(&self) -> (Vec<u8>, Vec<u8>, Vec<String>) {
        let is_timer = |port: u32| (PM_TIMER.into()..u32::from(PM_TIMER) + 4).contains(&port);
        let ports = (0..=0xffff_u32).filter(|port| !is_timer(*port));
        let seen = ports.map(|port| self.byte(port)).collect();
        (seen, self.console.printed(), self.heard.marks())
    }
}

/// Returns whether `width` bytes at `port` include registers that accept more
/// than a byte.
fn is_whole(port: u16, width: u16) -> bool {
    let (first, last) = (u32::from(port), u32::from(port) + u32::from(width) - 1);
    [(PM_BASE, PM_PORTS), (PCI_BASE, PCI_PORTS)]
        .into_iter()
        .any(|(base, ports)| first < u32::from(base + ports) && last >= u32::from(base))
}

#[test]
fn a_wide_read_of_any_port_is_made_of_narrow_ones() {
    // Use two guests, since reading some registers changes them.
    for width in [2, 4] {
        let (wide, narrow) = (Guest::new(), Guest::new());
        for port in (0..=0xffff_u16).filter(|port| !is_whole(*port, width)) {
            let bytes = (0..u32::from(width)).map(|i| narrow.byte(u32::from(port) + i));
            let want: Vec<u8> = bytes.collect();
            assert_eq!(wide.read(port, width), want, "{port:#x}, {width}");
        }
    }
}

#[test]
fn a_wide_write_to_any_port_is_made_of_narrow_ones() {
    let bytes = [0x41, 0x42, 0x84, 0x07];
    for width in [2, 4] {
        let (wide, narrow) = (Guest::new(), Guest::new());
        for port in (0..=0xffff_u16).filter(|port| !is_whole(*port, width)) {
            let value = &bytes[..usize::from(width)];
            let ended = wide.board.bus().pio_write(port, value);
            let want = value.iter().zip(u32::from(port)..).find_map(|(byte, at)| {
                let at = u16::try_from(at).ok()?;
                narrow.board.bus().pio_write(at, &[*byte])
            });
            assert_eq!(ended, want, "{port:#x}, {width}");
        }
        assert_eq!(wide.state(), narrow.state(), "{width}");
    }
}

#[test]
fn a_word_to_com1_is_a_byte_of_output_and_one_of_the_next_register() {
    let guest = Guest::new();
    let value = 0x4241_u16.to_le_bytes();
    assert_eq!(guest.board.bus().pio_write(COM1_BASE, &value), None);
    assert_eq!(guest.console.printed(), b"A");
    // The interrupt enable register has four bits.
    assert_eq!(guest.byte(u32::from(COM1_BASE) + 1), 0x02);
}

#[test]
fn the_timer_is_read_whole_and_anew() {
    let guest = Guest::new();
    let timer = || u32::from_le_bytes(guest.read(PM_TIMER, 4).try_into().unwrap());
    let first = timer();
    while timer() == first {}
    let [low, high] = [guest.read(PM_TIMER, 2), guest.read(PM_TIMER + 2, 2)];
    assert_ne!(
        (low.as_slice(), high.as_slice()),
        (&[0xff; 2][..], &[0xff; 2][..])
    );
    // The event block follows, which has no events; no device claims the ports
    // after that.
    assert_eq!(guest.read(GPE0, 4), [0; 4]);
    assert_eq!(guest.board.bus().pio_write(GPE0, &[0xff; 4]), None);
    assert_eq!(guest.read(GPE0, 4), [0; 4]);
    assert_eq!(guest.read(GPE0 + 3, 4)[1..], [0xff; 3]);
}

#[test]
fn the_configuration_address_is_written_whole_or_not_at_all() {
    let guest = Guest::new();
    let bus = guest.board.bus();
    let address = 0x8000_0008_u32.to_le_bytes();
    assert_eq!(bus.pio_write(PCI_BASE, &address[..2]), None);
    assert_eq!(bus.pio_write(PCI_BASE + 2, &address[2..]), None);
    assert_eq!(guest.read(PCI_BASE, 4), [0; 4]);
    assert_eq!(bus.pio_write(PCI_BASE, &address), None);
    assert_eq!(guest.read(PCI_BASE, 4), address);
    // Read class 06 partly, completely, and beyond the data register.
    assert_eq!(guest.read(PCI_BASE + 4, 4), [0, 0, 0, 6]);
    assert_eq!(guest.read(PCI_BASE + 7, 1), [6]);
    assert_eq!(guest.read(PCI_BASE + 6, 4), [0, 6, 0xff, 0xff]);
    // A word access at the reset register neither resets nor sets the address.
    assert_eq!(bus.pio_write(PCI_BASE + 1, &[6, 6]), None);
    assert_eq!(guest.read(PCI_BASE, 4), address);
}
