//! Tests of the bus with fake devices, and with the real ones.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventManager, EventOps, EventSet, Events, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::tests::Recorder;
use crate::devices::board::Board;
use crate::devices::device::Place;
use crate::devices::pci::host_bridge::HostBridge;
use crate::news::{News, tests::Heard};
use mkvmm_base::layout::{
    COM1_BASE, COM1_IRQ, DEBUG_PORT, PCI_BASE, PM1_CONTROL, POST_PORT, PVPANIC_PORT, RESET_PORT,
    SCI_IRQ,
};
use mkvmm_base::state::EndReason;
use mkvmm_base::violation::ViolationPolicy;
use mkvmm_wire::shared::board::Board as StatusBoard;

/// A device that answers each byte with its offset, records writes, and counts
/// how often its descriptor was ready.
#[derive(Debug)]
struct Probe {
    claims: Vec<Claim>,
    written: Mutex<Vec<(Place, Vec<u8>)>>,
    doorbell: EventFd,
    rings: AtomicUsize,
}

impl Probe {
    fn new(claims: &[Claim]) -> Arc<Self> {
        Arc::new(Self {
            claims: claims.to_vec(),
            written: Mutex::default(),
            doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
            rings: AtomicUsize::new(0),
        })
    }

    fn written(&self) -> Vec<(Place, Vec<u8>)> {
        std::mem::take(&mut *self.written.lock().unwrap())
    }
}

impl Device for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn claims(&self) -> Vec<Claim> {
        self.claims.clone()
    }

    fn read(&self, at: Place, data: &mut [u8]) {
        let mut next = at.register();
        data.fill_with(|| {
            next += 1;
            next - 1
        });
    }

    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome {
        self.written.lock().unwrap().push((at, data.to_vec()));
        (data == [0xee]).then_some(EndReason::Reboot)
    }

    fn subscribers(self: Arc<Self>) -> Vec<Arc<dyn EventSubscriber + Send + Sync>> {
        vec![self]
    }
}

impl EventSubscriber for Probe {
    fn process(&self, _events: Events, _ops: &mut EventOps<'_>) {
        self.doorbell.read().unwrap();
        self.rings.fetch_add(1, Ordering::Relaxed);
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&self.doorbell, EventSet::IN)).unwrap();
    }
}

fn empty_bus(policy: ViolationPolicy) -> (Bus, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let violations = ViolationCounter::new(
        policy,
        StatusBoard::create().unwrap().0.writer(),
        heard.clone(),
    );
    let progress = Arc::new(Progress::new(heard.clone()));
    (Bus::new(progress, Arc::new(violations)), heard)
}

fn board() -> (Board, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let violations = ViolationCounter::new(
        ViolationPolicy::Log,
        StatusBoard::create().unwrap().0.writer(),
        heard.clone(),
    );
    let progress = Arc::new(Progress::new(heard.clone()));
    let console = Arc::new(Recorder::default());
    let board = Board::new(
        console,
        &progress,
        &Arc::default(),
        Arc::new(violations),
        HostBridge::default(),
    )
    .unwrap();
    (board, heard)
}

fn at(claim: usize, offset: u64) -> Place {
    Place { claim, offset }
}

#[test]
fn an_access_is_split_where_devices_and_their_widths_end() {
    let (mut bus, _heard) = empty_bus(ViolationPolicy::Log);
    let narrow = Probe::new(&[Claim::ports(0x100, 2)]);
    let wide = Probe::new(&[Claim::ports(0x200, 1), Claim::ports(0x102, 4).wide(4)]);
    bus.add(narrow.clone()).unwrap();
    bus.add(wide.clone()).unwrap();
    assert_eq!(bus.pio_write(0xff, &[1, 2, 3, 4]), None);
    assert_eq!(narrow.written(), [(at(0, 0), vec![2]), (at(0, 1), vec![3])]);
    assert_eq!(wide.written(), [(at(1, 0), vec![4])]);
    assert_eq!(bus.pio_write(0x102, &[1, 2, 3, 4]), None);
    assert_eq!(wide.written(), [(at(1, 0), vec![1, 2, 3, 4])]);
    let mut data = [0xaa; 4];
    bus.pio_read(0x104, &mut data);
    assert_eq!(data, [2, 3, 0xff, 0xff]);
}

#[test]
fn after_an_end_nothing_is_written() {
    let (mut bus, _heard) = empty_bus(ViolationPolicy::Log);
    let probe = Probe::new(&[Claim::ports(0x100, 4)]);
    bus.add(probe.clone()).unwrap();
    let end = bus.pio_write(0x100, &[1, 0xee, 3, 4]);
    assert_eq!(end, Some(EndReason::Reboot));
    assert_eq!(probe.written().len(), 2);
}

#[test]
fn memory_beside_a_device_is_a_violation_of_those_bytes() {
    let (mut bus, heard) = empty_bus(ViolationPolicy::Log);
    let probe = Probe::new(&[Claim::memory(0xd000_0000, 0x1000)]);
    bus.add(probe.clone()).unwrap();
    let mut data = [0; 8];
    assert_eq!(bus.mmio_read(0xd000_0010, &mut data), None);
    assert_eq!(data, [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]);
    assert_eq!(heard.next(), None);
    assert_eq!(bus.mmio_write(0xd000_0ffe, &[1, 2, 3, 4]), None);
    assert_eq!(probe.written(), [(at(0, 0xffe), vec![1, 2])]);
    let want = Violation {
        addr: 0xd000_1000,
        len: 2,
        access: Access::Write,
    };
    assert!(matches!(
        heard.next(),
        Some(News::Violation { violation, .. }) if violation == want
    ));
}

