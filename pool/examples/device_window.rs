//! A device window: PCI BARs below 4 GiB for devices that need it, above for the others.
//!
//! A BAR is aligned to its own size. Small windows are filled from the top, so that large BARs
//! find room at the bottom.
//!
//! `cargo run -p mkpool --example device_window`

use mkpool::pool::AllocError;
use mkpool::{AddrRange, Algo, GenPool};
use std::error::Error;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The windows of a machine. Each chunk of the pool is one window.
struct Windows {
    pool: GenPool<&'static str>,
    low: AddrRange,
    high: AddrRange,
}

impl Windows {
    fn new() -> Result<Self, Box<dyn Error>> {
        let low = AddrRange::new(0xc000_0000, 0xfc00_0000)?;
        let high = AddrRange::with_size(512 * GIB, 256 * GIB)?;
        // The smallest BAR of a memory window has 16 bytes; whole pages keep devices apart.
        let mut pool = GenPool::new(12)?;
        pool.add_chunk(low, "32-bit window")?;
        pool.add_chunk(high, "64-bit window")?;
        Ok(Self { pool, low, high })
    }

    /// Allocates a BAR of `size` bytes, a power of two.
    fn bar(&mut self, size: u64, is_64_bit: bool) -> Result<AddrRange, AllocError> {
        let (algo, window) = if is_64_bit {
            (Algo::FirstFitAlign { align: size }, self.high)
        } else {
            (Algo::LastFitAlign { align: size }, self.low)
        };
        self.pool.alloc_within(size, algo, window)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut windows = Windows::new()?;
    let mut bars = Vec::new();
    for (device, size, is_64_bit) in [
        ("network", 64 << 10, false),
        ("disk", 4096, false),
        ("graphics", 16 * GIB, true),
        ("graphics registers", 16 * MIB, false),
        ("accelerator", 64 * GIB, true),
    ] {
        let bar = windows.bar(size, is_64_bit)?;
        assert!(bar.start().is_multiple_of(size));
        println!("{bar} : {device}");
        bars.push(bar);
    }
    // An operating system moves a BAR to an address of its own choice: take the new place first,
    // so that a failure leaves the device where it is.
    let wanted = 0xd000_0000;
    let moved = windows.pool.alloc_with(bars[1].size(), Algo::At(wanted))?;
    windows.pool.free(bars[1])?;
    println!("{moved} : disk, moved");

    for chunk in windows.pool.chunks() {
        println!(
            "{} in {}: {} MiB free",
            chunk.owner(),
            chunk.range(),
            chunk.avail() / MIB
        );
    }
    Ok(())
}
