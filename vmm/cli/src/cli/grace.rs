//! Times that guests have to shut down: `5s`, `500ms`, or a number of seconds.

use std::fmt;
use std::time::Duration;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

/// The text is not a time.
#[derive(Debug, thiserror::Error)]
#[error("expected a time such as 5s or 500ms, or a number of seconds")]
pub struct NoTime;

/// Parses a time.
///
/// # Errors
/// Returns [`NoTime`].
pub fn time(text: &str) -> Result<Duration, NoTime> {
    let seconds = text.parse().map(Duration::from_secs);
    seconds.or_else(|_no_number| humantime::parse_duration(text).or(Err(NoTime)))
}

/// Reads a time in a file, where seconds may be a number.
pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    struct Time;

    impl Visitor<'_> for Time {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a time such as \"5s\", or a number of seconds")
        }

        fn visit_u64<E: Error>(self, seconds: u64) -> Result<Option<Duration>, E> {
            Ok(Some(Duration::from_secs(seconds)))
        }

        fn visit_i64<E: Error>(self, seconds: i64) -> Result<Option<Duration>, E> {
            match u64::try_from(seconds) {
                Ok(seconds) => self.visit_u64(seconds),
                Err(_negative) => Err(E::invalid_value(Unexpected::Signed(seconds), &self)),
            }
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<Duration>, E> {
            match time(text) {
                Ok(time) => Ok(Some(time)),
                Err(_no_time) => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }
    }

    deserializer.deserialize_any(Time)
}

/// The time that guests have to shut down, as an option of a command.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct GraceArgs {
    /// The time between the power button and SIGKILL, for example 10s [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    grace: Option<Duration>,
    /// The same in milliseconds
    #[arg(long, value_name = "MS", hide = true, conflicts_with = "grace")]
    grace_ms: Option<u32>,
}

impl GraceArgs {
    /// Returns the time in milliseconds, if it is given.
    pub fn ms(self) -> Option<u32> {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        self.grace.map(ms).or(self.grace_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_text_or_seconds() {
        for (text, ms) in [("5", 5000), ("5s", 5000), ("500ms", 500), ("1min", 60_000)] {
            assert_eq!(time(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        assert_eq!(time(&u64::MAX.to_string()).unwrap().as_secs(), u64::MAX);
        for bad in ["", "-1", "5 parsecs", "s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
