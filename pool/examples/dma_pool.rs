//! A DMA pool: buffers of a driver from one region, in units of 64 bytes, from several threads.
//!
//! Small buffers are long-lived, large ones short-lived. Best fit keeps the large extents together.
//!
//! `cargo run -p mkpool --example dma_pool`

use mkpool::{AddrRange, Algo, MainPool};
use std::error::Error;
use std::thread;

/// The order of a cache line: two buffers never share one.
const LINE_ORDER: u32 = 6;

/// A buffer that returns to its pool when it is dropped.
struct Buffer {
    pool: MainPool,
    range: AddrRange,
}

impl Buffer {
    /// Allocates a buffer of `size` bytes that a device with a 32-bit address register can access.
    fn new(pool: &MainPool, size: u64) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let reachable = AddrRange::new(0, 1 << 32)?;
        Ok(Self {
            pool: pool.clone(),
            range: pool.alloc_within(size, Algo::BestFit, reachable)?,
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Err(error) = self.pool.free(self.range) {
            eprintln!("internal accounting error, please report it: {error}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let region = AddrRange::with_size(0xf000_0000, 1 << 20)?;
    let pool = MainPool::new(region, LINE_ORDER)?;

    let workers: Vec<_> = (1..=4)
        .map(|id| {
            let pool = pool.clone();
            thread::spawn(move || -> Result<u64, Box<dyn Error + Send + Sync>> {
                let descriptors = Buffer::new(&pool, 4096)?;
                let mut sum = descriptors.range.size();
                for packet in 0..1000 {
                    let buffer = Buffer::new(&pool, 64 + (packet * id * 37) % 1500)?;
                    sum += buffer.range.size();
                }
                Ok(sum)
            })
        })
        .collect();
    for worker in workers {
        let sum = worker.join().expect("no worker panics");
        println!(
            "{} bytes of buffers",
            sum.map_err(|error| error.to_string())?
        );
    }
    assert_eq!(pool.free_extents(), [region], "every buffer was freed");
    Ok(())
}
