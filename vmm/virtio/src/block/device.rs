//! The block device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::epoll::EventSet;

use crate::block::config::{self, BlockSettings, QUEUE_SIZE};
use crate::block::counters::BlockCounters;
use crate::block::engine::{Completion, Engine};
use crate::block::session::{Disk, Session};
use crate::broken::Broken;
use crate::counters::OwnCounts;
use crate::device::{Activation, VirtioDevice, Watch};
use crate::progress::Progress;

/// How long it waits for an operation before it passes on what the kernel had no
/// room for.
const PATIENCE: Duration = Duration::from_millis(10);

/// A virtio block device over an [`Engine`].
#[derive(Debug)]
pub struct Block {
    settings: BlockSettings,
    queue_sizes: Vec<u16>,
    counters: Vec<Arc<BlockCounters>>,
    engine: Box<dyn Engine>,
    session: Option<Session>,
    /// Operations that have ended, and were not handled yet.
    ended: Vec<Completion>,
}

impl Block {
    /// Creates a disk whose contents are behind `engine`.
    pub fn new(settings: BlockSettings, engine: Box<dyn Engine>) -> Self {
        let queues = settings.queues.max(1);
        Self {
            settings: BlockSettings { queues, ..settings },
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            counters: (0..queues).map(|_| Arc::default()).collect(),
            engine,
            session: None,
            ended: Vec::new(),
        }
    }

    /// Returns the counters of its queues, in their order.
    pub fn counters(&self) -> &[Arc<BlockCounters>] {
        &self.counters
    }

    /// Returns the session, and the disk that it needs.
    fn parts(&mut self) -> (Option<&mut Session>, Disk<'_>) {
        let disk = Disk {
            settings: &self.settings,
            engine: self.engine.as_mut(),
            counters: &self.counters,
        };
        (self.session.as_mut(), disk)
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn id(&self) -> u16 {
        // The number is 2.
        u16::try_from(VIRTIO_ID_BLOCK).unwrap_or(u16::MAX)
    }

    fn features(&self) -> u64 {
        config::features(self.settings.read_only, self.settings.queues)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(self.settings.geometry, self.settings.queues, offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), Broken> {
        let write_through = !active.has(1 << VIRTIO_BLK_F_FLUSH);
        let session = Session::new(active.memory, active.queues, write_through);
        self.session = Some(session);
        Ok(())
    }

    fn on_queue(&mut self, queue: u16) -> Result<Progress, Broken> {
        match self.parts() {
            (Some(session), mut disk) => session.serve(&mut disk, queue),
            (None, _) => Ok(Progress::Done),
        }
    }

    fn descriptors(&self) -> Vec<Watch<'_>> {
        vec![Watch {
            descriptor: self.engine.event(),
            events: EventSet::IN,
            token: 0,
        }]
    }

    fn on_descriptor(&mut self, _token: u32, _events: EventSet) -> Result<Progress, Broken> {
        self.engine.reap(&mut self.ended);
        let ended = std::mem::take(&mut self.ended);
        match self.parts() {
            (Some(session), mut disk) => session.go_on(&mut disk, ended),
            // A reset is under way, and nobody waits for answers.
            (None, _) => Ok(Progress::Done),
        }
    }

    fn settle(&mut self, end: Instant) -> bool {
        loop {
            // A refusal is that of the next call as well, which is handled.
            let _ = self.engine.submit();
            self.engine.reap(&mut self.ended);
            let left = end.saturating_duration_since(Instant::now());
            if self.engine.in_flight() == 0 || left.is_zero() {
                return self.engine.in_flight() == 0;
            }
            let event = PollFd::from_borrowed_fd(self.engine.event(), PollFlags::IN);
            let pause = Timespec::try_from(left.min(PATIENCE)).ok();
            // An interruption is an early end of the wait.
            let _ = poll(&mut [event], pause.as_ref());
        }
    }

    /// Returns reads, writes, flushes and discards, then the bytes read and written.
    fn counts(&self) -> OwnCounts {
        let mut sums = OwnCounts::default();
        for counts in self.counters.iter().map(|counters| counters.counts()) {
            let words = [
                counts.reads,
                counts.writes,
                counts.flushes,
                counts.discards,
                counts.read_bytes,
                counts.written_bytes,
            ];
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum += word;
            }
        }
        sums
    }

    fn reset(&mut self) -> Progress {
        self.session = None;
        self.ended.clear();
        // What has not reached the kernel yet would not end.
        let _ = self.engine.submit();
        match self.engine.in_flight() {
            0 => Progress::Done,
            _ => Progress::More,
        }
    }
}
