//! Power cuts under verified writes: nothing is lost that a flush has covered.

use std::io;
use std::os::fd::BorrowedFd;

use mkvmm_test_power::{Dice, PowerFile, missing};
use mkvmm_virtio::block::Engine;
use mkvmm_virtio::block::engine::{Completion, Operation};
use mkvmm_virtio::{Progress, VirtioDevice};

use crate::OfBoth;
use crate::disk::{Disk, FLUSH, Kind, open};
use crate::record::{Load, Record, SECTORS};

pub const TESTS: &[OfBoth] = &[
    ("power::flushed_writes_survive_200_cuts", survive_200_cuts),
    (
        "power::a_disk_that_does_not_flush_is_found_out",
        is_found_out,
    ),
    (
        "power::writes_without_flushes_survive_as_well",
        write_through,
    ),
];

const CUTS: u64 = 200;

/// Cuts the power `CUTS` times; returns what was lost first.
fn cuts(features: u64, engine: &dyn Fn(&PowerFile) -> Box<dyn Engine>) -> Result<(), String> {
    let file = PowerFile::new(SECTORS * 512).unwrap();
    let mut dice = Dice::new(1);
    for cut in 0..CUTS {
        let bytes = SECTORS as u64 * 512;
        let mut disk = Disk::over(engine(&file), bytes, false, features);
        let mut load = Load::new(Record::of(&file.contents())?);
        if features & FLUSH == 0 {
            load = load.with_durable_writes();
        }
        let count = dice.below(100).try_into().unwrap();
        load.run(&mut disk, &mut dice, count, |_, _| {});
        let left = file.cut(&mut dice);
        // What is still in flight comes too late for this disk.
        while disk.block.reset() == Progress::More {
            disk.wait();
        }
        drop(disk);
        file.refill(&left).unwrap();
        let checked = load.record.check_after_cut(&left);
        checked.map_err(|lost| format!("after cut {cut}: {lost}"))?;
    }
    assert!(file.counts().writes > CUTS, "there was load");
    Ok(())
}

fn survive_200_cuts(kind: Kind) {
    if missing().is_none() {
        cuts(FLUSH, &|file| kind.engine(open(&file.path()))).unwrap();
    }
}

fn write_through(kind: Kind) {
    if missing().is_none() {
        cuts(0, &|file| kind.engine(open(&file.path()))).unwrap();
    }
}

/// An engine whose flushes do nothing.
#[derive(Debug)]
struct Lying {
    honest: Box<dyn Engine>,
    ended: Vec<Completion>,
}

impl Engine for Lying {
    fn begin(&mut self, tag: u16, operation: Operation) {
        let operation = match operation {
            // Something that ends without an effect.
            Operation::Sync => Operation::Write {
                at: 0,
                buffers: mkvmm_virtio::block::engine::Buffers::zeros(0),
                durable: false,
            },
            operation => operation,
        };
        self.honest.begin(tag, operation);
    }

    fn submit(&mut self) -> io::Result<bool> {
        self.honest.submit()
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.honest.event()
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        self.honest.reap(&mut self.ended);
        ended.append(&mut self.ended);
    }

    fn in_flight(&self) -> usize {
        self.honest.in_flight()
    }
}

/// The control case, without which the others would show nothing.
fn is_found_out(kind: Kind) {
    if missing().is_some() {
        return;
    }
    let engine = |file: &PowerFile| {
        let honest = kind.engine(open(&file.path()));
        let ended = Vec::new();
        Box::new(Lying { honest, ended }) as Box<dyn Engine>
    };
    let lost = cuts(FLUSH, &engine).unwrap_err();
    assert!(lost.contains("was flushed"), "{lost}");
}
