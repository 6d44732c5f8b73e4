//! A virtio driver as a script of the probe: each method adds steps.

use std::fmt::Write as _;

use mkvmm_test_harness::{Finished, Mkvmm};

/// The pool, and a place in the guest's memory that the probe does not use.
pub const POOL: &str = "16M@0x100000000";
const QUEUES: u64 = 0x1_0060_0000;
const BUFFERS: u64 = 0x1_0061_0000;
/// The memory of each guest in bytes, and the part of it for a device where there
/// are several of both.
const GUEST: u64 = 8 << 20;
const PART: u64 = 0x2_0000;

/// Flags of descriptors.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Offsets in the BAR of a virtio function.
pub const STATUS: u64 = 0x14;
pub const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
/// The status of a device in use, and the bit by which it asks for a reset.
pub const IN_USE: u64 = 0xf;
pub const NEEDS_RESET: u64 = 0x40;
/// VIRTIO_F_VERSION_1 in the upper half of the features.
const VERSION_1: u64 = 1;

/// Returns where slot `slot` has its registers until somebody moves them.
pub fn slot_start(slot: u8) -> u64 {
    0xc000_0000 + (u64::from(slot) << 20)
}

/// A script under construction, for the device in one slot.
#[derive(Debug)]
pub struct Driver {
    slot: u8,
    /// The address of the BAR.
    pub bar: u64,
    /// What is carried out once, if the script is carried out again and again.
    once: Option<String>,
    script: String,
    offered: u16,
    /// The number of the guest, and how far its queues and buffers are from those of
    /// the first one.
    guest: u64,
    shift: u64,
    /// The lower half of the features to agree on.
    features: u64,
}

/// A queue at its place in memory.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    /// The number of the queue.
    pub index: u16,
    /// The number of entries.
    pub size: u16,
}

impl Queue {
    /// Returns the address of the descriptor table.
    pub fn table(self) -> u64 {
        QUEUES + u64::from(self.index) * 0x3000
    }

    /// Returns the address of the driver's ring.
    pub fn available(self) -> u64 {
        self.table() + 0x1000
    }

    /// Returns the address of the device's ring.
    pub fn used(self) -> u64 {
        self.table() + 0x2000
    }
}

/// Returns the address of buffer `index`, of at most 4 KiB.
pub fn buffer(index: u64) -> u64 {
    BUFFERS + index * 0x1000
}

impl Driver {
    /// Begins a script for the device in `slot`, whose memory is enabled.
    pub fn new(slot: u8) -> Self {
        let mut driver = Self {
            slot,
            bar: slot_start(slot),
            once: None,
            script: String::new(),
            offered: 0,
            guest: 0,
            shift: 0,
            features: 0,
        };
        driver.config(2, 4, 6);
        driver
    }

    /// Begins a script for the device in `slot` of guest `guest`, which is created as
    /// number `guest` + 1 with 8 MiB. Each device has memory of its own.
    pub fn of(guest: u64, slot: u8) -> Self {
        let mut driver = Self::new(slot);
        driver.guest = guest;
        driver.share(slot);
        driver
    }

    /// Goes on with another device of a guest whose devices have memory of their own.
    pub fn go_on_with(&mut self, slot: u8) {
        self.turn_to(slot);
        self.share(slot);
    }

    /// Turns to another device of such a guest, whose memory was enabled before.
    pub fn look_at(&mut self, slot: u8) {
        self.slot = slot;
        self.bar = slot_start(slot);
        self.share(slot);
    }

    fn share(&mut self, slot: u8) {
        self.shift = self.guest * GUEST + u64::from(slot) * PART;
    }

    /// Returns the address of buffer `index` of this device, from 0 to 15.
    pub fn buffer(&self, index: u64) -> u64 {
        buffer(index) + self.shift
    }

    fn available(&self, queue: Queue) -> u64 {
        queue.available() + self.shift
    }

    fn used_at(&self, queue: Queue) -> u64 {
        queue.used() + self.shift
    }

    /// Goes on with the device in another slot, whose memory is enabled.
    pub fn turn_to(&mut self, slot: u8) {
        self.slot = slot;
        self.bar = slot_start(slot);
        self.config(2, 4, 6);
    }

