//! `mkvmm serve`: the long-running VMM with its control socket.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sd_notify::NotifyState;
use serde::Deserialize;
use signal_hook::consts::SIGHUP;
use tokio::signal::unix::{SignalKind, signal};

use mkvmm_base::{Class, Diagnose};
use mkvmm_images::{Access, ImageDirs, SourceError};
use mkvmm_keeper::child;
use mkvmm_manager::control::client;
use mkvmm_manager::control::doctor::Doctor;
use mkvmm_manager::control::http::Api;
use mkvmm_manager::control::scrapes::MetricsSocket;
use mkvmm_manager::control::server::ControlSocket;
use mkvmm_manager::log_writer::Logs;
use mkvmm_manager::{ConsoleOptions, Manager, STOCK_MAX};
use mkvmm_memory::reservation::host::{raise_descriptor_limit, reserve_descriptor_table};

use crate::cli::HostIoError;
use crate::cli::config_file::{ConfigError, ConfigFile};
use crate::cli::continuity::{End, Founded, Founding, Served};
use crate::cli::founding::{ChildOptions, FoundingError, Treatment};
use crate::cli::group::Group;
use crate::cli::log_options::{self, LogOptions};
use crate::cli::options::size;
use crate::cli::pool_setup::PoolOptions;
use crate::cli::runtime::serve_on;
use crate::cli::signals::{Second, Signals};
use crate::cli::state_dir::{OnManagerExit, StateDir};
use crate::cli::{find_socket, fleet_file, grace, start_fleet, successor};
use crate::doctor;
use crate::error::{CliError, ExitStatus};

/// The size of the ring that keeps each guest's console output: 1 MiB.
const CONSOLE_RING: usize = 1 << 20;
/// The number of bytes of images that stay cached without an instance using
/// them: 1 GiB.
const IMAGE_CACHE: u64 = 1 << 30;
/// The default time between the power button and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Arguments of `mkvmm serve`. Flags override the configuration file.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pool: PoolOptions,
    #[command(flatten)]
    children: ChildOptions,
    #[command(flatten)]
    log: LogOptions,
    /// The control socket [default: $MKVMM_SOCKET, $XDG_RUNTIME_DIR/mkvmm.sock or
    /// /run/mkvmm.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Let the members of this group use the control socket, too: its name or number.
    /// They have all rights to the instances that they create, and to no others
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// A TOML file with any of these options as keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Open images only below this directory; repeatable
    #[arg(long = "image-dir", value_name = "DIR")]
    image_dirs: Vec<PathBuf>,
    /// Write console logs only below this directory; repeatable
    #[arg(long = "log-dir", value_name = "DIR")]
    log_dirs: Vec<PathBuf>,
    /// A TOML file with instances that are there from the beginning: it is applied
    /// before clients are served, as `apply` does
    #[arg(long, value_name = "FILE")]
    fleet: Option<PathBuf>,
    /// Serve metrics over HTTP at this address, for Prometheus: ADDRESS:PORT, or a
    /// port of 127.0.0.1 [default: only through the control socket]
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address)]
    metrics_listen: Option<SocketAddr>,
    /// Bytes of output that each guest's console keeps
    #[arg(long, value_name = "BYTES")]
    console_ring: Option<usize>,
    /// The time that guests have to shut down after SIGTERM before they are
    /// killed, for example 30s [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = grace::time)]
    grace: Option<Duration>,
    /// Keep guests running when this process ends without ending them, and take
    /// over those of an earlier one: their keeper is found in this directory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What happens to guests when this process ends without ending them
    /// [default: keep]
    #[arg(long, value_name = "POLICY", value_enum, requires = "state_dir")]
    on_manager_exit: Option<OnManagerExit>,
    /// Create the instances again that were there before the host crashed, and
    /// start those that ran
    #[arg(long, requires = "state_dir")]
    recreate: bool,
    /// The limit on simultaneous clients [default: 128, or an eighth of the
    /// open files allowed]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Have all sizes be multiples of this one, at least the largest image and 2M:
    /// then an instance fits whenever enough granules are free (`capacity`)
    #[arg(long, value_name = "SIZE")]
    granule: Option<String>,
    /// Keep N processes ready for guests that are started later, at most 64
    /// [default: 0]
    #[arg(long, value_name = "N")]
    warm: Option<usize>,
}

