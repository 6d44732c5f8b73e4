//! virtio-rng: random bytes from the host's generator, at a limited rate.
//!
//! Source: virtio 1.2, section 5.4. It has one queue, whose chains it fills, no
//! configuration, and no features.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::epoll::EventSet;

use crate::broken::Broken;
use crate::device::{Activation, VirtioDevice, Watch};
use crate::progress::Progress;
use crate::ring::Ring;

/// The size of its queue.
const QUEUE_SIZE: u16 = 64;
/// The most bytes that one chain is filled with: what Linux asks for at once is
/// far less.
const REQUEST_MAX: usize = 4096;
/// The bytes that a guest gets in one second: more than a kernel's and all its
/// programs' generators take, and less than a hundredth of a processor's time.
const RATE: u64 = 1 << 20;
/// The bytes that it gets at once after a pause.
const BURST: u64 = 64 << 10;
/// The most chains that are filled in one turn of the loop.
const TURN: usize = 8;

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    queue: Option<Ring>,
    /// The bytes that may be given now, as of `since`.
    left: u64,
    since: Instant,
    /// Expires when there is something to give again.
    timer: OwnedFd,
}

impl Rng {
    /// Creates the device.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            queue: None,
            left: BURST,
            since: Instant::now(),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })
    }

    /// Adds what has become available since the last call.
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
        let more = micros.saturating_mul(RATE) / 1_000_000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = now;
        }
    }

    /// Has the timer expire when a request can be served.
    fn wait(&self) -> Result<Progress, Broken> {
        let missing = (REQUEST_MAX as u64).saturating_sub(self.left);
        let pause = Duration::from_micros(missing * 1_000_000 / RATE + 1);
        let at = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: 0,
                // A few milliseconds.
                tv_nsec: pause.subsec_nanos().into(),
            },
        };
        let set = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &at);
        set.map(|_before| Progress::Done)
            .map_err(|error| Broken::Host {
                what: "its timer cannot be set",
                source: error.into(),
            })
    }

    fn serve(&mut self) -> Result<Progress, Broken> {
        self.refill(Instant::now());
        let Some(queue) = &mut self.queue else {
            return Ok(Progress::Done);
        };
        let turn = usize::try_from(self.left).unwrap_or(0) / REQUEST_MAX;
        let mut given = 0;
        let progress = match turn {
            0 => Progress::More,
            _ => queue.drain(turn.min(TURN), |chain, memory| {
                let mut bytes = [0; REQUEST_MAX];
                let wanted = usize::try_from(chain.writable_len()).unwrap_or(REQUEST_MAX);
                let bytes = bytes.get_mut(..wanted.min(REQUEST_MAX)).unwrap_or_default();
                fill(bytes)?;
                let written = chain.write_at(memory, 0, bytes);
                given += written as u64;
                Ok(u32::try_from(written).unwrap_or(0))
            })?,
        };
        self.left = self.left.saturating_sub(given);
        match progress {
            Progress::More if self.left < REQUEST_MAX as u64 => self.wait(),
            other => Ok(other),
        }
    }
}

/// Fills `bytes` from the host's generator, which does not wait once it was
/// initialised at the boot of the host.
fn fill(bytes: &mut [u8]) -> Result<(), Broken> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let got = getrandom(rest, GetRandomFlags::NONBLOCK);
        done += got.map_err(|error| Broken::Host {
            what: "the host gives no random bytes",
            source: error.into(),
        })?;
    }
    Ok(())
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn id(&self) -> u16 {
        u16::try_from(VIRTIO_ID_RNG).unwrap_or(0)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, active: Activation) -> Result<(), Broken> {
        self.queue = active.queues.into_iter().next();
        Ok(())
    }

    fn on_queue(&mut self, _queue: u16) -> Result<Progress, Broken> {
        self.serve()
    }

    fn descriptors(&self) -> Vec<Watch<'_>> {
        vec![Watch {
            descriptor: self.timer.as_fd(),
            events: EventSet::IN,
            token: 0,
        }]
    }

    fn on_descriptor(&mut self, _token: u32, _events: EventSet) -> Result<Progress, Broken> {
        // Whether it has expired does not matter: there may be more to give.
        let mut expirations = [0; 8];
        let _ = rustix::io::read(&self.timer, &mut expirations);
        self.serve()
    }

    fn reset(&mut self) -> Progress {
        self.queue = None;
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Driver, Interrupts, memory};

    fn active() -> (Rng, Driver, Arc<Interrupts>) {
        let (memory, interrupts) = (memory(), Arc::new(Interrupts::default()));
        let driver = Driver::new(&memory, 0, QUEUE_SIZE);
        let mut rng = Rng::new().unwrap();
        let active = Activation {
            features: 0,
            queues: vec![driver.ring(&interrupts, false)],
            memory,
        };
        rng.activate(active).unwrap();
        (rng, driver, interrupts)
    }

    #[test]
    fn chains_are_filled_with_different_bytes() {
        let (mut rng, mut driver, interrupts) = active();
        let heads = [driver.add(&[], &[40, 24]), driver.add(&[], &[64])];
        assert_eq!(rng.on_queue(0).unwrap(), Progress::Done);
        let all = heads.map(|head| {
            assert_eq!(driver.used(), Some((head, 64)));
            driver.written(head)
        });
        assert_ne!(all[0], all[1]);
        assert!(all.iter().all(|bytes| bytes.iter().any(|b| *b != 0)));
        assert_eq!(interrupts.used_count(), 1);
    }

    #[test]
    fn requests_are_cut_and_those_for_nothing_get_nothing() {
        let (mut rng, mut driver, _interrupts) = active();
        driver.add(&[], &[100_000]);
        driver.add(&[b"not for it"], &[]);
        let _ = rng.on_queue(0).unwrap();
        assert_eq!(driver.used(), Some((0, 4096)));
        assert_eq!(driver.used(), Some((1, 0)));
    }

    #[test]
    fn the_rate_is_limited_and_nothing_is_forgotten() {
        let (mut rng, mut driver, _interrupts) = active();
        let begin = Instant::now();
        let (mut asked, mut got) = (0, 0);
        while got < 2 * BURST {
            if asked < 2 * BURST && driver.in_flight() < 32 {
                driver.add(&[], &[4096]);
                asked += 4096;
            }
            // As the loop does it, with the timer in between.
            if rng.on_queue(0).unwrap() == Progress::Done {
                let _ = rng.on_descriptor(0, EventSet::IN).unwrap();
            }
            while let Some((_, written)) = driver.used() {
                got += u64::from(written);
            }
        }
        // The second burst takes its time: 62 ms, a little less is forgiven.
        assert!(begin.elapsed() > Duration::from_millis(50));
    }

    #[test]
    fn a_reset_forgets_the_queue() {
        let (mut rng, mut driver, _interrupts) = active();
        driver.add(&[], &[16]);
        assert_eq!(rng.reset(), Progress::Done);
        assert_eq!(rng.on_queue(0).unwrap(), Progress::Done);
        assert_eq!(driver.used(), None);
    }
}