    fn step(&mut self, step: std::fmt::Arguments<'_>) {
        if !self.script.is_empty() {
            self.script.push('/');
        }
        self.script.write_fmt(step).expect("a string takes it");
    }

    /// Adds a write of memory.
    pub fn write(&mut self, width: u8, addr: u64, value: u64) {
        self.step(format_args!("w{width}:{addr:x}:{value:x}"));
    }

    /// Writes memory `count` times.
    pub fn write_often(&mut self, width: u8, addr: u64, value: u64, count: u64) {
        self.step(format_args!("w{width}:{addr:x}:{value:x}:{count:x}"));
    }

    /// Reads memory, and prints the value.
    pub fn read(&mut self, width: u8, addr: u64) {
        self.step(format_args!("r{width}:{addr:x}"));
    }

    /// Waits until the masked value is `value`.
    pub fn until(&mut self, width: u8, addr: u64, mask: u64, value: u64) {
        self.step(format_args!("u{width}:{addr:x}:{mask:x}:{value:x}"));
    }

    /// Adds to what is in memory.
    pub fn add(&mut self, width: u8, addr: u64, value: u64) {
        self.step(format_args!("a{width}:{addr:x}:{value:x}"));
    }

    /// Goes on with what is carried out again and again, permanently.
    pub fn begin_loop(&mut self) {
        self.once = Some(std::mem::take(&mut self.script));
    }

    /// Makes the chain of descriptor 0 available in a ring in which nothing else ever
    /// was, and waits until it is returned.
    pub fn turn_over(&mut self, queue: Queue) {
        let (available, used) = (self.available(queue) + 2, self.used_at(queue) + 2);
        self.add(2, available, 1);
        self.kick(queue);
        self.step(format_args!("s2:{used:x}:{available:x}"));
    }

    fn at(&self, offset: u8) -> u32 {
        u32::from(self.slot) << 11 | u32::from(offset)
    }

    /// Writes configuration space.
    pub fn config(&mut self, width: u8, offset: u8, value: u32) {
        let at = self.at(offset);
        self.step(format_args!("p{width}:{at:x}:{value:x}"));
    }

    /// Reads configuration space, and prints the value.
    pub fn read_config(&mut self, offset: u8) {
        let at = self.at(offset);
        self.step(format_args!("q4:{at:x}"));
    }

    /// Writes a register in the BAR.
    pub fn register(&mut self, width: u8, offset: u64, value: u64) {
        self.write(width, self.bar + offset, value);
    }

    /// Waits for a status of the device.
    pub fn status(&mut self, status: u64) {
        self.until(1, self.bar + STATUS, 0xff, status);
    }

    /// Agrees on features of the device, those below bit 32, from now on.
    pub fn want(&mut self, features: u64) {
        self.features = features;
    }

    /// Sets the device up to the point where queues are enabled.
    pub fn negotiate(&mut self) {
        self.register(1, STATUS, 0);
        self.status(0);
        self.offered = 0;
        self.register(1, STATUS, 3);
        self.register(4, 0x08, 0);
        self.register(4, 0x0c, self.features);
        self.register(4, 0x08, 1);
        self.register(4, 0x0c, VERSION_1);
        self.register(1, STATUS, 0xb);
        self.status(0xb);
    }

    /// Clears the rings of a queue and enables it.
    pub fn enable(&mut self, queue: Queue) {
        self.write(4, self.available(queue), 0);
        self.write(4, self.used_at(queue), 0);
        let places = [queue.table(), queue.available(), queue.used()];
        self.enable_at(queue, places.map(|place| place + self.shift));
    }

    /// Enables a queue whose table and rings are at these places.
    pub fn enable_at(&mut self, queue: Queue, places: [u64; 3]) {
        self.register(2, 0x16, queue.index.into());
        self.register(2, 0x18, queue.size.into());
        for (offset, place) in [0x20, 0x28, 0x30].into_iter().zip(places) {
            self.register(4, offset, place & 0xffff_ffff);
            self.register(4, offset + 4, place >> 32);
        }
        self.register(2, 0x1c, 1);
    }