/// The configuration file, which has the same options.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct ServeFile {
    #[serde(flatten)]
    pool: PoolOptions,
    #[serde(flatten)]
    children: ChildOptions,
    #[serde(flatten)]
    log: LogOptions,
    socket: Option<PathBuf>,
    socket_group: Option<String>,
    image_dir: Vec<PathBuf>,
    log_dir: Vec<PathBuf>,
    fleet: Option<PathBuf>,
    metrics_listen: Option<String>,
    console_ring: Option<usize>,
    #[serde(deserialize_with = "grace::read")]
    grace: Option<Duration>,
    connections: Option<usize>,
    granule: Option<String>,
    warm: Option<usize>,
    state_dir: Option<PathBuf>,
    on_manager_exit: Option<OnManagerExit>,
    recreate: bool,
}

/// The keys besides those of the pool.
const KEYS: [&str; 14] = [
    "socket",
    "socket-group",
    "image-dir",
    "log-dir",
    "fleet",
    "metrics-listen",
    "console-ring",
    "grace",
    "connections",
    "granule",
    "warm",
    "state-dir",
    "on-manager-exit",
    "recreate",
];

fn read_file(path: &Path) -> Result<ServeFile, ConfigError> {
    let file = ConfigFile::read(path)?;
    let keys = [
        &PoolOptions::KEYS[..],
        &ChildOptions::KEYS,
        &LogOptions::KEYS,
        &KEYS,
    ]
    .concat();
    file.check_keys(&file.parse()?, &keys)?;
    file.parse()
}

