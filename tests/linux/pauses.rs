//! Guests that were paused for a minute, all at the same time, and that do not
//! notice.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::{Running, Server};

use crate::guest::SMALL;
use crate::kernels;
use crate::launch::TIMEOUT;

/// How long they are paused.
const PAUSE: Duration = Duration::from_secs(60);
/// How often, where all kernels have their turn, and where one has.
const ROUNDS: (usize, usize) = (10, 1);
/// Ticks that are waited for before a pause, and after it.
const TICKS: usize = 3;

/// What a guest says with every tick.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// Seconds of CLOCK_MONOTONIC.
    uptime: f64,
    /// Lines of its log about stalls and clocks that went wrong.
    stalls: u32,
}

fn clocks(console: &Running) -> Vec<Clock> {
    let text = console.stdout();
    let lines = text.lines().filter_map(|line| {
        let (uptime, stalls) = line
            .trim_end()
            .strip_prefix("mkvmm-guest: clock ")?
            .split_once(' ')?;
        let (uptime, stalls) = (uptime.parse().ok()?, stalls.parse().ok()?);
        Some(Clock { uptime, stalls })
    });
    lines.collect()
}

/// The longest time between two ticks that a guest has counted, at least one
/// second: many guests in an emulated host are slow.
fn period(clocks: &[Clock]) -> f64 {
    let gaps = clocks.windows(2).map(|two| two[1].uptime - two[0].uptime);
    gaps.fold(1.0, f64::max)
}

/// Runs a command that may take long, since the guests boot meanwhile.
fn ok(server: &Server, words: &[&str]) {
    let words = words.iter().copied();
    let run = server.command(words).timeout(TIMEOUT).finish();
    run.expect_code(0);
}

/// Pauses a guest of every kernel that has its turn.
pub fn guests_do_not_notice_that_they_were_paused(images: &Path) {
    let kernels = kernels::in_turn();
    let rounds = if kernels::are_all() {
        ROUNDS.0
    } else {
        ROUNDS.1
    };
    let longest = TIMEOUT + 2 * PAUSE * u32::try_from(rounds).expect("few");
    let server = Server::start_for("2G@0x100000000", longest);
    let names: Vec<String> = kernels.iter().map(|kernel| format!("k{kernel}")).collect();
    for (name, kernel) in names.iter().zip(&kernels) {
        let kernel = images
            .join(format!("vmlinuz-{kernel}"))
            .display()
            .to_string();
        let initrd = images.join(SMALL).display().to_string();
        let cmdline = "console=ttyS0 quiet mkvmm.brief mkvmm.end=hold mkvmm.tick=1 mkvmm.clock";
        let create = ["create", name, "--memory", "320M", "--cpus", "2"];
        let images = [
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--cmdline",
            cmdline,
        ];
        ok(&server, &[&create[..], &images].concat());
    }
    // None boots while the image of another is unpacked.
    for name in &names {
        ok(&server, &["start", name]);
    }
    let attach = |name: &String| {
        server
            .command(["console", name])
            .typed()
            .timeout(longest)
            .spawn()
    };
    let mut consoles: Vec<Running> = names.iter().map(attach).collect();
    let more = |consoles: &mut [Running]| {
        for console in consoles {
            let before = clocks(console).len();
            console.wait_until("ticks", |console| clocks(console).len() >= before + TICKS);
        }
    };
    more(&mut consoles);
    for round in 1..=rounds {
        for name in &names {
            ok(&server, &["pause", name]);
        }
        // And by how much a guest's clock may be ahead of its last tick.
        let before = consoles.iter().map(|console| {
            let clocks = clocks(console);
            (*clocks.last().expect("ticks"), period(&clocks))
        });
        let before: Vec<(Clock, f64)> = before.collect();
        let paused = Instant::now();
        thread::sleep(PAUSE);
        for name in &names {
            ok(&server, &["resume", name]);
        }
        more(&mut consoles);
        let now = names.iter().zip(&consoles);
        for ((name, console), (before, ahead)) in now.zip(before) {
            let (text, elapsed) = (console.stdout(), paused.elapsed());
            let after = *clocks(console).last().expect("ticks");
            // What it counted as its own: all but the pause.
            let most = before.uptime + ahead + (elapsed - PAUSE).as_secs_f64() + 2.0;
            assert!(
                before.uptime < after.uptime && after.uptime < most,
                "{name}: {after:?} {text}"
            );
            assert_eq!(after.stalls, 0, "{name}, pause {round}\n{text}");
        }
        eprintln!("linux: pause {round} of {} kernels: no stall", names.len());
    }
    for name in &names {
        ok(&server, &["kill", name, "--force"]);
        ok(&server, &["delete", name]);
    }
    server.expect_audit();
}
