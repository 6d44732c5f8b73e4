//! What a guest costs that is asked for over the control socket: created, loaded
//! from a cached image and started, up to its first byte, which the client
//! receives. Beside bare C in a forked process, cold and with everything made
//! before, and with `serve --warm`; all alternately in one run.
//!
//! Not a criterion benchmark: what is measured happens in other processes.
//! `cargo bench -p mkvmm --bench serve -- [ROUNDS] [--svg FILE]`; with `MKVMM_BIN` it
//! measures that binary instead of this tree's. It builds the C program with `cc`.

mod entry;
mod served;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use served::{Client, Result, Server, command, request};
use svg::Document;
use svg::node::element::{Line, Rectangle, Text};

/// Memory of each guest.
const MEMORY: u64 = 8 << 20;
/// Bytes of the image behind its code: as long as the probe.
const PADDING: &str = "-DPADDING=65536";
/// How many workers wait in the VMM that has a stock.
const STOCK: u64 = 4;
/// From one guest to the next: what the last one leaves to the kernel is over.
const PAUSE: Duration = Duration::from_millis(40);
/// After the stock is full, as for the C program.
const SETTLE: Duration = Duration::from_millis(60);
/// How long clients make guests without a pause.
const LOOP: Duration = Duration::from_secs(5);
/// The numbers of clients that do.
const CLIENTS: [usize; 3] = [1, 4, 16];

fn main() -> ExitCode {
    entry::run("serve", |words| {
        let mut words = words.iter();
        let (mut rounds, mut picture) = (101, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--svg" => picture = words.next().map(PathBuf::from),
                number => rounds = number.parse().unwrap_or(rounds),
            }
        }
        measure(rounds.max(1), picture.as_deref())
    })
}

fn measure(rounds: usize, picture: Option<&Path>) -> Result<()> {
    let (image, floor) = build()?;
    let mut floor = Floor::start(&floor, &image.with_extension("bin"))?;
    let [cold, warm] = ["0", &STOCK.to_string()].map(|stock| Guests::start(&image, stock));
    let (mut cold, mut warm) = (cold?, warm?);
    let mut series = [
        Series::new("bare C in a forked process", 0, 1.0),
        Series::new("mkvmm serve", 0, 1.2),
        Series::new("bare C, all made before", 0, 1.0),
        Series::new("mkvmm serve --warm", 0, 0.6),
        Series::new("mkvmm serve, three requests", 0, 1.2),
        Series::new("mkvmm serve --warm, three requests", 0, 0.6),
    ];
    // The first guest reads the image.
    for guests in [&mut cold, &mut warm] {
        guests.one(false)?;
    }
    for _ in 0..rounds {
        let times = [
            floor.one('c')?,
            cold.one(false)?,
            floor.one('w')?,
            warm.one(false)?,
            cold.one(true)?,
            warm.one(true)?,
        ];
        for (series, time) in series.iter_mut().zip(times) {
            series.times.push(time);
        }
    }
    report(&mut series);
    if let Some(path) = picture {
        fs::write(path, draw(&series).to_string())?;
    }
    for (name, guests) in [("serve", &cold), ("serve --warm", &warm)] {
        for clients in CLIENTS {
            repeat(name, guests, clients)?;
        }
    }
    cold.server.end()?;
    warm.server.end()?;
    Ok(())
}

/// Times of one thing.
struct Series {
    name: &'static str,
    /// The index of the series that it is compared with.
    base: usize,
    /// How many times that it is to take at most.
    goal: f64,
    times: Vec<Duration>,
}

impl Series {
    fn new(name: &'static str, base: usize, goal: f64) -> Self {
        let times = Vec::new();
        Self {
            name,
            base,
            goal,
            times,
        }
    }

    /// The time that this part of all times is below, of sorted ones.
    fn quantile(&self, percent: usize) -> f64 {
        let index = (self.times.len() - 1) * percent / 100;
        self.times[index].as_secs_f64() * 1e3
    }
}

