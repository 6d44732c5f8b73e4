//! The memory of a small VMM, written from mkpool's README alone.
//!
//! `cargo run --manifest-path pool/examples/tiny-vmm/Cargo.toml -- 256M 1G`: simulates guests of
//! these sizes, prints the host's resources like `/proc/iomem`, and shuts them down.

use mkpool::instance::{ChunkPolicy, CreateError};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::map::MemoryMap;
use mkpool::param::parse_size;
use mkpool::resource::{ResourceError, ResourceId, ResourceTree};
use mkpool::{AddrRange, Algo, InstancePool, MainPool};
use std::error::Error;

/// The type of an e820 row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ram,
    Reserved,
}

/// One guest: its memory and its entry in the host's tree.
struct Guest {
    memory: InstancePool,
    entries: Vec<ResourceId>,
}

/// The host: all memory for guests, and its owners.
struct Host {
    memory: MainPool,
    tree: ResourceTree,
    root: ResourceId,
}

impl Host {
    fn new(range: AddrRange) -> Result<Self, Box<dyn Error>> {
        let mut tree = ResourceTree::new();
        let root = tree.insert(None, range, "guests")?;
        let memory = MainPool::new(range, PAGE_ORDER)?;
        Ok(Self { memory, tree, root })
    }

    fn start(&mut self, id: u32, size: u64) -> Result<Guest, Box<dyn Error>> {
        // If anything fails from here on, dropping `memory` frees it.
        let memory = InstancePool::create(&self.memory, id, size, PAGE_ORDER, ChunkPolicy::Rfc);
        let memory = memory.map_err(|error: CreateError| format!("no memory: {error}"))?;
        let regions = memory.regions();
        let insert = |region| {
            self.tree
                .insert(Some(self.root), region, format!("guest {id}"))
        };
        let entries: Result<Vec<ResourceId>, ResourceError> =
            regions.into_iter().map(insert).collect();
        let entries = entries?;
        Ok(Guest { memory, entries })
    }

    fn stop(&mut self, guest: Guest) -> Result<(), Box<dyn Error>> {
        for entry in guest.entries {
            self.tree.remove_subtree(entry)?;
        }
        // The images are still allocated in it.
        guest.memory.destroy_forced()?;
        Ok(())
    }
}

impl Guest {
    /// Places the images and returns the guest's memory map.
    fn load(&mut self) -> Result<MemoryMap<Kind>, Box<dyn Error>> {
        let mut map = MemoryMap::new();
        for region in self.memory.regions() {
            map.insert(region, Kind::Ram)?;
        }
        self.memory.alloc(8 << 20, 2 << 20)?;
        // Tables for the firmware, at the very top.
        let tables = self.memory.alloc_with(64 << 10, Algo::LastFit)?;
        map.overwrite(tables, Kind::Reserved);
        Ok(map)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut host = Host::new(AddrRange::with_size(4 << 30, 4 << 30)?)?;
    let mut sizes: Vec<String> = std::env::args().skip(1).collect();
    if sizes.is_empty() {
        sizes = vec!["256M".to_owned(), "1G".to_owned()];
    }
    let mut guests = Vec::new();
    for (id, size) in (1..).zip(&sizes) {
        let mut guest = host.start(id, parse_size(size)?)?;
        println!("guest {id}:");
        for (range, kind) in guest.load()?.iter() {
            println!("  {range} {kind:?}");
        }
        guests.push(guest);
    }
    print!("{}", host.tree);
    for guest in guests {
        host.stop(guest)?;
    }
    assert_eq!(host.memory.avail(), host.memory.size());
    Ok(())
}
