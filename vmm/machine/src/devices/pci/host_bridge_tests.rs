use std::sync::Mutex;

use super::*;
use crate::devices::device::lock;
use crate::devices::pci::config::{Bar, COMMAND};

const HIGH: u64 = 1 << 40;
const WINDOWS: Windows = Windows {
    high: Some((HIGH, HIGH + (16 << 30) - 1)),
};

/// A function with two BARs that records its accesses.
#[derive(Debug)]
struct Recorder {
    space: Mutex<ConfigSpace>,
    seen: Mutex<Vec<(u8, u64, Vec<u8>)>>,
    moves: Mutex<Vec<Vec<Decoded>>>,
}

impl Recorder {
    fn new(low: u64) -> Arc<Self> {
        let mut space = ConfigSpace::new(Identity::default(), None);
        let bar = |index, size, wide| Bar { index, size, wide };
        space.add_bar(bar(0, 0x1000, false), low);
        space.add_bar(bar(2, 0x10000, true), HIGH);
        Arc::new(Self {
            space: Mutex::new(space),
            seen: Mutex::default(),
            moves: Mutex::default(),
        })
    }

    fn seen(&self) -> Vec<(u8, u64, Vec<u8>)> {
        std::mem::take(&mut *lock(&self.seen))
    }
}

impl Function for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        lock(&self.space).read(offset, data);
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        lock(&self.space).write(offset, data);
    }

    fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        lock(&self.space).decoded(windows)
    }

    fn moved(&self, decoded: &[Decoded]) {
        lock(&self.moves).push(decoded.to_vec());
    }

    fn read(&self, bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(bar + 1);
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        lock(&self.seen).push((bar, offset, data.to_vec()));
    }
}

fn at(offset: u64) -> Place {
    Place { claim: 0, offset }
}

fn in_window(addr: u64) -> Place {
    match addr {
        HIGH.. => Place {
            claim: 2,
            offset: addr - HIGH,
        },
        _ => Place {
            claim: 1,
            offset: addr - Windows::LOW.0,
        },
    }
}

fn bridge(functions: &[(u8, &Arc<Recorder>)]) -> HostBridge {
    let slots = functions.iter().map(|(number, function)| Slot {
        number: *number,
        function: Arc::clone(function) as Arc<dyn Function>,
    });
    HostBridge::new(WINDOWS, slots.collect())
}

fn select(host: &HostBridge, slot: u32, offset: u32) {
    let address = 0x8000_0000 | slot << 11 | offset;
    host.write(at(0), &address.to_le_bytes());
}

fn set(host: &HostBridge, slot: u32, offset: u32, value: u32) {
    select(host, slot, offset);
    host.write(at(4), &value.to_le_bytes());
}

fn get(host: &HostBridge, slot: u32, offset: u32) -> u32 {
    select(host, slot, offset);
    let mut data = [0; 4];
    host.read(at(4), &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn linux_finds_mechanism_1_and_a_host_bridge() {
    let host = bridge(&[]);
    host.write(at(3), &[1]); // its probe for mechanism 2: no effect
    host.write(at(0), &0x8000_0000_u32.to_le_bytes());
    let mut latch = [0; 4];
    host.read(at(0), &mut latch);
    assert_eq!(latch, 0x8000_0000_u32.to_le_bytes());
    host.write(at(0), &0x8000_0008_u32.to_le_bytes());
    let mut class = [0; 2];
    host.read(at(6), &mut class);
    assert_eq!(class, [0x00, 0x06]);
}

#[test]
fn functions_answer_in_their_slots_only() {
    let one = Recorder::new(0xc010_0000);
    let host = bridge(&[(3, &one)]);
    let config = |address: u32| {
        host.write(at(0), &address.to_le_bytes());
        let mut data = [0; 4];
        host.read(at(4), &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(config(0x8000_0000), 0x1237_8086);
    assert_eq!(config(0x8000_1800), 0);
    for absent in [
        0,
        0x8000_0100,
        0x8000_0800,
        0x8000_1900,
        0x8001_1800,
        0x8100_1800,
        0x8000_1801,
    ] {
        assert_eq!(config(absent), u32::MAX, "{absent:#x}");
        host.write(at(4), &[0xff; 4]);
    }
    assert_eq!(lock(&one.moves).len(), 0);
}

#[test]
fn every_width_and_alignment_reaches_the_right_bytes() {
    let one = Recorder::new(0xc010_0000);
    let host = bridge(&[(1, &one)]);
    set(&host, 1, 0x10, u32::MAX);
    select(&host, 1, 0x10);
    let mut data = [0; 1];
    host.read(at(5), &mut data);
    assert_eq!(data, [0xf0]);
    let mut data = [0; 2];
    host.read(at(6), &mut data);
    assert_eq!(data, [0xff; 2]);
    // What crosses the end of the dword is cut.
    let mut data = [0; 4];
    host.read(at(6), &mut data);
    assert_eq!(data, [0xff; 4]);
    host.write(at(7), &[0xc0, 1, 1, 1]);
    assert_eq!(get(&host, 1, 0x10), 0xc0ff_f000);
    assert_eq!(get(&host, 1, 0x14), 0);
}

#[test]
fn accesses_reach_the_bar_that_decodes_there() {
    let one = Recorder::new(0xc010_0000);
    let host = bridge(&[(1, &one)]);
    let (low, high) = (0xc010_0000, HIGH);
    assert!(!host.answers(in_window(low), 4));
    set(&host, 1, COMMAND.into(), 2);
    assert!(host.answers(in_window(low), 4));
    let mut data = [0; 4];
    host.read(in_window(low + 8), &mut data);
    assert_eq!(data, [1; 4]);
    host.read(in_window(high), &mut data);
    assert_eq!(data, [3; 4]);
    host.write(in_window(high + 0x123), &[7]);
    assert_eq!(one.seen(), [(2, 0x123, vec![7])]);
    // The last bytes of a BAR are in it, and no access crosses its end.
    assert!(host.answers(in_window(low + 0xffc), 4));
    assert!(!host.answers(in_window(low + 0xffd), 4));
    assert!(!host.answers(in_window(low - 1), 1));
    host.read(in_window(low + 0xffd), &mut data);
    assert_eq!(data, [0xff; 4]);
    // It moves, and is gone where it was.
    set(&host, 1, 0x10, 0xd000_0000);
    assert!(!host.answers(in_window(low), 4));
    assert!(host.answers(in_window(0xd000_0000), 4));
    set(&host, 1, COMMAND.into(), 0);
    assert!(!host.answers(in_window(0xd000_0000), 4));
    let moves: Vec<usize> = lock(&one.moves).iter().map(Vec::len).collect();
    assert_eq!(moves, [2, 2, 0]);
}

#[test]
fn overlapping_bars_are_the_lower_slots() {
    let (one, two) = (Recorder::new(0xc020_0000), Recorder::new(0xc020_0000));
    let host = bridge(&[(5, &two), (4, &one)]);
    set(&host, 5, COMMAND.into(), 2);
    set(&host, 4, COMMAND.into(), 2);
    host.write(in_window(0xc020_0000), &[1, 2]);
    assert_eq!((one.seen().len(), two.seen().len()), (1, 0));
    set(&host, 4, 0x10, 0xc030_0000);
    host.write(in_window(0xc020_0000), &[1, 2]);
    assert_eq!((one.seen().len(), two.seen().len()), (0, 1));
}
