//! `mkvmm upgrade`: has a running `serve` continue with another program.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mkvmm_api::bodies::{Upgrade, UpgradeBody};
use mkvmm_api::pool::Version;
use mkvmm_manager::upgrade::UpgradeError;

use crate::cli::client::ClientArgs;
use crate::cli::output::print;
use crate::error::{CliError, ExitStatus};
use mkvmm_client::{Call, ClientError};

/// How long a client waits for the new program, and how often it looks.
const TAKE_OVER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_millis(20));

/// Arguments of `mkvmm upgrade`.
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    /// The new mkvmm
    binary: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs the command `mkvmm upgrade`.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(args: &UpgradeArgs) -> Result<ExitStatus, CliError> {
    let binary = args.binary.canonicalize();
    let binary = binary.map_err(|source| UpgradeError::Execute {
        path: args.binary.clone(),
        source,
    })?;
    let program = binary.to_string_lossy().into_owned();
    let call = Call::new("POST", "/v1/upgrade".to_owned()).with(&UpgradeBody { binary })?;
    let before = version(&args.client)?;
    let upgrade = match args.client.call(call) {
        Ok(text) => serde_json::from_str(&text).map_err(ClientError::Json)?,
        // The new program may have taken over before the answer was sent.
        Err(error) if error.status() == ExitStatus::Lost => Upgrade {
            manager: before.manager,
            check: "the answer was lost".to_owned(),
        },
        Err(error) => return Err(error),
    };
    let end = Instant::now() + TAKE_OVER.0;
    loop {
        std::thread::sleep(TAKE_OVER.1);
        match version(&args.client) {
            Ok(version) if version.manager > upgrade.manager => {
                if version.program != program {
                    return Err(UpgradeError::Refused {
                        path: args.binary.clone(),
                        text: format!("it did not go on, so {} does", version.program),
                    }
                    .into());
                }
                let Version { version, pid, .. } = version;
                let check = &upgrade.check;
                return print(
                    format!("upgraded to {version}, process {pid}: {check}\n").as_bytes(),
                );
            }
            Err(error) if Instant::now() > end => return Err(error),
            _ if Instant::now() > end => {
                return Err(UpgradeError::Refused {
                    path: args.binary.clone(),
                    text: "it did not take over".to_owned(),
                }
                .into());
            }
            _ => {}
        }
    }
}

/// Returns the version of the VMM that answers.
///
/// # Errors
/// Returns a [`CliError`] if none does.
pub fn version(client: &ClientArgs) -> Result<Version, CliError> {
    let text = client.call(Call::get("/v1/version"))?;
    Ok(serde_json::from_str(&text).map_err(ClientError::Json)?)
}
