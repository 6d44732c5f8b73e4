//! Four guests that end in four ways, beside one that goes on.
//!
//! In this process, through the library: `mkvmm run` kills all guests or none.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mkpool::AddrRange;
use mkvmm::event_loop::Supervisor;
use mkvmm::fleet::Fleet;
use mkvmm::host_pool::HostPool;
use mkvmm::instance::state::EndReason;
use mkvmm::kvm::{Host, kick};
use mkvmm::reservation::ReservationConfig;
use mkvmm::spec::{InstanceSpec, resolve};
use mkvmm_test_harness::Consoles;

use crate::guest::Guest;
use crate::guest_report::GuestReport;
use crate::launch::TIMEOUT;

const POOL_START: u64 = 0x1_0000_0000;
const POOL_SIZE: u64 = 640 << 20;

/// Ended from outside, once it has said that it stays.
const VICTIM: Guest = Guest::new("victim", "6.12", 128).end("hold");
/// Says `tick N` every second, for ever.
const NEIGHBOUR: Guest = Guest::new("neighbour", "6.1", 112).end("hold");
/// All of them, and how each is to end.
const GUESTS: [(Guest, EndReason); 5] = [
    (NEIGHBOUR, EndReason::Killed),
    (
        Guest::new("turns-off", "6.1", 112).end("poweroff"),
        EndReason::Poweroff,
    ),
    (
        Guest::new("restarts", "6.12", 128).end("reboot"),
        EndReason::Reboot,
    ),
    (
        Guest::new("panics", "6.1", 112).end("panic"),
        EndReason::Panic,
    ),
    (VICTIM, EndReason::Killed),
];
/// So many ticks of the neighbour must follow the last end.
const TICKS: usize = 3;

/// A property of what was watched.
pub struct Check {
    /// The last part of a test's name.
    pub name: &'static str,
    /// Panics where it does not hold.
    pub holds: fn(&Ends),
}

/// What must hold.
pub const CHECKS: &[Check] = &[
    Check {
        name: "each_guest_ends_with_a_reason_of_its_own",
        holds: each_guest_ends_with_a_reason_of_its_own,
    },
    Check {
        name: "each_guest_had_reached_its_init",
        holds: each_guest_had_reached_its_init,
    },
    Check {
        name: "the_neighbour_goes_on_after_every_end",
        holds: the_neighbour_goes_on_after_every_end,
    },
    Check {
        name: "a_console_stays_readable_after_the_end",
        holds: a_console_stays_readable_after_the_end,
    },
    Check {
        name: "the_pool_is_whole_again",
        holds: the_pool_is_whole_again,
    },
];

/// How a guest ended.
#[derive(Debug)]
struct End {
    name: String,
    reason: EndReason,
    tail: String,
    /// Ticks of the neighbour until then.
    ticks: usize,
}

/// What was watched.
#[derive(Debug)]
pub struct Ends {
    ends: Vec<End>,
    text: String,
    avail: u64,
    problems: Vec<String>,
}

