use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventManager, SubscriberOps};
use mkvmm_base::layout::pci_slot_start;
use mkvmm_virtio::Watch;
use mkvmm_virtio::testing::{Driver, memory};
use mkvmm_wire::shared::board::{Board, BoardReader};
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::devices::pci::config::COMMAND;
use crate::devices::pci::wiring::tests::Recorded;
use crate::devices::virtio::space::{BAR, BAR_SIZE, WINDOW_DATA};

const SLOT: u8 = 3;
const LINE: u32 = 16 + 3;
const WINDOWS: Windows = Windows { high: None };
const ENABLE_MSIX: u8 = 1 << 7;

/// A device that returns what it gets, slowly, and counts its calls.
#[derive(Debug, Default)]
struct Echo {
    calls: Arc<Calls>,
    queues: Vec<Ring>,
    event: Option<OwnedFd>,
}

#[derive(Debug, Default)]
struct Calls {
    activations: AtomicUsize,
    resets: AtomicUsize,
    queues: AtomicUsize,
    descriptors: AtomicUsize,
    /// The resets that are still to say that there is more to do.
    pending: AtomicUsize,
}

impl Calls {
    fn count(counter: &AtomicUsize) -> usize {
        counter.fetch_add(1, Ordering::Relaxed)
    }
}

impl VirtioDevice for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn id(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap());
    }

    fn activate(&mut self, active: Activation) -> Result<(), Broken> {
        Calls::count(&self.calls.activations);
        self.queues = active.queues;
        Ok(())
    }

    fn on_queue(&mut self, queue: u16) -> Result<Progress, Broken> {
        Calls::count(&self.calls.queues);
        self.queues[usize::from(queue)].drain(2, |chain, memory| {
            let mut bytes = [0; 16];
            let len = chain.read_at(memory, 0, &mut bytes);
            Ok(u32::try_from(chain.write_at(memory, 0, &bytes[..len])).unwrap())
        })
    }

    fn descriptors(&self) -> Vec<Watch<'_>> {
        vec![Watch {
            descriptor: self.event.as_ref().unwrap().as_fd(),
            events: EventSet::IN,
            token: 7,
        }]
    }

    fn on_descriptor(&mut self, token: u32, _events: EventSet) -> Result<Progress, Broken> {
        assert_eq!(token, 7);
        Calls::count(&self.calls.descriptors);
        let _ = rustix::io::read(self.event.as_ref().unwrap(), &mut [0; 8]);
        Ok(Progress::Done)
    }

    fn reset(&mut self) -> Progress {
        Calls::count(&self.calls.resets);
        let left = self.calls.pending.load(Ordering::Relaxed);
        if left > 0 {
            self.calls.pending.store(left - 1, Ordering::Relaxed);
            return Progress::More;
        }
        self.queues.clear();
        Progress::Done
    }
}

type Loop = EventManager<Arc<dyn EventSubscriber + Send + Sync>>;

/// A function with a driver of its own.
struct Machine {
    function: Arc<VirtioFunction>,
    events: Loop,
    wiring: Arc<Recorded>,
    memory: Arc<GuestMemoryMmap>,
    calls: Arc<Calls>,
    event: OwnedFd,
    board: BoardReader,
}

impl Machine {
    fn new() -> Self {
        let (wiring, memory) = (Arc::new(Recorded::default()), memory());
        let board = Board::create().unwrap().0;
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let echo = Echo {
            event: Some(event.try_clone().unwrap()),
            ..Echo::default()
        };
        let calls = Arc::clone(&echo.calls);
        let surroundings = Surroundings {
            slot: SLOT,
            memory: memory.clone(),
            wiring: wiring.clone(),
            lines: &Lines::new(wiring.clone()),
            counters: board.writer().device(0).unwrap(),
        };
        let function = VirtioFunction::new(Box::new(echo), surroundings).unwrap();
        let mut events = Loop::new().unwrap();
        events.add_subscriber(Arc::clone(&function).subscriber().unwrap());
        Self {
            function,
            events,
            wiring,
            memory,
            calls,
            event,
            board: board.reader(),
        }
    }

    /// Has the event loop do all that there is to do.
    fn turn(&mut self) {
        while self.events.run_with_timeout(0).unwrap() > 0 {}
    }

    fn write(&self, at: u64, data: &[u8]) {
        self.function.write(BAR, at, data);
    }

