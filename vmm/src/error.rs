//! Errors of the command line: exit status, cause and help.

use std::io;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};

use mkpool::param::ParamError;
use mkpool::range::RangeError;

use mkvmm::builder::BuildError;
use mkvmm::control::error::ErrorObject;
use mkvmm::control::server::SocketError;
use mkvmm::error_chain::chain;
use mkvmm::event_loop::EventLoopError;
use mkvmm::fleet::LaunchError;
use mkvmm::host_pool::HostPoolError;
use mkvmm::kvm::HostError;
use mkvmm::machine::MachineError;
use mkvmm::placement::PlacementError;
use mkvmm::reservation::ReservationError;
use mkvmm::reservation::backing::BackingError;
use mkvmm::spec::{ResolveError, SpecError};

/// How `mkvmm` ends; the numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything asked for is done.
    Done,
    /// The VMM or KVM failed.
    Failed,
    /// Usage, or a value that validation refused.
    Usage,
    /// A file could not be read.
    File,
    /// The pool cannot hold it.
    NoRoom,
    /// No such instance, or its state does not allow it.
    WrongState,
    /// A guest ended badly.
    GuestFailed,
    /// SIGINT or SIGTERM.
    Interrupted,
}

impl ExitStatus {
    /// The number.
    pub const fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::File => 3,
            Self::WrongState => 4,
            Self::NoRoom => 5,
            Self::GuestFailed => 6,
            Self::Interrupted => 130,
        }
    }
}

impl Termination for ExitStatus {
    fn report(self) -> ExitCode {
        // All codes are below 256.
        ExitCode::from(u8::try_from(self.code()).unwrap_or(1))
    }
}

