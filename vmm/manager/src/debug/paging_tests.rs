//! Tests with hand-built tables of every kind, and with hostile ones.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;

/// The guest's memory: the given contents, zero elsewhere below 1 GiB, and
/// nothing above.
#[derive(Default)]
struct Memory {
    words: BTreeMap<u64, u64>,
    reads: Cell<u32>,
}

impl Memory {
    fn with(words: &[(u64, u64)]) -> Self {
        let words = words.iter().copied().collect();
        Self {
            words,
            ..Self::default()
        }
    }

    fn read(&self, addr: u64, size: u64) -> Option<u64> {
        self.reads.set(self.reads.get() + 1);
        assert!(addr.is_multiple_of(size), "{addr:#x} is no entry's");
        (addr < 1 << 30).then(|| self.words.get(&addr).copied().unwrap_or(0))
    }

    fn walk(&self, walker: &Walker, addr: u64) -> Walk {
        walker.walk(addr, |addr, size| self.read(addr, size))
    }
}

fn walker(mode: Mode) -> Walker {
    Walker {
        mode,
        cr3: 0x1000,
        no_execute: true,
        large_pages: true,
        huge_pages: true,
        address_bits: 46,
    }
}

/// Returns the address of entry `index` of the table at `table`.
fn at(table: u64, index: u64) -> u64 {
    table + 8 * index
}

#[test]
fn four_levels_lead_to_pages_of_every_size() {
    let memory = Memory::with(&[
        (at(0x1000, 256), 0x2003),
        (at(0x2000, 1), 0x3007),
        (at(0x2000, 2), 0x8000_0083),
        (at(0x3000, 2), 0x4007),
        (at(0x3000, 3), 0x60_0087),
        (at(0x4000, 5), 0x8000_0000_0000_9063),
    ]);
    let walker = walker(Mode::Level4);
    let base = 0xffff_8000_0000_0000;
    let small = memory.walk(&walker, base + (1 << 30) + (2 << 21) + (5 << 12) + 0x123);
    let target = small.end.unwrap();
    assert_eq!((target.addr, target.page_size), (0x9123, 4096));
    // Only what all levels allow is allowed.
    assert_eq!(
        (target.writable, target.user, target.executable),
        (true, false, false)
    );
    let levels: Vec<&str> = small.steps.iter().map(|step| step.level).collect();
    assert_eq!(levels, ["PML4E", "PDPTE", "PDE", "PTE"]);
    assert_eq!(small.steps[0].addr, 0x1800);
    assert_eq!(
        small.steps[3].flags(),
        ["present", "writable", "accessed", "dirty", "no-execute"]
    );

    let large = memory.walk(&walker, base + (1 << 30) + (3 << 21) + 0x12345);
    let target = large.end.unwrap();
    assert_eq!((target.addr, target.page_size), (0x61_2345, 2 << 20));
    assert_eq!(
        large.steps[2].flags(),
        ["present", "writable", "user", "page"]
    );

    let huge = memory.walk(&walker, base + (2 << 30) + 0x2345_6789);
    let target = huge.end.unwrap();
    assert_eq!((target.addr, target.page_size), (0xa345_6789, 1 << 30));
    assert_eq!(huge.steps.len(), 2);
}

#[test]
fn five_levels_have_one_more_and_wider_addresses() {
    let memory = Memory::with(&[
        (at(0x1000, 1), 0x2003),
        (at(0x2000, 0), 0x3003),
        (at(0x3000, 0), 0x4003),
        (at(0x4000, 0), 0x20_0083),
    ]);
    let walk = memory.walk(&walker(Mode::Level5), (1 << 48) + 0x77);
    assert_eq!(walk.end.unwrap().addr, 0x20_0077);
    assert_eq!(walk.steps[0].level, "PML5E");
    let four = memory.walk(&walker(Mode::Level4), (1 << 48) + 0x77);
    assert_eq!(four.end, Err(Fault::NotCanonical));
    assert_eq!(four.steps, []);
    let over = memory.walk(&walker(Mode::Level5), 1 << 56);
    assert_eq!(over.end, Err(Fault::NotCanonical));
    let top = memory.walk(&walker(Mode::Level5), u64::MAX);
    assert_eq!(top.end, Err(Fault::NotPresent { level: "PML5E" }));
}