    fn read(&self, at: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read(BAR, at, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    fn status(&self) -> u64 {
        self.read(0x14, 1)
    }

    fn negotiate(&self, features: u64) {
        self.write(0x14, &[0]);
        self.write(0x14, &[3]);
        let [low, high] = [features, features >> 32].map(|half| half.to_le_bytes());
        self.write(0x08, &0_u32.to_le_bytes());
        self.write(0x0c, &low[..4]);
        self.write(0x08, &1_u32.to_le_bytes());
        self.write(0x0c, &high[..4]);
        self.write(0x14, &[11]);
    }

    fn enable(&self, queue: u16, driver: &Driver) {
        let setup = driver.setup();
        self.write(0x16, &queue.to_le_bytes());
        self.write(0x18, &setup.size.to_le_bytes());
        self.write(0x20, &setup.descriptors.to_le_bytes());
        self.write(0x28, &setup.available.to_le_bytes());
        let used = setup.used.to_le_bytes();
        self.write(0x30, &used[..4]);
        self.write(0x34, &used[4..]);
        self.write(0x1c, &[1, 0]);
    }

    /// Sets the device up with queue 0, as a driver does.
    fn start(&mut self) -> Driver {
        let driver = Driver::new(&self.memory, 0, 8);
        self.negotiate(1 << 32);
        self.enable(0, &driver);
        self.write(0x14, &[15]);
        assert_eq!(self.status(), 15);
        self.turn();
        driver
    }

    fn kick(&mut self) {
        self.write(NOTIFY, &[0, 0]);
        self.turn();
    }

    fn signal(&self) {
        rustix::io::write(&self.event, &1_u64.to_ne_bytes()).unwrap();
    }

    fn enable_msix(&self) {
        let msix = lock(&self.function.space).msix;
        self.function.write_config(msix + 3, &[ENABLE_MSIX]);
        for vector in 0..2 {
            let at = TABLE + 16 * vector;
            self.write(at, &0xfee0_0000_u64.to_le_bytes());
            self.write(
                at + 8,
                &(0x40 + u32::try_from(vector).unwrap()).to_le_bytes(),
            );
            self.write(at + 12, &[0; 4]);
        }
    }
}

#[test]
fn a_driver_sets_it_up_and_uses_it() {
    let mut machine = Machine::new();
    let mut driver = machine.start();
    let head = driver.add(&[b"ping"], &[16]);
    machine.kick();
    assert_eq!(driver.used(), Some((head, 4)));
    assert_eq!(&driver.written(head)[..4], b"ping");
    // Without MSI-X the line is used, until the status is read.
    assert!(machine.wiring.level(LINE));
    let mut status = [0; 1];
    machine.function.read_config(6, &mut status);
    assert_ne!(status[0] & 8, 0);
    assert_eq!(machine.read(ISR, 1), 1);
    assert!(!machine.wiring.level(LINE));
    let counts = machine.board.device(0).unwrap();
    assert_eq!(counts.queues[0], [1, 1, 4, 4, 1, 0, 0]);
    assert_eq!(machine.read(DEVICE + 5, 2), 0x0505);
}

#[test]
fn a_paused_device_leaves_memory_alone_and_goes_on_afterwards() {
    let mut machine = Machine::new();
    let mut driver = machine.start();
    machine.turn();
    let calls = |machine: &Machine| {
        let counters = [&machine.calls.queues, &machine.calls.descriptors];
        counters.map(|counter| counter.load(Ordering::Relaxed))
    };
    let before = calls(&machine);
    assert!(machine.function.pause(Instant::now()));
    let head = driver.add(&[b"ping"], &[16]);
    for _ in 0..10 {
        machine.signal();
        // The loop has nothing to do soon: nobody is woken for what has to wait.
        machine.kick();
    }
    assert_eq!((calls(&machine), driver.used()), (before, None));
    machine.function.resume();
    machine.turn();
    assert_eq!(driver.used(), Some((head, 4)));
    assert!(calls(&machine)[1] > before[1]);
    // A driver that gets ready during a pause is served after it.
    assert!(machine.function.pause(Instant::now()));
    let mut driver = Driver::new(&machine.memory, 0, 8);
    machine.negotiate(1 << 32);
    machine.enable(0, &driver);
    machine.write(0x14, &[15]);
    let head = driver.add(&[b"pong"], &[16]);
    machine.turn();
    assert_eq!(driver.used(), None);
    machine.function.resume();
    machine.turn();
    assert_eq!(driver.used(), Some((head, 4)));
}

#[test]
fn chains_from_before_the_driver_was_ready_are_served_and_turns_are_bounded() {
    let mut machine = Machine::new();
    let mut driver = Driver::new(&machine.memory, 0, 8);
    (0..5).for_each(|_| {
        driver.add(&[b"x"], &[1]);
    });
    machine.negotiate(1 << 32);
    machine.enable(0, &driver);
    machine.write(0x14, &[15]);
    machine.turn();
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), 5);
    assert_eq!(machine.calls.queues.load(Ordering::Relaxed), 3);
}

