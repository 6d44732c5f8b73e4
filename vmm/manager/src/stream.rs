//! Writes the consoles of many guests to one stream, in whole lines.
//!
//! One thread follows the consoles and writes `name: line` for each line; what one
//! guest prints can be written as it is instead, for somebody who types to it. It
//! acknowledges what it has written, and lossless consoles make their guests
//! wait until then: a slow reader of the stream slows the guests down instead
//! of losing output.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use mkvmm_base::InstanceName;
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::bell::Bell;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::console::GuestConsole;

/// The length at which a line is split: a guest that never ends its line must
/// not exhaust the host's memory.
const LINE_MAX: usize = 4096;

/// How long output is collected where a guest prints byte by byte: each wake-up of
/// this thread costs the guest more than its byte.
const GATHER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};
/// How often it is written at once before that, after a pause: the first line is not
/// delayed, nor is what somebody types.
const PROMPT: u32 = 64;
/// How long nothing is printed in a pause.
const PAUSE: Duration = Duration::from_millis(10);
/// The number of bytes at once from which on there is no need to wait for more.
const HURRY: usize = 1024;

/// A message to the thread.
#[derive(Debug)]
enum Message {
    /// Follow a console from its beginning.
    Add(InstanceName, Arc<GuestConsole>),
    /// Write the remaining output of a guest that has ended, even without a
    /// newline.
    End(InstanceName),
    /// Return once everything is written.
    Close,
}

/// The guest whose output is written at once and as it is.
pub struct Attached {
    /// The name of the guest.
    pub name: InstanceName,
    /// Receives its output.
    pub out: Box<dyn Write + Send>,
    /// What makes a line of another guest begin at its beginning.
    pub newline: &'static [u8],
    /// True if its last line has not ended.
    pub is_in_line: bool,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Attached");
        debug.field("name", &self.name).finish_non_exhaustive()
    }
}

impl Attached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(last) = bytes.last() {
            self.is_in_line = *last != b'\n';
        }
        self.out.write_all(bytes)?;
        self.out.flush()
    }
}

#[derive(Debug)]
struct Shared {
    inbox: Mutex<Vec<Message>>,
    bell: Bell,
}

/// The sending end of the messages. When it is dropped, the thread is told to
/// return, so that a failed launch leaves no thread behind.
#[derive(Debug)]
struct Teller(Arc<Shared>);

impl Teller {
    fn tell(&self, message: Message) {
        lock(&self.0.inbox).push(message);
        self.0.bell.ring();
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.tell(Message::Close);
    }
}

/// The manager's side of the stream. When it is dropped, the thread returns
/// once everything is written.
#[derive(Debug)]
pub struct Stream {
    teller: Teller,
    thread: JoinHandle<io::Result<()>>,
}

