use mkvmm_wire::shared::members::MemberState;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::pci::wiring::tests::Recorded;

const BASE: u64 = pci_slot_start(3);

struct Fixture {
    wiring: Arc<Recorded>,
    function: Arc<ChannelFunction>,
    states: Members,
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
    let function = ChannelFunction::new(3, vec![first, second], wiring.clone()).unwrap();
    Fixture {
        wiring,
        function,
        states,
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
    assert_eq!(it.read(REGISTERS, VERSION), 2 << 32 | 1);
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
    for nothing in [0, 0x150, 0x178, 0x200, BAR_SIZE - 8] {
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
    let capability = lock(&function.space).msix;
    function.write_config(capability + 3, &[0x80]);
    let entry = |vector: u64, data: u32| {
        function.write(VECTORS, 16 * vector, &0xfee0_0000_u64.to_le_bytes());
        function.write(VECTORS, 16 * vector + 8, &data.to_le_bytes());
        function.write(VECTORS, 16 * vector + 12, &[0; 4]);
    };
    function.ports[1].doorbells[2][0].write(1).unwrap();
    function.msix.trigger(15);
    assert_eq!(it.read(VECTORS, PENDING), 1 << 8 | 1 << 15);
    entry(8, 0x51);
    entry(15, 0x52);
    assert_eq!(it.read(VECTORS, PENDING), 0);
    let messages = it.wiring.messages.lock().unwrap();
    let data: Vec<u32> = messages.iter().map(|message| message.data).collect();
    assert_eq!(data, [0x51, 0x52]);
}
