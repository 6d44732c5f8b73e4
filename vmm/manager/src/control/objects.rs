//! Converts the manager's data into objects of the API.

use mkpool::AddrRange;
use mkpool::range::RangeError;
use mkvmm_api::InstanceSpec;
use mkvmm_api::channel::{self, OwnChannel};
use mkvmm_api::devices::Device;
use mkvmm_api::instance::{E820Row, Initrd, Instance, Kernel, Timeline};
use mkvmm_api::pool::{Audit, Backing, Capacity, Health, IomemRow, Pool, PoolRecord, WarmWorkers};

use mkvmm_api::number::EXACT_MAX;
use mkvmm_base::state::State;
use mkvmm_base::{InstanceId, timeline};
use mkvmm_memory::e820::E820Entry;
use mkvmm_memory::host_pool::alloc_log::Record;
use mkvmm_memory::host_pool::{HostPool, SubPool};
use mkvmm_memory::reservation::ReservationConfig;

use crate::audit::Findings;
use crate::channels::{Channel, ChannelConfig};
use crate::config::InstanceConfig;
use crate::devices::given;
use crate::guest::{Guest, Loaded};
use crate::registry::Registry;
use crate::stock::Stock;
use crate::usage::Footprint;

/// Returns the API object for the pool, with this number of instances.
pub fn pool(pool: &HostPool, config: &ReservationConfig, instances: usize) -> Pool {
    Pool {
        range: pool.range().into(),
        avail: pool.avail(),
        used: pool.range().size() - pool.avail(),
        largest_free: pool.largest_free(),
        free_extents: pool.free_extents().len() as u64,
        min_order: pool.order(),
        backing: Backing {
            kind: config.backing.to_string(),
            page_size: config.backing.page_size(),
            prealloc: config.prealloc,
            numa_node: config.numa_node,
        },
        instances: instances as u64,
        channel_area: pool.channel_area().map(Into::into),
    }
}

/// Returns the API object for the pool of a registry.
pub fn pool_of(registry: &Registry) -> Pool {
    pool(registry.pool(), registry.memory(), registry.len())
}

/// Returns the API object for the capacity of the pool.
pub fn capacity(registry: &Registry) -> Capacity {
    let capacity = registry.pool().capacity();
    Capacity {
        granule: capacity.granule,
        granules: capacity.granules,
        free: capacity.free,
        largest_image: capacity.largest_image,
        instances: registry.len() as u64,
    }
}

/// Returns the API object for the health of the VMM, which everybody may read: without
/// names.
pub fn health(registry: &Registry) -> Health {
    let lost = registry.guests().filter(|guest| guest.is_lost());
    let lost = lost.map(|guest| format!("the memory of instance {} cannot be cleaned", guest.id()));
    let held = registry.guests().filter(|guest| guest.is_held());
    let held = held.map(|guest| format!("the process of instance {} does not end", guest.id()));
    let problems: Vec<String> = lost.chain(held).collect();
    Health {
        ok: problems.is_empty(),
        problems,
        instances: registry.len() as u64,
        uptime: timeline::now(),
    }
}

/// Returns the API object for the workers that wait, if any are to.
pub(crate) fn warm(stock: &Stock) -> Option<WarmWorkers> {
    let pids = stock.pids();
    let warm = WarmWorkers {
        wanted: stock.wanted() as u64,
        ready: pids.len() as u64,
        pids,
    };
    (warm.wanted > 0).then_some(warm)
}

/// The data that describes an instance, which may exist or be part of a dry
/// run.
#[derive(Debug)]
pub struct Description<'a> {
    /// The number of the instance, which is never reused.
    pub id: InstanceId,
    /// The configuration of the instance.
    pub config: &'a InstanceConfig,
    /// The state of the instance.
    pub state: State,
    /// The memory of the instance.
    pub sub_pool: &'a SubPool,
    /// The images in its memory, if there are any.
    pub loaded: Option<&'a Loaded>,
    /// The memory map of the instance.
    pub e820: &'a [E820Entry],
}