impl Stream {
    /// Starts the thread, which writes to `out`, and to that of `attached` what one
    /// guest prints. `on_error` receives the error
    /// of a failed write; after that nothing is written, and no guest waits any
    /// more.
    ///
    /// # Errors
    /// Fails if the host has run out of threads or descriptors.
    pub fn start(
        mut out: Box<dyn Write + Send>,
        attached: Option<Attached>,
        on_error: impl FnOnce() + Send + 'static,
    ) -> Result<Self, SharedError> {
        let (bell, theirs) = Bell::pair()?;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            bell: theirs,
        });
        let of_thread = Arc::clone(&shared);
        let body = move || {
            let mut follower = Follower {
                shared: of_thread,
                bell,
                followed: Vec::new(),
                attached,
                is_closed: false,
            };
            let result = follower.run(&mut *out);
            if result.is_err() {
                follower.let_go();
                on_error();
            }
            result
        };
        let thread = Builder::new().name("console".to_owned()).spawn(body);
        let thread = thread.map_err(|error| {
            SharedError::Bell(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
        })?;
        let teller = Teller(shared);
        Ok(Self { teller, thread })
    }

    /// Follows a console.
    pub fn add(&self, name: &InstanceName, console: &Arc<GuestConsole>) {
        self.teller
            .tell(Message::Add(name.clone(), Arc::clone(console)));
    }

    /// Reports that a guest will print no more.
    pub fn end(&self, name: &InstanceName) {
        self.teller.tell(Message::End(name.clone()));
    }

    /// Makes the thread return once everything is written.
    pub fn close(&self) {
        self.teller.tell(Message::Close);
    }

    /// Returns whether the thread has returned.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until everything is written, after [`Self::close`].
    ///
    /// # Errors
    /// Returns the error if the stream could not be written.
    pub fn join(self) -> io::Result<()> {
        let panicked = |_| Err(io::Error::other("the console thread panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

fn lock(inbox: &Mutex<Vec<Message>>) -> MutexGuard<'_, Vec<Message>> {
    // Messages are whole, so they are valid even if the lock is poisoned.
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A console, and the position up to which it is written.
#[derive(Debug)]
struct Followed {
    name: InstanceName,
    console: Arc<GuestConsole>,
    position: u64,
    line: Line,
    is_attached: bool,
    has_ended: bool,
}

struct Follower {
    shared: Arc<Shared>,
    /// The doorbell that [`Stream`] rings.
    bell: Bell,
    followed: Vec<Followed>,
    attached: Option<Attached>,
    is_closed: bool,
}

/// Receives whole lines, which do not begin within a line of another stream.
struct Apart<'a> {
    out: &'a mut dyn Write,
    attached: Option<&'a mut Attached>,
}

impl Write for Apart<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(attached) = &mut self.attached
            && attached.is_in_line
        {
            attached.write(attached.newline)?;
        }
        self.out.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Follower {
    fn run(&mut self, out: &mut dyn Write) -> io::Result<()> {
        // How often there was output since the last pause.
        let mut rounds = 0_u32;
        loop {
            self.read_inbox();
            let mut news = None;
            for one in &mut self.followed {
                let more = one.write_new(out, self.attached.as_mut())?;
                news = more.map(|more| more + news.unwrap_or(0)).or(news);
            }
            self.finish_ended(out)?;
            if let Some(count) = news {
                out.flush()?;
                rounds = rounds.saturating_add(1);
                if rounds > PROMPT && count < HURRY {
                    self.gather()?;
                }
                continue;
            }
            if self.is_closed && self.followed.is_empty() {
                return out.flush();
            }
            // Announce first, then check once more, so that no ring is lost.
            let waits = |one: &Followed| one.console.viewer().will_wait(one.position);
            if self.followed.iter().all(waits) {
                let begin = Instant::now();
                self.wait()?;
                if begin.elapsed() > PAUSE {
                    rounds = 0;
                }
            }
        }
    }

    /// Lets output collect, unless there is a message.
    fn gather(&self) -> io::Result<()> {
        let mut polled = [PollFd::new(&self.bell, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&GATHER)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read_inbox(&mut self) {
        self.bell.answer();
        for message in std::mem::take(&mut *lock(&self.shared.inbox)) {
            match message {
                Message::Add(name, console) => self.followed.push(Followed {
                    line: Line::new(&name),
                    is_attached: self.attached.as_ref().is_some_and(|it| it.name == name),
                    name,
                    console,
                    position: 0,
                    has_ended: false,
                }),
                Message::End(name) => {
                    let of_name = |one: &&mut Followed| one.name == name;
                    if let Some(one) = self.followed.iter_mut().find(of_name) {
                        one.has_ended = true;
                    }
                }
                Message::Close => self.is_closed = true,
            }
        }
    }

    /// Ends the lines of guests that will print no more.
    fn finish_ended(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let is_closed = self.is_closed;
        let mut out = Apart {
            out,
            attached: self.attached.as_mut(),
        };
        let is_over = |one: &mut Followed| {
            (one.has_ended || is_closed) && one.console.printed() == one.position
        };
        for mut one in self.followed.extract_if(.., is_over) {
            one.line.finish(&mut out)?;
            out.flush()?;
        }
        Ok(())
    }

    /// Waits for a ring. Consoles ring again whenever there is new output.
    fn wait(&self) -> io::Result<()> {
        let bells = self.followed.iter().map(|one| one.console.bell());
        let bells: Vec<&Bell> = bells.chain([&self.bell]).collect();
        let polled = bells.iter().map(|bell| PollFd::new(*bell, PollFlags::IN));
        let mut polled: Vec<PollFd<'_>> = polled.collect();
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for bell in bells {
            bell.answer();
        }
        if self.attached.is_some() {
            // Whoever types may be waiting for room.
            self.followed.iter().for_each(|one| one.console.refresh());
        }
        Ok(())
    }

    /// Releases all guests from waiting for this thread.
    fn let_go(&mut self) {
        self.read_inbox();
        for one in &self.followed {
            one.console.viewer().set_lossless(false);
        }
    }
}

impl Followed {
    /// Writes new output; returns the number of bytes, if there was any.
    fn write_new(
        &mut self,
        out: &mut dyn Write,
        mut attached: Option<&mut Attached>,
    ) -> io::Result<Option<usize>> {
        let (bytes, position) = self.console.since(self.position);
        let is_news = position != self.position;
        match &mut attached {
            Some(attached) if self.is_attached => attached.write(&bytes)?,
            _ => self.line.put(&bytes, &mut Apart { out, attached })?,
        }
        self.position = position;
        if is_news {
            self.console.viewer().acknowledge(position);
        }
        Ok(is_news.then_some(bytes.len()))
    }
}

/// The unfinished line of one guest.
#[derive(Debug)]
struct Line {
    prefix: Vec<u8>,
    bytes: Vec<u8>,
}

impl Line {
    fn new(name: &InstanceName) -> Self {
        Self {
            prefix: format!("{name}: ").into_bytes(),
            bytes: Vec::new(),
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        for &byte in bytes {
            match byte {
                b'\n' => self.end(out)?,
                // Serial consoles end lines with \r
                // ; a lone \r would let a guest overwrite its own prefix.
                b'\r' => {}
                _ => {
                    self.bytes.push(byte);
                    if self.bytes.len() >= LINE_MAX {
                        self.end(out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the line at once, so that lines of several writers do not mix.
    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut whole = self.prefix.clone();
        whole.append(&mut self.bytes);
        whole.push(b'\n');
        out.write_all(&whole)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self.bytes.is_empty() {
            true => Ok(()),
            false => self.end(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_carry_their_guests_name() {
        let mut out = Vec::new();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (mut a, mut b) = (Line::new(&a), Line::new(&b));
        a.put(b"hel", &mut out).unwrap();
        b.put(b"one\r\ntwo", &mut out).unwrap();
        a.put(b"lo\n\n", &mut out).unwrap();
        a.finish(&mut out).unwrap();
        b.finish(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "b: one\na: hello\na: \nb: two\n");
    }

    #[test]
    fn an_endless_line_is_broken() {
        let mut out = Vec::new();
        let mut line = Line::new(&"a".parse().unwrap());
        line.put(&[b'x'; LINE_MAX + 1], &mut out).unwrap();
        line.finish(&mut out).unwrap();
        let lengths: Vec<usize> = out.split(|b| *b == b'\n').map(<[u8]>::len).collect();
        assert_eq!(lengths, [LINE_MAX + 3, 1 + 3, 0]);
    }
}