    /// Sets the device up with one queue.
    pub fn start(&mut self, queue: Queue) {
        self.negotiate();
        self.enable(queue);
        self.register(1, STATUS, IN_USE);
    }

    /// Writes a descriptor at `at`.
    pub fn descriptor_at(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.write(8, at, addr);
        let flags = u64::from(flags) << 32 | u64::from(next) << 48;
        self.write(8, at + 8, flags | u64::from(len));
    }

    /// Writes a descriptor of a queue's table.
    pub fn descriptor(
        &mut self,
        queue: Queue,
        index: u16,
        (addr, len): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let at = self.shift + queue.table() + 16 * u64::from(index);
        self.descriptor_at(at, addr, len, flags, next);
    }

    /// Makes a chain available.
    pub fn offer(&mut self, queue: Queue, head: u16) {
        let slot = u64::from(self.offered % queue.size);
        self.write(2, self.available(queue) + 4 + 2 * slot, head.into());
        self.offered = self.offered.wrapping_add(1);
        self.write(2, self.available(queue) + 2, self.offered.into());
    }

    /// Rings the doorbell of a queue.
    pub fn kick(&mut self, queue: Queue) {
        self.register(2, NOTIFY + 4 * u64::from(queue.index), queue.index.into());
    }

    /// Waits until the device has returned `count` chains in all.
    pub fn used(&mut self, queue: Queue, count: u16) {
        self.until(2, self.used_at(queue) + 2, 0xffff, count.into());
    }

    /// Enables MSI-X at its capability, and sends vector `vector` to the
    /// processor as interrupt `number`. The processor's own interrupts are
    /// off, so it stays pending.
    pub fn message(&mut self, capability: u8, vector: u64, number: u64) {
        self.write(4, 0xfee0_00f0, 0x1ff);
        self.config(1, capability + 3, 0x80);
        let at = TABLE + 16 * vector;
        self.register(4, at, 0xfee0_0000);
        self.register(4, at + 4, 0);
        self.register(4, at + 8, number);
        self.register(4, at + 12, 0);
    }

    /// Waits until interrupt `number` is pending at the processor.
    pub fn pending(&mut self, number: u64) {
        let bit = 1 << (number % 32);
        self.until(4, 0xfee0_0200 + number / 32 * 16, bit, bit);
    }

    /// Goes on with a queue of which nothing was offered yet.
    pub fn with_new_ring(self) -> Self {
        self.with_ring_at(0)
    }

    /// Goes on with a queue of which `offered` chains were offered.
    pub fn with_ring_at(self, offered: u16) -> Self {
        Self { offered, ..self }
    }

    /// Returns the word of the probe's command line.
    pub fn word(self) -> String {
        match self.once {
            Some(once) => format!("do={once} loop={}", self.script),
            None => format!("do={}", self.script),
        }
    }

    /// Runs the script in a guest with `devices`, and returns what it printed.
    pub fn run(self, devices: &str) -> Ran {
        let script = self.script;
        let run = Mkvmm::run(POOL)
            .guest(format!(
                "name=a,kernel=probe,memory=8M,{devices},cmdline=do={script}"
            ))
            .finish();
        Ran(run)
    }
}

/// What a guest did.
#[derive(Debug)]
pub struct Ran(pub Finished);

impl Ran {
    /// Checks that the guest passed, that is that nothing it waited for was
    /// missing.
    pub fn passed(&self) -> &Self {
        let consoles = self.0.expect_code(0).consoles(&["a"]);
        assert!(consoles.has("a", "probe: pass"), "{}", self.0);
        self
    }

    /// Returns the values that were read from memory.
    pub fn values(&self) -> Vec<u64> {
        self.numbers("probe: read ")
    }

    /// Returns the values that were read from configuration space.
    pub fn configs(&self) -> Vec<u64> {
        self.numbers("probe: config ")
    }

    fn numbers(&self, start: &str) -> Vec<u64> {
        let consoles = self.0.consoles(&["a"]);
        let value = |line: &&str| {
            let (_, value) = line.rsplit_once(" 0x").expect("a value");
            u64::from_str_radix(value, 16).expect("digits")
        };
        consoles.starting("a", start).iter().map(value).collect()
    }
}
