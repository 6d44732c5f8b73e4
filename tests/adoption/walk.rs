//! The walk: the manager is killed at every write to its journal and every call,
//! verb by verb, and the next one takes over each time.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::time::Instant;

use mkvmm_test_harness::faults::{Death, Moment};
use mkvmm_test_harness::tier::{announce, skips_without_kvm};

use crate::house::House;
use crate::verb::{Answer, Verb};

/// How many calls a walk goes on by unless it is told: a number that is no
/// multiple of what calls repeat in.
const STRIDE: u64 = 7;
/// Lives between two looks at the neighbour.
const LOOK: u64 = 5;
/// Lives without a death in a verb after which it has no more calls: one may
/// have been shorter than others.
const QUIET: u32 = 2;
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
    lives: u64,
    adoptions: u64,
    failures: Vec<String>,
}

fn variable(name: &str) -> Option<u64> {
    let text = env::var(name).ok();
    text.map(|text| text.parse().expect("a number"))
}

impl Walk {
    /// Starts a manager with `options`, and lives a life in it without a death.
    fn begin(options: &[&str]) -> Self {
        let mut walk = Self {
            house: House::start(options),
            tally: BTreeMap::new(),
            is_verbose: variable("MKVMM_FAULT_VERBOSE") == Some(1),
            began: Instant::now(),
            lives: 0,
            adoptions: 0,
            failures: Vec::new(),
        };
        for verb in Verb::ALL {
            verb.insist(&walk.house).expect("nothing fails yet");
        }
        walk.house.remember();
        walk
    }

    /// Kills managers at `moment`, in each step of each life: at call 1, and from
    /// there on by `stride`.
    fn visit(&mut self, moment: Moment, stride: u64) {
        let steps = Verb::ALL
            .map(Step::Verb)
            .into_iter()
            .chain([Step::Adoption]);
        // Lives in which a step had no call of this number.
        let mut spared: BTreeMap<Step, u32> = steps.map(|step| (step, 0)).collect();
        let mut number = 1;
        while spared.values().any(|&lives| lives < QUIET) {
            let began = self.house.said().len();
            if let Err(failure) = self.live(moment, number, &mut spared) {
                let said = self.house.said();
                let said = said.get(began..).unwrap_or_default();
                let failure = format!("{failure}\n--- they said\n{said}");
                announce(&failure);
                self.failures.push(failure);
                assert!(self.failures.len() < MAX_FAILURES, "{}", self.report());
                self.house.clear();
            }
            self.lives += 1;
            if self.lives.is_multiple_of(LOOK) {
                self.house.expect_neighbour();
            }
            number += stride;
        }
        let visited: u32 = self
            .tally
            .iter()
            .filter(|((of, _), _)| *of == moment)
            .map(|(_, row)| row.visited)
            .sum();
        assert!(visited > 0, "no manager was killed at {moment:?}");
    }

    /// One life, in whose steps the manager is killed at call `number`.
    fn live(
        &mut self,
        moment: Moment,
        number: u64,
        spared: &mut BTreeMap<Step, u32>,
    ) -> Result<(), String> {
        for verb in Verb::ALL {
            self.step(Step::Verb(verb), moment, number, spared)?;
            if verb == Verb::Start {
                self.step(Step::Adoption, moment, number, spared)?;
            }
        }
        let empty = self.house.check_empty();
        empty.map_err(|why| format!("after life {number} of {moment:?}: {why}"))
    }

    /// One step, with a death if it still has calls.
    fn step(
        &mut self,
        step: Step,
        moment: Moment,
        number: u64,
        spared: &mut BTreeMap<Step, u32>,
    ) -> Result<(), String> {
        let lives = spared.get_mut(&step).filter(|lives| **lives < QUIET);
        let (what, result) = match (step, lives) {
            (Step::Adoption, None) => return Ok(()),
            (Step::Verb(verb), None) => (String::new(), verb.insist(&self.house)),
            (Step::Adoption, Some(lives)) => self.die_adopting(moment, number, lives),
            (Step::Verb(verb), Some(lives)) => self.die(verb, moment, number, lives),
        };
        result.map_err(|why| format!("{step:?} {number}: {what}: {why}"))
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
        verb.settle(&self.house, answer)?;
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
        // It is not over when it is ready.
        let checked = match is_ready {
            true => Verb::Start.settle(&self.house, &Answer::None),
            false => Ok(()),
        };
        let death = self.house.disarm();
        let Some(death) = death else {
            *spared += 1;
            return ("spared".to_owned(), checked);
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
            "{visited} managers killed, {} adoptions, {} lives in {seconds:.0} s\n{text}\
             {} failures\n{}",
            self.adoptions,
            self.lives,
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
    for &(moment, stride) in moments {
        walk.visit(moment, stride);
    }
    walk.end();
}

#[test]
fn a_manager_may_be_killed_at_every_write_to_its_journal() {
    walk(&[], &Moment::JOURNAL.map(|moment| (moment, 1)));
}

#[test]
fn a_manager_of_populated_memory_may_be_killed_at_every_write_to_its_journal() {
    walk(&["--prealloc"], &[(Moment::JournalAfter, 1)]);
}

#[test]
fn a_manager_may_be_killed_at_every_call() {
    let stride = variable("MKVMM_FAULT_STRIDE").unwrap_or(STRIDE).max(1);
    walk(&[], &[(Moment::Call, stride)]);
}
