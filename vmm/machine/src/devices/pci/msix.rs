//! MSI-X: the table of messages, masks and pending bits of a function.
//!
//! Each vector has an eventfd that KVM turns into its message, connected when
//! the guest first unmasks the vector. A masked vector is not signalled: its
//! pending bit is set, and it is signalled once it is unmasked.
//!
//! A vector may have the eventfd of somebody else, who signals it without asking,
//! and which may come and go. Such a vector is connected only while it is not masked;
//! its pending bit is whether the eventfd is signalled.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::device::lock;
use crate::devices::pci::config::ConfigSpace;
use crate::devices::pci::wiring::Wiring;
use crate::kvm::device::is_signalled;
use crate::kvm::wires::Message;

/// The number of the capability.
const CAPABILITY: u8 = 0x11;
/// The size of an entry of the table in bytes.
const ENTRY: u64 = 16;
/// Bits of the control register, in its upper byte.
const ENABLE: u8 = 1 << 7;
const MASK_ALL: u8 = 1 << 6;
/// The bit of an entry's control word that masks it.
const MASKED: u32 = 1;

/// Where a function has its table and its pending bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The index of the BAR.
    pub bar: u8,
    /// The offset of the table in the BAR, a multiple of 8.
    pub table: u32,
    /// The offset of the pending bits in the BAR, a multiple of 8.
    pub pending: u32,
}

#[derive(Debug)]
struct Vector {
    message: Message,
    masked: bool,
    pending: bool,
    /// The event, if it has one yet.
    event: Option<EventFd>,
    /// Whether somebody else signals the event.
    is_foreign: bool,
    /// Whether the connection has an effect.
    listens: bool,
    /// The number of its connection, and the message of it.
    connected: Option<(u32, Message)>,
}

#[derive(Debug)]
struct State {
    enabled: bool,
    all_masked: bool,
    vectors: Vec<Vector>,
}

/// The interrupts of a function.
#[derive(Debug)]
pub struct Msix {
    wiring: Arc<dyn Wiring>,
    state: Mutex<State>,
}

