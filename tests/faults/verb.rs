//! The verbs: asked for, looked at, made up for.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::announce;
use mkvmm_test_harness::walk::Answer;

use crate::house::{CHANNEL, House, NAME};

/// How often a verb is repeated if the host is short of something without a fault.
const SHORTAGES: u32 = 5;
/// The pause before each repetition.
const PAUSE: Duration = Duration::from_millis(200);

/// Milliseconds that a guest has between its power button and force.
const GRACE_MS: u64 = 1000;
/// How long a guest that was started may say nothing before somebody looks
/// whether it has a reason.
const SILENCE: Duration = Duration::from_secs(1);
/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(2);

/// A step in the life of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Load,
    Start,
    /// A kill by the power button.
    Stop,
    /// A start of a guest that has ended.
    Restart,
    /// A channel is made, of which the guest is a member.
    Connect,
    /// The guest leaves the channel, and joins it again.
    Leave,
    Join,
    /// The channel is deleted while the guest has it.
    Disconnect,
    /// A kill by force.
    Kill,
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}").to_lowercase();
        f.pad(&name)
    }
}

impl Verb {
    /// A life: each leads to the next.
    pub const ALL: [Self; 11] = [
        Self::Create,
        Self::Load,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Connect,
        Self::Leave,
        Self::Join,
        Self::Disconnect,
        Self::Kill,
        Self::Delete,
    ];

