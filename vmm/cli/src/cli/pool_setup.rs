//! Reserves the pool for `run` and `serve`.

use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressStyle};
use mkpool::AddrRange;
use mkpool::param::{ParamError, PoolParam};
use mkpool::range::RangeError;
use serde::Deserialize;

use crate::cli::job::{self, JOB, JobError, JobPool, Needs};
use mkvmm_base::{Bytes, Class, Diagnose};
use mkvmm_machine::kvm::host::{ADDRESS_BITS_MIN, Host, HostError};
use mkvmm_memory::host_pool::{HostPool, HostPoolError, check_granule};
use mkvmm_memory::place::{MachineError, place_pool};
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::backing::{Backing, BackingError};
use mkvmm_memory::reservation::host::raise_descriptor_limit;
use mkvmm_memory::reservation::{ReservationConfig, ReservationError};

/// The default of `--backing`.
const DEFAULT_BACKING: &str = "normal";

/// A reason why the pool cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum PoolSetupError {
    /// Neither an option nor a configuration file specifies the pool.
    #[error("--pool is missing")]
    Missing,
    /// `--pool` cannot be parsed.
    #[error("--pool")]
    Param(#[source] ParamError),
    /// `--pool job` has no size.
    #[error("--pool")]
    Job(#[from] JobError),
    /// The pool cannot lie at this address.
    #[error("--pool")]
    Place(#[from] MachineError),
    /// `--backing` names an unknown kind of memory.
    #[error("--backing")]
    Backing(#[from] BackingError),
    /// `--hold` is not a range.
    #[error("--hold")]
    Hold(#[source] ParamError),
    /// `--hold` reaches past the end of the address space.
    #[error("--hold")]
    HoldRange(#[from] RangeError),
    /// `--channel-area` is not a size.
    #[error("--channel-area")]
    ChannelArea(#[source] ParamError),
    /// The guests of a state directory are in a pool with another channel area.
    #[error("--channel-area: the state directory has guests in a pool with {}", area_text(*.size))]
    OtherArea {
        /// The size of that area in bytes; `None` without one.
        size: Option<u64>,
    },
    /// KVM cannot be used.
    #[error("KVM")]
    Host(#[from] HostError),
    /// The host cannot provide the memory of the pool.
    #[error("--pool")]
    Reservation(#[from] ReservationError),
    /// The guests of a state directory are in another pool.
    #[error(
        "--pool: the state directory has guests in a pool of {}@{:#x}, backing {backing}", range.size(), range.start()
    )]
    Other {
        /// The addresses of that pool.
        range: AddrRange,
        /// The kind of its pages.
        backing: Backing,
    },
    /// `--granule` does not suit the pool.
    #[error("--granule")]
    Granule(#[source] HostPoolError),
    /// The ledger of the pool cannot be created.
    #[error("the pool")]
    Pool(#[from] HostPoolError),
}

impl PoolSetupError {
    /// Returns the underlying error that has a class and a hint, if there is
    /// one.
    fn inner(&self) -> Option<&dyn Diagnose> {
        Some(match self {
            Self::Job(error) => error,
            Self::Place(error) => error,
            Self::Backing(error) => error,
            Self::Host(error) => error,
            Self::Reservation(error) => error,
            Self::Granule(error) | Self::Pool(error) => error,
            Self::Missing
            | Self::Param(_)
            | Self::Hold(_)
            | Self::HoldRange(_)
            | Self::ChannelArea(_)
            | Self::OtherArea { .. }
            | Self::Other { .. } => return None,
        })
    }
}

impl Diagnose for PoolSetupError {
    fn class(&self) -> Class {
        self.inner().map_or(Class::Invalid, Diagnose::class)
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing => Some("for example --pool 1G".to_owned()),
            Self::Other { .. } | Self::OtherArea { .. } => {
                Some("use the same options, or end the guests first".to_owned())
            }
            _ => self.inner()?.hint(),
        }
    }
}

/// The pool's options, as flags of `run` and `serve` and as keys of a file.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PoolOptions {
    /// The size of the pool, and its address if it is fixed, as in
    /// mkkernel_pool=; `job` for what fits into the memory of a batch job (run)
    #[arg(long, value_name = "SIZE[@ADDR]")]
    pool: Option<String>,
    /// The kind of memory: normal, thp, hugetlb-2M or hugetlb-1G [default:
    /// normal]
    #[arg(long, value_name = "KIND")]
    backing: Option<String>,
    /// Populate all pages of the pool at startup
    #[arg(long)]
    prealloc: bool,
    /// Keep the pool's pages from being swapped out
    #[arg(long)]
    lock: bool,
    /// Allocate the pool's pages on this NUMA node
    #[arg(long, value_name = "NODE")]
    numa_node: Option<u32>,
    /// Reserve a part of the pool for no guest, for example to fragment the
    /// pool on purpose; repeatable
    #[arg(long, value_name = "SIZE@ADDR")]
    hold: Vec<String>,
    /// Set a part of the pool apart for channels, a power of two: all of them are in it,
    /// and guests find it as a BAR of their function for channels
    #[arg(long, value_name = "SIZE")]
    channel_area: Option<String>,
}

/// The options of a pool, validated as far as possible without the host.
#[derive(Debug)]
pub struct CheckedPool {
    param: PoolParam,
    config: ReservationConfig,
    holds: Vec<AddrRange>,
    channel_area: Option<u64>,
    /// What is to be said about it in the log: nothing may be logged before this
    /// process has confined itself, as that starts a thread.
    note: Option<String>,
}

impl PoolOptions {
    /// The keys of a file that set these options.
    pub const KEYS: [&str; 7] = [
        "pool",
        "backing",
        "prealloc",
        "lock",
        "numa-node",
        "hold",
        "channel-area",
    ];

    /// Returns these options, with unset ones taken from `file`.
    pub fn or(self, file: Self) -> Self {
        Self {
            pool: self.pool.or(file.pool),
            backing: self.backing.or(file.backing),
            prealloc: self.prealloc || file.prealloc,
            lock: self.lock || file.lock,
            numa_node: self.numa_node.or(file.numa_node),
            hold: if self.hold.is_empty() {
                file.hold
            } else {
                self.hold
            },
            channel_area: self.channel_area.or(file.channel_area),
        }
    }

    /// Validates the options of a pool whose guests are not known.
    ///
    /// # Errors
    /// Returns a [`PoolSetupError`].
    pub fn check(&self) -> Result<CheckedPool, PoolSetupError> {
        self.check_with(|| Err(JobError::Serve))
    }

    /// Validates the options of a pool for guests with these needs.
    ///
    /// # Errors
    /// Returns a [`PoolSetupError`].
    pub fn check_for(&self, needs: impl FnOnce() -> Needs) -> Result<CheckedPool, PoolSetupError> {
        self.check_with(|| job::pool(needs()))
    }

    fn check_with(
        &self,
        job: impl FnOnce() -> Result<JobPool, JobError>,
    ) -> Result<CheckedPool, PoolSetupError> {
        let pool = self.pool.as_deref().ok_or(PoolSetupError::Missing)?;
        let (size, addr) = match pool.split_once('@') {
            None => (pool, String::new()),
            Some((size, addr)) => (size, format!("@{addr}")),
        };
        let job = (size == JOB).then(job).transpose()?;
        let pool = match &job {
            Some(job) => format!("{}{addr}", job.size),
            None => pool.to_owned(),
        };
        let param = PoolParam::parse(&pool).map_err(PoolSetupError::Param)?;
        let backing = self.backing.as_deref().unwrap_or(DEFAULT_BACKING);
        let backing: Backing = backing.parse()?;
        let holds = self.hold.iter().map(|text| parse_hold(text));
        Ok(CheckedPool {
            param,
            config: ReservationConfig {
                backing,
                prealloc: self.prealloc,
                lock: self.lock,
                numa_node: self.numa_node,
            },
            holds: holds.collect::<Result<_, _>>()?,
            channel_area: self.channel_area.as_deref().map(parse_area).transpose()?,
            note: job.map(|job| job.note),
        })
    }
}

/// A reserved pool without any guest, and the host that it is on.
#[derive(Debug)]
pub struct Ground {
    /// The host's KVM, opened and checked.
    pub kvm: Host,
    /// The ledger, in which the whole pool is free.
    pub pool: HostPool,
    /// The host memory of the pool.
    pub memory: PoolMemory,
}

impl CheckedPool {
    /// Checks that these options describe a pool that exists already, at `range`, with
    /// `area` for channels and with memory of `config`. Its holds are as they were, and so
    /// is its area without an option.
    ///
    /// # Errors
    /// Returns [`PoolSetupError::Other`] or [`PoolSetupError::OtherArea`].
    pub fn check_same(
        &self,
        range: AddrRange,
        area: Option<AddrRange>,
        config: &ReservationConfig,
    ) -> Result<(), PoolSetupError> {
        let size = area.map(|area| area.size());
        if self.channel_area.is_some() && self.channel_area != size {
            return Err(PoolSetupError::OtherArea { size });
        }
        let size = self.param.size.next_multiple_of(config.backing.page_size());
        let is_there = self.param.start.is_none_or(|start| start == range.start());
        if self.config == *config && size == range.size() && is_there {
            return Ok(());
        }
        Err(PoolSetupError::Other {
            range,
            backing: config.backing,
        })
    }

    /// Checks that the pool consists of granules of this size.
    ///
    /// # Errors
    /// Returns [`PoolSetupError::Granule`].
    pub fn check_granule(&self, granule: u64) -> Result<(), PoolSetupError> {
        let size = self
            .param
            .size
            .next_multiple_of(self.config.backing.page_size());
        let held = self.holds.iter().map(|range| range.size());
        let held = held.chain(self.channel_area);
        let checked = check_granule(granule, size, held);
        checked.map_err(|error| PoolSetupError::Granule(error.into()))
    }

    /// Opens KVM and reserves the pool, so that guests can be created. Gives up
    /// when `stop` is set.
    pub fn reserve(self, stop: &AtomicBool) -> Result<Ground, PoolSetupError> {
        if let Some(note) = &self.note {
            log::info!("{note}");
        }
        let (param, backing) = (self.param, self.config.backing);
        let kvm = Host::open()?;
        let page = backing.page_size();
        let range = match place_pool(param, ADDRESS_BITS_MIN, page) {
            // It depends on the processor, and querying it takes time.
            Err(MachineError::AddressWidth { .. }) => place_pool(param, kvm.address_bits(), page)?,
            placed => placed?,
        };
        if range.size() != param.size {
            log::warn!(
                "the pool of {} bytes is rounded up to {}",
                param.size,
                range.size()
            );
        }
        // The ledger needs no memory, so errors in the holds are reported
        // first.
        let mut pool = HostPool::new(range, backing.page_order())?;
        for hold in self.holds {
            pool.hold(hold)?;
        }
        if let Some(size) = self.channel_area {
            let area = pool.set_channel_area(size)?;
            log::info!("channels are in {area:?}");
        }
        backing.check_host_can_give(range.size())?;
        raise_descriptor_limit();
        let memory = reserve(range, self.config, stop)?;
        Ok(Ground { kvm, pool, memory })
    }
}

/// Parses `--hold SIZE@ADDR`, a range of the pool.
fn parse_hold(text: &str) -> Result<AddrRange, PoolSetupError> {
    let param = PoolParam::parse(text).map_err(PoolSetupError::Hold)?;
    let start = param.start.ok_or_else(|| {
        let text = text.to_owned();
        PoolSetupError::Hold(ParamError::ZeroAddr { text })
    })?;
    Ok(AddrRange::with_size(start, param.size)?)
}

/// Parses `--channel-area SIZE`. The ledger, which knows its granule, checks the size.
fn parse_area(text: &str) -> Result<u64, PoolSetupError> {
    if let Some((_, address)) = text.split_once('@') {
        let (text, junk) = (text.to_owned(), format!("@{address}"));
        return Err(PoolSetupError::ChannelArea(ParamError::Junk { text, junk }));
    }
    let param = PoolParam::parse(text).map_err(PoolSetupError::ChannelArea)?;
    Ok(param.size)
}

fn area_text(size: Option<u64>) -> String {
    size.map_or("none".to_owned(), |size| format!("one of {}", Bytes(size)))
}

/// Reserves the pool, with a progress bar if that takes long.
fn reserve(
    range: AddrRange,
    config: ReservationConfig,
    stop: &AtomicBool,
) -> Result<PoolMemory, ReservationError> {
    if !config.is_populated() {
        return PoolMemory::new(range, config, &|_| (), stop);
    }
    // The library hides the bar unless stderr is a terminal.
    let bar = ProgressBar::new(range.size());
    let style = "prealloc {bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let memory = PoolMemory::new(range, config, &|done| bar.set_position(done), stop);
    bar.finish_and_clear();
    memory
}
