//! One exchange with a running VMM: sends a call and prints its response.

use serde::de::DeserializeOwned;

use crate::cli::client::ClientArgs;
use crate::cli::output::print;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::instance::Instance;
use mkvmm_client::{Call, ClientError, escape};

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
    answer(client.json, client.call(Call::get(path))?, render)
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

/// Returns the line that reports the new state of an instance, such as `web:
/// stopped (killed)`.
pub fn done(instance: &Instance) -> String {
    let reason = instance.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{}: {}{reason}\n", instance.name, instance.state)
}
