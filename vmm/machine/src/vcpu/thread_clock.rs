//! The processor time of a thread, readable by other threads. A confined
//! process opens no files, so `/proc` cannot be used.
//!
//! UNSAFETY: pthread_getcpuclockid and clock_gettime write through pointers.
#![expect(unsafe_code, reason = "calls libc where rustix has nothing")]

use std::mem::MaybeUninit;

/// The clock of one thread. Reading it fails once the thread has ended.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// Returns the clock of the calling thread, if it has one.
    pub fn of_this_thread() -> Option<Self> {
        // SAFETY: takes no arguments, and returns the handle of a running
        // thread.
        let this = unsafe { libc::pthread_self() };
        let mut clock = MaybeUninit::uninit();
        // SAFETY: `this` is a running thread; the pointer is to writable memory
        // of the clock's size.
        let result = unsafe { libc::pthread_getcpuclockid(this, clock.as_mut_ptr()) };
        // SAFETY: on success the function has written the clock.
        (result == 0).then(|| Self(unsafe { clock.assume_init() }))
    }

    /// Returns the thread's processor time so far in nanoseconds; `None` once
    /// it has ended.
    pub fn read(self) -> Option<u64> {
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: the pointer is to writable memory of its size; for a clock
        // whose thread has ended the call returns an error.
        let result = unsafe { libc::clock_gettime(self.0, time.as_mut_ptr()) };
        if result != 0 {
            return None;
        }
        // SAFETY: on success the call has written the time.
        let time = unsafe { time.assume_init() };
        let part = |value: i64| u64::try_from(value).ok();
        Some(part(time.tv_sec)? * 1_000_000_000 + part(time.tv_nsec)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn time_that_a_thread_uses_is_seen_by_others_until_it_ends() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            let clock = ThreadClock::of_this_thread().unwrap();
            let mut sum = 0_u64;
            for n in 0..3_000_000_u64 {
                sum = std::hint::black_box(sum.wrapping_add(n));
            }
            sender.send(clock).unwrap();
            std::thread::park();
            sum
        });
        let clock = receiver.recv().unwrap();
        assert!(clock.read().is_some_and(|ns| ns > 0));
        worker.thread().unpark();
        worker.join().unwrap();
        // The kernel says that it has ended a moment before it is gone.
        let end = Instant::now() + Duration::from_secs(60);
        while clock.read().is_some() {
            assert!(Instant::now() < end, "it has a clock");
            std::thread::yield_now();
        }
    }
}
