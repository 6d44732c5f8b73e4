//! Malformed images: mutants of real headers are refused or are valid, never
//! panic, never take more memory than the image accounts for, and leave the
//! pool's books as they were.
//!
//! Every mutant is made from a fixed seed: a failure names its number, and
//! the same number is the same mutant the next time.

mod mutate;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use mkpool::AddrRange;
use mkvmm::builder::{self, GuestConfig, Images, InstanceConfig, Surroundings};
use mkvmm::devices::console::ConsoleQueue;
use mkvmm::event_loop::event_channel;
use mkvmm::host_pool::HostPool;
use mkvmm::instance::memory::InstanceMemory;
use mkvmm::kvm::Host;
use mkvmm::loader::{self, BootMode, KernelImage, bzimage};
use mkvmm::reservation::ReservationConfig;
use mkvmm::spec::DEFAULT_MEMORY;
use mkvmm_guest_images::PROBE;
use mkvmm_test_harness::{images, tier};
use peak_alloc::PeakAlloc;

use mutate::{Field, Mutants};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Counting memory allows one test at a time.
static ONE: Mutex<()> = Mutex::new(());

const MIB: u64 = 1 << 20;
/// Mutants of each header.
const COUNT: u64 = 200;
/// Memory that a mutant may take beyond the bytes of its file: the unpacked
/// kernel (70 MiB is more than any kernel here has), while the copy of the
/// file is still there.
const BEYOND_FILE: usize = 100 << 20;

/// Fields of the setup header that a loader acts on: offset, width.
const SETUP_FIELDS: [Field; 18] = [
    (0x1f1, 1), // setup_sects
    (0x1f4, 4), // syssize
    (0x1fe, 2), // boot_flag
    (0x201, 1), // jump
    (0x202, 4), // header
    (0x206, 2), // version
    (0x20e, 2), // kernel_version
    (0x211, 1), // loadflags
    (0x22c, 4), // initrd_addr_max
    (0x230, 4), // kernel_alignment
    (0x234, 1), // relocatable_kernel
    (0x235, 1), // min_alignment
    (0x236, 2), // xloadflags
    (0x238, 4), // cmdline_size
    (0x248, 4), // payload_offset
    (0x24c, 4), // payload_length
    (0x258, 8), // pref_address
    (0x260, 4), // init_size
];

/// Fields of an ELF file: its header's, and each program header's.
fn elf_fields(file: &[u8]) -> Vec<Field> {
    let mut fields = vec![
        (4, 1),  // class
        (5, 1),  // data
        (16, 2), // e_type
        (18, 2), // e_machine
        (24, 8), // e_entry
        (32, 8), // e_phoff
        (54, 2), // e_phentsize
        (56, 2), // e_phnum
    ];
    for i in 0..usize::from(file[56]) {
        let at = 64 + 56 * i;
        // p_type, p_offset, p_paddr, p_filesz, p_memsz
        fields.extend([
            (at, 4),
            (at + 8, 8),
            (at + 24, 8),
            (at + 32, 8),
            (at + 40, 8),
        ]);
    }
    fields
}

/// What instances are built in, and how.
struct Bench {
    pool: HostPool,
    host: Option<Host>,
    /// The books when nothing is in the pool.
    empty: String,
}

impl Bench {
    fn new() -> Self {
        let range = AddrRange::with_size(0x1_0000_0000, 256 * MIB).expect("a range");
        let pool =
            HostPool::new(range, ReservationConfig::default(), &|_| {}).expect("256 MiB are there");
        let host = Host::open().ok();
        if host.is_none() {
            tier::skip("no KVM: images are loaded, guests not built");
        }
        Self {
            empty: pool.to_string(),
            pool,
            host,
        }
    }

    /// Builds a guest of `kernel` as far as this host can, and releases it.
    fn build(&mut self, kernel: KernelImage) {
        let kernel = Arc::new(kernel);
        match &self.host {
            Some(host) => build_guest(host, &mut self.pool, kernel),
            None => load_only(&mut self.pool, &kernel),
        }
    }

    fn expect_books_as_before(&self) {
        assert_eq!(self.pool.to_string(), self.empty);
        assert_eq!(self.pool.avail(), 256 * MIB);
        let resident = self.pool.reservation().resident().expect("fstat works");
        assert_eq!(resident, 0, "bytes left behind");
    }
}

fn build_guest(host: &Host, pool: &mut HostPool, kernel: Arc<KernelImage>) {
    let (events, _receiver) = event_channel().expect("there are descriptors");
    let console = ConsoleQueue::new();
    let around = Surroundings {
        host,
        events: &events,
        console: Some(&console),
        console_ring: 4096,
    };
    let name = "mutant".parse().expect("a name");
    let config = GuestConfig {
        instance: InstanceConfig::new(name, DEFAULT_MEMORY),
        images: Images::new(kernel, "console=ttyS0"),
    };
    if let Ok(guest) = builder::build(&around, pool, &config) {
        pool.release(guest.into_sub_pool()).expect("it is whole");
    }
}

