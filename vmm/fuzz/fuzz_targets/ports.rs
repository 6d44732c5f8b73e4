//! Any accesses of any width to ports and to memory that is not RAM, as several
//! repetitions or one, on a guest's devices: the ports of PCI configuration and
//! of the reset registers among them. An access of many bytes does what those
//! of one byte each do, on other devices, in ascending order; except at the
//! registers that take more at once.
#![no_main]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mkvmm_base::layout::{PCI_BASE, PCI_PORTS, PM_BASE, PM_PORTS};
use mkvmm_base::violation::ViolationPolicy;
use mkvmm_machine::console::Console;
use mkvmm_machine::devices::board::Board;
use mkvmm_machine::devices::pci::host_bridge::HostBridge;
use mkvmm_machine::devices::violation::ViolationCounter;
use mkvmm_machine::news::{News, NewsSink};
use mkvmm_machine::progress::Progress;
use mkvmm_machine::vcpu::ExitBus;
use mkvmm_wire::shared::board::Board as StatusBoard;

/// What is printed, and what is typed.
#[derive(Debug, Default)]
struct Line {
    printed: Mutex<Vec<u8>>,
    typed: Mutex<VecDeque<u8>>,
}

impl Console for Line {
    fn print(&self, bytes: &[u8]) {
        self.printed.lock().expect("one thread").extend(bytes);
    }

    fn take_input(&self, most: usize) -> Vec<u8> {
        let mut typed = self.typed.lock().expect("one thread");
        let count = most.min(typed.len());
        typed.drain(..count).collect()
    }
}

#[derive(Debug)]
struct Nobody;

impl NewsSink for Nobody {
    fn tell(&self, _news: News) {}
}

struct Guest {
    board: Board,
    line: Arc<Line>,
}

impl Guest {
    fn new(policy: ViolationPolicy) -> Self {
        let line = Arc::new(Line::default());
        let status = StatusBoard::create().expect("memory").0.writer();
        let violations = ViolationCounter::new(policy, status, Arc::new(Nobody));
        let progress = Arc::new(Progress::new(Arc::new(Nobody)));
        let console: Arc<dyn Console> = Arc::clone(&line) as _;
        let log = Arc::default();
        let board = Board::new(
            console,
            &progress,
            &log,
            Arc::new(violations),
            HostBridge::default(),
        );
        Self {
            board: board.expect("devices"),
            line,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

/// Whether an access touches a register that takes more than a byte.
fn is_whole(port: u16, width: usize) -> bool {
    let (first, last) = (usize::from(port), usize::from(port) + width - 1);
    [(PM_BASE, PM_PORTS), (PCI_BASE, PCI_PORTS)]
        .into_iter()
        .any(|(base, ports)| first < usize::from(base + ports) && last >= usize::from(base))
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let policy = match input.arbitrary()? {
        true => ViolationPolicy::Stop,
        false => ViolationPolicy::Log,
    };
    let (wide, narrow) = (Guest::new(policy), Guest::new(policy));
    // Ports of devices more often than others.
    const NEAR: [u16; 9] = [0x60, 0x64, 0x80, 0xe9, 0x3f8, 0x505, 0x600, 0xcf8, 0xfffc];
    while !input.is_empty() {
        let port = match input.arbitrary()? {
            true => input.arbitrary()?,
            false => input
                .choose(&NEAR)?
                .wrapping_add(input.int_in_range(0..=8)?),
        };
        let width = *input.choose(&[1, 2, 4])?;
        let (bus, other) = (wide.board.bus(), narrow.board.bus());
        match input.int_in_range(0..=5)? {
            0 | 1 => {
                let mut all = vec![0xaa; width];
                bus.pio_read(port, &mut all);
                if is_whole(port, width) {
                    other.pio_read(port, &mut vec![0; width]);
                } else {
                    for (at, byte) in (u32::from(port)..).zip(all) {
                        let mut one = [0xff];
                        if let Ok(port) = u16::try_from(at) {
                            other.pio_read(port, &mut one);
                        }
                        assert_eq!(one[0], byte, "{port:#x}, {width}");
                    }
                }
            }
            2 => {
                let value = input.bytes(width.min(input.len()))?;
                if value.is_empty() {
                    break;
                }
                let ended = bus.pio_write(port, value);
                let bytes = (u32::from(port)..).zip(value);
                let as_bytes = if is_whole(port, value.len()) {
                    other.pio_write(port, value)
                } else {
                    let mut bytes =
                        bytes.filter_map(|(at, byte)| Some((u16::try_from(at).ok()?, byte)));
                    bytes.find_map(|(at, byte)| other.pio_write(at, &[*byte]))
                };
                assert_eq!(ended, as_bytes, "{port:#x}");
                if ended.is_some() {
                    break;
                }
            }
            3 => {
                let typed = input.bytes(input.len().min(80))?;
                for guest in [&wide, &narrow] {
                    guest.line.typed.lock().expect("one thread").extend(typed);
                    guest.board.feed_console();
                }
            }
            4 => {
                wide.board.press_power_button();
                narrow.board.press_power_button();
            }
            _ => {
                let (addr, len) = (input.arbitrary()?, input.int_in_range(1..=8)?);
                let mut data = vec![0xaa; len];
                let ends = [bus.mmio_read(addr, &mut data), bus.mmio_write(addr, &data)];
                assert_eq!(data, vec![0xff; len], "nobody is at {addr:#x}");
                let stops = policy == ViolationPolicy::Stop;
                assert_eq!(ends.map(|end| end.is_some()), [stops; 2]);
            }
        }
    }
    let printed = |guest: &Guest| guest.line.printed.lock().expect("one thread").clone();
    assert_eq!(printed(&wide), printed(&narrow));
    Ok(())
}
