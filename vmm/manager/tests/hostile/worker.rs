//! A worker that follows orders for a while, and then misbehaves.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use mkpool::AddrRange;
use mkpool::range::merge_adjacent;
use mkvmm_base::layout::LOW_WINDOW_SIZE;
use mkvmm_base::state::EndReason;
use mkvmm_base::violation::{Access, Violation};
use mkvmm_keeper::child;
use mkvmm_wire::channel::{self, Channel};
use mkvmm_wire::messages::{Done, Extent, LogLevel, Order, Refusal, RefusalKind, Report};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};
use rustix::process::{Signal, getpid, kill_process};

/// The environment variable with the directory of plans.
pub const PLANS: &str = "MKVMM_TEST_PLANS";

/// The moment at which a worker stops being honest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Instead of answering the order to prepare itself for any guest.
    Prepare,
    /// Instead of answering the load order.
    Load,
    /// Instead of answering the boot order.
    Boot,
    /// Once its guest is reported to run.
    Run,
}

/// Takes the plan of this child, if there is one: it holds for one boot of a
/// worker, and for as many other children as it has lines. In its place, the
/// number of the process is left.
pub fn plan() -> Option<(PathBuf, String)> {
    let role = child::role()?;
    // `mkvmm-worker: NAME`
    let label = env::args().next()?.split_once(": ")?.1.to_owned();
    let plans = PathBuf::from(env::var_os(PLANS)?);
    let path = match role.as_str() {
        "worker" => plans.join(label),
        role => plans.join(role),
    };
    let all = fs::read_to_string(&path).ok()?;
    fs::write(path.with_extension("pid"), std::process::id().to_string()).ok()?;
    match all.split_once('\n') {
        Some((_, rest)) if !rest.is_empty() => fs::write(&path, rest).ok()?,
        _ => fs::remove_file(&path).ok()?,
    }
    Some((path, all.lines().next()?.to_owned()))
}

/// Carries out the plan of a child that is no worker, instead of its work or
/// before it. Returns only where it is to do its work then.
pub fn instead(path: &Path, deed: &str) {
    fs::write(path.with_extension("deed"), deed).expect("the directory is there");
    let signal = |signal| kill_process(getpid(), signal).expect("it may");
    match deed {
        "stop" => signal(Signal::STOP),
        "die" => signal(Signal::KILL),
        "hang" => loop {
            thread::sleep(Duration::from_secs(60));
        },
        other => panic!("nobody knows how to {other}"),
    }
}

/// Carries out `plan`, which consists of a moment and a deed, and records it
/// beside `path`.
pub fn serve(path: &Path, plan: &str) -> ExitCode {
    let (when, deed) = plan.split_once(' ').expect("a moment and a deed");
    let socket = child::enter("worker", &[]).expect("it is a child");
    let raw = socket.try_clone().expect("there are descriptors");
    let mut channel = Channel::<Report, Order>::open(socket).expect("a channel");
    let mut memory = Vec::new();
    while let Some(received) = channel.recv(None).expect("the manager is honest") {
        let (due, answer) = match received.message {
            Order::Kvm(_) | Order::Identity(_) | Order::ChannelArea(_) => continue,
            Order::Memory(extents) => {
                memory.extend(extents);
                continue;
            }
            Order::Prepare(_) => (When::Prepare, Some(Done::Prepared)),
            Order::Load(_) => (When::Load, Some(Done::Loaded)),
            Order::Boot(_) => (
                When::Boot,
                Some(Done::Booted {
                    slots: slots(&memory),
                }),
            ),
            Order::Channel(_) => (When::Boot, Some(Done::Joined)),
            Order::LeaveChannel(_) => (When::Run, Some(Done::Left)),
            Order::Pause => (When::Run, Some(Done::Paused)),
            Order::Run => (When::Run, None),
            Order::PowerButton | Order::Registers { .. } | Order::State(_) => continue,
        };
        if format!("{due:?}") == when && deed == "pause" {
            // It goes on when it is told to, and is honest again.
            fs::write(path.with_extension("deed"), deed).expect("the directory is there");
            kill_process(getpid(), Signal::STOP).expect("it may stop itself");
        } else if format!("{due:?}") == when {
            fs::write(path.with_extension("deed"), deed).expect("the directory is there");
            return misbehave(deed, channel, &raw);
        }
        if let Some(answer) = answer {
            channel
                .send(&Report::Done(Ok(answer)), &[], None)
                .expect("the manager reads");
        }
    }
    ExitCode::SUCCESS
}

