//! Tests with malformed images: mutants of real headers are refused or are
//! valid, never panic, never use more memory than the image accounts for, and
//! leave the pool's ledger unchanged. If there is KVM, a manager and its
//! confined children give the same answer for each mutant, and build a guest
//! from the valid ones.
//!
//! Every mutant is derived from a fixed seed: a failure reports its number,
//! which reproduces the mutant.

mod mutate;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mkvmm_base::chain;
use mkvmm_base::image_facts::BootMode;
use mkvmm_guest_images::PROBE;
use mkvmm_image::bzimage;
use mkvmm_manager::{Manager, audit};
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_test_harness::embedded::{self, ManagerSetup, block_on};
use mkvmm_test_harness::instance::{KernelFile, Pool};
use mkvmm_test_harness::{Scratch, images, mkvmm, tier};
use peak_alloc::PeakAlloc;

use mutate::{Field, Mutants};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The right to use memory: what a test uses is that of the whole process. A
/// test has it from its beginning, since reading and unpacking Debian's kernels
/// already takes many times what a mutant may.
struct Alone {
    _guard: MutexGuard<'static, ()>,
}

impl Alone {
    /// Waits for the tests that run.
    fn wait() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        // A failed test does not affect the next one.
        let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { _guard: guard }
    }
}

const MIB: u64 = 1 << 20;
/// The number of mutants of each header.
const COUNT: u64 = 200;
/// The memory that a mutant may use beyond the bytes of its file, of which the
/// compressed part is kept: a decoder and its window (32 MiB for Linux's xz).
/// The unpacked data goes into a file.
const BEYOND_FILE: usize = 48 << 20;
/// The sizes of the pool, and of an instance.
const POOL: u64 = 256 * MIB;
const INSTANCE: u64 = 128 * MIB;

/// The fields of the setup header that a loader uses: offset, width.
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

/// Returns the fields of an ELF file: those of its header, and of each program
/// header.
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
        // The fields are p_type, p_offset, p_paddr, p_filesz and p_memsz.
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

/// The environment in which instances are built.
enum Bench {
    /// A manager, with the `mkvmm` binary as its children.
    Manager {
        manager: Rc<Manager>,
        scratch: Scratch,
    },
    /// There is no KVM: kernels are loaded without creating guests.
    Memory(Box<Pool>),
}

impl Bench {
    fn new() -> Self {
        if let Err(why) = tier::probe() {
            tier::skip(&format!("images are loaded, guests not built: {why}"));
            let pool = Pool::new(POOL, ReservationConfig::default());
            return Self::Memory(Box::new(pool));
        }
        let setup = ManagerSetup {
            program: Some(mkvmm::binary()),
            ..ManagerSetup::new(POOL)
        };
        Self::Manager {
            manager: setup.manager(),
            scratch: Scratch::new(),
        }
    }

    /// Builds a guest of `bytes` as far as this host can, and releases it.
    /// `kernel` is the result of unpacking in this process.
    async fn build(&mut self, bytes: &[u8], boot: BootMode, kernel: Option<&KernelFile>) {
        match (self, kernel) {
            (Self::Manager { manager, scratch }, kernel) => {
                let path = scratch.file("mutant", bytes);
                let boot = match boot {
                    BootMode::Elf => "elf",
                    BootMode::BzImage => "bzimage",
                };
                let spec = format!(
                    "name=mutant,memory={INSTANCE},kernel={},boot={boot},cmdline=console=ttyS0",
                    path.display()
                );
                build_guest(manager, spec, kernel.is_some()).await;
            }
            (Self::Memory(pool), Some(kernel)) => {
                if let Ok(instance) = pool.make(INSTANCE, &kernel.facts) {
                    instance.load(&kernel.file, &kernel.facts);
                    pool.release(instance);
                }
            }
            (Self::Memory(_), None) => {}
        }
    }

    /// Checks the ledger of an empty pool.
    fn expect_empty_books(&self) {
        let expect = |avail: u64, tree: String| {
            assert_eq!(avail, POOL);
            assert_eq!(tree.lines().count(), 1, "{tree}");
        };
        match self {
            Self::Manager { manager, .. } => {
                let registry = manager.registry();
                assert!(registry.is_empty());
                expect(registry.pool().avail(), registry.pool().to_string());
                assert_eq!(audit::audit(&registry).problems, [""; 0]);
            }
            Self::Memory(pool) => expect(pool.ledger.avail(), pool.ledger.to_string()),
        }
        let left = embedded::memory_files();
        assert!(left.is_empty(), "memory left behind: {left:?}");
    }
}

