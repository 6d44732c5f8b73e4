//! The walk: from call to call, verb by verb.

use std::collections::BTreeMap;
use std::time::Instant;

use mkvmm_test_harness::faults::{Fault, MANAGER};
use mkvmm_test_harness::tier::announce;
use mkvmm_test_harness::walk::{self, Answer};

use crate::house::{House, NAME};
use crate::tally::Tally;
use crate::verb::Verb;

/// How many calls a walk goes on by unless it is told: a number that is no
/// multiple of what calls repeat in.
const STRIDE: u64 = 7;
/// Lives between two looks at the neighbour.
const LOOK: u64 = 25;
/// Lives without a fault at a verb after which it has no more calls: one may
/// have been shorter than others.
const QUIET: u32 = 2;
/// Classes of errors that tell a client of the host's need, or of a file's.
const CLASSES: [&str; 5] = ["vmm-failed", "exhausted", "overload", "no-room", "file"];
/// Failures after which a walk is given up.
const MAX_FAILURES: usize = 40;

/// A walk through the calls of one mkvmm.
#[derive(Debug)]
pub struct Walk {
    house: House,
    tally: Tally,
    stride: u64,
    is_verbose: bool,
    began: Instant,
    lives: u64,
    /// What went wrong.
    failures: Vec<String>,
}

impl Walk {
    /// Starts an mkvmm with `options`, and lives a life in it without a fault.
    pub fn begin(options: &[&str]) -> Self {
        let mut walk = Self {
            house: House::start(options),
            tally: Tally::default(),
            stride: walk::stride(STRIDE),
            is_verbose: walk::is_verbose(),
            began: Instant::now(),
            lives: 0,
            failures: Vec::new(),
        };
        for _ in 0..3 {
            for verb in Verb::ALL {
                let answer = verb.ask(&walk.house);
                assert_eq!(answer, Answer::Done, "{verb}");
                verb.make_up(&walk.house, &answer)
                    .expect("nothing fails yet");
            }
        }
        walk.house.remember();
        walk
    }

    /// Has the calls of `role` in `verbs` fail, one in each verb of each life.
    pub fn visit(&mut self, role: &'static str, verbs: &[Verb]) {
        // Lives in which a verb had no call of this number.
        let mut spared: BTreeMap<Verb, u32> = verbs.iter().map(|&verb| (verb, 0)).collect();
        let mut number = 1;
        while spared.values().any(|&lives| lives < QUIET) {
            if let Err(failure) = self.live(role, number, &mut spared) {
                announce(&failure);
                self.failures.push(failure);
                assert!(self.failures.len() < MAX_FAILURES, "{}", self.report());
                self.house.clear();
            }
            self.lives += 1;
            if self.lives.is_multiple_of(LOOK) {
                self.house.expect_neighbour();
            }
            number += self.stride;
        }
        let count = self.tally.of_role(role);
        assert!(count > 0, "no call of a {role} was visited");
    }

    /// One life, in whose verbs call `number` of `role` fails.
    fn live(
        &mut self,
        role: &'static str,
        number: u64,
        spared: &mut BTreeMap<Verb, u32>,
    ) -> Result<(), String> {
        let began = self.house.said().len();
        for verb in Verb::ALL {
            let lives = spared.get_mut(&verb).filter(|lives| **lives < QUIET);
            let (what, result) = match lives {
                Some(lives) => self.fault(role, verb, number, lives),
                None => (verb.to_string(), verb.insist(&self.house)),
            };
            result.map_err(|why| self.explain(&what, &why, began))?;
        }
        let empty = self.house.check_empty();
        empty.map_err(|why| self.explain(&format!("after life {number} of {role}"), &why, began))
    }

    /// A verb with call `number` of `role` failing: what happened, and whether
    /// it was as it should be.
    fn fault(
        &mut self,
        role: &'static str,
        verb: Verb,
        number: u64,
        spared: &mut u32,
    ) -> (String, Result<(), String>) {
        self.house.injector.arm(role, number);
        let answer = verb.ask(&self.house);
        // Looking at the guest is the manager's own work.
        if role != MANAGER {
            verb.settle(&self.house);
        }
        let fault = self.house.injector.disarm();
        verb.settle(&self.house);
        let Some(fault) = fault else {
            *spared += 1;
            let result = match answer {
                Answer::Done => verb.make_up(&self.house, &answer),
                _ => Err("there was no fault".to_owned()),
            };
            return (
                format!("{role} {verb} {number}: spared; {answer:?}"),
                result,
            );
        };
        *spared = 0;
        self.tally.count(role, verb, &fault, &answer);
        let what = format!("{role} {verb} {number}: {fault}; {answer:?}");
        if self.is_verbose {
            announce(&what);
        }
        let result = check(&answer, &fault)
            .and_then(|()| self.house.audit())
            .and_then(|()| self.house.check_confined(NAME))
            .and_then(|()| verb.make_up(&self.house, &answer))
            .and_then(|()| self.house.audit());
        (what, result)
    }

    /// A failure, with what the manager has said since the life began.
    fn explain(&self, what: &str, why: &str, began: usize) -> String {
        let said = self.house.said();
        format!(
            "{what}\n{why}\n--- it said\n{}",
            said.get(began..).unwrap_or_default()
        )
    }

    fn report(&self) -> String {
        let Self {
            stride,
            lives,
            tally,
            ..
        } = self;
        let seconds = self.began.elapsed().as_secs_f64();
        let failures = self.failures.join("\n=== ");
        format!(
            "every call number n * {stride} + 1, {lives} lives in {seconds:.0} s\n{tally}\
             {} failures\n{failures}",
            self.failures.len()
        )
    }

    /// Fails unless all was as it should be and nothing is left; says what was
    /// visited.
    pub fn end(self) {
        assert!(self.failures.is_empty(), "{}", self.report());
        self.house.tear_down();
        announce(&self.report());
    }
}

/// Whether the client was told what it should be.
fn check(answer: &Answer, fault: &Fault) -> Result<(), String> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Refused { class, message, .. } => {
            match CLASSES.contains(&class.as_str()) && !message.is_empty() {
                true => Ok(()),
                false => Err("the wrong class".to_owned()),
            }
        }
        // On its own connection there is nobody to answer.
        Answer::None if fault.thread == "control" => Ok(()),
        Answer::None => Err("no answer".to_owned()),
    }
}
