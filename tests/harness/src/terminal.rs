//! A client attached to a guest's console.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::server::EVENT_TIMEOUT;

/// How long one read waits.
const TURN: Duration = Duration::from_millis(20);

/// A connection to a guest's console, and what came over it.
#[derive(Debug)]
pub struct Terminal {
    stream: UnixStream,
    seen: Vec<u8>,
}

impl Terminal {
    /// Attaches to the console of instance `name`. What it printed before is
    /// received first.
    #[track_caller]
    pub fn attach(socket: &Path, name: &str) -> Self {
        let mut stream = UnixStream::connect(socket).expect("it listens");
        stream.set_read_timeout(Some(TURN)).expect("a socket");
        let request = format!(
            "GET /v1/instances/{name}/console HTTP/1.1\r\nHost: x\r\n\
             Connection: upgrade\r\nUpgrade: mkvmm-console\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut terminal = Self {
            stream,
            seen: Vec::new(),
        };
        terminal.wait("an answer", |seen| find(seen, b"\r\n\r\n").is_some());
        let head = find(&terminal.seen, b"\r\n\r\n").expect("it has come");
        let rest = terminal.seen.split_off(head + 4);
        let head = String::from_utf8_lossy(&terminal.seen).into_owned();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        terminal.seen = rest;
        terminal
    }

    /// Types `text` into the terminal.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("it reads");
    }

    /// Waits until what was printed fulfils `condition`; returns all of it.
    #[track_caller]
    pub fn wait(&mut self, what: &str, condition: impl Fn(&[u8]) -> bool) -> String {
        let end = Instant::now() + EVENT_TIMEOUT;
        let mut buffer = [0; 65536];
        while !condition(&self.seen) {
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("hung up before {what}: {}", self.text()),
                Ok(count) => self.seen.extend_from_slice(&buffer[..count]),
                // A read with a time limit is interrupted where the process was stopped.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => panic!("{error} before {what}: {}", self.text()),
            }
            assert!(Instant::now() < end, "no {what}: {}", self.text());
        }
        self.text()
    }

    /// Waits until `text` was printed; returns all that was.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait(text, |seen| find(seen, text.as_bytes()).is_some())
    }

    /// Returns what was received so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