/// What the consoles' thread writes into.
#[derive(Debug, Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn has(&self, line: &str) -> bool {
        self.text().lines().any(|l| l == line)
    }

    fn ticks(&self) -> usize {
        let tick = format!("{}: mkvmm-guest: tick ", NEIGHBOUR.name);
        let text = self.text();
        text.lines().filter(|l| l.starts_with(&tick)).count()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ends {
    /// Launches the guests and watches them to their ends.
    ///
    /// # Errors
    /// When they cannot be launched or do not end in time.
    pub fn watch(images: &Path) -> Result<Self, String> {
        let started = Instant::now();
        let text = |error: &dyn std::error::Error| error.to_string();
        kick::install().map_err(|error| text(&error))?;
        let parse = |(guest, _): &(Guest, _)| guest.spec(images).parse::<InstanceSpec>();
        let specs: Result<Vec<_>, _> = GUESTS.iter().map(parse).collect();
        let configs = resolve(&specs.map_err(|error| text(&error))?);
        let configs = configs.map_err(|error| text(&error))?;
        let range = AddrRange::with_size(POOL_START, POOL_SIZE).map_err(|error| text(&error))?;
        let pool = HostPool::new(range, ReservationConfig::default(), &|_| ());
        let host = Host::open().map_err(|error| text(&error))?;
        let built = Fleet::build(host, pool.map_err(|error| text(&error))?, &configs);
        let (mut fleet, receiver) = built.map_err(|error| text(&error))?;

        let screen = Screen::default();
        let (queue, mut out) = (Arc::clone(fleet.console()), screen.clone());
        let writer = thread::spawn(move || queue.drain(&mut out));
        fleet.start().map_err(|error| text(&error))?;
        let mut ends: Vec<End> = Vec::new();
        let mut victim_killed = false;
        while !fleet.is_done() {
            if started.elapsed() > TIMEOUT {
                return Err(format!("{ends:#?}\n{}", screen.text()));
            }
            let soon = Instant::now() + Duration::from_secs(1);
            match receiver.recv_until(soon) {
                Some(event) => fleet.on_event(event),
                None => fleet.on_tick(),
            }
            for outcome in &fleet.outcomes()[ends.len()..] {
                ends.push(End {
                    name: outcome.name.to_string(),
                    reason: outcome.reason,
                    tail: String::from_utf8_lossy(&outcome.console_tail).into_owned(),
                    ticks: screen.ticks(),
                });
            }
            if !victim_killed && screen.has("victim: mkvmm-guest: hold") {
                kill(&fleet, VICTIM.name);
                victim_killed = true;
            }
            let last = ends.last().map_or(0, |end| end.ticks);
            if ends.len() == GUESTS.len() - 1 && screen.ticks() >= last + TICKS {
                kill(&fleet, NEIGHBOUR.name);
            }
        }
        // The queue is closed: the thread writes what is left and ends.
        let written = writer.join().expect("the console thread does not panic");
        written.map_err(|error| error.to_string())?;
        eprintln!("linux: ends took {:.1} s", started.elapsed().as_secs_f64());
        Ok(Self {
            ends,
            text: screen.text(),
            avail: fleet.pool().avail(),
            problems: fleet.audit().problems,
        })
    }

    fn of(&self, guest: &Guest) -> &End {
        let mut ends = self.ends.iter();
        let end = ends.find(|end| end.name == guest.name);
        end.unwrap_or_else(|| panic!("{} did not end", guest.name))
    }
}

fn kill(fleet: &Fleet, name: &str) {
    let mut guests = fleet.guests();
    if let Some(guest) = guests.find(|g| g.name().as_str() == name) {
        guest.kill();
    }
}

fn each_guest_ends_with_a_reason_of_its_own(ends: &Ends) {
    for (guest, reason) in &GUESTS {
        assert_eq!(
            ends.of(guest).reason,
            *reason,
            "{}\n{}",
            guest.name,
            ends.text
        );
    }
}

fn each_guest_had_reached_its_init(ends: &Ends) {
    let names = GUESTS.map(|(guest, _)| guest.name);
    let consoles = Consoles::parse(&ends.text, &names).expect("whole lines of guests");
    for name in names {
        let report = GuestReport::parse(consoles.of(name));
        let report = report.unwrap_or_else(|why| panic!("{name}: {why}\n{}", ends.text));
        assert_eq!(report.nproc, 1, "{name}");
    }
}

/// Ticks are numbered: none is lost while the others go.
fn the_neighbour_goes_on_after_every_end(ends: &Ends) {
    let tick = format!("{}: mkvmm-guest: tick ", NEIGHBOUR.name);
    let ticks = ends.text.lines().filter_map(|l| l.strip_prefix(&tick));
    let ticks: Vec<usize> = ticks.map(|n| n.parse().expect("a number")).collect();
    let counted: Vec<usize> = (1..=ticks.len()).collect();
    assert_eq!(ticks, counted, "{}", ends.text);
    let (neighbour, others) = ends.ends.split_last().expect("they ended");
    assert_eq!(neighbour.name, NEIGHBOUR.name, "it was the last");
    for other in others {
        assert!(other.ticks + TICKS <= ticks.len(), "{other:?}");
    }
}

fn a_console_stays_readable_after_the_end(ends: &Ends) {
    for (guest, _) in &GUESTS {
        let tail = &ends.of(guest).tail;
        let said = format!("mkvmm-guest: {}", guest.end);
        assert!(tail.contains(&said), "{}: {tail}", guest.name);
    }
    assert!(ends.of(&GUESTS[3].0).tail.contains("Kernel panic"));
}

fn the_pool_is_whole_again(ends: &Ends) {
    assert_eq!(ends.avail, POOL_SIZE);
    assert_eq!(ends.problems, [""; 0], "the books balance");
}
