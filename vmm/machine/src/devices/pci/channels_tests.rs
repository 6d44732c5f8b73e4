use event_manager::SubscriberOps;
use mkvmm_base::layout::pci_slot_start;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::members::{MemberState, Members};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::pci::wiring::tests::Recorded;
use crate::kvm::device::is_signalled;

const BASE: u64 = pci_slot_start(3);
/// The first capability, that of MSI-X.
const CAPABILITY: u8 = 0x40;

struct Fixture {
    wiring: Arc<Recorded>,
    function: Arc<ChannelFunction>,
    states: Members,
    /// The doorbell of the second channel that rings the guest.
    doorbell: EventFd,
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn port(id: u32, member: u8, members: usize, doorbells: usize) -> (Port, Members) {
    let (ours, file) = Members::create().unwrap();
    let own = |_member| (0..doorbells).map(|_| event()).collect();
    let port = Port {
        id,
        range: AddrRange::with_size(0x1_0000_0000 + u64::from(id) * 0x10_0000, 0x10_0000).unwrap(),
        is_read_only: member > 0,
        member,
        states: Members::open(&file).unwrap(),
        news: Bell::pair().unwrap().0,
        doorbells: (0..members).map(own).collect(),
    };
    (port, ours)
}

fn fixture() -> Fixture {
    let wiring = Arc::new(Recorded::default());
    let ((first, states), (second, _)) = (port(5, 0, 2, 2), port(6, 2, 3, 1));
    let doorbell = second.doorbells[2][0].try_clone().unwrap();
    let lines = Lines::new(wiring.clone());
    let function = ChannelFunction::new(3, None, wiring.clone(), &lines).unwrap();
    function.add(first).unwrap();
    function.add(second).unwrap();
    Fixture {
        wiring,
        function,
        states,
        doorbell,
    }
}

impl Fixture {
    fn read(&self, bar: u8, offset: u64) -> u64 {
        let mut data = [0xaa; 8];
        self.function.read(bar, offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn numbers(&self) -> Vec<(u64, u32)> {
        self.wiring
            .numbers
            .lock()
            .unwrap()
            .keys()
            .copied()
            .collect()
    }

    fn move_to(&self, start: Option<u64>) {
        let decoded = start.map(|start| Decoded {
            bar: REGISTERS,
            start,
            last: start + BAR_SIZE - 1,
        });
        self.function.moved(decoded.as_slice());
    }
}

#[test]
fn registers_tell_of_all_channels() {
    let it = fixture();
    it.states.set(
        1,
        MemberState {
            is_present: true,
            boots: 7,
        },
    );
    assert_eq!(it.read(REGISTERS, POSITION) & 0xffff_ffff, 0);
    assert_eq!(it.read(REGISTERS, VERSION), 8 << 32 | 1);
    assert_eq!(it.read(REGISTERS, 0x100), 0x1_0050_0000);
    assert_eq!(it.read(REGISTERS, 0x108), 0x10_0000);
    assert_eq!(it.read(REGISTERS, 0x110), 5);
    assert_eq!(it.read(REGISTERS, 0x118), 2 << 32);
    assert_eq!(it.read(REGISTERS, 0x120), 2);
    assert_eq!(it.read(REGISTERS, 0x148), 7 << 32 | 1);
    assert_eq!(it.read(REGISTERS, 0x190), 1 << 32 | 6);
    assert_eq!(it.read(REGISTERS, 0x198), 3 << 32 | 2);
    assert_eq!(it.read(REGISTERS, 0x1a0), 8 << 32 | 1);
    // Odd accesses see the same bytes; what is not there is 0.
    assert_eq!(it.read(REGISTERS, 0x14c) & 0xffff_ffff, 7);
    for nothing in [0x28, 0x150, 0x178, 0x200, BAR_SIZE - 8] {
        assert_eq!(it.read(REGISTERS, nothing), 0, "{nothing:#x}");
    }
}

#[test]
fn doorbells_move_with_their_bar() {
    let it = fixture();
    it.move_to(Some(BASE));
    let all = [0, 1, 0x1_0000, 0x1_0001, 0x100_0000, 0x101_0000, 0x102_0000];
    let at = |base: u64| all.map(|number| (base + DOORBELL, number));
    assert_eq!(it.numbers(), at(BASE));
    it.move_to(Some(BASE));
    it.move_to(Some(BASE + 0x8000));
    assert_eq!(it.numbers(), at(BASE + 0x8000));
    it.move_to(None);
    assert_eq!(it.numbers(), []);
}

#[test]
fn the_vectors_are_the_own_doorbells_and_the_news() {
    let it = fixture();
    let function = &it.function;
    function.write_config(CAPABILITY + 3, &[0x80]);
    let entry = |vector: u64, data: u32| {
        function.write(VECTORS, 16 * vector, &0xfee0_0000_u64.to_le_bytes());
        function.write(VECTORS, 16 * vector + 8, &data.to_le_bytes());
        function.write(VECTORS, 16 * vector + 12, &[0; 4]);
    };
    it.doorbell.write(1).unwrap();
    function.msix.trigger(15);
    assert_eq!(it.read(VECTORS, PENDING), 1 << 8 | 1 << 15);
    entry(8, 0x51);
    entry(15, 0x52);
    assert_eq!(it.read(VECTORS, PENDING), 0);
    let messages = it.wiring.messages.lock().unwrap();
    let data: Vec<u32> = messages.iter().map(|message| message.data).collect();
    assert_eq!(data, [0x51, 0x52]);
}

#[test]
fn channels_come_and_go_at_positions() {
    let it = fixture();
    it.move_to(Some(BASE));
    it.function.write_config(CAPABILITY + 3, &[0x80]);
    it.function.remove(5);
    it.function.remove(5);
    assert_eq!(it.function.range(5), None);
    assert_eq!(it.read(REGISTERS, 0x100), 0);
    assert_eq!(it.read(REGISTERS, 0x190), 1 << 32 | 6);
    let second = [0x100_0000, 0x101_0000, 0x102_0000];
    let at = |number| (BASE + DOORBELL, number);
    assert_eq!(it.numbers(), second.map(at));
    // The guest is told of both, and of who comes to the free position.
    assert_eq!(it.read(VECTORS, PENDING), 1 << 7);
    let (third, _) = port(9, 1, 2, 1);
    it.function.add(third).unwrap();
    assert_eq!(it.read(REGISTERS, 0x110) & 0xffff_ffff, 9);
    assert_eq!(
        it.numbers(),
        [0, 0x1_0000]
            .into_iter()
            .chain(second)
            .map(at)
            .collect::<Vec<_>>()
    );
    for id in 20..26 {
        it.function.add(port(id, 0, 2, 1).0).unwrap();
    }
    it.function.add(port(26, 0, 2, 1).0).unwrap_err();
    assert_eq!(it.function.range(26), None);
    it.function.remove(6);
    it.function.add(port(26, 0, 2, 1).0).unwrap();
    assert!(it.function.range(26).is_some());
}

#[test]
fn the_event_loop_watches_the_channels_that_are_there() {
    let it = fixture();
    it.function.write_config(CAPABILITY + 3, &[0x80]);
    let mut manager = event_manager::EventManager::<Arc<ChannelFunction>>::new().unwrap();
    manager.add_subscriber(Arc::clone(&it.function));
    let (mut third, _) = port(9, 1, 2, 1);
    let (ours, theirs) = Bell::pair().unwrap();
    third.news = theirs;
    it.function.add(third).unwrap();
    let settle = |manager: &mut event_manager::EventManager<_>| {
        while manager.run_with_timeout(0).unwrap() > 0 {}
    };
    settle(&mut manager);
    let state = 2 * CHANNEL_VECTORS as u64 + STATE_VECTOR as u64;
    assert_eq!(it.read(VECTORS, PENDING) >> state & 1, 1);
    // The guest takes the interrupt of the arrival.
    it.function.write_config(CAPABILITY + 3, &[0]);
    it.function.msix.reset();
    it.function.write_config(CAPABILITY + 3, &[0x80]);
    ours.ring();
    settle(&mut manager);
    assert_eq!(it.read(VECTORS, PENDING) >> state & 1, 1);
    it.function.remove(9);
    settle(&mut manager);
    assert!(lock(&it.function.ports).watches.is_empty());
    // Nobody listens to it any more.
    ours.ring();
    settle(&mut manager);
}

#[test]
fn doorbells_assert_the_line_of_who_has_no_msix() {
    let it = fixture();
    let line = pci_slot_line(3);
    let function = &it.function;
    let mut manager = event_manager::EventManager::<Arc<ChannelFunction>>::new().unwrap();
    manager.add_subscriber(Arc::clone(function));
    let mut settle = || while manager.run_with_timeout(0).unwrap() > 0 {};
    settle();
    let mut pin = [0];
    function.read_config(0x3d, &mut pin);
    assert_eq!(pin, [1]);
    let shown = || {
        let mut status = [0];
        function.read_config(6, &mut status);
        status[0] & 1 << 3 != 0
    };
    // The arrivals at positions 0 and 1, and a doorbell that is not heard yet.
    it.doorbell.write(1).unwrap();
    settle();
    assert_eq!(it.read(REGISTERS, RUNG), 1 << 7 | 1 << 15);
    assert!(!it.wiring.level(line) && !shown());
    function.write(REGISTERS, RUNG, &u64::MAX.to_le_bytes());
    function.write(REGISTERS, ENABLE, &u32::MAX.to_le_bytes());
    settle();
    assert!(it.wiring.level(line) && shown());
    assert_eq!(it.read(REGISTERS, RUNG), 1 << 8);
    // The command register, as uio_pci_generic uses it.
    function.write_config(5, &[4]);
    assert!(!it.wiring.level(line) && shown());
    function.write_config(5, &[0]);
    assert!(it.wiring.level(line));
    // While it is not acknowledged, nobody takes what is rung.
    it.doorbell.write(5).unwrap();
    settle();
    assert!(is_signalled(&it.doorbell));
    function.write(REGISTERS, RUNG, &(1_u32 << 8).to_le_bytes());
    settle();
    assert!(it.wiring.level(line) && !is_signalled(&it.doorbell));
    let mut status = [0; 4];
    function.read(REGISTERS, STATUS, &mut status);
    assert_eq!(u32::from_le_bytes(status), 1);
    assert!(!it.wiring.level(line) && !shown());
    // Muted vectors are not heard, and those of MSI-X neither.
    function.write(REGISTERS, MUTED, &(1_u64 << 8).to_le_bytes());
    assert_eq!(it.read(REGISTERS, MUTED), 1 << 8);
    it.doorbell.write(1).unwrap();
    settle();
    assert!(is_signalled(&it.doorbell) && !it.wiring.level(line));
    function.write_config(CAPABILITY + 3, &[0x80]);
    function.write(REGISTERS, MUTED, &0_u64.to_le_bytes());
    settle();
    assert!(is_signalled(&it.doorbell) && !shown());
    function.write_config(CAPABILITY + 3, &[0]);
    settle();
    assert_eq!(it.read(REGISTERS, RUNG), 1 << 8);
    // A channel that is gone is not heard.
    function.remove(6);
    settle();
    assert!(lock(&function.ports).heard.keys().all(|vector| *vector < 8));
}

#[test]
fn the_channel_area_is_the_third_bar_at_its_own_address() {
    let wiring = Arc::new(Recorded::default());
    let lines = Lines::new(wiring.clone());
    let area = AddrRange::with_size(0x1_4000_0000, 0x4000_0000).unwrap();
    let function = ChannelFunction::new(3, Some(area), wiring, &lines).unwrap();
    let read = |offset: u8| {
        let mut data = [0; 4];
        function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    // Memory with an address of 64 bits.
    assert_eq!([read(0x18), read(0x1c)], [0x4000_0004, 1]);
    function.write_config(4, &[2, 0]);
    let bars = |windows: &Windows| -> Vec<u8> {
        let decoded = function.decoded(windows);
        decoded.iter().map(|it| it.bar).collect()
    };
    // Where it is, its memory answers, and what is absent is nobody's.
    assert_eq!(bars(&Windows { high: None }), [0, 1]);
    for at in [0x18, 0x1c] {
        function.write_config(at, &[0xff; 4]);
    }
    assert_eq!([read(0x18), read(0x1c)], [0xc000_0004, u32::MAX]);
    // Elsewhere, there is nothing.
    function.write_config(0x1c, &[0x20, 0, 0, 0]);
    function.write_config(0x18, &[0; 4]);
    let high = Some((0x20_0000_0000, 0x23_ffff_ffff));
    assert_eq!(bars(&Windows { high }), [0, 1, 2]);
    let mut data = [0; 8];
    function.read(2, 0, &mut data);
    function.write(2, 0, &[0; 8]);
    assert_eq!(data, [0xff; 8]);
}