/// Runs the command `mkvmm serve`.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(args: &ServeArgs) -> Result<ExitStatus, CliError> {
    let file = match &args.config {
        Some(path) => read_file(path)?,
        None => ServeFile::default(),
    };
    let log = args.log.or(file.log);
    log.configure(log_options::service_format());
    let request = args.pool.clone().or(file.pool).check()?;
    let granule = args.granule.as_ref().or(file.granule.as_ref());
    let granule = granule.map(|text| size("granule", text)).transpose()?;
    if let Some(granule) = granule {
        request.check_granule(granule)?;
    }
    let fleet = args.fleet.as_ref().or(file.fleet.as_ref());
    let fleet = fleet.map(|path| fleet_file::read(path)).transpose()?;
    let children = args.children.clone().or(file.children);
    let processes = children.checked()?;
    children.confine_manager()?;
    let image_dirs = if args.image_dirs.is_empty() {
        &file.image_dir
    } else {
        &args.image_dirs
    };
    let image_dirs = open_image_dirs(image_dirs)?;
    let group = args.socket_group.as_ref().or(file.socket_group.as_ref());
    let group = group.map(|group| group.parse::<Group>()).transpose()?;
    let metrics = match (args.metrics_listen, &file.metrics_listen) {
        (Some(address), _) => Some(address),
        (None, Some(text)) => Some(metrics_address(text)?),
        (None, None) => None,
    };
    let log_dirs: Arc<[PathBuf]> = directories("log-dir", &args.log_dirs, file.log_dir)?.into();
    let path = args
        .socket
        .clone()
        .or(file.socket)
        .unwrap_or_else(find_socket::of_serve);
    let ring = args.console_ring.or(file.console_ring);
    let grace = args.grace.or(file.grace).unwrap_or(GRACE);
    let warm = args.warm.or(file.warm).unwrap_or(0);
    if warm > STOCK_MAX {
        return Err(FoundingError::Warm { warm }.into());
    }

    let state_dir = args.state_dir.clone().or(file.state_dir);
    let state_dir = state_dir.as_deref().map(StateDir::open).transpose()?;
    if state_dir.is_some() {
        // It may take over thousands of guests, and is alone until here.
        raise_descriptor_limit();
        reserve_descriptor_table();
    }
    let on_manager_exit = args.on_manager_exit.or(file.on_manager_exit);
    let second = match state_dir {
        Some(_) => Second::Handler,
        None => Second::Signal,
    };
    let signals = Signals::listen(second).map_err(HostIoError::Signals)?;
    // Guests keep running when the terminal is closed; logs are opened again.
    let hangup = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGHUP, hangup).map_err(HostIoError::Signals)?;
    let socket = match child::passed_socket() {
        Some(passed) => ControlSocket::passed(passed, group.is_some())?,
        None => ControlSocket::take(&path, group.map(|Group(group)| group))?,
    };
    let path = socket.path().to_owned();
    let metrics = metrics.map(MetricsSocket::listen).transpose()?;
    let treatment = Treatment {
        console: ConsoleOptions {
            ring: ring.unwrap_or(CONSOLE_RING),
            lossless: false,
        },
        kept_images: IMAGE_CACHE,
        access: Access::Client(image_dirs),
        connections: args.connections.or(file.connections),
        on_stall: children.on_stall(),
        early: None,
        warm,
        logs: Some(Logs::start().map_err(HostIoError::Signals)?),
        inherited: 0,
    };
    let founding = Founding {
        request,
        children: processes,
        treatment,
        on_manager_exit: on_manager_exit.unwrap_or_default(),
        recreate: args.recreate || file.recreate,
    };
    let served = serve_on(async {
        let mut all_signals = Served::listen(&signals).map_err(HostIoError::Signals)?;
        let founded = match &state_dir {
            Some(dir) => founding.in_state_dir(dir, signals.flag()).await,
            None => founding.alone(signals.flag()),
        };
        let Founded { manager, mut kept } = match founded {
            // Guests that were taken over end first.
            Ok(founded @ Founded { kept: Some(_), .. }) => founded,
            // A signal arrived while the pool was being set up.
            _ if signals.came() => return Ok(signals.status()),
            founded => founded?,
        };
        log_options::follow(&manager.log());
        if let Some(granule) = granule {
            manager.registry_mut().pool_mut().set_granule(granule);
        }
        let ended = match fleet {
            Some(fleet) => {
                let log_dirs = Arc::clone(&log_dirs);
                start_fleet::start(&manager, fleet, log_dirs, grace, &signals).await
            }
            None => Ok(None),
        };
        let (end, status) = match ended {
            Ok(None) => {
                let (client, requests) = client::channel();
                if let Some(metrics) = &metrics {
                    log::info!("metrics: http://{}/metrics", metrics.address());
                }
                let api = Api {
                    client,
                    log: manager.log(),
                    log_dirs,
                    doctor: Doctor::new(doctor::examine),
                    connections: manager.connections(),
                };
                socket.serve(api, metrics)?;
                tokio::task::spawn_local(requests.serve(Rc::clone(&manager)));
                manager.fill_stock();
                open_logs_at_hangup(&manager).map_err(HostIoError::Signals)?;
                notify(NotifyState::Ready);
                say_ready(&path).map_err(HostIoError::Signals)?;
                let end = match &mut kept {
                    Some(kept) => kept.serve(&manager, &mut all_signals, &path).await?,
                    None => {
                        signals.wait().await.map_err(HostIoError::Signals)?;
                        End::Guests
                    }
                };
                (end, Ok(ExitStatus::Done))
            }
            Ok(Some(status)) => {
                // It ends as it was asked to, so no program before it is to go on.
                successor::stay();
                (End::Guests, Ok(status))
            }
            Err(error) => (End::Guests, Err(error)),
        };
        match end {
            End::Guests => {
                notify(NotifyState::Stopping);
                if let Some(kept) = &kept {
                    kept.begin_end(&signals);
                }
                let forced = manager.end_all(grace).await;
                if let (Some(kept), Some(dir)) = (kept, &state_dir) {
                    kept.end(dir).await;
                }
                match status {
                    Ok(ExitStatus::Done) if forced > 0 => {
                        log::warn!("{forced} guests did not shut down, and were killed");
                        Ok(signals.status())
                    }
                    status => status,
                }
            }
            End::Manager => Ok(ExitStatus::Done),
            End::Keeper => Ok(ExitStatus::Failed),
        }
    });
    served.map_err(HostIoError::Signals)?
}

