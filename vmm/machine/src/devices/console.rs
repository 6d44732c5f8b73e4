//! Consoles of many guests on one stream, whole lines at a time.
//!
//! Each guest's serial port owns a [`ConsoleWriter`], which gathers bytes into
//! lines and puts `name: line` into a bounded queue; one thread takes them out
//! and writes them. A full queue holds the guests back rather than losing
//! output, until [`ConsoleQueue::close`]: then nobody waits any more.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::devices::console_ring::ConsoleRing;
use crate::vcpu;
use mkvmm_base::InstanceName;

/// Lines that may wait to be written; behind that guests wait.
const QUEUE_LINES: usize = 1024;
/// How often a vCPU that waits for room looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// A line longer than this is broken: a guest that never ends its line must
/// not take the host's memory.
const LINE_MAX: usize = 4096;

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    closed: bool,
}

/// The queue between the guests' serial ports and the stream.
#[derive(Debug, Default)]
pub struct ConsoleQueue {
    state: Mutex<State>,
    changed: Condvar,
}

impl ConsoleQueue {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A line, newline included; waits while the queue is full. After
    /// `close`, and from a vCPU that is to stop, it is dropped.
    fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        while state.lines.len() >= QUEUE_LINES && !state.closed {
            if vcpu::is_stopping() {
                return;
            }
            let wait = self.changed.wait_timeout(state, STOP_INTERVAL);
            (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        }
        if !state.closed {
            state.lines.push_back(line);
            self.changed.notify_all();
        }
    }

    /// A last line, of a guest that has ended: whoever cleans up after it must
    /// not wait, so without room it is dropped.
    fn push_now(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if !state.closed && state.lines.len() < QUEUE_LINES {
            state.lines.push_back(line);
            self.changed.notify_all();
        }
    }

    /// The oldest lines; waits for some. `None` when closed and empty.
    fn pop_all(&self) -> Option<VecDeque<Vec<u8>>> {
        let mut state = self.lock();
        loop {
            if !state.lines.is_empty() {
                self.changed.notify_all();
                return Some(std::mem::take(&mut state.lines));
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the queue: what is in it is still written, nothing is added and
    /// no guest waits any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Writes lines to `out` until the queue is closed and empty, or until
    /// `out` fails; then the queue is closed, so that guests go on.
    ///
    /// # Errors
    /// What writing said.
    pub fn drain(&self, out: &mut dyn Write) -> io::Result<()> {
        let result = self.write_all(out);
        self.close();
        result
    }

    fn write_all(&self, out: &mut dyn Write) -> io::Result<()> {
        while let Some(lines) = self.pop_all() {
            for line in lines {
                out.write_all(&line)?;
            }
            out.flush()?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a queue and a flag: consistent whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a guest's serial port prints to: its own ring, and the queue that all
/// guests share, if there is one. What the queue was given without a newline
/// is written when the writer goes.
#[derive(Debug)]
pub struct ConsoleWriter {
    queue: Option<Arc<ConsoleQueue>>,
    prefix: Vec<u8>,
    line: Vec<u8>,
    ring: Arc<ConsoleRing>,
}

impl ConsoleWriter {
    /// A writer into `ring`, and into `queue` in lines that begin with
    /// `name: `.
    pub fn new(
        queue: Option<&Arc<ConsoleQueue>>,
        name: &InstanceName,
        ring: &Arc<ConsoleRing>,
    ) -> Self {
        Self {
            queue: queue.map(Arc::clone),
            prefix: format!("{name}: ").into_bytes(),
            line: Vec::new(),
            ring: Arc::clone(ring),
        }
    }

    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => self.end_line(),
            // Serial consoles end lines with \r\n; alone it would let a guest
            // write over its own prefix.
            b'\r' => {}
            _ => {
                self.line.push(byte);
                if self.line.len() >= LINE_MAX {
                    self.end_line();
                }
            }
        }
    }

    fn end_line(&mut self) {
        let line = self.take_line();
        if let Some(queue) = &self.queue {
            queue.push(line);
        }
    }

    fn take_line(&mut self) -> Vec<u8> {
        let mut whole = self.prefix.clone();
        whole.append(&mut self.line);
        whole.push(b'\n');
        whole
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ring.push(bytes);
        if self.queue.is_some() {
            for &byte in bytes {
                self.put(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let line = self.take_line();
            if let Some(queue) = &self.queue {
                queue.push_now(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(queue: &Arc<ConsoleQueue>, name: &InstanceName) -> ConsoleWriter {
        let ring = Arc::new(ConsoleRing::new(16));
        ConsoleWriter::new(Some(queue), name, &ring)
    }

    fn written(feed: impl FnOnce(&Arc<ConsoleQueue>)) -> String {
        let queue = ConsoleQueue::new();
        feed(&queue);
        queue.close();
        let mut out = Vec::new();
        queue.drain(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_and_carry_their_guests_name() {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let out = written(|queue| {
            let (mut a, mut b) = (writer(queue, &a), writer(queue, &b));
            a.write_all(b"hel").unwrap();
            b.write_all(b"one\r\ntwo").unwrap();
            a.write_all(b"lo\n\n").unwrap();
        });
        assert_eq!(out, "b: one\na: hello\na: \nb: two\n");
    }

    #[test]
    fn an_endless_line_is_broken() {
        let name = "a".parse().unwrap();
        let out = written(|queue| {
            let mut writer = writer(queue, &name);
            writer.write_all(&[b'x'; LINE_MAX + 1]).unwrap();
        });
        let lengths: Vec<usize> = out.lines().map(str::len).collect();
        assert_eq!(lengths, [LINE_MAX + 3, 1 + 3]);
    }

    #[test]
    fn a_full_queue_holds_the_guest_until_it_is_drained_or_closed() {
        let queue = ConsoleQueue::new();
        let name = "a".parse().unwrap();
        let mut writer = writer(&queue, &name);
        let guest = std::thread::spawn(move || {
            for _ in 0..3 * QUEUE_LINES {
                writer.write_all(b"x\n").unwrap();
            }
        });
        while queue.lock().lines.len() < QUEUE_LINES {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(queue.lock().lines.len(), QUEUE_LINES);
        assert!(!guest.is_finished());
        let mut lines = 0;
        while lines < 2 * QUEUE_LINES {
            lines += queue.pop_all().unwrap().len();
        }
        queue.close();
        guest.join().unwrap();
    }
}
