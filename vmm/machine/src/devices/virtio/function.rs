//! A virtio device as a PCI function.
//!
//! vCPUs access its registers; the event loop serves its queues. Both take the
//! same lock, so calls of the device never overlap.
//!
//! ```text
//!            driver ready             driver writes 0
//!    Idle ────────────────► Active ─────────────────────► Idle, or Draining
//!     ▲                       │ broken: NEEDS_RESET          until nothing is
//!     └───────────────────────┴─────────────────────────► under way
//! ```

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use mkvmm_base::chain;
use mkvmm_base::layout::pci_slot_line;
use mkvmm_virtio::ring::RingContext;
use mkvmm_virtio::{
    Activation, Broken, Interrupt, Memory, Progress, QueueCounters, Ring, VirtioDevice,
};
use mkvmm_wire::shared::board::DeviceWriter;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::device::lock;
use crate::devices::pci::config::{Decoded, Windows};
use crate::devices::pci::function::Function;
use crate::devices::pci::line::Lines;
use crate::devices::pci::msix::Msix;
use crate::devices::pci::wiring::Wiring;
use crate::devices::virtio::interrupts::Interrupts;
use crate::devices::virtio::registers::{Effect, Registers};
use crate::devices::virtio::space::{
    COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STEP, PART, PENDING, Space, TABLE,
};

/// Tokens of the event loop: the function's own turn, its doorbells, and the
/// device's descriptors.
const TURN: u32 = 0;
const DOORBELLS: u32 = 1;
const DESCRIPTORS: u32 = 0x1_0000;

/// What a function needs of its machine.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The slot of the function.
    pub slot: u8,
    /// The guest's memory.
    pub memory: Memory,
    /// The connections to KVM.
    pub wiring: Arc<dyn Wiring>,
    /// The interrupt lines of the bus.
    pub lines: &'a Arc<Lines>,
    /// The place of the device's counters on the board.
    pub counters: DeviceWriter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Active,
    Draining,
}

#[derive(Debug)]
struct Core {
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    phase: Phase,
    /// True while a reset by the driver is under way.
    is_resetting: bool,
    /// True from the activation until the loop has looked at all queues.
    is_fresh: bool,
    /// True while the guest is paused.
    is_paused: bool,
    /// True while the loop watches the device's descriptors.
    is_watched: bool,
    /// Queues and descriptors that have more to do.
    queues_left: Vec<u16>,
    tokens_left: Vec<u32>,
    faults: u64,
    writer: DeviceWriter,
}

/// A virtio device in a slot.
#[derive(Debug)]
pub struct VirtioFunction {
    name: String,
    space: Mutex<Space>,
    interrupts: Arc<Interrupts>,
    counters: Vec<Arc<QueueCounters>>,
    doorbells: Vec<EventFd>,
    /// Where doorbells are connected: an address for each queue.
    connected: Mutex<Vec<Option<u64>>>,
    /// Wakes the loop for what only it can do.
    turn: EventFd,
    memory: Memory,
    wiring: Arc<dyn Wiring>,
    core: Mutex<Core>,
}

