//! The parameters of a test process, passed by the test that started it.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use mkvmm_sandbox::{Confinement, Identity, Layers, Mode, Profile, Report, SandboxError};
use rustix::process::{geteuid, getpid};

const VARIABLE: &str = "MKVMM_SANDBOX_TEST";

/// A user ID that nobody has, for processes started by root.
const TEST_UID: u32 = 64_321;

/// The user as which the processes of a test run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Started by root, which the sandbox then drops to `TEST_UID`.
    Dropped,
    /// An ordinary user from the start.
    Ordinary,
}

impl User {
    /// Returns the users as which this test process can run tests.
    pub fn available() -> &'static [Self] {
        if geteuid().is_root() {
            &[Self::Dropped, Self::Ordinary]
        } else {
            &[Self::Ordinary]
        }
    }
}

/// A process to be started: its user, confinement, role and arguments.
#[derive(Clone, Debug)]
pub struct Setup {
    pub role: &'static str,
    pub words: Vec<String>,
    pub user: User,
    pub profile: Profile,
    pub mode: Mode,
    pub layers: Layers,
    pub debuggable: bool,
}

impl Setup {
    pub fn new(role: &'static str, profile: Profile, user: User) -> Self {
        Self {
            role,
            words: Vec::new(),
            user,
            profile,
            mode: Mode::Kill,
            layers: Layers::ALL,
            debuggable: false,
        }
    }

    pub fn word(mut self, word: impl ToString + Copy) -> Self {
        self.words.push(word.to_string());
        self
    }

    /// Returns the command that executes this program again as that process.
    pub fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.env_clear().env(VARIABLE, self.encode());
        if self.user == User::Ordinary && geteuid().is_root() {
            command.uid(TEST_UID).gid(TEST_UID);
        }
        command
    }

    fn encode(&self) -> String {
        let profile = match self.profile {
            Profile::Worker => 0,
            Profile::Unpacker => 1,
            Profile::Cleaner => 2,
            Profile::Helper => 4,
            _ => 3,
        };
        let mode = match self.mode {
            Mode::Kill => 0,
            Mode::Log => 1,
            Mode::Errno => 2,
            Mode::Off => 3,
        };
        let layers = bits(self.layers);
        let dropped = u8::from(self.user == User::Dropped);
        let debuggable = u8::from(self.debuggable);
        let (role, words) = (self.role, self.words.join(" "));
        format!("{role} {profile} {mode} {layers} {dropped} {debuggable} {words}")
    }
}

/// A process that was started by a test, from its own point of view.
#[derive(Debug)]
pub struct Role {
    pub name: String,
    pub words: Vec<String>,
    pub confinement: Confinement,
}

impl Role {
    /// Returns the role of this process; `None` if it is the test itself.
    pub fn of_this_process() -> Option<Self> {
        let text = env::var(VARIABLE).ok()?;
        let mut words = text.split_whitespace().map(str::to_owned);
        let name = words.next()?;
        let mut number = || {
            let number = words.next().and_then(|word| word.parse::<u8>().ok());
            number.expect("the test wrote this number itself")
        };
        let profile = match number() {
            0 => Profile::Worker,
            1 => Profile::Unpacker,
            2 => Profile::Cleaner,
            4 => Profile::Helper,
            _ => Profile::Manager,
        };
        let mut confinement = Confinement::new(profile);
        confinement.mode = match number() {
            0 => Mode::Kill,
            1 => Mode::Log,
            2 => Mode::Errno,
            _ => Mode::Off,
        };
        confinement.layers = layers(number());
        let identity = Identity {
            uid: TEST_UID,
            gid: TEST_UID,
        };
        confinement.identity = (number() != 0).then_some(identity);
        confinement.debuggable = number() != 0;
        Some(Self {
            name,
            words: words.collect(),
            confinement,
        })
    }

    pub fn word<T: std::str::FromStr>(&self, index: usize) -> T {
        let parsed = self.words[index].parse().ok();
        parsed.expect("the test wrote this word itself")
    }

    /// Enters the sandbox; an error ends the process with a message.
    pub fn enter(&self) -> Report {
        self.confinement
            .enter()
            .unwrap_or_else(|error| fail(&error))
    }
}

/// Ends the process with an error and its causes.
pub fn fail(error: &SandboxError) -> ! {
    let mut causes = error.to_string();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = next {
        causes = format!("{causes}: {cause}");
        next = cause.source();
    }
    println!("sandbox: {causes}");
    panic!(
        "no sandbox in process {}: {causes}",
        getpid().as_raw_nonzero()
    );
}

fn bits(layers: Layers) -> u8 {
    let all = [
        layers.identity,
        layers.capabilities,
        layers.dumpable,
        layers.parent_death,
        layers.no_new_privs,
        layers.limits,
        layers.landlock,
        layers.seccomp,
    ];
    all.iter().fold(0, |bits, on| bits << 1 | u8::from(*on))
}

fn layers(bits: u8) -> Layers {
    let on = |position: u8| bits >> (7 - position) & 1 == 1;
    Layers {
        identity: on(0),
        capabilities: on(1),
        dumpable: on(2),
        parent_death: on(3),
        no_new_privs: on(4),
        limits: on(5),
        landlock: on(6),
        seccomp: on(7),
    }
}
