//! A fleet that is applied while each of its calls fails: all of it is done then,
//! or nothing.

use std::thread;
use std::time::Duration;

use mkvmm_test_harness::faults::MANAGER;
use mkvmm_test_harness::tier::announce;
use mkvmm_test_harness::walk::{self, Answer};
use serde_json::{Value, json};

use crate::house::House;

/// How many calls a walk goes on by unless it is told.
const STRIDE: u64 = 19;
/// Fleets without a fault after which there are no more calls.
const QUIET: u32 = 2;
/// How often a fleet is applied without a fault if the host is short of something.
const TRIES: u32 = 20;
/// The pause before each repetition.
const PAUSE: Duration = Duration::from_millis(100);

/// The two fleets between which the pool goes back and forth.
struct Fleets {
    house: House,
    before: String,
    after: String,
}

/// What came of all faults.
#[derive(Debug, Default)]
struct Count {
    done: u32,
    undone: u32,
    unanswered: u32,
}

impl Fleets {
    fn begin(options: &[&str]) -> Self {
        let house = House::start(options);
        let neighbour = house.instance("neighbour").expect("it is there")["spec"].clone();
        let images: Value = serde_json::from_str(&house.images()).expect("JSON");
        let one = |name: &str, rest: Value| {
            let mut one = json!({"name": name, "memory": 4 << 20, "kernel": images["kernel"]});
            let object = one.as_object_mut().expect("an object");
            object.extend(rest.as_object().expect("an object").clone());
            one
        };
        let body = |channels: Value, instances: Value| {
            let grace_ms = 0;
            json!({"channels": channels, "instances": instances, "prune": true,
                "grace_ms": grace_ms})
            .to_string()
        };
        let channel = |name: &str, size: u64, between: [&str; 2]| json!({"name": name, "size": size, "between": between});
        // Of the channels, one stays, one is replaced, one is deleted, and one is new; a
        // guest that runs has the first three.
        let stays = channel("stays", 2 << 20, ["changes", "boots"]);
        let channels_before = json!([
            stays,
            channel("grows", 2 << 20, ["changes", "idle"]),
            channel("ends", 2 << 20, ["changes", "goes"]),
        ]);
        let channels_after = json!([
            stays,
            channel("grows", 4 << 20, ["changes", "idle"]),
            channel("begins", 2 << 20, ["changes", "new"]),
        ]);
        // One is replaced while it runs, one while it does not, one is booted, one is
        // deleted while it runs, and one is new.
        let before = body(
            channels_before,
            json!([
                neighbour,
                one("changes", json!({})),
                one("idle", json!({"autostart": false})),
                one("boots", json!({"autostart": false})),
                one("goes", json!({})),
            ]),
        );
        let after = body(
            channels_after,
            json!([
                neighbour,
                one("changes", json!({"cpus": 2})),
                one("idle", json!({"autostart": false, "memory": 8 << 20})),
                one("boots", json!({})),
                one("new", json!({})),
            ]),
        );
        Self {
            house,
            before,
            after,
        }
    }

    fn apply(&self, body: &str) -> Answer {
        Answer::new(self.house.ask("POST", "/v1/apply", body))
    }

    /// Applies a fleet without a fault.
    #[track_caller]
    fn insist(&self, body: &str) {
        for _ in 0..TRIES {
            let began = self.house.said().len();
            match self.apply(body) {
                Answer::Done => return,
                // The host may be short of something for a moment, a guest may have ended
                // while it was planned, and a worker may have been interrupted by the
                // test itself.
                answer
                    if answer.is("exhausted")
                        || answer.is("busy")
                        || self.house.was_interrupted(began) =>
                {
                    thread::sleep(PAUSE);
                }
                answer => panic!("without a fault: {answer:?}\n{}", self.house.said()),
            }
        }
        panic!("it is still short of something\n{}", self.house.said());
    }

