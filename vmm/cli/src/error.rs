//! Errors of the command line: exit status, cause and hint.

use std::error::Error;
use std::process::{ExitCode, Termination};

use log::LevelFilter;
use mkvmm_base::{Class, Diagnose, causes, chain};
use mkvmm_client::ClientError;

use crate::cli::{self, HostIoError};

/// How `mkvmm` ends; the numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything that was requested is done.
    Done,
    /// The VMM or KVM failed.
    Failed,
    /// The usage is wrong, or a value was refused.
    Usage,
    /// A file could not be read.
    File,
    /// There is no such instance, it is another user's, or its state or a
    /// concurrent operation does not allow the request now.
    WrongState,
    /// The pool or the host lacks the memory or another resource.
    NoRoom,
    /// A guest ended badly.
    GuestFailed,
    /// The VMM, or the host that it was on, was lost: the command may be repeated,
    /// here or elsewhere. This is `EX_TEMPFAIL` of sysexits.h.
    Lost,
    /// The command was interrupted by SIGINT, or the user's hang-up.
    Interrupted,
    /// The command was ended by SIGTERM.
    Terminated,
}

impl ExitStatus {
    /// Returns the numeric exit code.
    pub const fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::File => 3,
            Self::WrongState => 4,
            Self::NoRoom => 5,
            Self::GuestFailed => 6,
            Self::Lost => 75,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// Returns the exit status of a class; this is the only such table.
    pub const fn of(class: Class) -> Self {
        match class {
            Class::BadRequest
            | Class::NoMethod
            | Class::TooLarge
            | Class::Invalid
            | Class::Name
            | Class::Affinity
            | Class::Cgroup
            | Class::NoKernel
            | Class::NoMemory
            | Class::NoCpu
            | Class::Unmapped => Self::Usage,
            Class::File => Self::File,
            Class::NoRoute
            | Class::NoInstance
            | Class::NoAllocation
            | Class::NoConsole
            | Class::NoChannel
            | Class::Exists
            | Class::WrongState
            | Class::Busy
            | Class::Forbidden
            | Class::Overload => Self::WrongState,
            Class::NoRoom | Class::Exhausted => Self::NoRoom,
            Class::Lost => Self::Lost,
            Class::VmmFailed | Class::Unknown => Self::Failed,
        }
    }
}

impl Termination for ExitStatus {
    fn report(self) -> ExitCode {
        // All codes are below 256.
        ExitCode::from(u8::try_from(self.code()).unwrap_or(1))
    }
}

/// Any error that ends a command.
#[derive(Debug)]
pub struct CliError(Box<dyn Diagnose + Send + Sync>);

impl<E: Diagnose + Send + Sync + 'static> From<E> for CliError {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl CliError {
    /// Returns the exit status.
    pub fn status(&self) -> ExitStatus {
        ExitStatus::of(self.0.class())
    }

    /// Returns whether the command only failed to print to somebody who had
    /// stopped reading: nothing is to be said about that.
    pub fn is_unread(&self) -> bool {
        self.find().is_some_and(HostIoError::is_unread)
    }

    /// Returns the error, if it is of this kind.
    pub fn find<E: Error + 'static>(&self) -> Option<&E> {
        let error: &dyn Error = &*self.0;
        error.downcast_ref()
    }

    /// Returns what to do about it.
    fn hint(&self) -> Option<String> {
        match self.find() {
            Some(ClientError::Connect { path, source }) => Some(cli::advice(path, source)),
            _ => self.0.hint(),
        }
    }

    /// Returns the lines for stderr, without the final newline: at the level of
    /// debugging, with one for each cause.
    pub fn render(&self) -> String {
        // Keep it on one line, even if a path contains a newline.
        let mut text = format!("error: {}", chain(&*self.0).replace('\n', "\\n"));
        if log::max_level() >= LevelFilter::Debug {
            let own = causes(&*self.0);
            let all = self.0.told().unwrap_or(&own).iter().skip(1);
            for cause in all {
                text.push_str("\ncause: ");
                text.push_str(&cause.replace('\n', "\\n"));
            }
        }
        if let Some(help) = self.hint() {
            text.push_str("\nhelp: ");
            text.push_str(&help);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn an_error_is_one_line_whatever_it_is_about() {
        let error = CliError::from(HostIoError::Write {
            path: "a\nb".into(),
            source: io::ErrorKind::NotFound.into(),
        });
        assert_eq!(error.render().lines().count(), 1, "{}", error.render());
        assert_eq!(error.status(), ExitStatus::Failed);
    }
}