impl VirtioFunction {
    /// Creates the function of `device`.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new(device: Box<dyn VirtioDevice>, of: Surroundings<'_>) -> io::Result<Arc<Self>> {
        let sizes = device.queue_sizes().to_vec();
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(vectors, Arc::clone(&of.wiring))?;
        let space = Space::new(device.id(), of.slot, sizes.len() as u64, &msix);
        let line = of.lines.line(pci_slot_line(of.slot), of.slot);
        let event = |_size| EventFd::new(EFD_NONBLOCK);
        let core = Core {
            registers: Registers::new(device.features(), &sizes),
            phase: Phase::Idle,
            is_resetting: false,
            is_fresh: false,
            is_paused: false,
            is_watched: false,
            queues_left: Vec::new(),
            tokens_left: Vec::new(),
            faults: 0,
            writer: of.counters,
            device,
        };
        Ok(Arc::new(Self {
            name: format!("{} in slot {}", core.device.name(), of.slot),
            space: Mutex::new(space),
            interrupts: Interrupts::new(msix, line, sizes.len()),
            counters: sizes.iter().map(|_| Arc::default()).collect(),
            doorbells: sizes.iter().map(event).collect::<io::Result<_>>()?,
            connected: Mutex::new(vec![None; sizes.len()]),
            turn: EventFd::new(EFD_NONBLOCK)?,
            memory: of.memory,
            wiring: of.wiring,
            core: Mutex::new(core),
        }))
    }

    /// Has the device leave the memory of its guest alone, which is paused, until
    /// [`Self::resume`]. Waits until `end` at most for what the host's kernel does for
    /// it; returns whether nothing is under way.
    pub fn pause(&self, end: Instant) -> bool {
        let mut core = lock(&self.core);
        core.is_paused = true;
        self.wake();
        core.device.settle(end)
    }

    /// Has the device go on after a pause.
    pub fn resume(&self) {
        let mut core = lock(&self.core);
        core.is_paused = false;
        // What has ended meanwhile was not handled, and will not be told of again.
        let watches = core.device.descriptors();
        core.tokens_left = watches.iter().map(|watch| watch.token).collect();
        self.wake();
    }

    /// Writes a common register, with its effect.
    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut core = lock(&self.core);
        if core.is_resetting {
            return;
        }
        match core.registers.write(offset, data, &self.interrupts) {
            Effect::Nothing => return,
            Effect::Reset => {
                core.is_resetting = true;
                self.drain(&mut core);
            }
            Effect::Activate => self.activate(&mut core),
        }
        self.wake();
    }

    fn activate(&self, core: &mut Core) {
        let interrupt = Arc::clone(&self.interrupts) as Arc<dyn Interrupt>;
        let context = |counters| RingContext {
            memory: Arc::clone(&self.memory),
            interrupt: Arc::clone(&interrupt),
            counters: Arc::clone(counters),
            event_index: core.registers.has_event_index(),
        };
        let queues = core.registers.queues().zip(&self.counters).zip(0..);
        let rings = queues.map(|(((largest, setup), counters), index)| {
            Ring::new(index, largest, setup, context(counters))
        });
        let rings = rings.collect::<Result<Vec<_>, Broken>>();
        let activated = rings.and_then(|queues| {
            core.device.activate(Activation {
                features: core.registers.features(),
                memory: Arc::clone(&self.memory),
                queues,
            })
        });
        core.phase = Phase::Active;
        core.is_fresh = true;
        if let Err(broken) = activated {
            self.stop(core, &broken);
        }
    }

    /// Stops a device whose driver, or host, did what it cannot go on after.
    fn stop(&self, core: &mut Core, broken: &Broken) {
        core.faults += 1;
        core.writer.set_faults(core.faults);
        match core.faults {
            1 => log::warn!("{} is stopped: {}", self.name, chain(broken)),
            _ => log::debug!("{} is stopped: {}", self.name, chain(broken)),
        }
        core.registers.break_down();
        self.drain(core);
        self.interrupts.config_changed();
        self.wake();
    }

    /// Resets the device, as far as it is possible now.
    fn drain(&self, core: &mut Core) {
        core.queues_left.clear();
        core.tokens_left.clear();
        core.is_fresh = false;
        core.phase = match core.phase {
            Phase::Idle => Phase::Idle,
            Phase::Active | Phase::Draining => match core.device.reset() {
                Progress::Done => Phase::Idle,
                Progress::More => Phase::Draining,
            },
        };
        if core.phase == Phase::Idle && core.is_resetting {
            core.is_resetting = false;
            core.registers.reset();
            self.interrupts.reset();
        }
    }

    /// Serves a queue of an active device.
    fn serve(&self, core: &mut Core, queue: u16) {
        if core.phase != Phase::Active {
            return;
        }
        let served = match core.is_paused {
            true => Ok(Progress::More),
            false => core.device.on_queue(queue),
        };
        match served {
            Ok(Progress::Done) => {}
            Ok(Progress::More) if core.queues_left.contains(&queue) => {}
            Ok(Progress::More) => core.queues_left.push(queue),
            Err(broken) => self.stop(core, &broken),
        }
        self.publish(core);
    }

    /// Handles the event of a descriptor.
    fn handle(&self, core: &mut Core, token: u32, events: EventSet) {
        // After a pause all of them are handled.
        if core.phase == Phase::Idle || core.is_paused {
            return;
        }
        match core.device.on_descriptor(token, events) {
            Ok(Progress::Done) => {}
            Ok(Progress::More) if core.tokens_left.contains(&token) => {}
            Ok(Progress::More) => core.tokens_left.push(token),
            Err(broken) if core.phase == Phase::Active => self.stop(core, &broken),
            Err(_draining_already) => {}
        }
        if core.phase == Phase::Draining {
            self.drain(core);
        }
        self.publish(core);
    }

    fn publish(&self, core: &Core) {
        core.writer.set_own(&core.device.counts());
        for (index, counters) in self.counters.iter().enumerate() {
            let counts = counters.counts();
            core.writer.set_queue(
                index,
                &[
                    counts.kicks,
                    counts.requests,
                    counts.read_bytes,
                    counts.written_bytes,
                    counts.interrupts,
                    counts.dropped,
                    counts.failed,
                ],
            );
        }
    }

    /// Does what only the loop can do: watches descriptors, and serves what is
    /// left.
    fn take_turn(&self, core: &mut Core, ops: &mut EventOps<'_>) {
        self.watch(core, ops);
        if core.is_paused {
            return;
        }
        if core.phase == Phase::Active && std::mem::take(&mut core.is_fresh) {
            let enabled = core.registers.queues().zip(0..);
            let enabled = enabled.filter(|((_, setup), _)| setup.is_some());
            core.queues_left = enabled.map(|(_, index)| index).collect();
            let watches = core.device.descriptors();
            core.tokens_left = watches.iter().map(|watch| watch.token).collect();
        }
        for queue in std::mem::take(&mut core.queues_left) {
            self.serve(core, queue);
        }
        for token in std::mem::take(&mut core.tokens_left) {
            self.handle(core, token, EventSet::empty());
        }
    }

    fn watch(&self, core: &mut Core, ops: &mut EventOps<'_>) {
        let wanted = core.phase != Phase::Idle && !core.is_paused;
        if wanted == core.is_watched {
            return;
        }
        core.is_watched = wanted;
        for watch in core.device.descriptors() {
            let token = DESCRIPTORS.saturating_add(watch.token);
            let events = Events::with_data(&watch.descriptor, token, watch.events);
            let done = match wanted {
                true => ops.add(events),
                false => ops.remove(events),
            };
            if let Err(error) = done {
                log::warn!("{}: a descriptor cannot be watched: {error}", self.name);
            }
        }
    }

    fn wake(&self) {
        // A full counter wakes the loop as well.
        let _ = self.turn.write(1);
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match offset / PART * PART {
            COMMON => self.write_common(offset, data),
            DEVICE => lock(&self.core).device.write_config(offset - DEVICE, data),
            NOTIFY => {
                let queue = usize::try_from((offset - NOTIFY) / NOTIFY_STEP);
                if let Some(doorbell) = self.doorbells.get(queue.unwrap_or(usize::MAX)) {
                    let _ = doorbell.write(1);
                }
            }
            TABLE => self.interrupts.msix().write_table(offset - TABLE, data),
            _ => {}
        }
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset / PART * PART {
            COMMON => lock(&self.core)
                .registers
                .read(offset, data, &self.interrupts),
            ISR => {
                if let (ISR, Some(byte)) = (offset, data.first_mut()) {
                    *byte = self.interrupts.take_isr();
                }
            }
            DEVICE => lock(&self.core).device.read_config(offset - DEVICE, data),
            TABLE => self.interrupts.msix().read_table(offset - TABLE, data),
            PENDING => self.interrupts.msix().read_pending(offset - PENDING, data),
            _ => {}
        }
    }
}

