//! Inspects guests: registers, memory and translations.
//!
//! Registers are read by the vCPU's own thread in its worker, which is
//! requested and not awaited here ([`crate::questions`]). Memory is read
//! through the instance's files, between two verbs: a read at another time
//! could see the memory that a deleted instance has left to the next one.

pub mod error;
pub mod objects;

use mkpool::AddrRange;
use mkpool::range::merge_adjacent;
use mkvmm_api::debug::Translation;
use mkvmm_base::InstanceName;

use crate::control::debug::error::{DebugError, MEMORY_MAX};
use crate::control::error::ControlError;
use crate::debug::paging::{Walk, Walker};
use crate::guest::Guest;
use crate::manager::Manager;
use crate::questions::Reading;
use crate::view::View;

/// Translates a guest-virtual address through the page tables of a vCPU.
///
/// # Errors
/// Returns a [`ControlError`] if there is no such instance.
pub fn translate(
    manager: &Manager,
    name: &InstanceName,
    addr: u64,
    through: &Reading,
) -> Result<Translation, ControlError> {
    let registry = manager.registry();
    let guest = registry.find(name)?;
    let walk = walk(manager, &View::of(guest), through, addr);
    Ok(objects::translation(&registry, guest, addr, through, &walk))
}

fn walk(manager: &Manager, view: &View<'_>, through: &Reading, addr: u64) -> Walk {
    let sregs = &through.registers.sregs;
    let facts = manager.host.facts.get();
    let walker = Walker::new(sregs, facts.address_bits, facts.has_huge_pages);
    walker.walk(addr, |addr, size| {
        let mut bytes = [0; 8];
        let entry = bytes.get_mut(..usize::try_from(size).ok()?)?;
        view.read(addr, entry)?;
        Some(u64::from_le_bytes(bytes))
    })
}

/// Reads `len` bytes of an instance's memory from `addr` on: guest-physical, or
/// virtual if a vCPU is given.
///
/// # Errors
/// Returns a [`ControlError`] if an address is not mapped, or not the
/// instance's memory.
pub fn read(
    manager: &Manager,
    name: &InstanceName,
    addr: u64,
    len: u64,
    through: Option<&Reading>,
) -> Result<Vec<u8>, ControlError> {
    if !(1..=MEMORY_MAX).contains(&len) {
        return Err(DebugError::Length { len }.into());
    }
    let registry = manager.registry();
    let guest = registry.find(name)?;
    let view = View::of(guest);
    let mut bytes = Vec::new();
    let Some(through) = through else {
        read_physical(guest, &view, addr, len, &mut bytes)?;
        return Ok(bytes);
    };
    let (mut at, mut left) = (addr, len);
    while left > 0 {
        let unmapped = |source| DebugError::Unmapped { addr: at, source };
        let target = walk(manager, &view, through, at).end.map_err(unmapped)?;
        let in_page = target.page_size - target.addr % target.page_size;
        let part = left.min(in_page);
        read_physical(guest, &view, target.addr, part, &mut bytes)?;
        left -= part;
        // After the last address there is no canonical one.
        at = at.wrapping_add(part);
    }
    Ok(bytes)
}

fn read_physical(
    guest: &Guest,
    view: &View<'_>,
    addr: u64,
    len: u64,
    bytes: &mut Vec<u8>,
) -> Result<(), DebugError> {
    let start = bytes.len();
    bytes.resize(start + usize::try_from(len).unwrap_or(0), 0);
    let part = bytes.get_mut(start..).unwrap_or_default();
    view.read(addr, part).ok_or_else(|| DebugError::NoMemory {
        name: guest.name().clone(),
        addr,
        len,
        // The low window may be adjacent to the pool: they are one range to a
        // reader.
        nearest: nearest(&merge_adjacent(view.ranges()), addr),
    })
}

fn nearest(ranges: &[AddrRange], addr: u64) -> Option<AddrRange> {
    let distance = |range: &&AddrRange| {
        if addr < range.start() {
            range.start() - addr
        } else {
            addr.saturating_sub(range.last())
        }
    };
    ranges.iter().min_by_key(distance).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_base::Diagnose;

    #[test]
    fn the_nearest_range_is_the_one_that_help_names() {
        let range = |start, end| AddrRange::new(start, end).unwrap();
        let ranges = [range(0, 0x1000), range(0x8000, 0x9000)];
        assert_eq!(nearest(&ranges, 0x800), Some(ranges[0]));
        assert_eq!(nearest(&ranges, 0x2000), Some(ranges[0]));
        assert_eq!(nearest(&ranges, 0x7000), Some(ranges[1]));
        assert_eq!(nearest(&ranges, u64::MAX), Some(ranges[1]));
        let help = |addr| {
            let error = DebugError::NoMemory {
                name: "a".parse().unwrap(),
                addr,
                len: 0x1001,
                nearest: nearest(&ranges, addr),
            };
            error.hint().unwrap()
        };
        assert_eq!(help(0x10), "there are 0xff0 bytes from there on, to 0xfff");
        assert_eq!(help(0x7000), "the nearest memory is 0x8000-0x8fff");
    }
}