#[test]
fn features_are_agreed_on_as_the_standard_says() {
    let machine = Machine::new();
    machine.write(0x00, &0_u32.to_le_bytes());
    assert_eq!(machine.read(0x04, 4), 1 << 5 | 1 << 28 | 1 << 29);
    machine.write(0x00, &1_u32.to_le_bytes());
    assert_eq!(machine.read(0x04, 4), 1);
    machine.write(0x00, &2_u32.to_le_bytes());
    assert_eq!(machine.read(0x04, 4), 0);
    // Neither without VERSION_1, nor with what was not offered.
    for features in [1 << 5, 1 << 32 | 1 << 6, 1 << 32 | 1 << 40] {
        machine.negotiate(features);
        assert_eq!(machine.status(), 3, "{features:#x}");
        machine.write(0x14, &[15]);
        assert_eq!(machine.status(), 3, "{features:#x}");
    }
    machine.negotiate(1 << 32 | 1 << 5);
    assert_eq!(machine.status(), 11);
    assert_eq!(machine.calls.activations.load(Ordering::Relaxed), 0);
}

#[test]
fn a_queue_cannot_be_changed_once_it_is_enabled() {
    let mut machine = Machine::new();
    machine.start();
    let before = machine.read(0x20, 8);
    machine.write(0x20, &[0xff; 8]);
    machine.write(0x18, &[2, 0]);
    machine.write(0x1c, &[0, 0]);
    assert_eq!((machine.read(0x20, 8), machine.read(0x18, 2)), (before, 8));
    assert_eq!(machine.read(0x1c, 2), 1);
    // Queues that do not exist have no size.
    machine.write(0x16, &2_u16.to_le_bytes());
    machine.write(0x18, &[1, 0]);
    assert_eq!((machine.read(0x18, 2), machine.read(0x1e, 2)), (0, 0));
}

#[test]
fn a_hostile_queue_stops_the_device_until_it_is_reset() {
    let mut machine = Machine::new();
    machine.enable_msix();
    let mut driver = machine.start();
    machine.write(0x10, &[1, 0]);
    driver.set_index(1000);
    machine.kick();
    assert_eq!(machine.status(), 15 | 64);
    assert_eq!(machine.board.device(0).unwrap().faults, 1);
    let resets = machine.calls.resets.load(Ordering::Relaxed);
    let queues = machine.calls.queues.load(Ordering::Relaxed);
    for _ in 0..100 {
        machine.kick();
        machine.signal();
        machine.turn();
    }
    assert_eq!(machine.calls.queues.load(Ordering::Relaxed), queues);
    assert_eq!(machine.calls.resets.load(Ordering::Relaxed), resets);
    // The driver cannot go on without a reset.
    machine.write(0x14, &[15]);
    assert_eq!(machine.status(), 79);
    let mut driver = machine.start();
    let head = driver.add(&[b"again"], &[16]);
    machine.kick();
    assert_eq!(driver.used(), Some((head, 5)));
}

#[test]
fn rings_outside_of_memory_stop_the_device_at_once() {
    let mut machine = Machine::new();
    let driver = Driver::new(&machine.memory, 0, 8);
    machine.negotiate(1 << 32);
    machine.enable(0, &driver);
    machine.write(0x16, &1_u16.to_le_bytes());
    machine.write(0x30, &(u64::MAX - 3).to_le_bytes());
    machine.write(0x1c, &[1, 0]);
    machine.write(0x14, &[15]);
    machine.turn();
    assert_eq!(machine.status(), 79);
    assert_eq!(machine.calls.activations.load(Ordering::Relaxed), 0);
}

#[test]
fn a_reset_takes_as_long_as_requests_are_under_way() {
    let mut machine = Machine::new();
    machine.start();
    machine.calls.pending.store(2, Ordering::Relaxed);
    machine.write(0x14, &[0]);
    assert_eq!(machine.status(), 15);
    // Nothing that the driver writes now has an effect.
    machine.write(0x14, &[3]);
    for left in [15, 0] {
        machine.signal();
        machine.turn();
        assert_eq!(machine.status(), left);
    }
    assert_eq!(machine.read(0x20, 8), 0);
    machine.start();
    assert_eq!(machine.calls.activations.load(Ordering::Relaxed), 2);
}