impl Function for VirtioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        let window = {
            let mut space = lock(&self.space);
            space.config.show_line(self.interrupts.is_pending());
            space.config.read(offset, data);
            space.window(offset)
        };
        if let Some((at, bytes)) = window {
            let bytes = bytes.min(data.len());
            self.read_bar(at, data.get_mut(..bytes).unwrap_or_default());
        }
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let (window, line_is_enabled) = {
            let mut space = lock(&self.space);
            space.config.write(offset, data);
            self.interrupts.msix().on_config(&space.config, space.msix);
            (space.window(offset), space.config.is_line_enabled())
        };
        self.interrupts.on_config(line_is_enabled);
        if let Some((at, bytes)) = window
            && let Some(data) = data.get(..bytes)
        {
            self.write_bar(at, data);
        }
    }

    fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        lock(&self.space).config.decoded(windows)
    }

    fn moved(&self, decoded: &[Decoded]) {
        let base = decoded.first().map(|decoded| decoded.start + NOTIFY);
        let mut connected = lock(&self.connected);
        for ((place, doorbell), queue) in connected.iter_mut().zip(&self.doorbells).zip(0..) {
            if let Some(addr) = place.take()
                && let Err(error) = self.wiring.disconnect_doorbell(doorbell, addr)
            {
                log::debug!("{}: doorbell at {addr:#x}: {error}", self.name);
            }
            let Some(addr) = base.map(|base| base + NOTIFY_STEP * queue) else {
                continue;
            };
            match self.wiring.connect_doorbell(doorbell, addr) {
                Ok(()) => *place = Some(addr),
                // It is rung by the bridge instead, which takes longer.
                Err(error) => log::debug!("{}: doorbell at {addr:#x}: {error}", self.name),
            }
        }
    }

    fn read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        self.read_bar(offset, data);
    }

    fn write(&self, _bar: u8, offset: u64, data: &[u8]) {
        self.write_bar(offset, data);
    }

    fn subscriber(self: Arc<Self>) -> Option<Arc<dyn EventSubscriber + Send + Sync>> {
        Some(self)
    }
}

