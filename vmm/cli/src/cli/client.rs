//! The options of every command that talks to a running VMM.

use std::path::{Path, PathBuf};

use log::LevelFilter;

use crate::cli::find_socket;
use crate::cli::output::print;
use crate::error::CliError;
use mkvmm_api::ErrorBody;
use mkvmm_client::connection::{block_on, open};
use mkvmm_client::{Call, Client, ClientError};

/// Options of every command that talks to a running VMM.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The control socket [default: $MKVMM_SOCKET, $XDG_RUNTIME_DIR/mkvmm.sock or
    /// /run/mkvmm.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print exactly the JSON that the VMM sends, also that of an error
    #[arg(long)]
    pub json: bool,
    /// If there is an error, print each of its causes, down to the last one
    #[arg(short, long)]
    pub verbose: bool,
}

impl ClientArgs {
    /// Returns the arguments that name this socket, or the default one.
    pub const fn maybe(socket: Option<PathBuf>) -> Self {
        Self {
            socket,
            json: false,
            verbose: false,
        }
    }

    /// Returns the arguments that name the socket at `path`.
    pub fn of(path: &Path) -> Self {
        Self::maybe(Some(path.to_owned()))
    }

    /// Returns the path of the VMM's control socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(find_socket::of_clients)
    }

    /// Sends `call` and returns the text of the response.
    pub fn call(&self, call: Call<'_>) -> Result<String, CliError> {
        let text = self.heard(|| Client::new(self.socket()).text(call))?;
        Ok(text)
    }

    /// Sends `call` and passes the text of the response on as it arrives.
    pub fn stream(
        &self,
        call: Call<'_>,
        mut print: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let socket = self.socket();
        self.heard(|| {
            block_on(async {
                let mut body = open(&socket, call).await?;
                while let Some(data) = body.next().await? {
                    print(&data)?;
                }
                Ok::<(), CliError>(())
            })
        })
    }

    /// Talks to the VMM, as these options say: every request is made in here. If JSON is
    /// wanted, that of a refusal is printed.
    ///
    /// # Errors
    /// Returns the error of `talk`, or that of standard output.
    pub fn heard<T, E: Into<CliError>>(
        &self,
        talk: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CliError> {
        if self.verbose {
            log::set_max_level(LevelFilter::Debug);
        }
        let error: CliError = match talk() {
            Ok(heard) => return Ok(heard),
            Err(error) => error.into(),
        };
        if let Some(ClientError::Refused(refusal)) = error.find()
            && self.json
        {
            let error = (**refusal).clone();
            let body = serde_json::to_string(&ErrorBody { error });
            print(format!("{}\n", body.map_err(ClientError::Json)?).as_bytes())?;
        }
        Err(error)
    }
}
