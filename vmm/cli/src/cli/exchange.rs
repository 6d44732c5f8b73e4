//! One exchange with a running VMM: sends a call and prints its response.

use serde::de::DeserializeOwned;

use crate::cli::client::{Call, ClientArgs, ClientError};
use crate::cli::output::print;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::ErrorBody;
use mkvmm_api::instance::Instance;

/// Options of every command that changes something.
#[derive(Debug, Clone, clap::Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Validate only; change nothing (dry run)
    #[arg(long)]
    dry_run: bool,
}

impl ChangeArgs {
    /// Returns the options that every command has.
    pub const fn client(&self) -> &ClientArgs {
        &self.client
    }

    /// Returns whether nothing is to be changed.
    pub const fn is_dry_run(&self) -> bool {
        self.dry_run
    }

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

/// Returns `part` percent-encoded, for use as one segment of a path.
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

/// Prints a response: the raw JSON, or the object as `render` formats it.
///
/// # Errors
/// Returns [`ClientError::Json`] if the response is not a `T`.
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

/// Requests an object and prints it.
///
/// # Errors
/// Returns the errors of the call and of [`answer`].
pub fn get<T: DeserializeOwned>(
    client: &ClientArgs,
    path: &str,
    render: impl FnOnce(&T) -> String,
) -> Result<ExitStatus, CliError> {
    answer(client.json, asked(client, Call::get(path))?, render)
}

/// Performs a call; prints the JSON of a refusal, if JSON is wanted.
///
/// # Errors
/// Returns the errors of the call and of standard output.
pub fn asked(client: &ClientArgs, call: Call<'_>) -> Result<String, CliError> {
    let answer = client.call(call);
    if let Err(error) = &answer
        && let Some(ClientError::Refused(refusal)) = error.find()
        && client.json
    {
        let error = (**refusal).clone();
        let body = serde_json::to_string(&ErrorBody { error });
        print(format!("{}\n", body.map_err(ClientError::Json)?).as_bytes())?;
    }
    answer
}

/// Performs a call that changes something and prints its response, as `render`
/// formats it.
///
/// # Errors
/// Returns the errors of the call and of [`answer`].
pub fn change<T: DeserializeOwned>(
    args: &ChangeArgs,
    call: Call<'_>,
    render: impl FnOnce(&T) -> String,
) -> Result<ExitStatus, CliError> {
    let text = asked(&args.client, call)?;
    answer(args.client.json, text, |object| {
        let text = render(object);
        if args.dry_run {
            format!("dry run; {text}")
        } else {
            text
        }
    })
}

/// Returns the line that reports the new state of an instance, such as `web:
/// stopped (killed)`.
pub fn done(instance: &Instance) -> String {
    let reason = instance.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{}: {}{reason}\n", instance.name, instance.state)
}