/// Has every SIGHUP open the console logs again that were moved away.
fn open_logs_at_hangup(manager: &Rc<Manager>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let manager = Rc::clone(manager);
    tokio::task::spawn_local(async move {
        while hangup.recv().await.is_some() {
            manager.open_logs_again().await;
        }
    });
    Ok(())
}

/// A reason why an address for metrics was refused.
#[derive(Debug, thiserror::Error)]
#[error("--metrics-listen {text}: expected ADDRESS:PORT or a port")]
struct AddressError {
    /// The address as it was given.
    text: String,
}

impl Diagnose for AddressError {
    fn class(&self) -> Class {
        Class::Invalid
    }

    fn hint(&self) -> Option<String> {
        Some("for example 127.0.0.1:9464, or [::1]:9464".to_owned())
    }
}

/// Parses the address at which metrics are served.
fn metrics_address(text: &str) -> Result<SocketAddr, AddressError> {
    let port = || Some(SocketAddr::from((Ipv4Addr::LOCALHOST, text.parse().ok()?)));
    let address = text.parse().ok().or_else(port);
    address.ok_or_else(|| AddressError {
        text: text.to_owned(),
    })
}

/// Returns the canonical paths of the directories of an option; those of the
/// file if there is no flag.
fn directories(
    option: &'static str,
    flag: &[PathBuf],
    file: Vec<PathBuf>,
) -> Result<Vec<PathBuf>, HostIoError> {
    let dirs = if flag.is_empty() { file } else { flag.to_vec() };
    let real = |path: PathBuf| {
        let real = std::fs::canonicalize(&path);
        real.map_err(|source| HostIoError::Directory {
            option,
            path,
            source,
        })
    };
    dirs.into_iter().map(real).collect()
}

/// Opens the directories to which images are restricted.
fn open_image_dirs(dirs: &[PathBuf]) -> Result<ImageDirs, HostIoError> {
    ImageDirs::open(dirs).map_err(|error| {
        let option = "image-dir";
        match error {
            SourceError::Directory { path, source } => HostIoError::Directory {
                option,
                path,
                source,
            },
            other => HostIoError::Directory {
                option,
                path: PathBuf::new(),
                source: io::Error::other(other),
            },
        }
    })
}

/// Reports on standard output that the socket accepts clients.
fn say_ready(path: &Path) -> io::Result<()> {
    let line = format!("ready: {}\n", path.display());
    let mut out = io::stdout().lock();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        // Nobody waits for it there. Clients may come all the same.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

/// Notifies systemd, if it asked for notifications.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        log::warn!("systemd cannot be notified: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_told_with_the_nearest_known_one() {
        let path = std::env::temp_dir().join(format!("mkvmm-serve-{}.toml", std::process::id()));
        std::fs::write(&path, "poool = \"1G\"").unwrap();
        assert!(matches!(
            read_file(&path),
            Err(ConfigError::UnknownKey {
                nearest: "pool",
                ..
            })
        ));
        std::fs::write(&path, "pool = \"1G\"\nhold = [\"1M@4G\"]\ngrace = 1").unwrap();
        let file = read_file(&path).unwrap();
        assert_eq!(file.grace, Some(Duration::from_secs(1)));
        file.pool.check().unwrap();
        std::fs::write(&path, "pool = 3").unwrap();
        assert!(matches!(read_file(&path), Err(ConfigError::Toml { .. })));
        std::fs::remove_file(&path).unwrap();
    }
}