impl Msix {
    /// Creates `count` vectors, at most 2048, all masked.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new(count: u16, wiring: Arc<dyn Wiring>) -> io::Result<Self> {
        let own = |_index| Ok(Vector::new(Some(EventFd::new(EFD_NONBLOCK)?), false));
        let vectors = (0..count).map(own).collect::<io::Result<_>>()?;
        Ok(Self::of(vectors, wiring))
    }

    /// Creates a vector for each of `foreign`, at most 2048, all masked: one whose
    /// event somebody else signals, from [`Self::attach`] on, or one with an event of
    /// its own, which is created when the guest first unmasks it.
    pub fn on_demand(foreign: impl Iterator<Item = bool>, wiring: Arc<dyn Wiring>) -> Self {
        let vectors = foreign.map(|is_foreign| Vector::new(None, is_foreign));
        Self::of(vectors.collect(), wiring)
    }

    fn of(vectors: Vec<Vector>, wiring: Arc<dyn Wiring>) -> Self {
        Self {
            wiring,
            state: Mutex::new(State {
                enabled: false,
                all_masked: false,
                vectors,
            }),
        }
    }

    /// Gives a vector that somebody else signals another event, or none.
    pub fn attach(&self, index: usize, event: Option<EventFd>) {
        let mut state = lock(&self.state);
        let vector = state.vectors.get_mut(index);
        if let Some(vector) = vector.filter(|vector| vector.is_foreign) {
            vector.mute(&*self.wiring);
            (vector.event, vector.listens) = (event, false);
        }
        self.update(&mut state, Some(index));
    }

    /// Adds the capability to a function's configuration space. Returns its
    /// offset.
    pub fn add_to(&self, space: &mut ConfigSpace, place: Place) -> u8 {
        let count = lock(&self.state).vectors.len();
        let last = u16::try_from(count.saturating_sub(1)).unwrap_or(0);
        let bar = u32::from(place.bar);
        let mut body = last.to_le_bytes().to_vec();
        body.extend((place.table | bar).to_le_bytes());
        body.extend((place.pending | bar).to_le_bytes());
        space.add_capability(CAPABILITY, &body, &[0, ENABLE | MASK_ALL])
    }

    /// Applies the control register, after the guest may have written it.
    /// `capability` is what [`Self::add_to`] has returned.
    pub fn on_config(&self, space: &ConfigSpace, capability: u8) {
        let [_, _, _, control] = space.dword(capability).to_le_bytes();
        let mut state = lock(&self.state);
        state.enabled = control & ENABLE != 0;
        state.all_masked = control & MASK_ALL != 0;
        self.update(&mut state, None);
    }

    /// Returns whether the guest has enabled MSI-X, so that the line is not
    /// used.
    pub fn is_enabled(&self) -> bool {
        lock(&self.state).enabled
    }

    /// Returns the number of vectors.
    pub fn count(&self) -> usize {
        lock(&self.state).vectors.len()
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (byte, index) in data.iter_mut().zip(0..) {
            let at = offset.saturating_add(index);
            let vector = usize::try_from(at / ENTRY).unwrap_or(usize::MAX);
            let entry = state.vectors.get(vector).map_or([0; 16], Vector::entry);
            let index = usize::try_from(at % ENTRY).unwrap_or(0);
            *byte = entry.get(index).copied().unwrap_or(0);
        }
    }

    /// Writes the table, by aligned accesses of 4 or 8 bytes; others have no
    /// effect.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let index = usize::try_from(offset / ENTRY).unwrap_or(usize::MAX);
        let within = usize::try_from(offset % ENTRY).unwrap_or(0);
        let mut state = lock(&self.state);
        let Some(vector) = state.vectors.get_mut(index) else {
            return;
        };
        let mut entry = vector.entry();
        if let Some(place) = entry.get_mut(within..within + data.len()) {
            place.copy_from_slice(data);
        }
        vector.set(entry);
        self.update(&mut state, Some(index));
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (byte, index) in data.iter_mut().zip(0..) {
            let at = offset.saturating_add(index);
            let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
            let bits = state.vectors.iter().skip(first).take(8);
            let bits = bits
                .zip(0..)
                .map(|(it, bit)| u8::from(it.is_pending()) << bit);
            *byte = bits.fold(0, |all, bit| all | bit);
        }
    }

    /// Signals a vector, or sets its pending bit if it is masked. Vectors that
    /// do not exist are ignored, and all while MSI-X is disabled.
    pub fn trigger(&self, vector: u16) {
        let mut state = lock(&self.state);
        let State {
            enabled,
            all_masked,
            vectors,
        } = &mut *state;
        let Some(vector) = vectors.get_mut(usize::from(vector)).filter(|_| *enabled) else {
            return;
        };
        if vector.masked || *all_masked {
            vector.pending = true;
        } else {
            vector.signal();
        }
    }

    /// Disables and masks everything, and forgets what is pending.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        (state.enabled, state.all_masked) = (false, false);
        for vector in &mut state.vectors {
            (vector.masked, vector.pending) = (true, false);
            vector.message = Message::default();
            vector.mute(&*self.wiring);
        }
    }

    /// Connects vectors that are not masked, and signals those that are
    /// pending: one, or all.
    fn update(&self, state: &mut State, only: Option<usize>) {
        let all_masked = !state.enabled || state.all_masked;
        let vectors = state.vectors.iter_mut().enumerate();
        for (index, vector) in vectors.filter(|(index, _)| only.is_none_or(|it| it == *index)) {
            if vector.masked || all_masked {
                vector.mute(&*self.wiring);
                continue;
            }
            if let Err(error) = vector.connect(&*self.wiring) {
                log::warn!("MSI-X vector {index} cannot be connected: {error}");
            }
            if std::mem::take(&mut vector.pending) {
                vector.signal();
            }
        }
    }
}

impl Vector {
    fn new(event: Option<EventFd>, is_foreign: bool) -> Self {
        Self {
            message: Message::default(),
            masked: true,
            pending: false,
            event,
            is_foreign,
            listens: false,
            connected: None,
        }
    }

