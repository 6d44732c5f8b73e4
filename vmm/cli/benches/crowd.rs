//! Many guests in one `mkvmm serve`: what each costs, what the end of one costs
//! the others, and how long nobody answers after the manager was killed.
//!
//! Not a criterion benchmark: what is measured happens in other processes.
//! `cargo bench -p mkvmm --bench crowd -- density|deaths|adoption [N]`; with `MKVMM_BIN`
//! it measures that binary instead of this tree's.

mod entry;
mod served;

use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use served::{Client, Result, Server, command, wait_until_ready};

/// Memory of each guest.
const MEMORY: u64 = 8 << 20;
/// How long guests are left alone before they are measured.
const SETTLE: Duration = Duration::from_secs(3);
/// How often the manager is killed.
const ADOPTIONS: usize = 11;
/// From one death to the next.
const PAUSE: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    entry::run("crowd", |words| {
        let count = words.get(1).and_then(|word| word.parse().ok());
        match words.first().map(String::as_str) {
            Some("density") => density(count.unwrap_or(1000)),
            Some("deaths") => deaths(count.unwrap_or(200)),
            Some("adoption") => adoption(count.unwrap_or(1000)),
            _ => Err("say density, deaths or adoption".into()),
        }
    })
}

/// A VMM that serves, with guests that wait for input.
struct Crowd(Server);

impl Deref for Crowd {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Crowd {
    fn start(count: usize) -> Result<Self> {
        let server = Server::start(|socket| command_for(count, socket))?;
        let mut client = server.client()?;
        for number in 0..count {
            make(&mut client, number)?;
        }
        Ok(Self(server))
    }

    fn workers(&self) -> Result<Vec<PathBuf>> {
        let parent = format!("PPid:\t{}", self.process.id());
        let mut workers = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            if status.lines().any(|line| line == parent) {
                workers.push(path);
            }
        }
        Ok(workers)
    }

    /// The numbers of all processes of guests.
    fn pids(&self) -> Result<Vec<String>> {
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(self.workers()?.into_iter().filter_map(name).collect())
    }
}

/// Returns the command of a VMM for `count` guests.
fn command_for(count: usize, socket: &Path) -> Command {
    command((count as u64 + 1) * MEMORY, socket)
}

