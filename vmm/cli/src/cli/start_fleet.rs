//! `serve --fleet`: the channels and instances that are there from the beginning.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_api::apply::FleetChange;
use mkvmm_keeper::cgroup::{Base, Cgroups};
use mkvmm_manager::Manager;
use mkvmm_manager::config::InstanceConfig;
use mkvmm_manager::control::apply::{Fleet, prepare};

use crate::cli::HostIoError;
use crate::cli::fleet_file::FleetFile;
use crate::cli::founding::FoundingError;
use crate::cli::signals::Signals;
use crate::error::{CliError, ExitStatus};

/// Applies a fleet before anybody is served. Returns a status if a signal ends it.
///
/// # Errors
/// Returns a [`CliError`] if there was no instance, and the fleet cannot be applied.
/// Where there are some, taken over from an earlier manager, that is only logged.
pub async fn start(
    manager: &Rc<Manager>,
    file: FleetFile,
    log_dirs: Arc<[PathBuf]>,
    grace: Duration,
    signals: &Signals,
) -> Result<Option<ExitStatus>, CliError> {
    let has_others = !manager.registry().is_empty();
    let applied = tokio::select! {
        applied = apply(manager, file, log_dirs, grace) => applied,
        waited = signals.wait() => {
            waited.map_err(HostIoError::Signals)?;
            return Ok(Some(signals.status()));
        }
    };
    match applied {
        Ok(()) => Ok(None),
        Err(error) if has_others => {
            log::error!("the fleet was not applied: {}", error.render());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn apply(
    manager: &Rc<Manager>,
    file: FleetFile,
    log_dirs: Arc<[PathBuf]>,
    grace: Duration,
) -> Result<(), CliError> {
    let mut instances = Vec::new();
    for spec in file.instance {
        let images = spec.images()?;
        let mut config = InstanceConfig::of(spec)?;
        if let Some(base) = config.cgroup_base(|| Ok::<_, FoundingError>(Base::Own))? {
            config.cgroup = Some(Cgroups::find(&base).map_err(FoundingError::from)?);
        }
        instances.push((config, images));
    }
    let fleet = Fleet {
        channels: file.channel.into_iter().map(Into::into).collect(),
        instances,
        prune: false,
        grace,
        log_dirs,
    };
    let applied = prepare(manager, fleet).await?.carry_out(manager).await?;
    let count = |changes: &[FleetChange]| changes.iter().filter(|one| !one.is_none()).count();
    log::info!(
        "the fleet is there; {} channels and {} instances were changed",
        count(&applied.channels),
        count(&applied.changes)
    );
    Ok(())
}