    /// Makes the pool be as before; where guests have been hit, more than once.
    fn reset(&self) -> Value {
        for _ in 0..TRIES {
            // What has failed, or was booted to replace it, is not booted by a fleet
            // that does not want it to be: it is made anew.
            self.insist(&self.before);
            let books = self.books();
            let states = ["active", "active", "loaded", "loaded", "active"];
            let found = books[0].as_array().expect("a list").iter();
            let mut found: Vec<&str> = found.filter_map(|one| one["state"].as_str()).collect();
            found.sort_unstable();
            let mut wanted = states.to_vec();
            wanted.sort_unstable();
            if found == wanted {
                return books;
            }
            for name in ["changes", "idle", "boots", "goes"] {
                let path = format!("/v1/instances/{name}");
                self.house
                    .ask("POST", &format!("{path}/kill"), r#"{"force":true}"#);
                self.house.ask("DELETE", &path, "");
            }
        }
        panic!("the fleet is not to be had\n{}", self.house.said());
    }

    /// What must be the same if a fleet was not applied.
    fn books(&self) -> Value {
        let get = |path: &str| match self.house.ask("GET", path, "") {
            Some((200, answer)) => answer,
            other => panic!("{path}: {other:?}"),
        };
        let mut all = get("/v1/instances");
        for one in all.as_array_mut().expect("a list") {
            let one = one.as_object_mut().expect("an object");
            let kept = ["id", "name", "state", "chunks", "spec", "cmdline", "kernel"];
            one.retain(|key, _| kept.contains(&key.as_str()));
        }
        let mut channels = get("/v1/channels");
        for one in channels.as_array_mut().expect("a list") {
            for member in one["members"].as_array_mut().expect("a list") {
                // Where its guest was booted again, there is one more.
                member.as_object_mut().expect("an object").remove("boots");
            }
        }
        let (pool, iomem) = (get("/v1/pool"), get("/v1/iomem"));
        json!([all, channels, pool["avail"], pool["free_extents"], iomem])
    }

    /// Has the calls of `role` fail, one in each fleet.
    fn visit(&self, role: &'static str, stride: u64) -> Count {
        let (mut count, mut spared, mut number) = (Count::default(), 0, 1);
        while spared < QUIET {
            let before = self.reset();
            // A new file of the same name, so that it has to be read.
            self.house.images();
            let began = self.house.said().len();
            self.house.injector.arm(role, number);
            let answer = self.apply(&self.after);
            let fault = self.house.injector.disarm();
            let what = format!("{role} {number}: {fault:?}; {answer:?}");
            if walk::is_verbose() {
                announce(&what);
            }
            let said = || {
                let said = self.house.said();
                said.get(began..).unwrap_or_default().to_owned()
            };
            self.house
                .audit()
                .unwrap_or_else(|why| panic!("{what}\n{why}\n{}", said()));
            let now = self.books();
            match &answer {
                Answer::Done => {
                    count.done += 1;
                    let names: Vec<&str> = now[0]
                        .as_array()
                        .expect("a list")
                        .iter()
                        .filter_map(|one| one["name"].as_str())
                        .collect();
                    let has = |name| names.contains(&name);
                    assert!(has("new") && !has("goes"), "{what}\n{now:#}\n{}", said());
                    let channels = now[1].as_array().expect("a list").iter();
                    let mut channels: Vec<_> = channels
                        .map(|one| (one["name"].as_str(), one["size"].as_u64()))
                        .collect();
                    channels.sort_unstable();
                    let wanted = [("begins", 2 << 20), ("grows", 4 << 20), ("stays", 2 << 20)];
                    let wanted = wanted.map(|(name, size)| (Some(name), Some(size)));
                    assert_eq!(channels, wanted, "{what}\n{now:#}\n{}", said());
                }
                Answer::Refused { class, .. } => {
                    count.undone += 1;
                    let before = match class.as_str() {
                        "busy" => with_failures(before, &now),
                        _ => before,
                    };
                    assert_eq!(now, before, "{what}\n{}", said());
                }
                // Nobody was answered, but it was done or was not begun.
                Answer::None => count.unanswered += 1,
            }
            spared = if fault.is_none() { spared + 1 } else { 0 };
            number += stride;
        }
        count
    }
}

/// The books before a fleet that found something changed, which can only be a guest
/// whose own process was hit before the fleet was begun: it has failed by itself.
fn with_failures(mut before: Value, now: &Value) -> Value {
    let has_failed = |name: &Value| {
        let mut guests = now[0].as_array().expect("a list").iter();
        guests.any(|one| one["name"] == *name && one["state"] == "failed")
    };
    for one in before[0].as_array_mut().expect("a list") {
        if has_failed(&one["name"]) {
            one["state"] = json!("failed");
        }
    }
    for channel in before[1].as_array_mut().expect("a list") {
        for member in channel["members"].as_array_mut().expect("a list") {
            if has_failed(&member["name"]) {
                member["present"] = json!(false);
            }
        }
    }
    before
}

/// Walks through the calls of `roles`, and says how many were visited.
pub fn walk(options: &[&str], roles: &[&'static str]) {
    let fleets = Fleets::begin(options);
    let stride = walk::stride(STRIDE);
    for &role in roles {
        let count = fleets.visit(role, stride);
        announce(&format!(
            "apply, every call {stride} of a {role}: {count:?}"
        ));
        assert!(count.done > 0, "{role}: {count:?}");
        assert!(role != MANAGER || count.undone > 0, "{role}: {count:?}");
    }
    fleets.house.tear_down();
}
