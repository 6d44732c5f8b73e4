//! Leases: an instance that exists only as long as a connection does.

use std::path::Path;
use std::time::Duration;

use mkvmm_api::LEASE_PROTOCOL;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::call::Call;
use crate::connection::{Stream, upgrade};
use crate::error::ClientError;

/// The lease of an instance that was created with `lease=true`. When it is dropped, or
/// this process ends, the VMM kills and deletes the instance.
#[derive(Debug)]
pub struct Lease {
    held: ReadHalf<Stream>,
    renewals: WriteHalf<Stream>,
}

impl Lease {
    /// Takes the lease of the instance `name`, which has to be renewed within `limit`, if
    /// one is given.
    ///
    /// # Errors
    /// Returns the errors of the request.
    pub async fn take(
        socket: &Path,
        name: &str,
        limit: Option<Duration>,
    ) -> Result<Self, ClientError> {
        let limit = limit.map_or_else(String::new, |limit| {
            let ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            format!("?limit_ms={}", ms.max(1))
        });
        let call = Call::of_instance("POST", name, &format!("/lease{limit}"));
        let stream = upgrade(socket, call, LEASE_PROTOCOL).await?;
        let (held, renewals) = tokio::io::split(stream);
        Ok(Self { held, renewals })
    }

    /// Renews it: its time begins anew.
    ///
    /// # Errors
    /// Returns [`ClientError::Stream`] if the VMM has ended it, or itself.
    pub async fn renew(&mut self) -> Result<(), ClientError> {
        let sent = self.renewals.write_all(b".").await;
        sent.map_err(ClientError::Stream)
    }

    /// Waits until the VMM has ended it, or itself.
    pub async fn ended(&mut self) {
        // The VMM sends nothing: there is no byte that could be read.
        let _ = self.held.read_u8().await;
    }
}
