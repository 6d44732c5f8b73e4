//! One run of mkvmm, whose result several checks examine.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mkvmm_test_harness::{Consoles, Finished, Mkvmm, Report};

use crate::guest::Guest;
use crate::guest_report::GuestReport;
use crate::scenarios::Scenario;

/// The time limit for a launch: an emulated host is tens of times slower.
pub const TIMEOUT: Duration = Duration::from_secs(900);

/// A scenario that was launched.
#[derive(Debug)]
pub struct Launch {
    /// The scenario of the launch.
    pub scenario: &'static Scenario,
    /// The directory of the images.
    pub images: PathBuf,
    /// The exit status and output of mkvmm.
    pub run: Finished,
    /// The output of `--show`.
    pub report: Report,
    consoles: Consoles,
}

impl Launch {
    /// Launches `scenario` and waits for its end.
    ///
    /// # Errors
    /// Returns an error if there is nothing for checks to examine.
    pub fn of(scenario: &'static Scenario, images: &Path) -> Result<Self, String> {
        // Return it as a value, so that not only the first check reports it.
        panic::catch_unwind(AssertUnwindSafe(|| Self::attempt(scenario, images)))
            .unwrap_or_else(|_| Err(format!("{} did not end in time", scenario.name)))
    }

    fn attempt(scenario: &'static Scenario, images: &Path) -> Result<Self, String> {
        let mut run = Mkvmm::run(scenario.pool).show().timeout(TIMEOUT);
        for hold in scenario.holds {
            run = run.arg("--hold").arg(*hold);
        }
        for guest in scenario.guests {
            run = run.guest(guest.spec(images));
        }
        let run = run.finish();
        let seconds = run.elapsed.as_secs_f64();
        eprintln!("linux: {} took {seconds:.1} s", scenario.name);
        if run.code() != Some(0) {
            return Err(format!("not status 0\n{run}"));
        }
        let names: Vec<&str> = scenario.guests.iter().map(|g| g.name).collect();
        let why = |why| format!("{why}\n{run}");
        Ok(Self {
            scenario,
            images: images.to_owned(),
            report: Report::parse(&run.stderr).map_err(why)?,
            consoles: Consoles::parse(&run.stdout, &names).map_err(why)?,
            run,
        })
    }

    /// Returns the report of a guest's init.
    ///
    /// # Panics
    /// Panics if the report is incomplete.
    pub fn guest(&self, guest: &Guest) -> GuestReport {
        GuestReport::parse(self.consoles.of(guest.name))
            .unwrap_or_else(|why| panic!("{}: {why}\n{}", guest.name, self.run))
    }

    /// Returns the lines of a guest's console.
    pub fn said(&self, guest: &Guest) -> &[String] {
        self.consoles.of(guest.name)
    }

    /// Returns every guest that reports, with its report.
    pub fn guests(&self) -> impl Iterator<Item = (&'static Guest, GuestReport)> {
        let guests = self.scenario.guests.iter().filter(|guest| !guest.kexec);
        guests.map(|guest| (guest, self.guest(guest)))
    }
}