/// Has a guest built, up to the moment before its first instruction.
async fn build_guest(manager: &Rc<Manager>, spec: String, is_valid: bool) {
    let mut configs = match embedded::resolve(manager, &[spec]).await {
        Ok(configs) => configs,
        Err(error) => {
            let text = chain(&error);
            assert!(!is_valid, "only a confined process refuses it: {text}");
            return;
        }
    };
    assert!(is_valid, "only a process that is not confined refuses it");
    let config = configs.pop().expect("one guest was asked for");
    let name = config.instance.name.clone();
    // An image that does not fit is refused now.
    let created = manager.create(config.instance, Some(config.images)).await;
    if created.is_ok() {
        let prepared = manager.prepare(&name).await;
        prepared.expect("a valid kernel makes a guest");
        manager.delete(&name).await.expect("nothing else has it");
    }
}

/// Tries `COUNT` mutants of `file` and reports how many were refused.
fn expect_harmless(_: &Alone, what: &str, file: &[u8], fields: &[Field], boot: BootMode) {
    let refused = block_on(async {
        let mut bench = Bench::new();
        // The file itself is valid: mutants are refused for their mutation.
        let good = KernelFile::unpack(file, boot, INSTANCE);
        let good = good.expect("the header itself is good");
        bench.build(file, boot, Some(&good)).await;
        bench.expect_empty_books();
        let mut refused = 0;
        for number in 0..COUNT {
            let mutant = Mutants::new(file, fields).number(number);
            let what = format!("{what}, mutant {number} ({mutant})");
            let bytes = mutant.apply(file);
            let unpacked = unpack(&what, &bytes, boot);
            if unpacked.is_none() {
                refused += 1;
            }
            bench.build(&bytes, boot, unpacked.as_ref()).await;
            bench.expect_empty_books();
        }
        refused
    });
    tier::announce(&format!("{what}: {refused} of {COUNT} mutants refused"));
    assert!(refused >= COUNT / 4, "{what}: only {refused} refused");
}

/// Unpacks a mutant in this process, where its memory use can be measured;
/// `None` if it is refused.
fn unpack(what: &str, bytes: &[u8], boot: BootMode) -> Option<KernelFile> {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let unpack = AssertUnwindSafe(|| KernelFile::unpack(bytes, boot, INSTANCE));
    let unpacked = catch_unwind(unpack);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let unpacked = unpacked.unwrap_or_else(|_| panic!("{what}: panicked"));
    let bound = bytes.len() + BEYOND_FILE;
    assert!(taken <= bound, "{what}: {taken} bytes");
    match unpacked {
        Ok(kernel) => Some(kernel),
        Err(error) => {
            assert!(!chain(&error).is_empty());
            None
        }
    }
}

/// Returns a small kernel with the real header of `file`, in which only the
/// payload's position changes.
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

/// Returns the ELF kernel in Debian's bzImage.
fn vmlinux(version: &str) -> Option<Vec<u8>> {
    let file = debian(version)?;
    let header = bzimage::parse(&file).expect("it is a bzImage");
    let (_, elf) = bzimage::unpack(&file, &header).expect("it can be unpacked");
    Some(elf)
}

#[test]
fn of_a_bzimage_of_our_own() {
    let alone = Alone::wait();
    let elf = images::elf(&vec![0x90; 100_000]);
    let mut payload = elf.clone();
    let size = u32::try_from(elf.len()).expect("it is small");
    payload.extend_from_slice(&size.to_le_bytes());
    let file = images::bzimage(&payload, 32 << 20);
    expect_harmless(&alone, "own header", &file, &SETUP_FIELDS, BootMode::Elf);
    expect_harmless(
        &alone,
        "own header, whole",
        &file,
        &SETUP_FIELDS,
        BootMode::BzImage,
    );
}

#[test]
fn of_debians_setup_headers_to_be_unpacked() {
    let alone = Alone::wait();
    for version in ["6.1", "6.12"] {
        if let Some(file) = debian(version) {
            let file = transplanted(&file);
            expect_harmless(&alone, version, &file, &SETUP_FIELDS, BootMode::Elf);
        }
    }
}

#[test]
fn of_debians_setup_headers_with_all_that_follows() {
    let alone = Alone::wait();
    for version in ["6.1", "6.12"] {
        if let Some(file) = debian(version) {
            expect_harmless(&alone, version, &file, &SETUP_FIELDS, BootMode::BzImage);
        }
    }
}

#[test]
fn of_the_probes_elf_headers() {
    let alone = Alone::wait();
    expect_harmless(&alone, "probe", PROBE, &elf_fields(PROBE), BootMode::Elf);
}

#[test]
fn of_debians_elf_headers() {
    let alone = Alone::wait();
    for version in ["6.1", "6.12"] {
        if let Some(elf) = vmlinux(version) {
            expect_harmless(&alone, version, &elf, &elf_fields(&elf), BootMode::Elf);
        }
    }
}
