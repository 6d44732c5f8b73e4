//! virtio-console: a console that takes many bytes at once.
//!
//! What the guest prints goes into the console's ring in shared memory, which
//! overwrites the oldest bytes, so the device never waits. What is typed waits
//! in that memory until the guest has made buffers available.
//!
//! Source: virtio 1.2, section 5.3. It has one port, and no features: no size,
//! no further ports.

use std::os::fd::AsFd;
use std::sync::Arc;

use mkvmm_virtio::{Activation, Broken, Progress, Ring, VirtioDevice, Watch};
use mkvmm_wire::shared::bell::Bell;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::EventSet;

use crate::console::Terminal;

/// The queue of what is typed; the other one is that of what is printed.
const RECEIVE: u16 = 0;
/// The sizes of the queues.
const SIZES: [u16; 2] = [64, 64];
/// The most bytes that are copied at once, and from one chain: what is kept of
/// the output.
const PIECE: usize = 4096;
const CHAIN_MAX: u64 = 1 << 20;
/// The most chains that are handled in one turn of the loop.
const TURN: usize = 8;

/// A console as a virtio device.
#[derive(Debug)]
pub struct VirtioConsole {
    terminal: Arc<dyn Terminal>,
    /// Rings when something was typed.
    bell: Bell,
    queues: Option<[Ring; 2]>,
}

impl VirtioConsole {
    /// Creates the device of `terminal`, which rings `bell` when something is
    /// typed.
    pub fn new(terminal: Arc<dyn Terminal>, bell: Bell) -> Self {
        Self {
            terminal,
            bell,
            queues: None,
        }
    }

    fn transmit(&mut self) -> Result<Progress, Broken> {
        let Some([_, queue]) = &mut self.queues else {
            return Ok(Progress::Done);
        };
        let terminal = &self.terminal;
        queue.drain(TURN, |chain, memory| {
            // More than that would be overwritten at once.
            let mut next = chain.readable_len().saturating_sub(CHAIN_MAX);
            loop {
                let mut piece = [0; PIECE];
                let count = chain.read_at(memory, next, &mut piece);
                if count == 0 {
                    return Ok(0);
                }
                terminal.print(piece.get(..count).unwrap_or_default());
                next += count as u64;
            }
        })
    }

    fn receive(&mut self) -> Result<Progress, Broken> {
        let Some([queue, _]) = &mut self.queues else {
            return Ok(Progress::Done);
        };
        self.bell.answer();
        for _ in 0..TURN {
            queue.disable_kicks()?;
            // Announce before looking, so that later input rings again.
            let Some(chain) = self
                .terminal
                .await_input()
                .then(|| queue.pop())
                .transpose()?
                .flatten()
            else {
                queue.signal()?;
                return Ok(match queue.enable_kicks()? && self.terminal.await_input() {
                    true => Progress::More,
                    false => Progress::Done,
                });
            };
            let room = usize::try_from(chain.writable_len()).unwrap_or(PIECE);
            let typed = self.terminal.take_input(room.min(PIECE));
            let written = chain.write_at(queue.memory().guest(), 0, &typed);
            queue.push(chain, u32::try_from(written).unwrap_or(0))?;
        }
        queue.signal()?;
        Ok(Progress::More)
    }
}

impl VirtioDevice for VirtioConsole {
    fn name(&self) -> &'static str {
        "console"
    }

    fn id(&self) -> u16 {
        u16::try_from(VIRTIO_ID_CONSOLE).unwrap_or(0)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn activate(&mut self, active: Activation) -> Result<(), Broken> {
        // The transport gives as many as there are sizes.
        self.queues = active.queues.try_into().ok();
        Ok(())
    }

    fn on_queue(&mut self, queue: u16) -> Result<Progress, Broken> {
        match queue {
            RECEIVE => self.receive(),
            _ => self.transmit(),
        }
    }

    fn descriptors(&self) -> Vec<Watch<'_>> {
        vec![Watch {
            descriptor: self.bell.as_fd(),
            // The manager's end may be closed, which would not go away.
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
            token: 0,
        }]
    }

    fn on_descriptor(&mut self, _token: u32, _events: EventSet) -> Result<Progress, Broken> {
        self.receive()
    }

    fn reset(&mut self) -> Progress {
        self.queues = None;
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mkvmm_virtio::testing::{Driver, Interrupts, memory};

    use super::*;
    use crate::console::tests::Recorder;

    const TRANSMIT: u16 = 1;

    struct Guest {
        device: VirtioConsole,
        recorder: Arc<Recorder>,
        drivers: [Driver; 2],
    }

    fn guest() -> Guest {
        let (memory, interrupts) = (memory(), Arc::new(Interrupts::default()));
        let drivers = [0, 1].map(|queue| Driver::new(&memory, queue, 64));
        let recorder = Arc::new(Recorder::default());
        let bell = Bell::pair().unwrap().0;
        let mut device = VirtioConsole::new(recorder.clone(), bell);
        let active = Activation {
            features: 0,
            queues: drivers.iter().map(|d| d.ring(&interrupts, false)).collect(),
            memory,
        };
        device.activate(active).unwrap();
        Guest {
            device,
            recorder,
            drivers,
        }
    }

    #[test]
    fn what_is_printed_arrives_in_order() {
        let mut guest = guest();
        let long = vec![b'x'; 10_000];
        guest.drivers[1].add(&[b"one ", b"two "], &[]);
        guest.drivers[1].add(&[&long], &[]);
        assert_eq!(guest.device.on_queue(TRANSMIT).unwrap(), Progress::Done);
        let printed = guest.recorder.printed();
        assert!(printed.starts_with(b"one two xxx") && printed.len() == 10_008);
        assert_eq!(std::iter::from_fn(|| guest.drivers[1].used()).count(), 2);
    }

    #[test]
    fn what_is_typed_waits_for_buffers() {
        let mut guest = guest();
        guest.recorder.type_in(b"hello");
        assert_eq!(
            guest.device.on_descriptor(0, EventSet::IN).unwrap(),
            Progress::Done
        );
        let heads = [0, 0].map(|_| guest.drivers[0].add(&[], &[3]));
        assert_eq!(guest.device.on_queue(RECEIVE).unwrap(), Progress::Done);
        assert_eq!(guest.drivers[0].used(), Some((heads[0], 3)));
        assert_eq!(guest.drivers[0].used(), Some((heads[1], 2)));
        assert_eq!(guest.drivers[0].written(heads[0]), b"hel");
        // A buffer that is not needed stays with the guest.
        guest.drivers[0].add(&[], &[3]);
        assert_eq!(guest.device.on_queue(RECEIVE).unwrap(), Progress::Done);
        assert_eq!(guest.drivers[0].used(), None);
        guest.recorder.type_in(b"!");
        assert_eq!(
            guest.device.on_descriptor(0, EventSet::IN).unwrap(),
            Progress::Done
        );
        assert!(guest.drivers[0].used().is_some());
    }

    #[test]
    fn of_endless_output_at_once_the_end_is_kept() {
        let mut guest = guest();
        // The same MiB, three times.
        let at = guest.drivers[1].buffer(1 << 20);
        for index in 0..3 {
            guest.drivers[1].set_descriptor(index, at, 1 << 20, 1, index + 1);
        }
        let end = guest.drivers[1].buffer(16);
        guest.drivers[1].set_descriptor(3, end, 4, 0, 0);
        guest.drivers[1].offer(0);
        assert_eq!(guest.device.on_queue(TRANSMIT).unwrap(), Progress::Done);
        assert_eq!(guest.recorder.printed().len(), 1 << 20);
    }
}
