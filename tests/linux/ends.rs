//! Four guests that end in four ways, beside one that continues.
//!
//! The manager is in this process, since `mkvmm run` kills all guests or none.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mkvmm_base::chain;
use mkvmm_base::state::EndReason;
use mkvmm_manager::guest::Guest as GuestRecord;
use mkvmm_manager::run::{Fleet, Outcome};
use mkvmm_manager::stream::Stream;
use mkvmm_manager::{ConsoleOptions, Manager};
use mkvmm_test_harness::Consoles;
use mkvmm_test_harness::embedded::{ManagerSetup, block_on, resolve};

use crate::guest::Guest;
use crate::guest_report::GuestReport;
use crate::launch::TIMEOUT;

/// The size of the pool, which begins at 4 GiB.
const POOL_SIZE: u64 = 640 << 20;

/// The guest that is killed from outside, once it reports that it stays.
const VICTIM: Guest = Guest::new("victim", "6.12", 128).end("hold");
/// The guest that prints `tick N` every second, forever.
const NEIGHBOUR: Guest = Guest::new("neighbour", "6.1", 112).end("hold");
/// All guests, and how each should end.
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
/// The number of ticks of the neighbour that must follow the last end.
const TICKS: usize = 3;
/// The interval at which the guests are polled.
const POLL: Duration = Duration::from_millis(100);

/// A property of the observations.
pub struct Check {
    /// The last part of a test's name.
    pub name: &'static str,
    /// Panics if the property does not hold.
    pub holds: fn(&Ends),
}

/// All properties that must hold.
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

/// The end of a guest.
#[derive(Debug)]
struct End {
    name: String,
    reason: EndReason,
    tail: String,
    /// The number of the neighbour's ticks until then.
    ticks: usize,
}

/// The observations of all guests.
#[derive(Debug)]
pub struct Ends {
    ends: Vec<End>,
    text: String,
    avail: u64,
    problems: Vec<String>,
}

/// The buffer into which the consoles' thread writes.
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
    /// Launches the guests and observes them to their ends.
    ///
    /// # Errors
    /// Returns an error if they cannot be launched or do not end in time.
    pub fn watch(images: &Path) -> Result<Self, String> {
        let started = Instant::now();
        let watched = block_on(async {
            let screen = Screen::default();
            let watched = tokio::time::timeout(TIMEOUT, watch(images, &screen)).await;
            // Guests die with the runtime.
            watched.unwrap_or_else(|_| Err(format!("not in time:\n{}", screen.text())))
        });
        eprintln!("linux: ends took {:.1} s", started.elapsed().as_secs_f64());
        watched
    }

    fn of(&self, guest: &Guest) -> &End {
        let mut ends = self.ends.iter();
        let end = ends.find(|end| end.name == guest.name);
        end.unwrap_or_else(|| panic!("{} did not end", guest.name))
    }
}

async fn watch(images: &Path, screen: &Screen) -> Result<Ends, String> {
    let setup = ManagerSetup {
        // Lossless, so that no line is lost.
        console: ConsoleOptions {
            ring: 64 << 10,
            lossless: true,
        },
        ..ManagerSetup::new(POOL_SIZE)
    };
    let manager = setup.manager();
    let specs = GUESTS.map(|(guest, _)| guest.spec(images));
    let configs = resolve(&manager, &specs).await.map_err(|e| chain(&e))?;
    let stream = Stream::start(Box::new(screen.clone()), None, || ());
    let stream = stream.map_err(|error| chain(&error))?;
    let fleet = Fleet::build(Rc::clone(&manager), stream, configs).await;
    let mut fleet = fleet.map_err(|error| chain(&error))?;
    fleet.start().await.map_err(|error| chain(&error))?;

    let ((), ticks) = tokio::join!(fleet.finish(), end_two(&manager, screen));
    let (problems, avail) = (fleet.audit().problems, manager.registry().pool().avail());
    let (outcomes, stream) = fleet.into_parts();
    stream.close();
    stream.join().map_err(|error| error.to_string())?;
    let end = |outcome: &Outcome| End {
        name: outcome.name.to_string(),
        reason: outcome.reason,
        tail: String::from_utf8_lossy(&outcome.console_tail).into_owned(),
        ticks: ticks[outcome.name.as_str()],
    };
    Ok(Ends {
        ends: outcomes.iter().map(end).collect(),
        text: screen.text(),
        avail,
        problems,
    })
}

/// Kills the victim once it stays, and the neighbour once it has continued for
/// long enough after all others. Returns when all have ended, with the
/// neighbour's ticks until each end.
async fn end_two(manager: &Rc<Manager>, screen: &Screen) -> BTreeMap<&'static str, usize> {
    let mut ticks = BTreeMap::new();
    loop {
        for (guest, _) in &GUESTS {
            if has_ended(manager, guest) {
                ticks.entry(guest.name).or_insert_with(|| screen.ticks());
            }
        }
        let last = ticks.values().copied().max().unwrap_or(0);
        if ticks.len() == GUESTS.len() {
            return ticks;
        }
        if !ticks.contains_key(VICTIM.name) && screen.has("victim: mkvmm-guest: hold") {
            kill(manager, &VICTIM).await;
        } else if ticks.len() == GUESTS.len() - 1 && screen.ticks() >= last + TICKS {
            kill(manager, &NEIGHBOUR).await;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn has_ended(manager: &Manager, guest: &Guest) -> bool {
    let registry = manager.registry();
    let of_name = |g: &&GuestRecord| g.name().as_str() == guest.name;
    let mut guests = registry.guests();
    // A guest that has ended is removed soon.
    guests.find(of_name).is_none_or(|g| g.reason().is_some())
}

async fn kill(manager: &Rc<Manager>, guest: &Guest) {
    let name = guest.name.parse().expect("a name");
    let killed = manager.kill(&name, Duration::ZERO).await;
    killed.expect("a guest that runs can be killed");
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

/// Ticks are numbered: none is lost while the others end.
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
