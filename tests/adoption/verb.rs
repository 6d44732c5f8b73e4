//! The verbs of the walk: asked for, looked at, made up for.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::walk::Answer;

use crate::house::{CHANNEL, House, NAME};

/// Milliseconds that a guest has between its power button and force.
const GRACE_MS: u64 = 1000;
/// The interval of polling.
const POLL: Duration = Duration::from_millis(2);

/// A step in the life of an instance, or in that of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Load,
    Start,
    Pause,
    Resume,
    /// A kill by the power button.
    Stop,
    /// A start of a guest that has ended.
    Restart,
    /// A kill by force.
    Kill,
    Unload,
    Delete,
    Plan,
    Alloc,
    Free,
    /// A channel is made, of which the guest is a member.
    Connect,
    /// The guest leaves the channel, and joins it again.
    Leave,
    Join,
    /// The channel is deleted while the guest has it.
    Disconnect,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}").to_lowercase();
        f.pad(&name)
    }
}

impl Verb {
    /// A life: each leads to the next.
    pub const ALL: [Self; 17] = [
        Self::Alloc,
        Self::Create,
        Self::Load,
        Self::Start,
        Self::Pause,
        Self::Resume,
        Self::Stop,
        Self::Restart,
        Self::Plan,
        Self::Connect,
        Self::Leave,
        Self::Join,
        Self::Disconnect,
        Self::Kill,
        Self::Unload,
        Self::Delete,
        Self::Free,
    ];

