//! The walk: the manager is killed at every write to its journal and every call,
//! verb by verb, and the next one takes over each time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use mkvmm_test_harness::faults::{Death, Moment};
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::walk::{Answer, is_verbose, stride};

use crate::house::{House, NAME};
use crate::verb::Verb;

/// How many calls a walk goes on by unless it is told: through a few dozen in all,
/// by a number that is no multiple of what calls repeat in.
const STRIDE: u64 = 97;
/// The same for writes to the journal.
const JOURNAL_STRIDE: u64 = 5;
/// Points between two looks at the neighbour.
const LOOK: u64 = 16;
/// Times that a step is done without a death after which it has no more calls: one
/// may have been shorter than others.
const QUIET: u32 = 2;
/// What is asked of a manager that has just taken over.
const FIRST_LOOKS: [&str; 3] = ["/v1/instances", "/v1/audit", "/v1/events?since=0"];
/// Failures after which a walk is given up.
const MAX_FAILURES: usize = 12;

/// What a manager is doing when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Verb(Verb),
    /// Taking over while the guest of the last verb runs.
    Adoption,
}

/// The deaths in one step.
#[derive(Debug, Default)]
struct Row {
    visited: u32,
    /// Clients that were answered nevertheless.
    answered: u32,
    calls: BTreeMap<&'static str, u32>,
}

/// A walk through the calls of managers.
#[derive(Debug)]
struct Walk {
    house: House,
    tally: BTreeMap<(Moment, String), Row>,
    is_verbose: bool,
    began: Instant,
    /// Steps that were begun with somebody to kill.
    points: u64,
    adoptions: u64,
    failures: Vec<String>,
}

impl Walk {
    /// Starts a manager with `options`, and lives a life in it without a death.
    fn begin(options: &[&str]) -> Self {
        let mut walk = Self {
            house: House::start(options),
            tally: BTreeMap::new(),
            is_verbose: is_verbose(),
            began: Instant::now(),
            points: 0,
            adoptions: 0,
            failures: Vec::new(),
        };
        for verb in Verb::ALL {
            verb.insist(&walk.house).expect("nothing fails yet");
        }
        walk.house.remember();
        walk
    }

    /// Kills managers at `moment` in each step: at call 1, and from there on by
    /// `stride`.
    fn visit(&mut self, moment: Moment, stride: u64) {
        for (before, verb) in Verb::ALL.iter().enumerate() {
            self.visit_step(Step::Verb(*verb), &Verb::ALL[..before], moment, stride);
            if *verb == Verb::Start {
                self.visit_step(Step::Adoption, &Verb::ALL[..=before], moment, stride);
            }
        }
        let visited: u32 = self
            .tally
            .iter()
            .filter(|((of, _), _)| *of == moment)
            .map(|(_, row)| row.visited)
            .sum();
        assert!(visited > 0, "no manager was killed at {moment:?}");
    }

    /// Kills managers in one step of a life that begins with the verbs `before`.
    fn visit_step(&mut self, step: Step, before: &[Verb], moment: Moment, stride: u64) {
        let (mut number, mut spared) = (1, 0);
        let mut is_there = false;
        while spared < QUIET {
            let began = self.house.said().len();
            let visited = self.visit_call(step, before, is_there, (moment, number), &mut spared);
            is_there = visited.is_ok();
            self.keep(visited, began);
            self.points += 1;
            if self.points.is_multiple_of(LOOK) {
                self.house.expect_neighbour();
            }
            number += stride;
        }
        let rest = match step {
            Step::Verb(_) => before.len() + 1,
            Step::Adoption => before.len(),
        };
        let began = self.house.said().len();
        let ended = Verb::ALL[rest..]
            .iter()
            .try_for_each(|verb| verb.insist(&self.house));
        let ended = ended.and_then(|()| self.house.check_empty());
        self.keep(ended.map_err(|why| format!("after {step:?}: {why}")), began);
    }

    /// One step, from where it begins: at first, or where something has failed, from
    /// the beginning of a life.
    fn visit_call(
        &mut self,
        step: Step,
        before: &[Verb],
        is_there: bool,
        (moment, number): (Moment, u64),
        spared: &mut u32,
    ) -> Result<(), String> {
        let back = match step {
            _ if !is_there => before,
            Step::Verb(verb) => verb.back(),
            Step::Adoption => &[],
        };
        back.iter().try_for_each(|verb| verb.insist(&self.house))?;
        let (what, result) = match step {
            Step::Verb(verb) => self.die(verb, moment, number, spared),
            Step::Adoption => self.die_adopting(moment, number, spared),
        };
        result.map_err(|why| format!("{step:?} {number}: {what}: {why}"))
    }

    /// Notes a failure, with what managers have said since `began`, and takes down
    /// what it has left.
    fn keep(&mut self, result: Result<(), String>, began: usize) {
        let Err(failure) = result else {
            return;
        };
        let said = self.house.said();
        let said = said.get(began..).unwrap_or_default();
        let failure = format!("{failure}\n--- they said\n{said}");
        announce(&failure);
        self.failures.push(failure);
        assert!(self.failures.len() < MAX_FAILURES, "{}", self.report());
        self.house.clear();
    }