impl EventSubscriber for VirtioFunction {
    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let token = events.data();
        let mut core = lock(&self.core);
        if token == TURN {
            let _ = self.turn.read();
            self.take_turn(&mut core, ops);
        } else if let Some(token) = token.checked_sub(DESCRIPTORS) {
            self.handle(&mut core, token, events.event_set());
        } else if let Ok(queue) = u16::try_from(token - DOORBELLS)
            && let Some(doorbell) = self.doorbells.get(usize::from(queue))
        {
            let _ = doorbell.read();
            if let Some(counters) = self.counters.get(usize::from(queue)) {
                counters.kicked();
            }
            self.serve(&mut core, queue);
        }
        // What changed may end, or begin, the watch of its descriptors.
        self.watch(&mut core, ops);
        let is_left = !core.queues_left.is_empty() || !core.tokens_left.is_empty();
        if is_left && !core.is_paused {
            self.wake();
        }
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        let turn = std::iter::once((&self.turn, TURN));
        let doorbells = self.doorbells.iter().zip(DOORBELLS..);
        for (event, token) in turn.chain(doorbells) {
            let events = Events::with_data(event, token, EventSet::IN);
            if let Err(error) = ops.add(events) {
                log::error!("{}: a doorbell cannot be watched: {error}", self.name);
            }
        }
    }
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