    fn entry(&self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.message.address.to_le_bytes();
        let [i, j, k, l] = self.message.data.to_le_bytes();
        let masked = if self.masked { MASKED } else { 0 };
        let [m, n, o, p] = masked.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    fn set(&mut self, entry: [u8; 16]) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, ..] = entry;
        self.message = Message {
            // Its lowest two bits are always 0.
            address: u64::from_le_bytes([a & !3, b, c, d, e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
        };
        self.masked = u32::from(m) & MASKED != 0;
    }

    /// Makes KVM send the present message, if it does not yet.
    fn connect(&mut self, wiring: &dyn Wiring) -> io::Result<()> {
        let message = self.message;
        let event = match &self.event {
            Some(event) => event,
            None if self.is_foreign => return Ok(()),
            None => self.event.insert(EventFd::new(EFD_NONBLOCK)?),
        };
        match self.connected {
            Some((_, known)) if known == message => {}
            Some((number, _)) => {
                wiring.change_message(number, message)?;
                self.connected = Some((number, message));
            }
            None => {
                let number = wiring.connect_message(event, message)?;
                self.connected = Some((number, message));
                self.listens = true;
            }
        }
        if let Some((number, _)) = self.connected.filter(|_| !self.listens) {
            wiring.unmute(event, number)?;
            self.listens = true;
        }
        Ok(())
    }

    /// Ends the effect of an event that somebody else signals, and keeps what is
    /// signalled.
    fn mute(&mut self, wiring: &dyn Wiring) {
        if let Some((number, _)) = self.connected.filter(|_| self.is_foreign && self.listens)
            && let Some(event) = &self.event
            && let Err(error) = wiring.mute(event, number)
        {
            log::debug!("interrupt {number} cannot be muted: {error}");
            return;
        }
        self.listens &= !self.is_foreign;
    }

    /// Returns the pending bit.
    fn is_pending(&self) -> bool {
        if !self.is_foreign || self.listens {
            return self.pending;
        }
        self.event.as_ref().is_some_and(is_signalled)
    }

    fn signal(&self) {
        // A full counter means that KVM has not read it yet, so the interrupt
        // is pending anyway.
        let _ = self.event.as_ref().map(|event| event.write(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::config::Identity;
    use crate::devices::pci::wiring::tests::Recorded;

    struct Function {
        wiring: Arc<Recorded>,
        msix: Msix,
        space: ConfigSpace,
        capability: u8,
    }

    impl Function {
        fn new() -> Self {
            let wiring = Arc::new(Recorded::default());
            let msix = Msix::new(3, wiring.clone()).unwrap();
            let mut space = ConfigSpace::new(Identity::default(), None);
            let place = Place {
                bar: 0,
                table: 0x4000,
                pending: 0x5000,
            };
            let capability = msix.add_to(&mut space, place);
            Self {
                wiring,
                msix,
                space,
                capability,
            }
        }

        fn control(&mut self, control: u8) {
            self.space.write(self.capability + 3, &[control]);
            self.msix.on_config(&self.space, self.capability);
        }

        fn set(&self, vector: u64, data: u32, masked: bool) {
            let at = vector * ENTRY;
            self.msix.write_table(at, &0xfee0_0000_u64.to_le_bytes());
            self.msix.write_table(at + 8, &data.to_le_bytes());
            self.msix
                .write_table(at + 12, &u32::from(masked).to_le_bytes());
        }

        fn signals(&self, vector: usize) -> u64 {
            let state = lock(&self.msix.state);
            let event = state.vectors[vector].event.as_ref().unwrap();
            event.read().unwrap_or(0)
        }

        fn pending(&self) -> u8 {
            let mut byte = [0];
            self.msix.read_pending(0, &mut byte);
            byte[0]
        }
    }

    #[test]
    fn a_vector_that_is_enabled_and_not_masked_is_signalled() {
        let mut function = Function::new();
        function.set(1, 0x41, false);
        function.msix.trigger(1);
        assert_eq!((function.signals(1), function.pending()), (0, 0));
        function.control(ENABLE);
        function.msix.trigger(1);
        function.msix.trigger(3);
        assert_eq!(function.signals(1), 1);
        let messages = function.wiring.messages.lock().unwrap().clone();
        let message = Message {
            address: 0xfee0_0000,
            data: 0x41,
        };
        assert_eq!(messages, [message]);
    }

    #[test]
    fn a_masked_vector_waits() {
        let mut function = Function::new();
        function.control(ENABLE);
        function.set(2, 7, true);
        function.msix.trigger(2);
        function.msix.trigger(2);
        assert_eq!((function.signals(2), function.pending()), (0, 0b100));
        function.set(2, 7, false);
        assert_eq!((function.signals(2), function.pending()), (1, 0));
        function.control(ENABLE | MASK_ALL);
        function.msix.trigger(2);
        assert_eq!((function.signals(2), function.pending()), (0, 0b100));
        function.control(ENABLE);
        assert_eq!((function.signals(2), function.pending()), (1, 0));
    }

    #[test]
    fn an_event_of_somebody_else_is_connected_only_while_it_is_not_masked() {
        let mut function = Function::new();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let ours = event.try_clone().unwrap();
        let wiring = function.wiring.clone();
        function.msix = Msix::on_demand([false, true].into_iter(), wiring);
        function.msix.attach(1, Some(ours));
        let muted = |function: &Function| -> Vec<u32> {
            function
                .wiring
                .muted
                .lock()
                .unwrap()
                .iter()
                .copied()
                .collect()
        };
        function.set(1, 0x41, false);
        event.write(1).unwrap();
        assert_eq!(function.pending(), 0b10);
        // KVM takes what was signalled before.
        function.control(ENABLE);
        assert_eq!(function.wiring.messages.lock().unwrap().len(), 1);
        assert_eq!((function.pending(), muted(&function)), (0, vec![]));
        event.read().unwrap();
        let masks: [fn(&mut Function, bool); 3] = [
            |function: &mut Function, masked| function.set(1, 0x41, masked),
            |function: &mut Function, masked| {
                function.control(ENABLE | if masked { MASK_ALL } else { 0 });
            },
            |function: &mut Function, masked: bool| {
                function.control(if masked { 0 } else { ENABLE });
            },
        ];
        for mask in masks {
            mask(&mut function, true);
            assert_eq!((function.pending(), muted(&function)), (0, vec![0]));
            event.write(1).unwrap();
            assert_eq!(function.pending(), 0b10);
            mask(&mut function, false);
            assert_eq!((function.pending(), muted(&function)), (0, vec![]));
            event.read().unwrap();
        }
        assert_eq!(function.wiring.messages.lock().unwrap().len(), 1);
        // Another event takes its place, and is heard at once.
        let other = EventFd::new(EFD_NONBLOCK).unwrap();
        function.msix.attach(1, Some(other.try_clone().unwrap()));
        assert_eq!((function.pending(), muted(&function)), (0, vec![]));
        function.set(1, 0x41, true);
        other.write(1).unwrap();
        assert_eq!((function.pending(), muted(&function)), (0b10, vec![0]));
        function.msix.attach(1, None);
        function.set(1, 0x41, false);
        assert_eq!((function.pending(), muted(&function)), (0, vec![0]));
        // One of its own is made when it is needed.
        function.set(0, 0x40, false);
        assert_eq!(function.wiring.messages.lock().unwrap().len(), 2);
        function.msix.attach(1, Some(other));
        function.msix.reset();
        assert_eq!(muted(&function), [0]);
    }

    #[test]
    fn a_message_that_changes_is_connected_once() {
        let mut function = Function::new();
        function.control(ENABLE);
        function.set(0, 1, false);
        function.set(0, 2, true);
        function.set(0, 2, false);
        let messages = function.wiring.messages.lock().unwrap().clone();
        assert_eq!((messages.len(), messages[0].data), (1, 2));
    }

    #[test]
    fn the_edges_of_the_table_are_harmless() {
        let function = Function::new();
        for offset in [3 * ENTRY, 4096, !7, 2, 4] {
            function.msix.write_table(offset, &[0xff; 8]);
            function.msix.write_table(offset, &[0xff; 3]);
        }
        let mut data = [0xaa; 8];
        function.msix.read_table(3 * ENTRY - 4, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
        function.msix.read_table(u64::MAX - 3, &mut data);
        function.msix.read_pending(u64::MAX - 3, &mut data);
    }
}
