//! What those who look at a console cost: a guest that prints byte by byte, as Linux
//! does, with nobody, one and three `mkvmm console`; and `mkvmm run`, which prints all
//! consoles itself. Then a guest that prints 10 MiB to three of them, which must get
//! each byte.
//!
//! Not a criterion benchmark: what is measured happens in other processes.
//! `cargo bench -p mkvmm --bench console -- [ROUNDS]`; with `MKVMM_BIN` it measures that
//! binary instead of this tree's. It builds the guest with `cc`.

mod entry;
mod measured;
#[expect(dead_code, reason = "other benchmarks use the rest")]
mod served;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use measured::{Times, cc, host};
use served::{Client, Result, Server, binary, command_with};

/// The numbers of viewers.
const VIEWERS: [usize; 3] = [0, 1, 3];
/// The size of what a guest prints at a time.
const BLOCK: usize = 4096;
/// Blocks that are printed byte by byte: 208,896 bytes.
const BLOCKS: usize = 51;
/// Blocks of the long text: 10 MiB.
const LONG: usize = 2560;
/// How long viewers have to attach.
const SETTLE: Duration = Duration::from_millis(300);
/// How often the state of a guest is looked at.
const LOOK: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    entry::run("console", |words| {
        let rounds = words.iter().find_map(|word| word.parse().ok());
        measure(rounds.unwrap_or(5).max(1))
    })
}

/// The times of one number of viewers.
#[derive(Debug, Default)]
struct Row {
    guest: Times,
    worker: Times,
    manager: Times,
    viewer: Times,
    /// How often a viewer had something new.
    reads: usize,
}

fn measure(rounds: usize) -> Result<()> {
    let bytes = build(&[], BLOCKS)?;
    let strings = build(&["-DSTRING"], LONG)?;
    let mut rows = VIEWERS.map(|_| Row::default());
    let (mut run, mut run_reads) = (Times::default(), 0);
    for _ in 0..rounds {
        for (row, viewers) in rows.iter_mut().zip(VIEWERS) {
            one(&bytes, BLOCKS, viewers, row)?;
        }
        let (time, reads) = in_run(&bytes)?;
        run.push(time);
        run_reads = reads;
    }
    println!("{}, {rounds} rounds, medians and quartiles", host());
    println!("{} bytes, printed one by one:", BLOCK * BLOCKS);
    println!("viewers  what                    ms");
    for (row, viewers) in rows.iter().zip(VIEWERS) {
        println!("{viewers:7}  the guest's time   {}", row.guest);
        println!("{:7}  its process's CPU  {}", "", row.worker);
        println!("{:7}  the manager's CPU  {}", "", row.manager);
        if viewers > 0 {
            println!("{:7}  a viewer's CPU     {}", "", row.viewer);
            println!("{:7}  reads of a viewer  {:9}", "", row.reads);
        }
    }
    println!("    run  all in all         {run}");
    println!("{:7}  reads of its output{run_reads:9}", "");
    let [none, one_viewer, three] = &rows;
    for (row, name) in [(one_viewer, "one viewer"), (three, "three viewers")] {
        let more = row.guest.quantile(50) / none.guest.quantile(50) - 1.0;
        let cpu = (row.manager.quantile(50) + row.viewer.quantile(50)) / row.guest.quantile(50);
        println!(
            "{name}: {:+.1} % of the guest's time; manager and a viewer use {:.1} % of a CPU",
            more * 100.0,
            cpu * 100.0
        );
    }
    let mut long = Row::default();
    one(&strings, LONG, 3, &mut long)?;
    println!(
        "{} bytes to three viewers in{}, each byte of it; {} reads of a viewer",
        BLOCK * LONG,
        long.guest,
        long.reads
    );
    Ok(())
}

