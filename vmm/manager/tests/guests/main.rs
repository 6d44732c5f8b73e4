//! The manager as a library, with this very program as its workers.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use mkpool::AddrRange;
use mkvmm_base::image_facts::{KernelFacts, KernelFormat, KernelSegment};
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::unpacking::ContentHash;
use mkvmm_image::KernelImage;
use mkvmm_keeper::process::Output;
use mkvmm_manager::config::InstanceConfig;
use mkvmm_manager::images::{Images, Kernel, Origin};
use mkvmm_manager::{Host, Manager, Options};
use mkvmm_memory::host_pool::HostPool;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::ReservationConfig;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    if let Some(exit) = mkvmm_children::run() {
        return exit;
    }
    let tests = vec![Trial::test("a_probe_runs_to_its_end", || {
        run(a_probe_runs_to_its_end());
        Ok(())
    })];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn manager() -> Rc<Manager> {
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .unwrap();
    let range = AddrRange::with_size(0x1_0000_0000, 256 * MIB).unwrap();
    let config = ReservationConfig::default();
    let memory = PoolMemory::new(range, config, &|_| (), &AtomicBool::new(false)).unwrap();
    let host = Host {
        kvm: kvm.into(),
        program: None,
        environment: [("MKVMM_UID", "65534"), ("MKVMM_GID", "65534")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        child_output: Output::Inherit,
        leaves: mkvmm_manager::Leaves::Off,
    };
    let options = Options {
        console_ring: 64 << 10,
        lossless: false,
    };
    Manager::new(host, HostPool::new(range, 12).unwrap(), memory, options)
}

fn probe() -> Images {
    let image = KernelImage::probe().unwrap();
    let fd = rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut segments = Vec::new();
    let mut at = 0;
    for segment in image.segments() {
        let bytes = segment.data;
        assert_eq!(rustix::io::pwrite(&fd, bytes, at).unwrap(), bytes.len());
        segments.push(KernelSegment {
            offset: segment.offset,
            file_offset: at,
            file_size: bytes.len() as u64,
            mem_size: segment.mem_size,
        });
        at += bytes.len() as u64;
    }
    let facts = KernelFacts {
        format: KernelFormat::Elf,
        boot: image.boot(),
        version: None,
        cmdline_max: image.cmdline_max(),
        mem_size: image.mem_size(),
        align: image.align(),
        addr_min: 0,
        addr_max: None,
        initrd_addr_max: None,
        entry_offset: image.entry_offset(),
        setup_header: None,
        segments,
    };
    let fd: OwnedFd = fd;
    Images {
        kernel: Kernel {
            file: Arc::new(fd),
            facts: Arc::new(facts),
            origin: Origin {
                path: "probe".into(),
                sha256: ContentHash([0; 32]),
                cached: false,
                load_time: Duration::ZERO,
            },
        },
        is_probe: true,
        archives: Vec::new(),
        cmdline: String::new(),
    }
}

async fn a_probe_runs_to_its_end() {
    let manager = manager();
    let name = "a".parse().unwrap();
    let config = InstanceConfig::new("a".parse().unwrap(), 8 * MIB);
    let id = manager.create(config, Some(probe())).await.unwrap();
    assert_eq!(manager.registry().guest(id).unwrap().state(), State::Loaded);
    manager.start(&name).await.unwrap();
    loop {
        let changed = manager.changed();
        let reason = manager.registry().guest(id).unwrap().reason();
        if reason.is_some() {
            break;
        }
        changed.await;
    }
    let registry = manager.registry();
    let guest = registry.guest(id).unwrap();
    let text = String::from_utf8_lossy(&guest.console().bytes()).into_owned();
    println!("{text}\n{}", guest.timeline());
    assert_eq!(guest.reason(), Some(EndReason::Reboot), "{text}");
    assert!(text.contains("probe: pass"), "{text}");
    drop(registry);
    manager.delete(&name).await.unwrap();
    assert_eq!(manager.registry().pool().avail(), 256 * MIB);
}