fn load_only(pool: &mut HostPool, kernel: &KernelImage) {
    let id = pool.next_id();
    let name = "mutant".parse().expect("a name");
    let mut sub_pool = pool.carve(id, &name, 128 * MIB).expect("it fits");
    if let Ok(plan) = pool.place(&mut sub_pool, &kernel.facts(None)) {
        let low = plan.low_window;
        let memory = InstanceMemory::new(pool.reservation(), sub_pool.regions(), low)
            .expect("memory can be described");
        loader::load(&memory, kernel, None, &plan).expect("what was checked can be loaded");
    }
    pool.release(sub_pool).expect("it is whole");
}

/// Tries `COUNT` mutants of `file` and says how many were refused.
fn expect_harmless(what: &str, file: &[u8], fields: &[Field], boot: BootMode) {
    let _one = ONE.lock();
    let mut bench = Bench::new();
    // The file itself is good: what is refused, is so for its mutation.
    let good = KernelImage::parse(file.to_vec(), boot).expect("the header itself is good");
    bench.build(good);
    bench.expect_books_as_before();
    let mut refused = 0;
    for number in 0..COUNT {
        let mutant = Mutants::new(file, fields).number(number);
        let bytes = mutant.apply(file);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let parsed = catch_unwind(AssertUnwindSafe(|| KernelImage::parse(bytes, boot)));
        let taken = MEMORY.peak_usage().saturating_sub(before);
        let Ok(parsed) = parsed else {
            panic!("{what}, mutant {number} ({mutant}): panicked");
        };
        let bound = file.len() + BEYOND_FILE;
        assert!(
            taken <= bound,
            "{what}, mutant {number} ({mutant}): {taken} bytes"
        );
        match parsed {
            Err(error) => {
                let text = mkvmm::error_chain::chain(&error);
                assert!(!text.is_empty());
                refused += 1;
            }
            Ok(kernel) => bench.build(kernel),
        }
        bench.expect_books_as_before();
    }
    tier::announce(&format!("{what}: {refused} of {COUNT} mutants refused"));
    assert!(refused >= COUNT / 4, "{what}: only {refused} refused");
}

/// A small kernel behind the real header of `file`: the payload's place is
/// the only thing that changes.
fn transplanted(file: &[u8]) -> Vec<u8> {
    let mut payload = PROBE.to_vec();
    let size = u32::try_from(PROBE.len()).expect("the probe is small");
    payload.extend_from_slice(&size.to_le_bytes());
    let small = images::bzimage(&payload, 0);
    let setup: Range<usize> = 0..(usize::from(file[0x1f1]) + 1) * 512;
    let mut out = file[setup].to_vec();
    for field in [0x1f4, 0x248, 0x24c] {
        out[field..field + 4].copy_from_slice(&small[field..field + 4]);
    }
    out.extend_from_slice(&small[1024..]);
    out
}

fn debian(version: &str) -> Option<Vec<u8>> {
    let path = images::debian_kernel(version)?;
    Some(std::fs::read(path).expect("it can be read"))
}

/// The ELF kernel in Debian's bzImage.
fn vmlinux(version: &str) -> Option<Vec<u8>> {
    let file = debian(version)?;
    let header = bzimage::parse(&file).expect("it is a bzImage");
    let (_, elf) = bzimage::unpack(&file, &header).expect("it can be unpacked");
    Some(elf)
}

#[test]
fn of_a_bzimage_of_our_own() {
    let elf = images::elf(&vec![0x90; 100_000]);
    let mut payload = elf.clone();
    let size = u32::try_from(elf.len()).expect("it is small");
    payload.extend_from_slice(&size.to_le_bytes());
    let file = images::bzimage(&payload, 32 << 20);
    expect_harmless("own header", &file, &SETUP_FIELDS, BootMode::Elf);
    expect_harmless("own header, whole", &file, &SETUP_FIELDS, BootMode::BzImage);
}

#[test]
fn of_debians_setup_headers_to_be_unpacked() {
    for version in ["6.1", "6.12"] {
        if let Some(file) = debian(version) {
            let file = transplanted(&file);
            expect_harmless(version, &file, &SETUP_FIELDS, BootMode::Elf);
        }
    }
}

#[test]
fn of_debians_setup_headers_with_all_that_follows() {
    for version in ["6.1", "6.12"] {
        if let Some(file) = debian(version) {
            expect_harmless(version, &file, &SETUP_FIELDS, BootMode::BzImage);
        }
    }
}

#[test]
fn of_the_probes_elf_headers() {
    expect_harmless("probe", PROBE, &elf_fields(PROBE), BootMode::Elf);
}

#[test]
fn of_debians_elf_headers() {
    for version in ["6.1", "6.12"] {
        if let Some(elf) = vmlinux(version) {
            expect_harmless(version, &elf, &elf_fields(&elf), BootMode::Elf);
        }
    }
}