/// Describes an instance that has not run.
pub fn described(of: &Description<'_>) -> Instance {
    let Description {
        config,
        sub_pool,
        loaded,
        ..
    } = of;
    let images = loaded.map(|loaded| loaded.images.spec());
    Instance {
        id: of.id.0,
        name: config.name.clone(),
        owner: config.owner,
        state: of.state,
        reason: None,
        restarting: false,
        memory: sub_pool.size(),
        chunks: sub_pool.regions().iter().map(|&r| r.into()).collect(),
        avail: sub_pool.avail(),
        boots: 0,
        leased: config.is_leased,
        cpus: config.cpus(),
        kernel: loaded.and_then(kernel),
        initrd: loaded.and_then(initrd),
        cmdline: loaded.map(|loaded| loaded.cmdline.clone()),
        e820: of.e820.iter().map(e820_row).collect(),
        violations: 0,
        timeline: Timeline::new(),
        pid: None,
        cpu_us: 0,
        resident: 0,
        process_memory: None,
        cgroup: None,
        devices: devices(&config.spec),
        channels: Vec::new(),
        spec: config.spec.clone().with_images(images),
    }
}

/// An instance, and where to read what it uses: that opens a file, which is
/// nothing for the manager's thread.
#[derive(Debug)]
pub struct Measured {
    instance: Instance,
    /// None of one that was only rehearsed.
    footprint: Option<Footprint>,
}

impl Measured {
    /// Returns the specification that creates such an instance.
    pub fn spec(&self) -> &InstanceSpec {
        &self.instance.spec
    }

    /// Returns the instance with what it uses now.
    pub fn read(self) -> Instance {
        let Some(footprint) = self.footprint else {
            return self.instance;
        };
        let usage = footprint.read();
        Instance {
            cpu_us: u64::try_from(usage.cpu_time.as_micros()).unwrap_or(u64::MAX),
            resident: usage.resident,
            process_memory: usage.process,
            ..self.instance
        }
    }
}

impl From<Instance> for Measured {
    /// Takes an instance that uses nothing.
    fn from(instance: Instance) -> Self {
        Self {
            instance,
            footprint: None,
        }
    }
}

/// Returns the instance as it is now.
///
/// # Errors
/// See [`mkvmm_memory::e820::build`].
pub fn instance(registry: &Registry, guest: &Guest) -> Result<Measured, RangeError> {
    Ok(Measured {
        footprint: Some(guest.footprint(registry.memory())),
        instance: unmeasured(registry, guest)?,
    })
}

/// Returns all instances as they are now, or those of the user who asks.
///
/// # Errors
/// See [`mkvmm_memory::e820::build`].
pub fn instances(registry: &Registry) -> Result<Vec<Measured>, RangeError> {
    let one = |guest: &Guest| instance(registry, guest);
    let own = registry.guests().filter(|guest| registry.is_open(guest));
    own.map(one).collect()
}

fn unmeasured(registry: &Registry, guest: &Guest) -> Result<Instance, RangeError> {
    let e820 = guest.e820(registry.pool())?;
    let described = described(&Description {
        id: guest.id(),
        config: guest.config(),
        state: guest.state(),
        sub_pool: guest.sub_pool(),
        loaded: guest.loaded(),
        e820: &e820,
    });
    let stages = guest.timeline().stages();
    let cgroup = guest.cgroup().map(|path| path.display().to_string());
    let mut devices = described.devices;
    for (device, index) in devices.iter_mut().zip(0..) {
        device.faults = guest.status().device(index).faults;
    }
    Ok(Instance {
        devices,
        channels: own_channels(registry, guest),
        pid: guest.pid(),
        cgroup,
        boots: guest.boots(),
        reason: guest.reason(),
        restarting: guest.is_restarting(),
        violations: guest.status().violations(),
        timeline: stages.map(|(name, at)| (name.to_owned(), at)).collect(),
        ..described
    })
}

/// Returns the channels that an instance is a member of.
fn own_channels(registry: &Registry, guest: &Guest) -> Vec<OwnChannel> {
    let own = registry.channels().filter_map(|channel| {
        let mut members = channel.members().iter().zip(0..);
        let (member, number) = members.find(|(member, _)| member.name == *guest.name())?;
        Some(OwnChannel {
            name: channel.name().to_string(),
            range: channel.range().into(),
            member: number,
            read_only: member.read_only,
            present: member.is_present(),
        })
    });
    own.collect()
}

