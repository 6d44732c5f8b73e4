//! What `run` and `serve` have in common: signals, and the way to a pool.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressStyle};
use mkpool::{AddrRange, ParamError, ParamMode, PoolParam};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

use crate::error::{CliError, ExitStatus};
use mkvmm::host_pool::{HostPool, HostPoolError};
use mkvmm::kvm::Host;
use mkvmm::machine::place_pool;
use mkvmm::reservation::ReservationConfig;
use mkvmm::reservation::backing::{Backing, raise_descriptor_limit};

/// A pool as users write it.
#[derive(Debug)]
pub struct PoolRequest {
    pub pool: String,
    pub backing: String,
    pub prealloc: bool,
    pub lock: bool,
    pub numa_node: Option<u32>,
    pub holds: Vec<String>,
}

/// The same, checked as far as that goes without the host.
#[derive(Debug)]
pub struct CheckedPool {
    param: PoolParam,
    config: ReservationConfig,
    holds: Vec<AddrRange>,
}

impl PoolRequest {
    pub fn check(&self) -> Result<CheckedPool, CliError> {
        let param = PoolParam::parse(&self.pool, ParamMode::Strict).map_err(CliError::Param)?;
        let backing: Backing = self.backing.parse().map_err(CliError::Backing)?;
        let holds = self.holds.iter().map(|text| parse_hold(text));
        Ok(CheckedPool {
            param,
            config: ReservationConfig {
                backing,
                prealloc: self.prealloc,
                lock: self.lock,
                numa_node: self.numa_node,
            },
            holds: holds.collect::<Result<_, _>>()?,
        })
    }
}

impl CheckedPool {
    /// Opens KVM and reserves the pool; then guests may run.
    pub fn reserve(self) -> Result<(Host, HostPool), CliError> {
        let (param, backing) = (self.param, self.config.backing);
        let host = Host::open()?;
        let range = place_pool(param, host.address_bits(), backing.page_size())?;
        if range.size() != param.size {
            log::warn!(
                "the pool of {} bytes is rounded up to {}",
                param.size,
                range.size()
            );
        }
        backing
            .check_host_can_give(range.size())
            .map_err(CliError::Reservation)?;
        raise_descriptor_limit();
        let mut pool = reserve(range, self.config)?;
        for hold in self.holds {
            pool.hold(hold)?;
        }
        Ok((host, pool))
    }
}

/// `--hold SIZE@ADDR`: a range of the pool.
fn parse_hold(text: &str) -> Result<AddrRange, CliError> {
    let param = PoolParam::parse(text, ParamMode::Strict).map_err(CliError::Hold)?;
    let start = param.start.ok_or_else(|| {
        let text = text.to_owned();
        CliError::Hold(ParamError::ZeroAddr { text })
    })?;
    Ok(AddrRange::with_size(start, param.size)?)
}

/// Reserves the pool, with a progress bar where that takes long.
fn reserve(range: AddrRange, config: ReservationConfig) -> Result<HostPool, HostPoolError> {
    if !config.prealloc {
        return HostPool::new(range, config, &|_| ());
    }
    // On a terminal only; hidden elsewhere by the library.
    let bar = ProgressBar::new(range.size());
    let style = "prealloc {bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let pool = HostPool::new(range, config, &|done| bar.set_position(done));
    bar.finish_and_clear();
    pool
}

/// SIGINT and SIGTERM as bytes in a socket; a second one ends mkvmm at once.
/// A console log that outgrows the limit of file sizes is an error of its
/// write, and no reason to end all guests by SIGXFSZ.
pub fn listen_for_signals() -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let status = ExitStatus::Interrupted.code();
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&again))?;
        signal_hook::flag::register(signal, Arc::clone(&again))?;
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(receiver)
}