#[test]
fn the_ends_of_both_spaces_belong_to_nobody_unless_claimed() {
    let (mut bus, _heard) = empty_bus(ViolationPolicy::Log);
    let last = Claim::memory(u64::MAX - 1, 2);
    bus.add(Probe::new(&[last, Claim::ports(0xffff, 1)]))
        .unwrap();
    let mut data = [0xaa; 4];
    bus.pio_read(0xffff, &mut data);
    assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    assert_eq!(bus.mmio_read(u64::MAX - 2, &mut data), None);
    assert_eq!(data, [0xff, 0, 1, 0xff]);
}

#[test]
fn a_device_where_another_is_or_nothing_can_be_is_refused() {
    let (mut bus, _heard) = empty_bus(ViolationPolicy::Log);
    bus.add(Probe::new(&[Claim::ports(0x100, 8)])).unwrap();
    for claim in [
        Claim::ports(0xff, 2),
        Claim::ports(0x103, 1),
        Claim::ports(0x107, 8),
        Claim::ports(0, 0x200),
    ] {
        let refused = bus.add(Probe::new(&[claim]));
        assert!(
            matches!(refused, Err(BusError::Overlap { .. })),
            "{claim:?}"
        );
    }
    for claim in [
        Claim::ports(0x200, 0),
        Claim::ports(0xffff, 2),
        Claim::memory(u64::MAX, 2),
    ] {
        let refused = bus.add(Probe::new(&[claim]));
        assert!(matches!(refused, Err(BusError::Range { .. })), "{claim:?}");
    }
    let twice = [Claim::ports(0x300, 2), Claim::ports(0x301, 2)];
    assert!(matches!(
        bus.add(Probe::new(&twice)),
        Err(BusError::Overlap { start: 0x301, .. })
    ));
    // The same numbers in the other space are free, and so are adjacent ones.
    bus.add(Probe::new(&[Claim::memory(0x100, 8)])).unwrap();
    bus.add(Probe::new(&[Claim::ports(0xfe, 2), Claim::ports(0x108, 1)]))
        .unwrap();
}

#[test]
fn a_device_watches_its_own_descriptors() {
    let (mut bus, _heard) = empty_bus(ViolationPolicy::Log);
    let probe = Probe::new(&[]);
    bus.add(probe.clone()).unwrap();
    let mut events = EventManager::new().unwrap();
    for subscriber in bus.subscribers() {
        events.add_subscriber(subscriber);
    }
    probe.doorbell.write(1).unwrap();
    events.run().unwrap();
    assert_eq!(probe.rings.load(Ordering::Relaxed), 1);
}

#[test]
fn every_way_to_end_has_its_reason_and_nothing_else_ends() {
    let (board, _heard) = board();
    let bus = board.bus();
    assert_eq!(bus.pio_write(0x64, &[0xd1]), None);
    assert_eq!(bus.pio_write(0x60, &[0xfe]), None);
    assert_eq!(bus.pio_write(COM1_BASE, &[0xfe]), None);
    assert_eq!(bus.pio_write(0x64, &[0xfe]), Some(EndReason::Reboot));
    assert_eq!(bus.pio_write(RESET_PORT, &[0x02]), None);
    assert_eq!(bus.pio_write(PCI_BASE, &[0, 6, 0, 0x80]), None);
    for reset in [0x06, 0x0e] {
        assert_eq!(bus.pio_write(RESET_PORT, &[reset]), Some(EndReason::Reboot));
    }
    let off = (5_u16 << 10 | 1 << 13).to_le_bytes();
    assert_eq!(bus.pio_write(PM1_CONTROL, &off), Some(EndReason::Poweroff));
    assert_eq!(bus.pio_write(PVPANIC_PORT, &[1]), Some(EndReason::Panic));
}

#[test]
fn empty_ports_and_foreign_memory_read_as_all_ones() {
    let (board, events) = board();
    let bus = board.bus();
    // COM2, and the clock whose absence the FADT declares.
    for port in [0x2f8, 0x70] {
        let mut data = [0; 4];
        bus.pio_read(port, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
    let mut data = [0; 8];
    assert_eq!(bus.mmio_read(0x1_1000_0000, &mut data), None);
    assert_eq!(data, [0xff; 8]);
    let want = Violation {
        addr: 0x1_1000_0000,
        len: 8,
        access: Access::Read,
    };
    assert!(matches!(
        events.next(),
        Some(News::Violation { violation, .. }) if violation == want
    ));
}

#[test]
fn the_first_violations_are_reported_and_all_are_counted() {
    let (bus, events) = empty_bus(ViolationPolicy::Stop);
    for _ in 0..100 {
        assert_eq!(bus.mmio_write(0, &[0]), Some(EndReason::Violation));
    }
    assert_eq!(std::iter::from_fn(|| events.next()).count(), 8);
}

#[test]
fn marks_and_stages_are_told() {
    let (board, heard) = board();
    let bus = board.bus();
    bus.pio_write(POST_PORT, &[0x42]);
    for byte in b"init\n" {
        bus.pio_write(DEBUG_PORT, &[*byte]);
    }
    assert_eq!(bus.pio_write(PVPANIC_PORT, &[2]), None);
    assert_eq!(
        heard.marks(),
        ["0x42", "init", "panic, a crash kernel takes over"]
    );
    bus.first_exit();
    bus.pio_write(COM1_BASE, b"x");
    for want in [Stage::FirstExit, Stage::FirstOutput] {
        assert!(matches!(heard.next(), Some(News::Reached { stage, .. }) if stage == want));
    }
}

#[test]
fn the_lines_of_all_devices_are_known() {
    let (board, _heard) = board();
    let lines: Vec<u32> = board.bus().lines().iter().map(IrqLine::gsi).collect();
    assert_eq!(lines, [COM1_IRQ, SCI_IRQ]);
}
