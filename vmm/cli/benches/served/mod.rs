//! A `mkvmm serve` that benchmarks talk to over its socket.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What benchmarks fail with.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A VMM that serves.
#[derive(Debug)]
pub struct Server {
    /// The process itself.
    pub process: Child,
    /// Where it serves.
    pub socket: PathBuf,
}

impl Server {
    /// Starts what `command` makes of a new socket, and waits until it serves.
    pub fn start(command: impl FnOnce(&Path) -> Command) -> Result<Self> {
        static SOCKETS: AtomicU32 = AtomicU32::new(0);
        let number = SOCKETS.fetch_add(1, Ordering::Relaxed);
        let name = format!("mkvmm-bench-{}-{number}.sock", std::process::id());
        let socket = env::temp_dir().join(name);
        let mut process = command(&socket).spawn()?;
        wait_until_ready(&mut process)?;
        Ok(Self { process, socket })
    }

    /// Connects once more.
    pub fn client(&self) -> Result<Client> {
        Ok(Client(BufReader::new(UnixStream::connect(&self.socket)?)))
    }

    /// Ends it; how long that took.
    pub fn end(mut self) -> Result<Duration> {
        let pid = self.process.id().to_string();
        let begin = Instant::now();
        Command::new("kill").arg(pid).status()?;
        self.process.wait()?;
        Ok(begin.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the path of the binary that is measured.
pub fn binary() -> PathBuf {
    let named = env::var_os("MKVMM_BIN");
    named.map_or_else(|| env!("CARGO_BIN_EXE_mkvmm").into(), PathBuf::from)
}

/// Returns the command of a VMM with a pool of `bytes`.
pub fn command(bytes: u64, socket: &Path) -> Command {
    command_with(bytes, 65536, socket)
}

/// Returns the command of a VMM with a pool of `bytes`, which keeps `ring` bytes of
/// each console.
pub fn command_with(bytes: u64, ring: usize, socket: &Path) -> Command {
    let pool = format!("{bytes}@4G");
    let mut command = Command::new(binary());
    command
        .args(["serve", "--grace", "0", "--console-ring", &ring.to_string()])
        .args(["--pool", &pool, "--socket"])
        .arg(socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Waits for the line that says that it serves.
pub fn wait_until_ready(process: &mut Child) -> Result<()> {
    let stdout = process.stdout.take().ok_or("no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    match line.starts_with("ready") {
        true => Ok(()),
        false => Err("it is not ready".into()),
    }
}

/// Returns the bytes of a request.
pub fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// One connection to the control socket.
#[derive(Debug)]
pub struct Client(pub BufReader<UnixStream>);

impl Client {
    /// One request; the body of its answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        self.send(&request(method, path, body))?;
        let answer = self.receive();
        answer.map_err(|error| format!("{method} {path}: {error}").into())
    }

    /// Writes requests whose answers nobody has received yet.
    pub fn send(&mut self, requests: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(requests.as_bytes())?)
    }

    /// Receives the answer to the oldest request; its body.
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        let (status, length) = self.head()?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        match status.split(' ').nth(1) {
            Some("200" | "201") => Ok(body),
            _ => Err(format!("{} {}", status.trim(), String::from_utf8_lossy(&body)).into()),
        }
    }

    /// Reads the head of an answer: the status line, and the length of the body.
    pub fn head(&mut self) -> Result<(String, usize)> {
        let (mut status, mut length) = (String::new(), 0);
        self.0.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            match line.trim().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse()?;
                }
                Some(_) => {}
                None => return Ok((status, length)),
            }
        }
    }
}
