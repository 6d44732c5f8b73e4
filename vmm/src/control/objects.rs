//! The objects of the API, made out of what the manager has.

use mkpool::{AddrRange, RangeError};
use mkvmm_api::instance::{E820Row, Initrd, Instance, Kernel};
use mkvmm_api::pool::{Audit, Backing, IomemRow, Pool, PoolRecord};

use crate::audit::Findings;
use crate::boot::e820::E820Entry;
use crate::builder::Furnished;
use crate::guest::Guest;
use crate::host_pool::alloc_log::Record;
use crate::manager::Manager;
use mkvmm_api::number::EXACT_MAX;

/// Returns the pool as it is now.
pub fn pool(manager: &Manager) -> Pool {
    let pool = manager.pool();
    let config = pool.reservation().config();
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
        instances: manager.len() as u64,
    }
}

/// Returns the instance as it is now.
///
/// # Errors
/// See [`crate::boot::e820::build`].
pub fn instance(manager: &Manager, guest: &Guest) -> Result<Instance, RangeError> {
    let e820 = guest.e820(manager.pool())?;
    let (loaded, config) = (guest.images(), guest.config());
    let images = loaded.and_then(|loaded| loaded.images.spec.as_ref());
    let stages = guest.timeline().stages();
    Ok(Instance {
        id: guest.id().0,
        name: guest.name().clone(),
        state: guest.state(),
        reason: guest.reason(),
        memory: guest.sub_pool().size(),
        chunks: guest.regions().iter().map(|&r| r.into()).collect(),
        avail: guest.sub_pool().avail(),
        cpus: config.spec.cpus,
        kernel: loaded.and_then(kernel),
        initrd: loaded.and_then(initrd),
        cmdline: loaded.map(|loaded| loaded.cmdline.to_string_lossy().into_owned()),
        e820: e820.iter().map(e820_row).collect(),
        violations: guest.violations(),
        timeline: stages.map(|(name, at)| (name.to_owned(), at)).collect(),
        spec: config.spec.clone().with_images(images),
    })
}

fn kernel(loaded: &Furnished) -> Option<Kernel> {
    let info = loaded.images.infos.first()?;
    Some(Kernel {
        path: info.path.display().to_string(),
        format: info.format.unwrap_or_default().to_owned(),
        compression: info.compression.clone().filter(|packing| packing != "none"),
        sha256: info.sha256.to_string(),
        range: loaded.plan.kernel.into(),
        entry: loaded.entry,
    })
}

fn initrd(loaded: &Furnished) -> Option<Initrd> {
    let place: AddrRange = loaded.plan.initramfs?;
    let archives = loaded.images.infos.iter().skip(1);
    let paths: Vec<String> = archives.map(|i| i.path.display().to_string()).collect();
    Some(Initrd {
        path: paths.join(","),
        range: place.into(),
    })
}

/// Returns a row of a memory map.
pub fn e820_row(entry: &E820Entry) -> E820Row {
    E820Row {
        range: entry.range.into(),
        kind: entry.kind.raw(),
    }
}

/// Returns the whole resource tree, in printing order.
pub fn iomem(manager: &Manager) -> Vec<IomemRow> {
    let row = |(depth, resource): (usize, &mkpool::Resource)| IomemRow {
        depth: depth as u64,
        range: resource.range().into(),
        name: resource.name().to_owned(),
    };
    manager.pool().tree().iter().map(row).collect()
}

/// Returns what an audit found.
pub fn audit(Findings { checks, problems }: Findings) -> Audit {
    Audit {
        ok: problems.is_empty(),
        checks,
        problems,
    }
}

/// Returns a record of the ledger's log.
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
    use crate::host_pool::alloc_log::{AllocLog, Caller, Outcome};

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
