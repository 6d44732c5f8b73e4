//! How what guests cost grows with their number, and what they cost together.
//!
//! `thousands [N] [--svg FILE]`: N (4000) idle guests of 4 MiB in one `mkvmm serve`,
//! created and started one after the other: what each hundred takes, how long lists
//! and metrics take, what all of them use while nobody does anything, and how long
//! their ends take. `fleet [N]`: N (16) guests launched by `POST /v1/apply`, and the
//! same one after the other, alternately.
//!
//! Not a criterion benchmark: what is measured happens in other processes.
//! `cargo bench -p mkvmm --bench scale -- thousands|fleet …`; with `MKVMM_BIN` it
//! measures that binary instead of this tree's.

mod entry;
mod measured;
mod served;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use measured::{Times, cc, host};
use served::{Client, Result, Server, command};
use svg::Document;
use svg::node::element::{Circle, Line, Polyline, Text};

/// Memory of each idle guest.
const SMALL: u64 = 4 << 20;
/// How many are created between two times.
const STEP: usize = 100;
/// How long guests are left alone before they are measured.
const SETTLE: Duration = Duration::from_secs(2);
/// How long nobody does anything.
const IDLE: Duration = Duration::from_secs(4);
/// How often a list is asked for.
const LISTS: usize = 15;
/// How many guests end one after the other.
const KILLS: usize = 50;
/// How many end at once, and by how many clients.
const ENDS: usize = 1000;
const CLIENTS: usize = 16;
/// How often a fleet is launched.
const LAUNCHES: usize = 9;
/// Memory of each guest of a fleet.
const LARGE: u64 = 128 << 20;
/// Bytes of the larger kernel.
const PADDING: &str = "-DPADDING=33554432";

fn main() -> ExitCode {
    entry::run("scale", |words| {
        let mut words = words.iter();
        let (mut what, mut count, mut picture) = ("", None, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--svg" => picture = words.next().map(PathBuf::from),
                word => match word.parse::<usize>() {
                    Ok(number) => count = Some(number.max(1)),
                    Err(_) => what = word,
                },
            }
        }
        match what {
            "thousands" => thousands(count.unwrap_or(4000), picture.as_deref()),
            "fleet" => fleet(count.unwrap_or(16)),
            _ => Err("say thousands or fleet".into()),
        }
    })
}