fn report(all: &mut [Series]) {
    for series in &mut *all {
        series.times.sort_unstable();
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let rounds = all[0].times.len();
    println!(
        "host kernel {}, {rounds} rounds, milliseconds",
        release.trim()
    );
    println!("create, load, start to the first byte    25 %  median    75 %   x bare C   goal");
    for series in &*all {
        let ratio = series.quantile(50) / all[series.base].quantile(50);
        println!(
            "{:38}{:8.3}{:8.3}{:8.3}{:11.2}{:7.1}",
            series.name,
            series.quantile(25),
            series.quantile(50),
            series.quantile(75),
            ratio,
            series.goal
        );
    }
}

/// Draws each series as a box from the lower to the upper quartile, with its
/// median, and a line from the fifth to the 95th percentile.
fn draw(all: &[Series]) -> Document {
    const LEFT: f64 = 250.0;
    const WIDTH: f64 = 450.0;
    const ROW: f64 = 34.0;
    let most = all.iter().map(|series| series.quantile(95));
    let scale = WIDTH / most.fold(0.1, f64::max);
    let height = ROW * all.len() as f64 + 30.0;
    let mut document = Document::new()
        .set("viewBox", (0.0, 0.0, LEFT + WIDTH + 60.0, height))
        .set("font-family", "sans-serif")
        .set("font-size", 12);
    let text = |x: f64, y: f64, words: String| Text::new(words).set("x", x).set("y", y);
    for (row, series) in all.iter().enumerate() {
        let y = ROW * row as f64 + 20.0;
        let x = |percent| LEFT + scale * series.quantile(percent);
        let line = Line::new()
            .set("x1", x(5))
            .set("x2", x(95))
            .set("y1", y)
            .set("y2", y)
            .set("stroke", "#555");
        let quartiles = Rectangle::new()
            .set("x", x(25))
            .set("y", y - 8.0)
            .set("width", (x(75) - x(25)).max(1.0))
            .set("height", 16)
            .set("fill", if row % 2 == 0 { "#bbb" } else { "#59c" });
        let median = Line::new()
            .set("x1", x(50))
            .set("x2", x(50))
            .set("y1", y - 8.0)
            .set("y2", y + 8.0)
            .set("stroke", "black")
            .set("stroke-width", 2);
        let label = format!("{:.2} ms", series.quantile(50));
        document = document
            .add(text(4.0, y + 4.0, series.name.to_owned()))
            .add(line)
            .add(quartiles)
            .add(median)
            .add(text(x(95) + 4.0, y + 4.0, label));
    }
    document.add(text(
        LEFT,
        height - 6.0,
        "milliseconds to the first byte: quartiles, median, 5 % to 95 %".to_owned(),
    ))
}

/// The C program.
struct Floor {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    fn start(program: &Path, image: &Path) -> Result<Self> {
        let mut process = Command::new(program)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = process.stdin.take().ok_or("no input")?;
        let answers = process.stdout.take().ok_or("no output")?;
        Ok(Self {
            process,
            requests,
            answers: BufReader::new(answers),
        })
    }

    fn one(&mut self, kind: char) -> Result<Duration> {
        thread::sleep(PAUSE);
        write!(self.requests, "{kind}")?;
        self.requests.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(Duration::from_nanos(line.trim().parse()?))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A VMM whose guests are measured one after the other.
struct Guests {
    server: Server,
    client: Client,
    image: PathBuf,
    stock: u64,
}

impl Guests {
    fn start(image: &Path, stock: &str) -> Result<Self> {
        let server = Server::start(|socket| {
            let mut command = command(64 * MEMORY, socket);
            command.args(["--warm", stock]);
            command
        })?;
        Ok(Self {
            client: server.client()?,
            server,
            image: image.to_owned(),
            stock: stock.parse()?,
        })
    }

    /// The time from the request to the first byte of a guest, which is deleted
    /// afterwards. Its creation loads it, or a request of its own does.
    fn one(&mut self, with_load: bool) -> Result<Duration> {
        thread::sleep(PAUSE);
        self.wait_for_stock()?;
        let mut console = self.server.client()?;
        let (create, load) = match with_load {
            true => (body("g", None), format!("{{{}}}", kernel(&self.image))),
            false => (body("g", Some(&self.image)), String::new()),
        };
        let begin = Instant::now();
        self.client.ask("POST", "/v1/instances", &create)?;
        if with_load {
            self.client.ask("POST", "/v1/instances/g/load", &load)?;
        }
        attach(&mut console, "g")?;
        self.client
            .send(&request("POST", "/v1/instances/g/start", ""))?;
        let byte = first_byte(&mut console)?;
        let time = begin.elapsed();
        self.client.receive()?;
        if byte != b'x' {
            return Err(format!("the guest has printed {byte}").into());
        }
        remove(&mut self.client, "g")?;
        Ok(time)
    }

    fn wait_for_stock(&mut self) -> Result<()> {
        if self.stock == 0 {
            return Ok(());
        }
        loop {
            let answer = self.client.ask("GET", "/v1/version", "")?;
            let version: serde_json::Value = serde_json::from_slice(&answer)?;
            if version["warm"]["ready"] == self.stock {
                thread::sleep(SETTLE);
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Asks for the console of an instance, which the rest of the connection is.
fn attach(client: &mut Client, name: &str) -> Result<()> {
    client.send(&format!(
        "GET /v1/instances/{name}/console HTTP/1.1\r\nHost: x\r\n\
         Connection: upgrade\r\nUpgrade: mkvmm-console\r\n\r\n"
    ))
}

/// Waits for the first byte of a console that was asked for.
fn first_byte(client: &mut Client) -> Result<u8> {
    let (status, _) = client.head()?;
    if status.split(' ').nth(1) != Some("101") {
        return Err(status.into());
    }
    let mut byte = [0];
    client.0.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn kernel(image: &Path) -> String {
    format!(r#""kernel":"{}","cmdline":"""#, image.display())
}

fn body(name: &str, image: Option<&Path>) -> String {
    let images = image.map(|image| format!(",{}", kernel(image)));
    let images = images.unwrap_or_default();
    format!(r#"{{"name":"{name}","memory":{MEMORY}{images}}}"#)
}

fn remove(client: &mut Client, name: &str) -> Result<()> {
    let path = format!("/v1/instances/{name}");
    client.ask("POST", &format!("{path}/kill"), r#"{"force":true}"#)?;
    client.ask("DELETE", &path, "")?;
    Ok(())
}

/// How often a second `clients` clients create a guest, see its first byte, kill
/// and delete it, and what others notice of that.
fn repeat(name: &str, guests: &Guests, clients: usize) -> Result<()> {
    let (stop, done) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let (mut looks, begin) = (Vec::new(), Instant::now());
    thread::scope(|scope| {
        let mut others = Vec::new();
        for number in 0..clients {
            others.push(scope.spawn(move || {
                let (name, mut client) = (format!("c{number}"), guests.server.client()?);
                while !stop.load(Ordering::Relaxed) {
                    let mut console = guests.server.client()?;
                    let create = body(&name, Some(&guests.image));
                    client.ask("POST", "/v1/instances", &create)?;
                    attach(&mut console, &name)?;
                    client.ask("POST", &format!("/v1/instances/{name}/start"), "")?;
                    first_byte(&mut console)?;
                    remove(&mut client, &name)?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        let looked: Result<()> = (|| {
            let mut client = guests.server.client()?;
            while begin.elapsed() < LOOP {
                let look = Instant::now();
                client.ask("GET", "/v1/pool", "")?;
                looks.push(look.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for other in others {
            let ended: Result<()> = other.join().map_err(|_panic| "a client has failed")?;
            ended?;
        }
        looked
    })?;
    looks.sort_unstable();
    let of = |percent: usize| looks[(looks.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{name}, {clients} clients: {:.0} guests a second; GET /v1/pool meanwhile: \
         median {:.3}, 90 % {:.3}, 99 % {:.3} ms",
        done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64(),
        of(50),
        of(90),
        of(99)
    );
    Ok(())
}

/// Builds the guest, as an ELF file and as bare bytes, and the C program.
fn build() -> Result<(PathBuf, PathBuf)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (image, floor) = (out.join("serve-guest.elf"), out.join("floor"));
    let run = |command: &mut Command| match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    };
    run(Command::new("cc")
        .args(["-nostdlib", "-static", PADDING])
        .arg("-Wl,-Ttext=0x200000,--build-id=none,-z,max-page-size=4096")
        .arg("-o")
        .args([&image, &here.join("guest.S")]))?;
    run(Command::new("objcopy")
        .args(["-O", "binary"])
        .args([&image, &image.with_extension("bin")]))?;
    run(Command::new("cc")
        .args(["-O2", "-o"])
        .args([&floor, &here.join("floor.c")]))?;
    Ok((image, floor))
}