    /// Asks for it.
    pub fn ask(self, house: &House) -> Answer {
        let of = |rest: &str| format!("/v1/instances/{NAME}{rest}");
        let line = |rest: &str| format!("/v1/channels/{CHANNEL}{rest}");
        let member = format!(r#"{{"member":"{NAME}"}}"#);
        let answer = match self {
            Self::Create => {
                let log = house.new_log();
                let body = format!(
                    r#"{{"name":"{NAME}","memory":8388608,"console-log":"{}"}}"#,
                    log.display()
                );
                house.ask("POST", "/v1/instances", &body)
            }
            Self::Load => house.ask("POST", &of("/load"), &house.images()),
            Self::Start | Self::Restart => house.ask("POST", &of("/start"), ""),
            Self::Stop => {
                let body = format!(r#"{{"grace_ms":{GRACE_MS}}}"#);
                house.ask("POST", &of("/kill"), &body)
            }
            Self::Connect => {
                let body =
                    format!(r#"{{"name":"{CHANNEL}","size":65536,"between":["{NAME}","nobody"]}}"#);
                house.ask("POST", "/v1/channels", &body)
            }
            Self::Leave => house.ask("POST", &line("/leave"), &member),
            Self::Join => house.ask("POST", &line("/join"), &member),
            Self::Disconnect => house.ask("DELETE", &line("?force=true"), ""),
            Self::Kill => house.ask("POST", &of("/kill"), r#"{"force":true}"#),
            Self::Delete => house.ask("DELETE", &of(""), ""),
        };
        Answer::new(answer)
    }

    /// Waits until what it sets off has happened.
    pub fn settle(self, house: &House) {
        if matches!(self, Self::Start | Self::Restart) {
            wait_for_output(house);
        }
    }

    /// The states from which it leads on.
    fn before(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Create => &[None],
            Self::Load => &[Some("ready")],
            Self::Start => &[Some("loaded")],
            Self::Stop | Self::Kill => &[Some("active")],
            Self::Restart | Self::Delete => &[Some("stopped"), Some("failed")],
            Self::Connect | Self::Leave | Self::Join | Self::Disconnect => &[Some("active")],
        }
    }

    /// The states that it may leave an instance in that it could not be done to;
    /// `None` for one that does not exist.
    fn undone(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Create => &[None],
            Self::Load => &[Some("ready")],
            // One that has failed has lost its worker, and says so.
            Self::Start => &[Some("loaded"), Some("failed")],
            Self::Restart => &[Some("stopped"), Some("failed")],
            Self::Connect | Self::Leave | Self::Join | Self::Disconnect => &[Some("active")],
            // What ends has no way to fail.
            Self::Stop | Self::Kill => &[],
            Self::Delete => &[Some("cleaning"), None],
        }
    }

    /// The state that it is to lead to.
    fn done(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Create => &[Some("ready")],
            Self::Load => &[Some("loaded")],
            Self::Start | Self::Restart => &[Some("active")],
            Self::Connect | Self::Leave | Self::Join | Self::Disconnect => &[Some("active")],
            Self::Stop | Self::Kill => &[Some("stopped")],
            Self::Delete => &[None],
        }
    }

    /// Holds an answer against what has become of the instance, and brings it
    /// to where the verb was to.
    ///
    /// # Errors
    /// What does not fit.
    pub fn make_up(self, house: &House, answer: &Answer) -> Result<(), String> {
        if let Some(line) = self.line() {
            return self.make_up_line(house, answer, line);
        }
        let state = house.state(NAME);
        let is_in = |states: &[Option<&str>]| states.contains(&state.as_deref());
        let fits = match answer {
            // Its worker may have been hit just after its answer.
            Answer::Done => is_in(self.done()) || state.as_deref() == Some("failed"),
            Answer::Refused { .. } => is_in(self.undone()),
            // It may not have been heard at all.
            Answer::None => is_in(self.done()) || is_in(self.undone()) || is_in(self.before()),
        };
        if !fits {
            return Err(format!("the instance is {state:?}"));
        }
        if is_in(self.done()) {
            return Ok(());
        }
        match self {
            // It is deleted as soon as its memory can be cleaned.
            Self::Delete if state.as_deref() == Some("cleaning") => {
                return wait_until_gone(house);
            }
            // It has ended, which is what was asked for.
            Self::Stop | Self::Kill if state.as_deref() != Some("active") => return Ok(()),
            // Its images are still its own.
            Self::Load if state.as_deref() == Some("failed") => {
                return self.insist(house);
            }
            _ => {}
        }
        self.insist(house)
    }

    /// What the channel is to be then: whether the guest has it; `None` for one that
    /// does not exist. Nothing for what is no matter of channels.
    fn line(self) -> Option<Option<bool>> {
        match self {
            Self::Connect | Self::Join => Some(Some(true)),
            Self::Leave => Some(Some(false)),
            Self::Disconnect => Some(None),
            _ => None,
        }
    }

    /// The same as [`Self::make_up`], of a channel that is to be `due`.
    fn make_up_line(self, house: &House, answer: &Answer, due: Option<bool>) -> Result<(), String> {
        let line = house.line(CHANNEL, NAME);
        let fits = match (self, answer) {
            // The guest's process may have been hit.
            (Self::Connect | Self::Join, Answer::Done) => line.is_some(),
            (_, Answer::Done) => line == due,
            (Self::Connect, Answer::Refused { .. }) => line.is_none(),
            (_, Answer::Refused { .. }) => line.is_some(),
            (_, Answer::None) => true,
        };
        if !fits {
            return Err(format!("the channel is {line:?}"));
        }
        if house.state(NAME).as_deref() != Some("active") {
            Self::Restart.insist(house)?;
        }
        self.insist_line(house, due)
    }

    /// Does it without a fault until the channel is `due`.
    fn insist_line(self, house: &House, due: Option<bool>) -> Result<(), String> {
        for _ in 0..SHORTAGES {
            let line = house.line(CHANNEL, NAME);
            if line == due {
                return Ok(());
            }
            let verb = match (self, line) {
                (Self::Connect, Some(_)) => Self::Join,
                _ => self,
            };
            let answer = verb.ask(house);
            if house.line(CHANNEL, NAME) != due {
                thread::sleep(PAUSE);
                announce(&format!("{verb} without a fault: {answer:?}"));
            }
        }
        let line = house.line(CHANNEL, NAME);
        Err(format!("without a fault the channel is {line:?}"))
    }

    /// Does it without a fault.
    ///
    /// # Errors
    /// What came of it instead.
    pub fn insist(self, house: &House) -> Result<(), String> {
        if let Some(line) = self.line() {
            return self.insist_line(house, line);
        }
        let mut shortages = 0;
        loop {
            let began = house.said().len();
            let answer = self.ask(house);
            self.settle(house);
            let state = house.state(NAME);
            let is_done = self.done().contains(&state.as_deref());
            if answer == Answer::Done && is_done {
                return Ok(());
            }
            // The host itself may be short of something for a moment.
            let is_short = matches!(&answer, Answer::Refused { class, .. } if class == "exhausted");
            if is_short && shortages < SHORTAGES {
                shortages += 1;
                thread::sleep(PAUSE);
                continue;
            }
            if !house.was_interrupted(began) {
                return Err(format!("without a fault: {answer:?}, it is {state:?}"));
            }
        }
    }
}

/// Waits until a guest that runs has said something.
fn wait_for_output(house: &House) {
    let end = Instant::now() + SILENCE;
    while Instant::now() < end {
        let Some(instance) = house.instance(NAME) else {
            return;
        };
        let has_spoken = !instance["timeline"]["first_output"].is_null();
        if instance["state"] != "active" || has_spoken {
            return;
        }
        thread::sleep(POLL);
    }
}

fn wait_until_gone(house: &House) -> Result<(), String> {
    let end = Instant::now() + EVENT_TIMEOUT;
    while let Some(state) = house.state(NAME) {
        if Instant::now() > end {
            return Err(format!("it is not deleted but {state}"));
        }
        thread::sleep(POLL);
    }
    Ok(())
}
