//! The instances of a state directory, in a file that survives the host: so that
//! after a crash of the host, or of the keeper, the next `serve` can say what was
//! there, and create it again.
//!
//! `instances.toml` is a fleet file, as `run --fleet` and `plan` read it, with the
//! names of those that ran in its first line. The next `serve` that finds no guests
//! renames it to `before.toml`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mkvmm_api::InstanceSpec;
use mkvmm_api::channel::ChannelBody;
use mkvmm_base::{InstanceName, chain};
use mkvmm_keeper::cgroup::{Base, Cgroups};
use mkvmm_manager::Manager;
use mkvmm_manager::config::InstanceConfig;

use crate::cli::fleet_file::{self, FleetFile};
use crate::cli::founding::FoundingError;
use crate::cli::state_dir::StateDir;
use crate::error::CliError;

/// What the first line begins with.
const RUNNING: &str = "# running:";
/// The time for which changes are collected before they are written.
const GATHER: Duration = Duration::from_millis(200);

/// The contents of the file.
#[derive(Debug, Clone, Default, PartialEq)]
struct Last {
    running: Vec<InstanceName>,
    instance: Vec<InstanceSpec>,
    channel: Vec<ChannelBody>,
}

impl Last {
    /// Returns what `manager` has now.
    fn of(manager: &Manager) -> Self {
        let mut last = Self::default();
        let registry = manager.registry();
        let kept = registry.channels().filter(|channel| !channel.is_ending());
        last.channel = kept.filter_map(|channel| channel.body().ok()).collect();
        // What is leased is over with its lease, and may be elsewhere by now.
        for guest in registry.guests().filter(|guest| !guest.config().is_leased) {
            let images = guest.loaded().map(|loaded| loaded.images.spec());
            let is_live = guest.state().is_live();
            let spec = guest.config().spec.clone();
            last.instance.push(InstanceSpec {
                autostart: is_live || images.is_none(),
                ..spec.with_images(images)
            });
            if is_live {
                last.running.push(guest.name().clone());
            }
        }
        last
    }

    fn text(&self) -> String {
        let names = self.running.iter().map(InstanceName::as_str);
        let names: Vec<&str> = names.collect();
        let fleet = fleet_file::text(&self.channel, &self.instance);
        format!("{RUNNING} {}\n{fleet}", names.join(" "))
    }
}

fn current(dir: &StateDir) -> PathBuf {
    dir.path().join("instances.toml")
}

/// The file, which is written whenever the instances of a manager have changed.
#[derive(Debug, Clone)]
pub struct LastFleet {
    path: PathBuf,
    /// True once all instances are to end: that is no crash.
    is_over: Arc<Mutex<bool>>,
}

impl LastFleet {
    /// Keeps the file of `manager` up to date.
    pub fn keep(manager: &Rc<Manager>, dir: &StateDir) -> Self {
        let file = Self {
            path: current(dir),
            is_over: Arc::default(),
        };
        let (kept, manager) = (file.clone(), Rc::clone(manager));
        tokio::task::spawn_local(async move { write_changes(&manager, &kept).await });
        file
    }

    /// Removes the file permanently: all instances are being ended.
    pub fn clear(&self) {
        *self.lock() = true;
        // What is left is reported by the next serve, which does no harm.
        let _ = fs::remove_file(&self.path);
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file in one step, and not only into the page cache.
    fn save(&self, last: &Last) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(last.text().as_bytes())?;
        file.sync_all()?;
        let is_over = self.lock();
        match *is_over {
            true => fs::remove_file(&new),
            false => fs::rename(&new, &self.path),
        }
    }
}

async fn write_changes(manager: &Manager, file: &LastFleet) {
    let mut written = None;
    loop {
        // What changes from here on is not missed.
        let changed = manager.changed();
        let now = Some(Last::of(manager));
        if now != written {
            written.clone_from(&now);
            let file = file.clone();
            let save = move || now.map_or(Ok(()), |now| file.save(&now));
            let saved = tokio::task::spawn_blocking(save).await;
            if let Ok(Err(error)) = saved {
                log::warn!("the list of instances is not up to date: {}", chain(&error));
            }
        }
        changed.await;
        tokio::time::sleep(GATHER).await;
    }
}