fn create(client: &mut Client, number: usize) -> Result<()> {
    let body =
        format!(r#"{{"name":"g{number}","memory":{SMALL},"kernel":"probe","cmdline":"shell"}}"#);
    client.ask("POST", "/v1/instances", &body)?;
    client.ask("POST", &format!("/v1/instances/g{number}/start"), "")?;
    Ok(())
}

fn kill(client: &mut Client, number: usize) -> Result<()> {
    let path = format!("/v1/instances/g{number}/kill");
    client.ask("POST", &path, r#"{"force":true}"#)?;
    Ok(())
}

fn thousands(count: usize, picture: Option<&Path>) -> Result<()> {
    println!("{}", host());
    let server = Server::start(|socket| command((count as u64 + 1) * SMALL, socket))?;
    let mut client = server.client()?;
    let empty = available()?;
    let (mut each, mut times, mut begin) = (Vec::new(), Times::default(), Instant::now());
    let (mut first, mut last) = (Times::default(), Times::default());
    for number in 0..count {
        let start = Instant::now();
        create(&mut client, number)?;
        let time = start.elapsed();
        times.push(time);
        if number < STEP {
            first.push(time);
        }
        if number + STEP >= count {
            last.push(time);
        }
        let guests = number + 1;
        if guests.is_multiple_of(STEP) || guests == count {
            each.push((
                guests,
                times.quantile(50),
                (empty - available()?) / guests as u64,
            ));
            times = Times::default();
        }
        if guests == STEP || guests == 1000 || guests == count {
            let took = begin.elapsed();
            look(&server, &mut client, guests)?;
            let memory = (empty - available()?) / guests as u64;
            println!(
                "  since the last look {took:.1?}; {memory} KiB of the host's memory each, its own \
                 included"
            );
            begin = Instant::now();
        }
    }
    println!("the first hundred, each{first}");
    println!("the last hundred, each {last}");
    println!(
        "  {:.2} x the first",
        last.quantile(50) / first.quantile(50)
    );
    if let Some(path) = picture {
        fs::write(path, draw(&each).to_string())?;
    }
    ends(server, client, count)
}

/// What the guests that are there cost while nobody, and while somebody looks.
fn look(server: &Server, client: &mut Client, count: usize) -> Result<()> {
    thread::sleep(SETTLE);
    let manager = server.process.id();
    let before = (cpu(manager)?, cpu_of_children(manager)?);
    let begin = Instant::now();
    thread::sleep(IDLE);
    let share = |used: Duration| used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    let own = share(cpu(manager)?.saturating_sub(before.0));
    let others = share(cpu_of_children(manager)?.saturating_sub(before.1));
    let descriptors = fs::read_dir(format!("/proc/{manager}/fd"))?.count();
    let maps = fs::read_to_string(format!("/proc/{manager}/maps"))?;
    println!("{count} guests:");
    println!("  idle: {own:.3} % of a CPU for the manager, {others:.3} % for all guests");
    println!(
        "  the manager has {descriptors} descriptors and {} mappings",
        maps.lines().count()
    );
    for path in ["/v1/pool", "/v1/instances", "/v1/metrics"] {
        let mut times = Times::default();
        let mut size = 0;
        for _ in 0..LISTS {
            let start = Instant::now();
            size = client.ask("GET", path, "")?.len();
            times.push(start.elapsed());
        }
        println!("  GET {path:14}{times}, {size} bytes");
    }
    Ok(())
}

fn ends(server: Server, mut client: Client, count: usize) -> Result<()> {
    let mut kills = Times::default();
    let one_by_one = KILLS.min(count);
    for number in 0..one_by_one {
        let start = Instant::now();
        kill(&mut client, number)?;
        kills.push(start.elapsed());
    }
    println!("kill, one after the other{kills}");
    let together = ENDS.min(count - one_by_one);
    let begin = Instant::now();
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for first in 0..CLIENTS {
            let mut client = server.client()?;
            clients.push(scope.spawn(move || {
                let mut mine = (first..together).step_by(CLIENTS);
                mine.try_for_each(|number| kill(&mut client, one_by_one + number))
            }));
        }
        for client in clients {
            client.join().map_err(|_panic| "a client has failed")??;
        }
        Result::Ok(())
    })?;
    println!(
        "kill of {together} by {CLIENTS} clients: {:.2?}",
        begin.elapsed()
    );
    let left = count - one_by_one - together;
    let took = server.end()?;
    println!("SIGTERM of serve with {left} guests: {took:.2?}");
    // Once more, with as many as the goal names.
    let server = Server::start(|socket| command((ENDS as u64 + 1) * SMALL, socket))?;
    let mut client = server.client()?;
    for number in 0..ENDS.min(count) {
        create(&mut client, number)?;
    }
    thread::sleep(SETTLE);
    let took = server.end()?;
    println!(
        "SIGTERM of serve with {} guests: {took:.2?}",
        ENDS.min(count)
    );
    Ok(())
}

/// KiB of memory that the host could still give.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no memory")?.parse()?)
}

/// The CPU time of a process, of all its threads together.
fn cpu(process: u32) -> Result<Duration> {
    let mut used = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let running = text.split(' ').next().unwrap_or_default();
        used += Duration::from_nanos(running.parse().unwrap_or(0));
    }
    Ok(used)
}

fn cpu_of_children(parent: u32) -> Result<Duration> {
    let list = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(list)?;
    let children = children.split_whitespace();
    children.map(|child| cpu(child.parse()?)).sum::<Result<_>>()
}