#[test]
fn descriptors_are_watched_only_while_the_device_is_in_use() {
    let mut machine = Machine::new();
    let calls = |machine: &Machine| machine.calls.descriptors.load(Ordering::Relaxed);
    machine.signal();
    machine.turn();
    assert_eq!(calls(&machine), 0);
    machine.start();
    assert_ne!(calls(&machine), 0);
    machine.write(0x14, &[0]);
    machine.turn();
    let before = calls(&machine);
    machine.signal();
    machine.turn();
    assert_eq!(calls(&machine), before);
}

#[test]
fn doorbells_move_with_the_bar() {
    let machine = Machine::new();
    let moved = |machine: &Machine| {
        let decoded = machine.function.decoded(&WINDOWS);
        machine.function.moved(&decoded);
        machine.wiring.doorbells()
    };
    assert!(moved(&machine).is_empty());
    machine.function.write_config(COMMAND, &[2]);
    let start = pci_slot_start(SLOT) + NOTIFY;
    assert_eq!(moved(&machine), [start, start + 4]);
    machine
        .function
        .write_config(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(moved(&machine), [0xd000_3000, 0xd000_3004]);
    machine.function.write_config(COMMAND, &[0]);
    assert!(moved(&machine).is_empty());
}

#[test]
fn msix_replaces_the_line() {
    let mut machine = Machine::new();
    machine.enable_msix();
    let mut driver = machine.start();
    // A vector that does not exist is none.
    machine.write(0x1a, &[3, 0]);
    assert_eq!(machine.read(0x1a, 2), 0xffff);
    machine.write(0x16, &[0, 0]);
    machine.write(0x1a, &[1, 0]);
    driver.add(&[b"x"], &[1]);
    machine.kick();
    assert!(!machine.wiring.level(LINE));
    assert_eq!(machine.read(ISR, 1), 0);
    let messages = machine.wiring.messages.lock().unwrap().clone();
    assert_eq!(
        messages.iter().map(|m| m.data).collect::<Vec<_>>(),
        [0x40, 0x41]
    );
    assert_eq!(machine.board.device(0).unwrap().queues[0][4], 1);
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let machine = Machine::new();
    let window = lock(&machine.function.space).window;
    let access = |offset: u32, length: u32| {
        machine.function.write_config(window + 4, &[0]);
        machine
            .function
            .write_config(window + 8, &offset.to_le_bytes());
        machine
            .function
            .write_config(window + 12, &length.to_le_bytes());
    };
    access(0x14, 1);
    machine.function.write_config(window + WINDOW_DATA, &[3]);
    assert_eq!(machine.status(), 3);
    let mut data = [0; 4];
    machine
        .function
        .read_config(window + WINDOW_DATA, &mut data);
    assert_eq!(data[0], 3);
    // Nothing beyond the BAR, of another width, or unaligned.
    for (offset, length) in [
        (0x8000, 1),
        (u32::MAX, 4),
        (0x14, 3),
        (0x14, 8),
        (0x15, 2),
        (0x14, 0),
    ] {
        access(offset, length);
        machine.function.write_config(window + WINDOW_DATA, &[0; 4]);
        machine
            .function
            .read_config(window + WINDOW_DATA, &mut data);
    }
    assert_eq!(machine.status(), 3);
}

#[test]
fn every_offset_and_width_is_harmless() {
    let mut machine = Machine::new();
    machine.start();
    for offset in (0..BAR_SIZE).filter(|at| at % 0x1000 < 0x80 || at % 0x1000 > 0xff0) {
        for width in [1, 2, 4, 8] {
            if offset + width as u64 > BAR_SIZE {
                continue;
            }
            let mut data = [0; 8];
            // The device's own registers take any offset.
            if !(DEVICE + 0x80..DEVICE + PART).contains(&offset) {
                machine.function.read(BAR, offset, &mut data[..width]);
            }
            machine.function.write(BAR, offset, &[0xff; 8][..width]);
        }
    }
    machine.turn();
    for offset in 0..=u8::MAX {
        for width in [1, 2, 4] {
            machine.function.write_config(offset, &[0xff; 4][..width]);
            let mut data = [0; 4];
            machine.function.read_config(offset, &mut data[..width]);
        }
    }
    machine.write(0x14, &[0]);
    machine.turn();
    assert_eq!(machine.status(), 0);
}
