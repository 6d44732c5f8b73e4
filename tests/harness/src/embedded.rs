//! A manager in the test's own process, whose children are the `mkvmm` binary
//! or this very program.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use mkpool::AddrRange;
use mkvmm_base::image_facts::BootMode;
use mkvmm_base::state::OnStall;
use mkvmm_children::{GID_VARIABLE, UID_VARIABLE};
use mkvmm_image::KernelImage;
use mkvmm_images::{Access, Budget, BuiltIn};
use mkvmm_keeper::process::Output;
use mkvmm_machine::kvm::host;
use mkvmm_manager::limits::Limits;
use mkvmm_manager::resolve::{ResolveError, check};
use mkvmm_manager::run::GuestConfig;
use mkvmm_manager::{Children, ConsoleOptions, Facts, Host, KvmFacts, Leaves, Manager, Options};
use mkvmm_memory::host_pool::HostPool;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::ReservationConfig;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// The user and group ID of root's children: nobody.
const NOBODY: &str = "65534";
/// The total memory that unpackers may use at once: 4 GiB.
const UNPACKING: u64 = 4 << 30;

/// The parameters of a manager.
#[derive(Debug)]
pub struct ManagerSetup {
    /// The range of the pool.
    pub range: AddrRange,
    /// The configuration of its memory.
    pub memory: ReservationConfig,
    /// The options of consoles.
    pub console: ConsoleOptions,
    /// The policy for stalled workers.
    pub on_stall: OnStall,
    /// The number of workers that wait for a guest.
    pub warm: usize,
    /// The program that children execute; this one if `None`, whose `main` must
    /// call [`child`] first.
    pub program: Option<PathBuf>,
}

/// Does a child's work in a child of a test; returns `None` in the test.
pub fn child() -> Option<ExitCode> {
    mkvmm_children::run()
}

/// Runs `work` in a runtime of its own. Every thread of the runtime is gone
/// when this returns.
pub fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("there are descriptors");
    LocalSet::new().block_on(&runtime, work)
}

impl ManagerSetup {
    /// Returns a lazy pool of `size` bytes from 4 GiB on, with consoles whose
    /// guests never wait.
    pub fn new(size: u64) -> Self {
        Self {
            range: AddrRange::with_size(0x1_0000_0000, size).expect("a range"),
            memory: ReservationConfig::default(),
            console: ConsoleOptions {
                ring: 64 << 10,
                lossless: false,
            },
            on_stall: OnStall::Wait,
            warm: 0,
            program: None,
        }
    }

    /// Creates the manager. Images may have any path, and none is cached
    /// without an instance using it.
    pub fn manager(self) -> Rc<Manager> {
        self.manager_with(Vec::new())
    }

    /// Creates the manager with `more` in the environment of its children.
    pub fn manager_with(self, more: Vec<(String, String)>) -> Rc<Manager> {
        let kvm = host::Host::open().expect("doctor found KVM");
        let device = File::options().read(true).write(true).open("/dev/kvm");
        let host = Host {
            kvm: device.expect("it was opened just now").into(),
            facts: Facts::new(move || KvmFacts {
                cpuid: kvm.cpuid_leaves().unwrap_or_default(),
                address_bits: kvm.address_bits(),
                has_huge_pages: kvm.has_huge_pages(),
            }),
            children: Children {
                program: self.program,
                environment: environment().into_iter().chain(more).collect(),
                output: Output::Null,
                leaves: Leaves::Off,
                keeper: None,
            },
        };
        let limits = Limits::of_host(Some(0)).expect("no connections are not too many");
        let options = Options {
            limits,
            on_stall: self.on_stall,
            early: None,
            warm: self.warm,
            logs: None,
            console: self.console,
            images: Budget {
                kept: 0,
                in_flight: UNPACKING,
                kept_count: 16,
            },
            access: Access::Own,
            probe: BuiltIn {
                name: "probe",
                bytes: mkvmm_guest_images::PROBE,
                content: KernelImage::probe_content().expect("the probe is good"),
                boot: BootMode::Elf,
            },
        };
        let order = self.memory.backing.page_order();
        let pool = HostPool::new(self.range, order).expect("a good range");
        let stop = AtomicBool::new(false);
        let memory = PoolMemory::new(self.range, self.memory, &|_| (), &stop);
        Manager::new(host, pool, memory.expect("the host has it"), options)
    }
}

/// Returns the environment of children; guests' processes never run as root.
fn environment() -> Vec<(String, String)> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let nobody = |name: &str| (name.to_owned(), NOBODY.to_owned());
    vec![nobody(UID_VARIABLE), nobody(GID_VARIABLE)]
}

/// Resolves `specs`, values of `--guest`, including their images.
///
/// # Errors
/// Returns a [`ResolveError`] for the first image that is refused.
pub async fn resolve(
    manager: &Rc<Manager>,
    specs: &[String],
) -> Result<Vec<GuestConfig>, ResolveError> {
    let parse = |spec: &String| spec.parse().expect("a good spec");
    let configs = check(specs.iter().map(parse).collect());
    manager.resolve(configs.expect("good specs")).await
}

/// Returns the files of guest memory that this process has open. Its children
/// have no others, and each has its own only as long as it lives.
pub fn memory_files() -> Vec<PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").expect("procfs is there");
    let paths = descriptors.map(|entry| entry.expect("procfs can be listed").path());
    let is_memory = |path: &PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().starts_with("/memfd:mkvmm-memory")
    };
    paths.filter(is_memory).collect()
}