/// A guest that prints `blocks` to so many viewers.
fn one(image: &Path, blocks: usize, viewers: usize, row: &mut Row) -> Result<()> {
    let ring = (blocks * BLOCK).next_power_of_two();
    let server = Server::start(|socket| command_with(64 << 20, ring, socket))?;
    let mut client = server.client()?;
    let image = image.display();
    let body = format!(r#"{{"name":"g","memory":8388608,"kernel":"{image}","cmdline":""}}"#);
    client.ask("POST", "/v1/instances", &body)?;
    let mut watching = Vec::new();
    for _ in 0..viewers {
        let mut viewer = Command::new(binary())
            .args(["console", "g", "--socket"])
            .arg(&server.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = viewer.stdout.take().ok_or("no output")?;
        let reader = thread::spawn(move || read_all(out, blocks * BLOCK));
        watching.push((viewer, reader));
    }
    thread::sleep(SETTLE);
    let before = cpu(server.process.id())?;
    let viewers_before: Vec<Duration> = watching
        .iter()
        .map(|(viewer, _)| cpu(viewer.id()))
        .collect::<Result<_>>()?;
    client.ask("POST", "/v1/instances/g/start", "")?;
    let end = until_ended(&mut client)?;
    row.guest.push(end.lifetime);
    row.worker.push(end.cpu);
    thread::sleep(LOOK);
    row.manager
        .push(cpu(server.process.id())?.saturating_sub(before));
    for ((mut viewer, reader), before) in watching.into_iter().zip(viewers_before) {
        let used = cpu_until_read(&mut viewer, &reader)?;
        row.viewer.push(used.saturating_sub(before));
        viewer.kill()?;
        viewer.wait()?;
        row.reads = reader.join().map_err(|_panic| "a reader has failed")??;
    }
    server.end()?;
    Ok(())
}

/// The CPU time of a viewer once its reader has everything.
fn cpu_until_read(
    viewer: &mut Child,
    reader: &thread::JoinHandle<Result<usize>>,
) -> Result<Duration> {
    let begin = Instant::now();
    while !reader.is_finished() {
        if begin.elapsed() > Duration::from_secs(10) {
            viewer.kill()?;
            return Err("a viewer has not got everything".into());
        }
        thread::sleep(LOOK);
    }
    cpu(viewer.id())
}

/// How a guest ended.
struct End {
    lifetime: Duration,
    cpu: Duration,
}

fn until_ended(client: &mut Client) -> Result<End> {
    loop {
        let answer = client.ask("GET", "/v1/instances/g", "")?;
        let guest: serde_json::Value = serde_json::from_slice(&answer)?;
        let at = |stage: &str| guest["timeline"][stage].as_u64();
        if let (Some(exec), Some(ended)) = (at("exec"), at("ended")) {
            return Ok(End {
                lifetime: Duration::from_nanos(ended - exec),
                cpu: Duration::from_micros(guest["cpu_us"].as_u64().unwrap_or(0)),
            });
        }
        thread::sleep(LOOK);
    }
}

/// Reads `count` bytes, which must be what the guest prints; how many reads that took.
fn read_all(mut out: ChildStdout, count: usize) -> Result<usize> {
    let expected: Vec<u8> = (0..64)
        .flat_map(|number| {
            let text = "the quick brown fox jumps over the lazy dog, and once again.";
            format!("{number:02} {text}\n").into_bytes()
        })
        .collect();
    let (mut buffer, mut at, mut reads) = (vec![0; 1 << 20], 0, 0);
    while at < count {
        let got = out.read(&mut buffer)?;
        if got == 0 {
            return Err(format!("the end after {at} bytes").into());
        }
        reads += 1;
        for byte in &buffer[..got] {
            if *byte != expected[at % BLOCK] {
                return Err(format!("byte {at} is another one").into());
            }
            at += 1;
        }
    }
    Ok(reads)
}

/// The time of `mkvmm run` with the guest, and the number of reads of its output.
fn in_run(image: &Path) -> Result<(Duration, usize)> {
    let guest = format!("kernel={},memory=8M", image.display());
    let begin = Instant::now();
    let mut run = Command::new(binary())
        .args(["run", "--pool", "64M@4G", "--guest", &guest])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut out = run.stdout.take().ok_or("no output")?;
    let (mut buffer, mut reads) = (vec![0; 1 << 20], 0);
    while out.read(&mut buffer)? > 0 {
        reads += 1;
    }
    match run.wait()?.success() {
        true => Ok((begin.elapsed(), reads)),
        false => Err("run has failed".into()),
    }
}

/// The CPU time of all threads of a process.
fn cpu(process: u32) -> Result<Duration> {
    let mut used = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue; // it has ended
        };
        let running = text.split(' ').next().unwrap_or_default();
        used += Duration::from_nanos(running.parse()?);
    }
    Ok(used)
}

fn build(flags: &[&str], blocks: usize) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/print.S");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("print-{blocks}.elf"));
    let count = format!("-DCOUNT={blocks}");
    let link = "-Wl,-Ttext=0x200000,--build-id=none,-z,max-page-size=4096";
    let mut all = vec!["-nostdlib", "-static", link, &count];
    all.extend(flags);
    cc(&source, &out, &all)?;
    Ok(out)
}