/// Returns the API object for a channel.
pub fn channel(of: &Channel) -> channel::Channel {
    let members = of.members().iter().map(|member| channel::Member {
        name: member.name.to_string(),
        read_only: member.read_only,
        present: member.is_present(),
        boots: member.boots,
    });
    channel::Channel {
        id: of.id(),
        name: of.name().to_string(),
        range: of.range().into(),
        doorbells: of.doorbells(),
        members: members.collect(),
    }
}

/// Returns the API object for the channel that `config` would make in `range`.
pub fn rehearsed_channel(config: &ChannelConfig, id: u32, range: AddrRange) -> channel::Channel {
    let members = config
        .members
        .iter()
        .map(|(name, read_only)| channel::Member {
            name: name.to_string(),
            read_only: *read_only,
            present: false,
            boots: 0,
        });
    channel::Channel {
        id,
        name: config.name.to_string(),
        range: range.into(),
        doorbells: config.doorbells,
        members: members.collect(),
    }
}

/// Describes the devices of an instance that has not run.
fn devices(spec: &InstanceSpec) -> Vec<Device> {
    let devices = spec.devices().into_iter().zip(1..);
    let device = |(spec, slot)| Device::new(&spec, slot, given(&spec));
    devices.map(device).collect()
}

fn kernel(loaded: &Loaded) -> Option<Kernel> {
    let info = loaded.images.infos().first()?;
    let sha256 = loaded.images.kernel().sha256();
    let sha256 = sha256.is_known().then(|| sha256.to_string());
    Some(Kernel {
        path: info.path.display().to_string(),
        format: info.format.unwrap_or_default().to_owned(),
        compression: info.compression.clone().filter(|packing| packing != "none"),
        sha256: sha256.unwrap_or_default(),
        range: loaded.plan.kernel.into(),
        entry: loaded.entry(),
    })
}

fn initrd(loaded: &Loaded) -> Option<Initrd> {
    let place: AddrRange = loaded.plan.initramfs?;
    let archives = loaded.images.infos().iter().skip(1);
    let paths: Vec<String> = archives.map(|i| i.path.display().to_string()).collect();
    Some(Initrd {
        path: paths.join(","),
        range: place.into(),
    })
}

/// Returns the API object for a row of a memory map.
pub fn e820_row(entry: &E820Entry) -> E820Row {
    E820Row {
        range: entry.range.into(),
        kind: entry.kind.raw(),
    }
}

/// Returns the whole resource tree, in printing order.
pub fn iomem(registry: &Registry) -> Vec<IomemRow> {
    let row = |(depth, resource): (usize, &mkpool::resource::Resource)| IomemRow {
        depth: depth as u64,
        range: resource.range().into(),
        name: resource.name().to_owned(),
    };
    registry.pool().tree().iter().map(row).collect()
}

/// Returns the API object for the result of an audit.
pub fn audit(Findings { checks, problems }: Findings) -> Audit {
    Audit {
        ok: problems.is_empty(),
        checks,
        problems,
    }
}

/// Returns the API object for a record of the allocation log.
pub fn pool_record(record: &Record) -> PoolRecord {
    PoolRecord {
        seq: record.seq,
        at: record.at,
        op: record.op.to_string(),
        caller: record.caller.to_string(),
        instance: record.caller.instance.as_ref().map(ToString::to_string),
        start: record.addr.filter(|addr| *addr <= EXACT_MAX),
        size: record.size,
        outcome: record.outcome.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_memory::host_pool::alloc_log::{AllocLog, Caller, Outcome};

    #[test]
    fn an_address_that_json_rounds_is_left_out() {
        let mut log = AllocLog::default();
        for addr in [EXACT_MAX, u64::MAX] {
            let caller = Caller::vmm("allocation");
            log.kept(caller, addr, 0, Outcome::NoAllocation);
        }
        let starts: Vec<Option<u64>> = log.last(2).map(|r| pool_record(r).start).collect();
        assert_eq!(starts, [Some(EXACT_MAX), None]);
    }
}