/// Everything that can end a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `--pool` cannot be read.
    #[error("--pool")]
    Param(#[source] ParamError),
    /// The pool cannot lie there.
    #[error("--pool")]
    Machine(#[from] MachineError),
    /// `--backing` is none.
    #[error("--backing")]
    Backing(#[source] BackingError),
    /// `--hold` is no range.
    #[error("--hold")]
    Hold(#[source] ParamError),
    /// A `--guest` cannot be read.
    #[error("--guest")]
    Spec(#[source] SpecError),
    /// Options of `create` or `load` cannot be.
    #[error(transparent)]
    Instance(SpecError),
    /// Guests cannot be resolved.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No usable KVM.
    #[error("KVM")]
    Host(#[from] HostError),
    /// The host cannot give the pool.
    #[error("--pool")]
    Reservation(#[source] ReservationError),
    /// The pool cannot be set up.
    #[error("the pool")]
    Pool(#[from] HostPoolError),
    /// A guest cannot be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Ledger, slots and maps disagree.
    #[error("the books are wrong, a bug in mkvmm: {}", .problems.join("; "))]
    Audit {
        /// What does not agree, each.
        problems: Vec<String>,
    },
    /// See [`mkvmm::boot::e820::build`].
    #[error("the memory map")]
    Range(#[from] RangeError),
    /// The event loop failed.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The host gives no descriptor or thread.
    #[error("signals and consoles cannot be set up")]
    SignalPipe(#[source] io::Error),
    /// Neither `--pool` nor a configuration file's `pool`.
    #[error("--pool is missing")]
    NoPool,
    /// The configuration file cannot be read.
    #[error("{}", .path.display())]
    ConfigRead {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no TOML, or a value has the wrong type.
    #[error("{}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TomlError,
    },
    /// A key's value is neither text nor a number, or is missing.
    #[error("{}: `{key}` is missing or of the wrong type", .path.display())]
    ConfigType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// An instance of a fleet file cannot be.
    #[error("{}: instance {number}", .path.display())]
    Fleet {
        /// The file.
        path: PathBuf,
        /// Which one, from 1 on.
        number: usize,
        /// Why.
        #[source]
        source: SpecError,
    },
    /// What was asked for cannot be written there.
    #[error("{}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has a key that does not exist.
    #[error("{}: unknown key `{key}`", .path.display())]
    ConfigKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The nearest there is.
        nearest: &'static str,
    },
    /// The directory of an option is none.
    #[error("--{option} {}", .path.display())]
    Directory {
        /// The option.
        option: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket cannot be taken.
    #[error("the control socket")]
    Socket(#[from] SocketError),
    /// Nobody answers at the control socket.
    #[error("nobody answers at {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to mkvmm broke")]
    Http(#[from] hyper::Error),
    /// A request cannot be put together.
    #[error("the request")]
    Request(#[from] hyper::http::Error),
    /// The VMM refused.
    #[error("{}", .error.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        error: Box<ErrorObject>,
    },
    /// The VMM answered what no mkvmm answers.
    #[error("mkvmm answered with status {status}")]
    Answer {
        /// HTTP status.
        status: u16,
    },
    /// A size on the command line.
    #[error("--{option}")]
    Size {
        /// The option.
        option: &'static str,
        /// Why.
        #[source]
        source: ParamError,
    },
    /// The terminal cannot be set up.
    #[error("the terminal")]
    Terminal(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("standard output")]
    Output(#[source] io::Error),
    /// Never: the findings are plain data.
    #[error("JSON")]
    Json(#[source] serde_json::Error),
}

impl CliError {
    /// The exit status.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Param(_)
            | Self::Machine(_)
            | Self::Backing(_)
            | Self::Hold(_)
            | Self::Range(_)
            | Self::Spec(_)
            | Self::Instance(_) => ExitStatus::Usage,
            Self::Resolve(ResolveError::Spec(_)) => ExitStatus::Usage,
            Self::Resolve(ResolveError::File { .. } | ResolveError::Log { .. }) => ExitStatus::File,
            Self::NoPool
            | Self::ConfigKey { .. }
            | Self::ConfigType { .. }
            | Self::Fleet { .. }
            | Self::Config { .. }
            | Self::Size { .. } => ExitStatus::Usage,
            Self::ConfigRead { .. } | Self::Directory { .. } => ExitStatus::File,
            Self::Refused { status, error } => refused_status(*status, error),
            Self::Reservation(error) => reservation_status(error),
            Self::Pool(error) => pool_status(error),
            Self::Launch(LaunchError::Guest { source, .. }) => match &**source {
                BuildError::Cmdline(_) => ExitStatus::Usage,
                BuildError::PageTables(_) | BuildError::BootParams(_) => ExitStatus::NoRoom,
                BuildError::Pool(error) => pool_status(error),
                _ => ExitStatus::Failed,
            },
            _ => ExitStatus::Failed,
        }
    }

    /// The nearest thing that would work.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Machine(error) => error.help(),
            Self::NoPool => Some("for instance --pool 1G".to_owned()),
            Self::ConfigKey { nearest, .. } => Some(format!("the nearest key is `{nearest}`")),
            Self::Connect { .. } => {
                Some("start `mkvmm serve`, or say where it is with --socket".to_owned())
            }
            Self::Refused { error, .. } => error.help.clone(),
            Self::Spec(error)
            | Self::Instance(error)
            | Self::Resolve(ResolveError::Spec(error))
            | Self::Fleet { source: error, .. } => error.help(),
            Self::Host(error) => error.help().map(str::to_owned),
            Self::Reservation(error) => reservation_help(error),
            Self::Pool(HostPoolError::Reservation(error)) => reservation_help(error),
            Self::Launch(LaunchError::Guest { source, .. }) => build_help(source),
            _ => None,
        }
    }

    /// The lines for stderr, without the final newline.
    pub fn render(&self) -> String {
        // One line, whatever a path has in it.
        let mut text = format!("error: {}", chain(self).replace('\n', "\\n"));
        if let Some(help) = self.help() {
            text.push_str("\nhelp: ");
            text.push_str(&help);
        }
        text
    }
}

/// What is wrong with a TOML file, on one line: the library draws a picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}{message}")]
pub struct TomlError {
    /// `line L, column C: `, where that is known.
    place: String,
    message: String,
}

impl TomlError {
    /// What the library says of `text`.
    pub fn new(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let place = |before: &str| {
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("line {line}, column {column}: ")
        };
        Self {
            place: before.map(place).unwrap_or_default(),
            message: error.message().trim().replace('\n', ", "),
        }
    }
}

/// A message of clap's as `error: …` and `help: …`, a line each. Clap writes
/// the error, indented details, tips, and the usage, a paragraph each.
pub fn one_line(message: &str) -> String {
    let mut paragraphs = message.split("\n\n");
    let mut lines = paragraphs.next().unwrap_or_default().lines().map(str::trim);
    let mut text = lines.next().unwrap_or_default().to_owned();
    let details: Vec<&str> = lines.collect();
    if !details.is_empty() {
        text.push(' ');
        text.push_str(&details.join(", "));
    }
    let rest = paragraphs.flat_map(str::lines).map(str::trim);
    let help = |line: &str| {
        let tip = line.strip_prefix("tip: ");
        tip.or_else(|| line.strip_prefix("Usage: "))
            .map(str::to_owned)
    };
    if let Some(help) = rest.filter_map(help).next() {
        text.push_str("\nhelp: ");
        text.push_str(&help);
    }
    text
}

/// As the interface has it: by what was wrong, not by HTTP's classes.
fn refused_status(status: u16, error: &ErrorObject) -> ExitStatus {
    match status {
        422 if error.code == "file" => ExitStatus::File,
        404 | 409 => ExitStatus::WrongState,
        507 => ExitStatus::NoRoom,
        400..500 => ExitStatus::Usage,
        _ => ExitStatus::Failed,
    }
}

fn pool_status(error: &HostPoolError) -> ExitStatus {
    match error {
        HostPoolError::Carve { .. }
        | HostPoolError::TooManyRegions { .. }
        | HostPoolError::Placement(_) => ExitStatus::NoRoom,
        HostPoolError::Hold { .. } => ExitStatus::Usage,
        HostPoolError::Reservation(error) => reservation_status(error),
        _ => ExitStatus::Failed,
    }
}

fn reservation_status(error: &ReservationError) -> ExitStatus {
    match error {
        ReservationError::NoNode { .. } | ReservationError::NoThp => ExitStatus::Usage,
        ReservationError::TooLarge { .. }
        | ReservationError::AddressSpace { .. }
        | ReservationError::Map { .. }
        | ReservationError::Prealloc { .. }
        | ReservationError::Lock { .. } => ExitStatus::NoRoom,
        _ => ExitStatus::Failed,
    }
}

fn reservation_help(error: &ReservationError) -> Option<String> {
    Some(match error {
        ReservationError::TooLarge {
            available,
            backing,
            requested,
        } if backing.is_hugetlb() => {
            let pages = requested.div_ceil(backing.page_size());
            format!(
                "{} free; {pages} pages are needed: write a number to \
                 /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
                available / backing.page_size(),
                backing.page_size() >> 10
            )
        }
        ReservationError::TooLarge { available, .. } => {
            format!("at most {}M fit now", available >> 20)
        }
        ReservationError::NoThp => {
            "write `advise` to /sys/kernel/mm/transparent_hugepage/shmem_enabled, \
             or leave --backing thp out"
                .to_owned()
        }
        ReservationError::Lock { .. } => {
            "raise the limit of locked memory (ulimit -l), or leave --lock out".to_owned()
        }
        _ => return None,
    })
}

fn build_help(error: &BuildError) -> Option<String> {
    match error {
        BuildError::Pool(error) => pool_help(error),
        _ => None,
    }
}

fn pool_help(error: &HostPoolError) -> Option<String> {
    match error {
        HostPoolError::Carve { avail, .. } => Some(format!(
            "the guests before it left {avail} bytes; give it less memory or make the pool larger"
        )),
        HostPoolError::Placement(PlacementError::NoRoom { needed, .. }) => needed.map(|bytes| {
            format!(
                "memory={}M is the least for these images",
                bytes.div_ceil(1 << 20)
            )
        }),
        HostPoolError::Placement(
            PlacementError::InitramfsTooHigh { max, .. }
            | PlacementError::KernelTooHigh { max, .. },
        ) => Some(format!("place the pool below {max:#x}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{CliError, TomlError, one_line};
    use std::io;

    #[test]
    fn an_error_is_one_line_whatever_it_is_about() {
        let toml = |text: &str| {
            let error = text.parse::<toml::Table>().unwrap_err();
            TomlError::new(text, &error).to_string()
        };
        let told = toml("a = 1\nb = [1");
        assert!(told.starts_with("line 2, column "), "{told}");
        assert!(!told.contains('\n'), "{told}");
        let error = CliError::Write {
            path: "a\nb".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        assert_eq!(error.render().lines().count(), 1, "{}", error.render());
    }

    #[test]
    fn what_clap_says_becomes_an_error_and_a_help() {
        let missing = "error: the following required arguments were not provided:\n  \
                       --pool <SIZE>\n  --guest <KEY>\n\nUsage: mkvmm run --pool <SIZE>\n\n\
                       For more information, try '--help'.\n";
        assert_eq!(
            one_line(missing),
            "error: the following required arguments were not provided: --pool <SIZE>, --guest <KEY>\n\
             help: mkvmm run --pool <SIZE>"
        );
        let typo = "error: unexpected argument '--shw' found\n\n  tip: a similar argument \
                    exists: '--show'\n\nUsage: mkvmm run\n";
        assert_eq!(
            one_line(typo),
            "error: unexpected argument '--shw' found\nhelp: a similar argument exists: '--show'"
        );
        assert_eq!(one_line("error: no\n"), "error: no");
    }
}