    /// A verb in which the manager is killed.
    fn die(
        &mut self,
        verb: Verb,
        moment: Moment,
        number: u64,
        spared: &mut u32,
    ) -> (String, Result<(), String>) {
        self.house.arm(moment, number);
        let answer = verb.ask(&self.house);
        let death = self.house.disarm();
        let Some(death) = death else {
            *spared += 1;
            let result = match answer {
                Answer::Done => verb.make_up(&self.house),
                _ => Err("nobody was killed".to_owned()),
            };
            return (format!("spared; {answer:?}"), result);
        };
        *spared = 0;
        let what = format!("{death}; {answer:?}");
        let row = self.count(moment, verb.to_string(), &death);
        row.answered += u32::from(answer == Answer::Done);
        if self.is_verbose {
            announce(&format!("{verb} {number}: {what}"));
        }
        let result = self.after(verb, &death, &answer);
        (what, result)
    }

    /// What comes after a death in a verb.
    fn after(&mut self, verb: Verb, death: &Death, answer: &Answer) -> Result<(), String> {
        self.house.kill_manager();
        self.house.adopt();
        self.adoptions += 1;
        if let Some(error) = &death.error {
            return Err(error.clone());
        }
        // A client that asks again at once is told that it exists only if it does.
        let exists = verb == Verb::Create && verb.ask(&self.house).is("exists");
        verb.settle(&self.house, answer)?;
        if exists && self.house.state(NAME).is_none() {
            return Err("it existed, and is gone".to_owned());
        }
        self.house.check()?;
        verb.make_up(&self.house)?;
        self.house.check()
    }

    /// A manager that is killed while it takes over.
    fn die_adopting(
        &mut self,
        moment: Moment,
        number: u64,
        spared: &mut u32,
    ) -> (String, Result<(), String>) {
        self.house.kill_manager();
        self.house.arm(moment, number);
        let is_ready = self.house.try_adopt();
        // It is not over when it is ready: it completes what it has found, and
        // answers.
        let is_answered = |path| self.house.ask("GET", path, "").is_some();
        let _ = is_ready && FIRST_LOOKS.iter().all(|path| is_answered(path));
        let death = self.house.disarm();
        let Some(death) = death else {
            *spared += 1;
            let settled = Verb::Start.settle(&self.house, &Answer::Done);
            return ("spared".to_owned(), settled);
        };
        *spared = 0;
        self.count(moment, "adoption".to_owned(), &death);
        if self.is_verbose {
            announce(&format!("adoption {number}: {death}"));
        }
        if is_ready {
            self.house.kill_manager();
        }
        self.house.adopt();
        self.adoptions += 2;
        let result = Verb::Start.settle(&self.house, &Answer::Done);
        let result = result.and_then(|()| self.house.check());
        (death.to_string(), result)
    }

    fn count(&mut self, moment: Moment, step: String, death: &Death) -> &mut Row {
        let row = self.tally.entry((moment, step)).or_default();
        row.visited += 1;
        *row.calls.entry(death.call).or_default() += 1;
        row
    }

    fn report(&self) -> String {
        let mut text = String::new();
        for ((moment, step), row) in &self.tally {
            let moment = format!("{moment:?}");
            let (visited, answered) = (row.visited, row.answered);
            write!(
                text,
                "{moment:<13} {step:<9} visited {visited:>3}, answered {answered}"
            )
            .expect("a string takes it");
            if row.calls.len() > 1 {
                let calls = row
                    .calls
                    .iter()
                    .map(|(call, count)| format!("{call} {count}"));
                let calls: Vec<_> = calls.collect();
                write!(text, ": {}", calls.join(", ")).expect("a string takes it");
            }
            text.push('\n');
        }
        let visited: u32 = self.tally.values().map(|row| row.visited).sum();
        let seconds = self.began.elapsed().as_secs_f64();
        format!(
            "{visited} managers killed, {} adoptions in {seconds:.0} s\n{text}\
             {} failures\n{}",
            self.adoptions,
            self.failures.len(),
            self.failures.join("\n=== ")
        )
    }

    /// Fails unless all was as it should be and nothing is left; says what was
    /// visited.
    fn end(self) {
        assert!(self.failures.is_empty(), "{}", self.report());
        let report = self.report();
        self.house.end();
        announce(&report);
    }
}

fn walk(options: &[&str], moments: &[(Moment, u64)]) {
    if skips_without_kvm() {
        return;
    }
    let mut walk = Walk::begin(options);
    for &(moment, by) in moments {
        walk.visit(moment, stride(by));
    }
    walk.end();
}

#[test]
fn a_manager_may_be_killed_at_a_write_to_its_journal() {
    walk(&[], &Moment::JOURNAL.map(|moment| (moment, JOURNAL_STRIDE)));
}

#[test]
fn a_manager_of_populated_memory_may_be_killed_at_a_write_to_its_journal() {
    walk(&["--prealloc"], &[(Moment::JournalAfter, JOURNAL_STRIDE)]);
}

#[test]
fn a_manager_may_be_killed_at_a_call() {
    walk(&[], &[(Moment::Call, STRIDE)]);
}