/// Draws the time and the memory of each guest by their number.
fn draw(each: &[(usize, f64, u64)]) -> Document {
    const LEFT: f64 = 60.0;
    const WIDTH: f64 = 560.0;
    const HEIGHT: f64 = 220.0;
    const TOP: f64 = 30.0;
    let most = each.iter().map(|(count, ..)| *count).max().unwrap_or(1) as f64;
    let slowest = each.iter().map(|(_, time, _)| *time).fold(1.0, f64::max);
    let largest = each.iter().map(|(.., memory)| *memory).max().unwrap_or(1) as f64;
    let x = |count: usize| LEFT + WIDTH * count as f64 / most;
    let y = |share: f64| TOP + HEIGHT * (1.0 - share);
    let text = |x: f64, y: f64, words: String| Text::new(words).set("x", x).set("y", y);
    let mut document = Document::new()
        .set("viewBox", (0, 0, 700, 300))
        .set("font-family", "sans-serif")
        .set("font-size", 12);
    for share in [0.0, 0.5, 1.0] {
        let line = Line::new()
            .set("x1", LEFT)
            .set("x2", LEFT + WIDTH)
            .set("y1", y(share))
            .set("y2", y(share))
            .set("stroke", "#ddd");
        let label = format!("{:.1} ms", slowest * share);
        let memory = format!("{:.0} KiB", largest * share);
        document = document
            .add(line)
            .add(text(4.0, y(share) + 4.0, label))
            .add(text(LEFT + WIDTH + 6.0, y(share) + 4.0, memory).set("fill", "#37a"));
    }
    for (colour, share) in [
        (
            "#333",
            &(|(_, time, _): &(usize, f64, u64)| time / slowest) as &dyn Fn(&_) -> f64,
        ),
        ("#37a", &|(_, _, memory): &(usize, f64, u64)| {
            *memory as f64 / largest
        }),
    ] {
        let points: Vec<(f64, f64)> = each.iter().map(|one| (x(one.0), y(share(one)))).collect();
        let list: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let line = Polyline::new()
            .set("points", list.join(" "))
            .set("fill", "none")
            .set("stroke", colour);
        document = document.add(line);
        for (x, y) in points {
            let point = Circle::new().set("cx", x).set("cy", y).set("r", 2);
            document = document.add(point.set("fill", colour));
        }
    }
    let words = format!("guests, up to {most}; black: ms to create and start one (median of a");
    document
        .add(text(LEFT, TOP + HEIGHT + 20.0, words))
        .add(text(
            LEFT,
            TOP + HEIGHT + 36.0,
            "hundred); blue: the host's memory for each, its guest's included".to_owned(),
        ))
}

/// Launches of the same guests, together and one after the other.
fn fleet(count: usize) -> Result<()> {
    println!(
        "{}, {count} guests, {LAUNCHES} launches, medians and quartiles",
        host()
    );
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/guest.S");
    let image = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("scale-guest.elf");
    let link = "-Wl,-Ttext=0x200000,--build-id=none,-z,max-page-size=4096";
    cc(&here, &image, &["-nostdlib", "-static", PADDING, link])?;
    let server = Server::start(|socket| command((count as u64 + 1) * LARGE, socket))?;
    let mut client = server.client()?;
    for (name, memory, kernel) in [
        ("the probe in 8 MiB", 8 << 20, "probe".to_owned()),
        (
            "a kernel of 32 MiB in 128 MiB",
            LARGE,
            image.display().to_string(),
        ),
    ] {
        let body = |number: usize| {
            format!(
                r#"{{"name":"g{number}","memory":{memory},"kernel":"{kernel}","cmdline":"shell"}}"#
            )
        };
        let (mut together, mut apart) = (Times::default(), Times::default());
        for round in 0..=LAUNCHES {
            let bodies: Vec<String> = (0..count).map(body).collect();
            let all = format!(r#"{{"instances":[{}]}}"#, bodies.join(","));
            let begin = Instant::now();
            client.ask("POST", "/v1/apply", &all)?;
            let first = begin.elapsed();
            remove(&mut client, count)?;
            let begin = Instant::now();
            for (number, body) in bodies.iter().enumerate() {
                client.ask("POST", "/v1/instances", body)?;
                client.ask("POST", &format!("/v1/instances/g{number}/start"), "")?;
            }
            let second = begin.elapsed();
            remove(&mut client, count)?;
            // The first guest reads the image.
            if round > 0 {
                together.push(first);
                apart.push(second);
            }
        }
        let ratio = apart.quantile(50) / together.quantile(50);
        println!(
            "{name}: together{together}, one after the other{apart}: {ratio:.2} times as fast"
        );
    }
    server.end()?;
    Ok(())
}

/// Ends and deletes all guests.
fn remove(client: &mut Client, count: usize) -> Result<()> {
    for number in 0..count {
        let path = format!("/v1/instances/g{number}");
        // It may have ended by itself.
        let _ = client.ask("POST", &format!("{path}/kill"), r#"{"force":true}"#);
        client.ask("DELETE", &path, "")?;
    }
    Ok(())
}