fn make(client: &mut Client, number: usize) -> Result<()> {
    let body =
        format!(r#"{{"name":"g{number}","memory":{MEMORY},"kernel":"probe","cmdline":"shell"}}"#);
    client.ask("POST", "/v1/instances", &body)?;
    client.ask("POST", &format!("/v1/instances/g{number}/start"), "")?;
    Ok(())
}

/// How long each of `count` requests takes.
fn time(client: &mut Client, path: &str, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        client.ask("GET", path, "")?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// How long nobody answers after the manager of `count` guests was killed and the
/// next one started at once.
fn adoption(count: usize) -> Result<()> {
    let directory = env::temp_dir().join(format!("mkvmm-crowd-{}", std::process::id()));
    let socket = directory.with_extension("sock");
    let start = || {
        let mut command = command_for(count, &socket);
        command.arg("--state-dir").arg(&directory);
        command.spawn()
    };
    let mut server = Server {
        process: start()?,
        socket: socket.clone(),
    };
    wait_until_ready(&mut server.process)?;
    let mut client = server.client()?;
    for number in 0..count {
        make(&mut client, number)?;
    }
    thread::sleep(SETTLE);
    let mut times = Vec::new();
    for _ in 0..ADOPTIONS {
        let begin = Instant::now();
        server.process.kill()?;
        server.process.wait()?;
        server.process = start()?;
        let answer = loop {
            if let Ok(answer) = server
                .client()
                .and_then(|mut client| client.ask("GET", "/v1/pool", ""))
            {
                break answer;
            }
            thread::sleep(Duration::from_micros(200));
        };
        times.push(begin.elapsed());
        let answer = String::from_utf8(answer)?;
        if !answer.contains(&format!("\"instances\":{count}")) {
            return Err(format!("{answer} after the kill").into());
        }
        // What it has left to do is not part of the next round.
        thread::sleep(SETTLE);
    }
    times.sort_unstable();
    println!(
        "{count} guests: GET /v1/pool is answered {:.1?} after the kill (median of {ADOPTIONS}), {:.1?} at most",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    server.end()?;
    fs::remove_dir_all(directory)?;
    Ok(())
}

/// What each of `count` idle guests costs.
fn density(count: usize) -> Result<()> {
    let begin = Instant::now();
    let server = Crowd::start(count)?;
    println!("{count} guests made and started in {:.1?}", begin.elapsed());
    thread::sleep(SETTLE);
    let workers = server.workers()?;
    if workers.len() != count {
        return Err(format!("{} processes of {count} guests", workers.len()).into());
    }
    let (mut own, mut tables, mut guest, mut threads) = (vec![], vec![], vec![], vec![]);
    for worker in &workers {
        let (of_process, of_guest) = shares(&fs::read_to_string(worker.join("smaps"))?);
        own.push(of_process);
        guest.push(of_guest);
        let status = fs::read_to_string(worker.join("status"))?;
        tables.push(number(&status, "VmPTE:"));
        threads.push(number(&status, "Threads:"));
    }
    let both: Vec<u64> = own.iter().zip(&tables).map(|(a, b)| a + b).collect();
    println!("of each worker                            median   most");
    for (what, mut values) in [
        ("proportional set size, KiB", own),
        ("page tables, KiB", tables),
        ("both, KiB", both),
        ("memory of its guest, KiB", guest),
        ("threads", threads),
    ] {
        values.sort_unstable();
        println!(
            "  {what:36} {:8} {:8}",
            values[values.len() / 2],
            values[values.len() - 1]
        );
    }
    let manager = format!("/proc/{}", server.process.id());
    let rollup = fs::read_to_string(format!("{manager}/smaps_rollup"))?;
    let status = fs::read_to_string(format!("{manager}/status"))?;
    println!(
        "manager: {} KiB of proportional set size, {} KiB of page tables, {} threads",
        number(&rollup, "Pss:"),
        number(&status, "VmPTE:"),
        number(&status, "Threads:")
    );
    let mut client = server.client()?;
    for path in [
        "/v1/pool",
        "/v1/instances/g0",
        "/v1/instances",
        "/v1/metrics",
    ] {
        let times = time(&mut client, path, 51)?;
        println!(
            "GET {path}: {:.3?} (median of {})",
            times[times.len() / 2],
            times.len()
        );
    }
    println!("end of serve: {:.1?}", server.0.end()?);
    Ok(())
}

/// KiB of what a process has for itself, and of its guest's memory.
fn shares(smaps: &str) -> (u64, u64) {
    let (mut own, mut guest, mut is_guest) = (0, 0, false);
    for line in smaps.lines() {
        if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            is_guest = line.contains("memfd:mkvmm-memory");
        } else if line.starts_with("Pss:") {
            let share = number(line, "Pss:");
            *if is_guest { &mut guest } else { &mut own } += share;
        }
    }
    (own, guest)
}

fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// What the deaths of guests, and their boots, cost whoever looks at the pool
/// meanwhile, among `count`.
fn deaths(count: usize) -> Result<()> {
    let server = Crowd::start(count)?;
    thread::sleep(SETTLE);
    let mut client = server.client()?;
    let pids = server.pids()?;
    println!("GET /v1/pool among {count} guests, every millisecond");
    let control = looks_during(&server, || {
        thread::sleep(PAUSE * u32::try_from(count)?);
        Ok(())
    })?;
    print_times("nothing else", &control);
    let killed = looks_during(&server, || {
        each(count, |number| {
            let path = format!("/v1/instances/g{number}/kill");
            client.ask("POST", &path, r#"{"force":true}"#)
        })
    })?;
    print_times("kill --force", &killed);
    let mut start =
        |number: usize| client.ask("POST", &format!("/v1/instances/g{number}/start"), "");
    let started = looks_during(&server, || each(count, &mut start))?;
    print_times("start", &started);
    let shot = looks_during(&server, || {
        let now = server.pids()?;
        each(count, |number| {
            let pid = now.get(number).ok_or("no process")?;
            Ok(Command::new("kill").arg("-9").arg(pid).status()?)
        })
    })?;
    print_times("SIGKILL from outside", &shot);
    if server.pids()?.iter().any(|pid| pids.contains(pid)) {
        return Err("somebody has survived".into());
    }
    println!("end of serve: {:.1?}", server.0.end()?);
    Ok(())
}

/// Does something to each guest, with pauses.
fn each<T>(count: usize, mut deed: impl FnMut(usize) -> Result<T>) -> Result<()> {
    for number in 0..count {
        let next = Instant::now() + PAUSE;
        deed(number)?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// How long looks at the pool take while `work` is done.
fn looks_during(server: &Crowd, work: impl FnOnce() -> Result<()>) -> Result<Vec<Duration>> {
    let (stop, mut client) = (&AtomicBool::new(false), server.client()?);
    thread::scope(|scope| {
        let looker = scope.spawn(move || {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                client
                    .ask("GET", "/v1/pool", "")
                    .map_err(|error| error.to_string())?;
                times.push(begin.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            times.sort_unstable();
            Ok::<_, String>(times)
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let times = looker.join().map_err(|_panic| "the looker has failed")??;
        done.map(|()| times)
    })
}

fn print_times(what: &str, times: &[Duration]) {
    let of = |thousandths: usize| times[(times.len() - 1) * thousandths / 1000];
    println!(
        "  {what:20} median {:8.3?}  90 % {:8.3?}  99 % {:8.3?}  most {:8.3?}  of {}",
        of(500),
        of(900),
        of(990),
        of(1000),
        times.len()
    );
}
