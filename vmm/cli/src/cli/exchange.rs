//! One exchange with a running VMM: a call made of options, and its answer
//! printed.

use serde::de::DeserializeOwned;

use crate::cli::client::{Call, ClientArgs, ClientError};
use crate::cli::output::print;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::instance::Instance;

/// Options of every command that changes something.
#[derive(Debug, Clone, clap::Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Validate only; change nothing
    #[arg(long)]
    dry_run: bool,
}

impl ChangeArgs {
    /// Returns the query string of a request that changes something.
    pub fn query(&self) -> &'static str {
        if self.dry_run { "?dry_run=true" } else { "" }
    }

    /// Returns the path of a request about the instance `name`: `rest` begins
    /// with a slash, or is empty for the instance itself.
    pub fn path(&self, name: &str, rest: &str) -> String {
        format!("/v1/instances/{}{rest}{}", escape(name), self.query())
    }
}

/// Returns `part` as a part of a path: what has a meaning there is written in
/// hexadecimal digits.
pub fn escape(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let byte = |b: u8| {
        if plain(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    part.bytes().map(byte).collect()
}

/// Prints an answer: its own text, or what `render` makes of the object.
///
/// # Errors
/// [`ClientError::Json`] for an answer that is no such object.
pub fn answer<T: DeserializeOwned>(
    json: bool,
    mut text: String,
    render: impl FnOnce(&T) -> String,
) -> Result<ExitStatus, CliError> {
    if json {
        text.push('\n');
        return print(text.as_bytes());
    }
    let object: T = serde_json::from_str(&text).map_err(ClientError::Json)?;
    print(render(&object).as_bytes())
}

/// Asks for an object and prints it.
///
/// # Errors
/// As [`answer`], and those of the call.
pub fn get<T: DeserializeOwned>(
    client: &ClientArgs,
    path: &str,
    render: impl FnOnce(&T) -> String,
) -> Result<ExitStatus, CliError> {
    answer(client.json, client.call(Call::get(path))?, render)
}

/// Carries out a call that changes something, and prints what `render` makes
/// of the answer.
///
/// # Errors
/// As [`answer`], and those of the call.
pub fn change<T: DeserializeOwned>(
    args: &ChangeArgs,
    call: Call<'_>,
    render: impl FnOnce(&T) -> String,
) -> Result<ExitStatus, CliError> {
    let text = args.client.call(call)?;
    answer(args.client.json, text, |object| {
        let text = render(object);
        if args.dry_run {
            format!("dry run; {text}")
        } else {
            text
        }
    })
}

/// Returns the line that says what became of an instance, such as
/// `web: stopped (killed)`.
pub fn done(instance: &Instance) -> String {
    let reason = instance.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{}: {}{reason}\n", instance.name, instance.state)
}