#[test]
fn legacy_tables_are_walked_too() {
    let memory = Memory::with(&[(0x1000 + 4 * 3, 0x2003), (0x2000 + 4 * 7, 0x5001)]);
    let walk = memory.walk(&walker(Mode::Bits32), (3 << 22) + (7 << 12) + 9);
    let target = walk.end.unwrap();
    assert_eq!((target.addr, target.writable), (0x5009, false));
    // PSE-36: bits 13 to 20 are the address's bits 32 to 39.
    let memory = Memory::with(&[(0x1000, 0x0080_0083 | 5 << 13)]);
    let walk = memory.walk(&walker(Mode::Bits32), 0x1234);
    let target = walk.end.unwrap();
    assert_eq!((target.addr, target.page_size), (0x5_0080_1234, 4 << 20));
    let no_pse = Walker {
        large_pages: false,
        ..walker(Mode::Bits32)
    };
    assert_eq!(memory.walk(&no_pse, 0x1234).steps.len(), 2);

    let pae = Walker {
        cr3: 0x1020,
        ..walker(Mode::Pae)
    };
    let memory = Memory::with(&[
        (at(0x1020, 3), 0x2001),
        (at(0x2000, 511), 0x3003),
        (at(0x3000, 511), 0x7003),
        (at(0x2000, 0), 0x40_0083),
        (at(0x1020, 2), 0x2003),
    ]);
    let target = memory.walk(&pae, 0xffff_ffff).end.unwrap();
    assert_eq!((target.addr, target.writable), (0x7fff, true));
    assert_eq!(memory.walk(&pae, 0xc000_0010).end.unwrap().addr, 0x40_0010);
    // The PDPTE of PAE has no access rights: those bits are reserved.
    let level = "PDPTE";
    let reserved = Err(Fault::Reserved { level, bits: 2 });
    assert_eq!(memory.walk(&pae, 0x8000_0000).end, reserved);
    assert_eq!(memory.walk(&pae, 1 << 32).end, Err(Fault::TooLong));
}

#[test]
fn without_paging_an_address_is_itself() {
    let memory = Memory::default();
    let walk = memory.walk(&walker(Mode::Off), 0xfee0_0123);
    assert_eq!(walk.end.unwrap().addr, 0xfee0_0123);
    assert_eq!(memory.reads.get(), 0);
}

#[test]
fn the_mode_follows_from_the_registers() {
    let mode = |cr0: u64, cr4: u64, efer: u64| {
        let sregs = Special {
            cr0,
            cr4,
            efer,
            ..Special::default()
        };
        Walker::new(&sregs, 46, true).mode
    };
    assert_eq!(mode(0, CR4_PAE, EFER_LMA), Mode::Off);
    assert_eq!(mode(CR0_PG, 0, 0), Mode::Bits32);
    assert_eq!(mode(CR0_PG, CR4_PAE, 0), Mode::Pae);
    assert_eq!(mode(CR0_PG, CR4_PAE, EFER_LMA), Mode::Level4);
    assert_eq!(mode(CR0_PG, CR4_PAE | CR4_LA57, EFER_LMA), Mode::Level5);
}

#[test]
fn a_table_that_is_its_own_entry_ends_with_the_levels() {
    // Recursive tables are legal: entry 0 of the table refers to the table.
    let memory = Memory::with(&[(0x1000, 0x1003)]);
    let walk = memory.walk(&walker(Mode::Level4), 0);
    assert_eq!(walk.end.unwrap().addr, 0x1000);
    assert_eq!(memory.reads.get(), 4);
}

#[test]
fn tables_outside_memory_and_reserved_bits_end_the_walk() {
    let end = |words: &[(u64, u64)], walker: &Walker| Memory::with(words).walk(walker, 0).end;
    let four = walker(Mode::Level4);
    let outside = (1 << 30) | 3;
    let no_memory = |level| Err(Fault::NoMemory { level });
    assert_eq!(end(&[(0x1000, outside)], &four), no_memory("PDPTE"));
    let no_root = Walker {
        cr3: u64::MAX,
        ..four
    };
    assert_eq!(end(&[], &no_root), no_memory("PML4E"));
    let reserved = |level, bits| Err(Fault::Reserved { level, bits });
    // This address is beyond the processor's width.
    let wide = (1 << 46) | 0x2003;
    assert_eq!(end(&[(0x1000, wide)], &four), reserved("PML4E", 1 << 46));
    // The highest level cannot map pages.
    assert_eq!(end(&[(0x1000, 0x2083)], &four), reserved("PML4E", PAGE));
    // This page is not aligned to its size.
    let crooked = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x2083)];
    assert_eq!(end(&crooked, &four), reserved("PDE", 0x2000));
    // This processor has no 1 GiB pages and no no-execute bit.
    let old = Walker {
        huge_pages: false,
        no_execute: false,
        ..four
    };
    let words = [(0x1000, 0x2003), (0x2000, 0x83)];
    assert_eq!(end(&words, &old), reserved("PDPTE", PAGE));
    let words = [(0x1000, NO_EXECUTE | 0x2003)];
    assert_eq!(end(&words, &old), reserved("PML4E", NO_EXECUTE));
}

#[test]
fn no_tables_make_a_walk_long_or_panic() {
    // Knuth's MMIX generator produces the same bytes every time.
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state ^ state >> 29
    };
    for mode in [Mode::Bits32, Mode::Pae, Mode::Level4, Mode::Level5] {
        for _ in 0..20_000 {
            let words = [next(), next(), next(), next(), next()];
            let walker = Walker {
                cr3: next(),
                ..walker(mode)
            };
            let reads = Cell::new(0);
            let addr = next() >> (next() % 64);
            let walk = walker.walk(addr, |_, size| {
                let index = reads.replace(reads.get() + 1);
                let word = words[index] | 1;
                Some(if size == 4 { word & 0xffff_ffff } else { word })
            });
            assert_eq!(walk.steps.len(), reads.get());
            if let Ok(target) = walk.end {
                assert!(target.addr < 1 << 52, "{walk:?}");
            }
        }
    }
}