    /// Asks for it.
    pub fn ask(self, house: &House) -> Answer {
        let of = |rest: &str| format!("/v1/instances/{NAME}{rest}");
        let line = |rest: &str| format!("/v1/channels/{CHANNEL}{rest}");
        let member = format!(r#"{{"member":"{NAME}"}}"#);
        let answer = match self {
            // An earlier request has made it, and was not answered.
            Self::Connect if house.line().flatten().is_some() => {
                house.ask("POST", &line("/join"), &member)
            }
            Self::Connect => {
                let body =
                    format!(r#"{{"name":"{CHANNEL}","size":65536,"between":["{NAME}","nobody"]}}"#);
                house.ask("POST", "/v1/channels", &body)
            }
            Self::Leave => house.ask("POST", &line("/leave"), &member),
            Self::Join => house.ask("POST", &line("/join"), &member),
            // An earlier request has deleted it, and was not answered.
            Self::Disconnect if house.line() == Some(None) => return Answer::Done,
            Self::Disconnect => house.ask("DELETE", &line("?force=true"), ""),
            Self::Create => {
                let body = format!(r#"{{"name":"{NAME}","memory":8388608}}"#);
                house.ask("POST", "/v1/instances", &body)
            }
            Self::Load => house.ask("POST", &of("/load"), &house.images()),
            Self::Start | Self::Restart => house.ask("POST", &of("/start"), ""),
            Self::Pause => house.ask("POST", &of("/pause"), ""),
            Self::Resume => house.ask("POST", &of("/resume"), ""),
            Self::Stop => {
                let body = format!(r#"{{"grace_ms":{GRACE_MS}}}"#);
                house.ask("POST", &of("/kill"), &body)
            }
            Self::Kill => house.ask("POST", &of("/kill"), r#"{"force":true}"#),
            Self::Unload => house.ask("POST", &of("/unload"), ""),
            Self::Delete => house.ask("DELETE", &of(""), ""),
            Self::Plan => {
                let images = house.images();
                let images = images.trim_start_matches('{');
                let body =
                    format!(r#"{{"instances":[{{"name":"planned","memory":8388608,{images}]}}"#);
                house.ask("POST", "/v1/plan", &body)
            }
            Self::Alloc => house.ask("POST", "/v1/pool/allocations", r#"{"size":65536}"#),
            Self::Free => match house.find_allocations().as_deref() {
                Some([start, ..]) => {
                    house.ask("DELETE", &format!("/v1/pool/allocations/{start}"), "")
                }
                // An earlier request has freed it, and was not answered.
                Some([]) => return Answer::Done,
                None => None,
            },
        };
        Answer::new(answer)
    }

    /// What leads from where it leads to back to where it begins.
    pub fn back(self) -> &'static [Self] {
        match self {
            Self::Alloc => &[Self::Free],
            Self::Create => &[Self::Delete],
            Self::Load => &[Self::Unload],
            Self::Start => &[Self::Kill, Self::Unload, Self::Load],
            Self::Pause => &[Self::Resume],
            Self::Resume => &[Self::Pause],
            Self::Stop | Self::Kill => &[Self::Restart],
            Self::Restart => &[Self::Kill],
            Self::Plan => &[],
            Self::Unload => &[Self::Load, Self::Start, Self::Kill],
            Self::Delete => &[Self::Create],
            Self::Free => &[Self::Alloc],
            Self::Connect => &[Self::Disconnect],
            Self::Leave => &[Self::Join],
            Self::Join => &[Self::Leave],
            Self::Disconnect => &[Self::Connect],
        }
    }

    /// The states from which it leads on.
    fn before(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Create | Self::Alloc | Self::Free => &[None],
            Self::Load => &[Some("ready")],
            Self::Start => &[Some("loaded")],
            Self::Resume => &[Some("paused")],
            Self::Pause | Self::Stop | Self::Kill | Self::Plan => &[Some("active")],
            Self::Connect | Self::Leave | Self::Join | Self::Disconnect => &[Some("active")],
            Self::Restart | Self::Unload => &[Some("stopped")],
            Self::Delete => &[Some("ready")],
        }
    }

    /// The state that it is to lead to.
    fn done(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Create | Self::Unload => &[Some("ready")],
            Self::Load => &[Some("loaded")],
            Self::Start | Self::Restart | Self::Resume | Self::Plan => &[Some("active")],
            Self::Connect | Self::Leave | Self::Join | Self::Disconnect => &[Some("active")],
            Self::Pause => &[Some("paused")],
            Self::Stop | Self::Kill => &[Some("stopped")],
            Self::Delete | Self::Alloc | Self::Free => &[None],
        }
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

    /// Waits until the channel is what it was to be.
    fn settle_line(house: &House, due: Option<bool>) -> Result<(), String> {
        let end = Instant::now() + EVENT_TIMEOUT;
        while house.line() != Some(due) {
            if Instant::now() > end {
                return Err(format!(
                    "it was done, and the channel is {:?}",
                    house.line()
                ));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits until the next manager has completed or undone it; fails unless that
    /// has led to a state that a client may see.
    ///
    /// # Errors
    /// Returns what does not fit.
    pub fn settle(self, house: &House, answer: &Answer) -> Result<(), String> {
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            let state = house.state(NAME);
            let is_in = |states: &[Option<&str>]| states.contains(&state.as_deref());
            let is_known = is_in(self.before()) || is_in(self.done());
            // A delete goes by this state where memory has to be scrubbed.
            let is_cleaning = state.as_deref() == Some("cleaning");
            if !is_known && !is_cleaning {
                return Err(format!("the instance is {state:?}"));
            }
            if !is_cleaning && !house.is_busy(NAME) {
                return match answer {
                    Answer::Done if !is_in(self.done()) => {
                        Err(format!("it was done, and the instance is {state:?}"))
                    }
                    Answer::Refused { .. } => Err("it was refused".to_owned()),
                    Answer::Done => match self.line() {
                        Some(due) => Self::settle_line(house, due),
                        None => Ok(()),
                    },
                    Answer::None => Ok(()),
                };
            }
            if Instant::now() > end {
                return Err(format!("the instance stays busy in {state:?}"));
            }
            thread::sleep(POLL);
        }
    }

    /// Brings the instance to where the verb was to.
    ///
    /// # Errors
    /// Returns what came of it instead.
    pub fn make_up(self, house: &House) -> Result<(), String> {
        match self {
            // A client that was not answered frees what it may have got twice.
            Self::Alloc => {
                for start in house.allocations().iter().skip(1) {
                    house.ask("DELETE", &format!("/v1/pool/allocations/{start}"), "");
                }
                if house.allocations().len() == 1 {
                    return Ok(());
                }
            }
            Self::Plan | Self::Free => {}
            _ if self.line().is_some() => {}
            _ if self.done().contains(&house.state(NAME).as_deref()) => return Ok(()),
            _ => {}
        }
        self.insist(house)
    }

    /// Does it without a death.
    ///
    /// # Errors
    /// Returns what came of it instead.
    pub fn insist(self, house: &House) -> Result<(), String> {
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            let answer = self.ask(house);
            if answer.is("busy") && Instant::now() < end {
                thread::sleep(POLL);
                continue;
            }
            if let Some(due) = self.line().filter(|_| answer == Answer::Done) {
                return Self::settle_line(house, due);
            }
            let state = house.state(NAME);
            return match answer == Answer::Done && self.done().contains(&state.as_deref()) {
                true => Ok(()),
                false => Err(format!("repeated: {answer:?}, the instance is {state:?}")),
            };
        }
    }
}