/// Returns the slots that an honest worker reports for the memory it received.
fn slots(memory: &[Extent]) -> Vec<Extent> {
    let range = |e: &Extent| AddrRange::with_size(e.start, e.len).expect("a range");
    let merged = merge_adjacent(memory.iter().map(range));
    let low = Extent {
        start: 0,
        len: LOW_WINDOW_SIZE,
    };
    let extent = |r: &AddrRange| Extent {
        start: r.start(),
        len: r.size(),
    };
    std::iter::once(low)
        .chain(merged.iter().map(extent))
        .collect()
}

fn misbehave(deed: &str, mut channel: Channel<Report, Order>, raw: &OwnedFd) -> ExitCode {
    let packet = |bytes: &[u8]| {
        rustix::net::send(raw, bytes, SendFlags::NOSIGNAL).expect("the manager reads");
    };
    let line = |text: String| Report::Log {
        level: LogLevel::Error,
        text,
    };
    match deed {
        "garbage" => packet(&[0xa5; 99]),
        "nothing" => packet(&[]),
        "too much" => packet(&vec![0; channel::MESSAGE_MAX + 1]),
        "another number" => {
            let report = channel::encode(7_777, 0, &line("hello".to_owned()));
            packet(&report.expect("it can be encoded"));
        }
        "descriptors" => send_descriptors(raw),
        "another answer" => {
            let slots = vec![Extent {
                start: 0,
                len: u64::MAX,
            }];
            let answer = Report::Done(Ok(Done::Booted { slots }));
            channel.send(&answer, &[], None).expect("the manager reads");
        }
        "an insult" => {
            let text = "\x1b[2J".repeat(10_000);
            let answer = Report::Done(Err(Refusal {
                text,
                kind: RefusalKind::Failure,
            }));
            channel.send(&answer, &[], None).expect("the manager reads");
        }
        "an end" => {
            let end = Report::Ended(EndReason::Reboot);
            channel.send(&end, &[], None).expect("the manager reads");
        }
        "hang up" => rustix::net::shutdown(raw, Shutdown::Both).expect("it is a socket"),
        "stop" => kill_process(getpid(), Signal::STOP).expect("it may stop itself"),
        "sleep" => {}
        "spin" => loop {
            std::hint::spin_loop();
        },
        "exit" => return ExitCode::SUCCESS,
        "exit 3" => return ExitCode::from(3),
        "lines" => flood(&mut channel, |number| line(format!("{number} \x1b[2J"))),
        "long lines" => flood(&mut channel, |_| line("x".repeat(180_000))),
        "noise" => {
            let noise = [0x1b; 64 << 10];
            for _ in 0..1024 {
                io::stdout().write_all(&noise).expect("it leads nowhere");
                io::stderr().write_all(&noise).expect("it leads nowhere");
            }
        }
        "violations" => flood(&mut channel, |number| Report::Violation {
            violation: Violation {
                addr: number,
                len: 8,
                access: Access::Write,
            },
            last_reported: false,
        }),
        "marks" => flood(&mut channel, |at| Report::Mark {
            at,
            text: "x".to_owned(),
        }),
        other => panic!("nobody knows how to {other}"),
    }
    // It lives on until it is killed.
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

/// Sends as fast as the manager receives.
fn flood(channel: &mut Channel<Report, Order>, report: impl Fn(u64) -> Report) {
    for number in 0.. {
        if channel.send(&report(number), &[], None).is_err() {
            return;
        }
    }
}

/// Sends a valid report, with an unexpected descriptor.
fn send_descriptors(raw: &OwnedFd) {
    let report = Report::Log {
        level: LogLevel::Info,
        text: "a gift".to_owned(),
    };
    let packet = channel::encode(0, 0, &report).expect("it can be encoded");
    let gift = [raw.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(
        control.push(SendAncillaryMessage::ScmRights(&gift)),
        "there is room"
    );
    let parts = [io::IoSlice::new(&packet)];
    rustix::net::sendmsg(raw, &parts, &mut control, SendFlags::NOSIGNAL)
        .expect("the manager reads");
}
