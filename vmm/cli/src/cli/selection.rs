//! The instances that a command is for: names, all, or those in a state.

use clap::builder::PossibleValuesParser;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;

use crate::cli::client::ClientArgs;
use crate::error::{CliError, ExitStatus};
use crate::logger;
use mkvmm_api::instance::Instance;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose};
use mkvmm_client::{Call, ClientError};

/// The words for the states of an instance.
const STATES: [&str; 8] = [
    "ready", "loaded", "active", "paused", "stopped", "failed", "cleaning", "stalled",
];

/// Returns the parser of an option whose value is a state.
fn states() -> PossibleValuesParser {
    PossibleValuesParser::new(STATES)
}

/// Returns the state with this word.
fn state(word: &str) -> Option<State> {
    let word: serde::de::value::StrDeserializer<'_, ValueError> = word.into_deserializer();
    State::deserialize(word).ok()
}

/// States, as an option with one or several words.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StateArgs {
    /// Only in this state, or in one of several
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',', value_parser = states())]
    words: Vec<String>,
}

impl StateArgs {
    /// Returns the states, which may be none.
    pub fn states(&self) -> Vec<State> {
        self.words.iter().filter_map(|word| state(word)).collect()
    }

    /// Returns whether no state is given, or `one` is among them.
    pub fn allow(&self, one: State) -> bool {
        self.words.is_empty() || self.states().contains(&one)
    }
}

/// The names of instances, or `--all`.
#[derive(Debug, Clone, clap::Args)]
pub struct Selection {
    /// The names of the instances
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// Select all instances
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

/// A reason why a selection does not suit a command.
#[derive(Debug, thiserror::Error)]
#[error("--console is for one instance, and there are {count}")]
pub struct NotOne {
    /// The number of selected instances.
    count: usize,
}

impl Diagnose for NotOne {
    fn class(&self) -> Class {
        Class::Invalid
    }
}

impl Selection {
    /// Returns the names, in the order in which they are given; those of all
    /// instances are requested from the VMM.
    ///
    /// # Errors
    /// Returns the errors of that request.
    pub fn names(&self, client: &ClientArgs) -> Result<Vec<String>, CliError> {
        if !self.all {
            return Ok(self.names.clone());
        }
        let all = instances(client)?;
        Ok(all.into_iter().map(|one| one.name.to_string()).collect())
    }
}

/// Returns the name if it is the only one.
///
/// # Errors
/// Returns [`NotOne`].
pub fn only(names: &[String]) -> Result<&str, NotOne> {
    match names {
        [name] => Ok(name),
        _ => Err(NotOne { count: names.len() }),
    }
}

/// Returns all instances.
///
/// # Errors
/// Returns the errors of the request.
pub fn instances(client: &ClientArgs) -> Result<Vec<Instance>, CliError> {
    let text = client.call(Call::get("/v1/instances"))?;
    Ok(serde_json::from_str(&text).map_err(ClientError::Json)?)
}

/// Carries out `act` for each of the names, also after one has failed; each
/// failure is printed. Returns the status of the first failure.
///
/// # Errors
/// Returns an error if standard output has no reader any more.
pub fn each(
    names: &[String],
    mut act: impl FnMut(&str) -> Result<ExitStatus, CliError>,
) -> Result<ExitStatus, CliError> {
    let mut status = ExitStatus::Done;
    for name in names {
        let one = match act(name) {
            Err(error) if error.is_unread() => return Err(error),
            Err(error) => {
                logger::say(&error.render());
                error.status()
            }
            Ok(one) => one,
        };
        if status == ExitStatus::Done {
            status = one;
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_word() {
        for word in STATES {
            assert_eq!(
                state(word).map(|state| state.to_string()),
                Some(word.to_owned())
            );
        }
    }

    #[test]
    fn one_failure_does_not_keep_the_others_from_being_tried() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut tried = Vec::new();
        let status = each(&names, |name| {
            tried.push(name.to_owned());
            match name {
                "a" => Ok(ExitStatus::Done),
                "b" => Err(NotOne { count: 2 }.into()),
                _ => Ok(ExitStatus::Failed),
            }
        });
        assert_eq!(status.unwrap(), ExitStatus::Usage);
        assert_eq!(tried, names);
    }
}