/// Says what was there before a crash, where no guests are left; creates it again
/// if `recreate` asks for that.
///
/// # Errors
/// Returns a [`CliError`] if the file cannot be read.
pub async fn after_crash(
    manager: &Rc<Manager>,
    dir: &StateDir,
    recreate: bool,
) -> Result<(), CliError> {
    let (last, before) = (current(dir), dir.path().join("before.toml"));
    let (fleet, running) = read(&last)?;
    let is_empty = fleet.instance.is_empty() && fleet.channel.is_empty();
    if !is_empty && fs::rename(&last, &before).is_ok() {
        let names = fleet.instance.iter().filter_map(|spec| spec.name.as_ref());
        let names: Vec<String> = names.map(ToString::to_string).collect();
        log::warn!(
            "the host or the keeper has crashed; there were {} instances, of which {} ran: {}",
            names.len(),
            running.len(),
            names.join(", ")
        );
        if !recreate {
            let path = before.display();
            log::warn!("`serve --recreate` creates them again; they are in {path}");
        }
    }
    if recreate && before.exists() {
        let (fleet, running) = read(&before)?;
        let mut is_complete = true;
        // Instances have the channels that are there when they start.
        for body in fleet.channel {
            let name = body.name.clone();
            if let Err(error) = manager.create_channel(body.into()).await {
                is_complete = false;
                log::error!("channel {name}: not created again: {}", chain(&error));
            }
        }
        for spec in fleet.instance {
            let name = spec.name.clone();
            let text = name.as_ref().map_or("", InstanceName::as_str).to_owned();
            let is_running = name.is_some_and(|name| running.contains(&name));
            match create(manager, spec, is_running).await {
                Ok(()) => log::info!("{text}: created again"),
                Err(error) => {
                    is_complete = false;
                    log::error!("{text}: not created again: {}", error.render());
                }
            }
        }
        if is_complete {
            // They are in the current file now.
            let _ = fs::remove_file(&before);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<(FleetFile, Vec<InstanceName>), CliError> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(RUNNING));
    let running = line.unwrap_or_default().split_whitespace();
    let running = running.filter_map(|name| name.parse().ok()).collect();
    match text.contains("[[") {
        true => Ok((fleet_file::read(path)?, running)),
        false => Ok((FleetFile::default(), running)),
    }
}

/// Creates one instance as it was, and starts it if it ran.
async fn create(
    manager: &Rc<Manager>,
    spec: InstanceSpec,
    is_running: bool,
) -> Result<(), CliError> {
    let images = spec.images()?;
    let mut config = InstanceConfig::of(spec)?;
    if let Some(base) = config.cgroup_base(|| Ok::<_, FoundingError>(Base::Own))? {
        config.cgroup = Some(Cgroups::find(&base).map_err(FoundingError::from)?);
    }
    let name = config.name.clone();
    match images {
        Some(images) => {
            for one in manager.resolve(vec![(config, images)]).await? {
                manager.create(one.instance, Some(one.images)).await?;
            }
        }
        None => {
            manager.create(config, None).await?;
        }
    }
    if is_running {
        manager.start(&name).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_fleet_file() {
        let dir = std::env::temp_dir().join(format!("mkvmm-last-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("instances.toml");
        let file = LastFleet {
            path: path.clone(),
            is_over: Arc::default(),
        };
        let specs = [
            "name=a,memory=8M,kernel=probe,cmdline=x,,y",
            "name=b,memory=16M,cpus=2",
        ];
        let last = Last {
            running: vec!["a".parse().unwrap()],
            instance: specs.map(|spec| spec.parse().unwrap()).into(),
            channel: vec![ChannelBody {
                name: "ab".parse().unwrap(),
                size: "1M".parse().unwrap(),
                between: vec!["a".parse().unwrap(), "b:ro".parse().unwrap()],
                doorbells: 2,
            }],
        };
        let fleet = |last: &Last| FleetFile {
            instance: last.instance.clone(),
            channel: last.channel.clone(),
        };
        file.save(&last).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found, (fleet(&last), last.running.clone()));
        let channels = Last {
            instance: Vec::new(),
            ..last
        };
        file.save(&channels).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found, (fleet(&channels), channels.running.clone()));
        file.save(&Last::default()).unwrap();
        assert_eq!(read(&path).unwrap(), (FleetFile::default(), Vec::new()));
        // What was being written at the end does not come back.
        file.clear();
        file.save(&channels).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
