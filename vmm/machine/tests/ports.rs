//! A guest that reads and writes every port there is, in every width and with
//! string instructions, on the devices of a machine, against the model that
//! docs/memory-map.md writes down. On the host's KVM; where there is none the
//! tests say so and pass, unless `MKVMM_REQUIRE_KVM=1`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::env;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_base::layout::{
    BOOT_PARAMS_START, GDT_START, LOW_WINDOW_SIZE, PAGE_SIZE, PAGE_TABLES_START,
};
use mkvmm_base::state::EndReason;
use mkvmm_base::violation::ViolationPolicy;
use mkvmm_machine::boot::{gdt, page_tables};
use mkvmm_machine::console::Console;
use mkvmm_machine::devices::board::Board;
use mkvmm_machine::devices::pci::host_bridge::HostBridge;
use mkvmm_machine::devices::violation::ViolationCounter;
use mkvmm_machine::kvm::cpuid::MkvmmLeaves;
use mkvmm_machine::kvm::{BareVm, Host, Vm};
use mkvmm_machine::loading::BootEntry;
use mkvmm_machine::memory::{GuestMemory, MemoryPart, PoolMapping};
use mkvmm_machine::news::{News, NewsSink};
use mkvmm_machine::progress::Progress;
use mkvmm_machine::vcpu::{ExitBus, Vcpu, VcpuCommand, VcpuSetup};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_wire::shared::board::Board as StatusBoard;
use vm_memory::{Bytes, GuestAddress};

/// Where a guest's code lies, and where it leaves what it reads: the rest of
/// the low window.
const CODE: u64 = 0x5_0000;
const DATA: u64 = 0x6_0000;
/// How long a guest may take for all ports, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends the guest through pvpanic: `mov edx, 0x505; mov al, 1; out dx, al; jmp $`.
const END: &[u8] = &[0xba, 0x05, 0x05, 0, 0, 0xb0, 0x01, 0xee, 0xeb, 0xfe];

/// Ports that KVM answers, in whole or for accesses that begin there.
const KVMS: [RangeInclusive<u32>; 5] = [
    0x20..=0x21,
    0x40..=0x43,
    0x61..=0x61,
    0xa0..=0xa1,
    0x4d0..=0x4d1,
];
/// The timer, which moves by itself.
const TIMER: RangeInclusive<u32> = 0x608..=0x60b;

#[derive(Debug, Default)]
struct Screen(Mutex<Vec<u8>>);

impl Console for Screen {
    fn print(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }

    fn take_input(&self, _most: usize) -> Vec<u8> {
        Vec::new()
    }
}

#[derive(Debug)]
struct Told(Mutex<Sender<News>>);

impl NewsSink for Told {
    fn tell(&self, news: News) {
        // A test that has seen enough listens no more.
        let _ = self.0.lock().unwrap().send(news);
    }
}

/// The host's KVM, unless there is none.
fn host() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) => {
            let is_required = env::var_os("MKVMM_REQUIRE_KVM").is_some_and(|value| value == "1");
            assert!(!is_required, "MKVMM_REQUIRE_KVM=1, but {error}");
            let thread = thread::current();
            let test = thread.name().unwrap_or("a test");
            // A message that cannot be written changes nothing.
            let _ = writeln!(io::stderr(), "{test}: skipped: {error}");
            None
        }
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Devices as a machine has them, told to nobody.
fn board(screen: &Arc<Screen>) -> Board {
    let sink: Arc<dyn NewsSink> = Arc::new(Told(Mutex::new(mpsc::channel().0)));
    let status = StatusBoard::create().unwrap().0.writer();
    let violations = ViolationCounter::new(ViolationPolicy::Log, status, Arc::clone(&sink));
    let progress = Arc::new(Progress::new(sink));
    let console = Arc::clone(screen) as Arc<dyn Console>;
    Board::new(
        console,
        &progress,
        &Arc::default(),
        Arc::new(violations),
        HostBridge::default(),
    )
    .unwrap()
}

/// What a guest left.
struct Ran {
    data: Vec<u8>,
    printed: Vec<u8>,
}

/// Runs `code`, which ends with [`END`], on devices in their first state.
fn run(host: &Host, code: &[u8]) -> Ran {
    let range = AddrRange::with_size(1 << 32, 2 << 20).unwrap();
    let file = MemoryFile::make(range, &ReservationConfig::default()).unwrap();
    let file = file.as_fd().try_clone_to_owned().unwrap();
    let page = usize::try_from(PAGE_SIZE).unwrap();
    let mapping = PoolMapping::new(&[MemoryPart { range, file }], page, false).unwrap();
    let low = AddrRange::with_size(range.start(), LOW_WINDOW_SIZE).unwrap();
    let memory = Arc::new(GuestMemory::new(&Arc::new(mapping), Some(low)).unwrap());
    let mapped = AddrRange::with_size(0, LOW_WINDOW_SIZE).unwrap();
    let tables = page_tables::build(&[mapped]).unwrap();
    for (at, bytes) in [
        (GDT_START, words(&gdt::table()).as_slice()),
        (PAGE_TABLES_START, &words(tables.as_flattened())),
        (CODE, code),
    ] {
        memory.guest().write_slice(bytes, GuestAddress(at)).unwrap();
    }
    let mut vm = {
        let bare = BareVm::new(host.kvm()).unwrap();
        Vm::new(host, bare, Arc::clone(&memory), Vec::new()).unwrap()
    };
    vm.add_timer().unwrap();
    let setup = VcpuSetup {
        cpus: 1,
        entry: BootEntry {
            rip: CODE,
            boot_params: BOOT_PARAMS_START,
        },
        leaves: MkvmmLeaves {
            pool_start: range.start(),
            pool_size: range.size(),
            manifest_addr: 0,
            manifest_size: 0,
            manifest_version: 0,
        },
    };
    let (sender, news): (Sender<News>, Receiver<News>) = mpsc::channel();
    let sink: Arc<dyn NewsSink> = Arc::new(Told(Mutex::new(sender)));
    let screen = Arc::new(Screen::default());
    let devices = board(&screen);
    let bus = Arc::clone(devices.bus()) as Arc<dyn ExitBus>;
    let slot = StatusBoard::create().unwrap().0.writer().vcpu(0).unwrap();
    let vcpu = Vcpu::new(host, &vm, 0, &setup).unwrap();
    let vcpu = vcpu
        .start(&"a".parse().unwrap(), None, slot, bus, &sink)
        .unwrap();
    vcpu.send(VcpuCommand::Run);
    loop {
        if let News::Ended { reason } = news.recv_timeout(PATIENCE).unwrap() {
            assert_eq!(reason, EndReason::Panic, "it did not come to its end");
            break;
        }
    }
    vcpu.finish();
    let mut data = vec![0; usize::try_from(LOW_WINDOW_SIZE - DATA).unwrap()];
    memory
        .guest()
        .read_slice(&mut data, GuestAddress(DATA))
        .unwrap();
    let printed = screen.0.lock().unwrap().clone();
    Ran { data, printed }
}

/// A loop over all ports: `body` with the port in `dx`.
fn for_all_ports(body: &[u8]) -> Vec<u8> {
    let mut code = vec![0xbf, 0, 0, 6, 0, 0xfc]; // mov edi, DATA; cld
    code.extend([0x31, 0xdb]); // xor ebx, ebx
    code.extend([0x89, 0xda]); // again: mov edx, ebx
    code.extend(body);
    code.extend([0xff, 0xc3]); // inc ebx
    code.extend([0x81, 0xfb, 0, 0, 1, 0]); // cmp ebx, 0x10000
    let back = 2 + body.len() + 2 + 6 + 2;
    code.extend([0x75, u8::try_from(256 - back).unwrap()]); // jne again
    code
}

/// What a byte of a port reads as, in the devices' first state; `None` where
/// that cannot be known.
fn first_state(port: u32) -> Option<u8> {
    if KVMS.iter().any(|ports| ports.contains(&port)) || TIMER.contains(&port) {
        return None;
    }
    Some(match port {
        0x60 | 0x64 => 0,
        0xe9 => 0xe9,
        // Nothing received; IER; no interrupt, FIFOs on; LCR 8N1; MCR: OUT2;
        // all sent; DCD, DSR, CTS; scratch.
        0x3f8..=0x3ff => [0x00, 0x00, 0xc1, 0x03, 0x08, 0x60, 0xb0, 0x00][port as usize - 0x3f8],
        0x505 => 3,
        0x604 => 1,
        0x600..=0x603 | 0x605..=0x607 | 0x60c..=0x60f => 0,
        0xcf8..=0xcfb => 0,
        _ => 0xff,
    })
}

#[test]
fn every_port_reads_in_every_width_as_the_model_says() {
    let Some(host) = host() else { return };
    // in al, dx; stosb. in ax, dx; stosw. in eax, dx; stosd.
    let reads: [&[u8]; 3] = [&[0xec, 0xaa], &[0x66, 0xed, 0x66, 0xab], &[0xed, 0xab]];
    for (width, read) in [1, 2, 4].into_iter().zip(reads) {
        let code = [for_all_ports(read), END.to_vec()].concat();
        let Ran { data, printed } = run(&host, &code);
        assert_eq!(printed, b"");
        let mut unknown = 0;
        for (port, bytes) in (0..0x1_0000_u32).zip(data.chunks_exact(width)) {
            // KVM answers what begins at its ports, whatever else it covers.
            if KVMS.iter().any(|ports| ports.contains(&port)) {
                continue;
            }
            for (at, &byte) in (port..).zip(bytes) {
                // As a part of a wider access KVM's ports are nobody's.
                let is_kvms = at != port && KVMS.iter().any(|ports| ports.contains(&at));
                // The address register of PCI ends what begins in it.
                let is_beyond = (0xcf8..0xcfc).contains(&port) && at >= 0xcfc;
                let want = match at {
                    _ if is_kvms || is_beyond || at > 0xffff => Some(0xff),
                    at => first_state(at),
                };
                unknown += usize::from(want.is_none());
                assert!(
                    want.is_none_or(|want| want == byte),
                    "{width} bytes at {port:#x}: {byte:#x} at {at:#x}, not {want:x?}"
                );
            }
        }
        assert!(unknown <= 32, "{unknown} bytes are in no model");
    }
}

/// Ports of devices, and those beside them.
const NEAR: [u16; 26] = [
    0x5f, 0x60, 0x62, 0x64, 0x7f, 0x80, 0xe8, 0xe9, 0x3f6, 0x3f7, 0x3f8, 0x3f9, 0x3fb, 0x3fd,
    0x3ff, 0x504, 0x505, 0x5fe, 0x600, 0x602, 0x604, 0x60c, 0x60f, 0x610, 0xcf6, 0xffff,
];

#[test]
fn each_repetition_of_a_string_read_is_a_read_of_its_own() {
    let Some(host) = host() else { return };
    const COUNT: u8 = 7;
    // rep insb; rep insw; rep insd.
    let reads: [&[u8]; 3] = [&[0xf3, 0x6c], &[0x66, 0xf3, 0x6d], &[0xf3, 0x6d]];
    for (width, read) in [1, 2, 4].into_iter().zip(reads) {
        let mut code = vec![0xbf, 0, 0, 6, 0, 0xfc]; // mov edi, DATA; cld
        for port in NEAR {
            let [low, high] = port.to_le_bytes();
            code.extend([0xba, low, high, 0, 0, 0xb9, COUNT, 0, 0, 0]); // edx, ecx
            code.extend(read);
        }
        code.extend(END);
        let Ran { data, .. } = run(&host, &code);
        // The same reads, one after the other, straight from devices.
        let devices = board(&Arc::default());
        let mut chunks = data.chunks_exact(width);
        for port in NEAR {
            for repetition in 0..COUNT {
                let mut want = vec![0; width];
                devices.bus().pio_read(port, &mut want);
                let got = chunks.next().unwrap();
                assert_eq!(got, want, "{width} bytes at {port:#x}, {repetition}");
            }
        }
    }
}

#[test]
fn every_port_takes_every_width_and_only_what_the_model_says_remains() {
    let Some(host) = host() else { return };
    // 0x5a resets nothing, turns nothing off and is no panic, wherever it goes,
    // but it begins to set up KVM's interrupt controllers; hence `cli` before.
    // out dx, al. out dx, ax. out dx, eax.
    let writes: [&[u8]; 3] = [&[0xee], &[0x66, 0xef], &[0xef]];
    for (width, write) in [1_u16, 2, 4].into_iter().zip(writes) {
        let fill = [
            &[0xfa, 0xb8, 0x5a, 0x5a, 0x5a, 0x5a],
            for_all_ports(write).as_slice(),
        ]
        .concat();
        // xor eax, eax is not needed: every byte of it is read.
        let read = for_all_ports(&[0xec, 0xaa]);
        let Ran { data, printed } = run(&host, &[&fill, &read, END].concat());
        let screen = Arc::new(Screen::default());
        let devices = board(&screen);
        let bus = devices.bus();
        for port in 0..=0xffff_u16 {
            let whole = |base: u16, ports: u16| {
                let last = u32::from(port) + u32::from(width) - 1;
                u32::from(port) < u32::from(base + ports) && last >= u32::from(base)
            };
            // Byte by byte, except for the registers that take more at once.
            if whole(0x600, 16) || whole(0xcf8, 8) {
                assert_eq!(bus.pio_write(port, &vec![0x5a; width.into()]), None);
                continue;
            }
            for at in (0..width).filter_map(|byte| port.checked_add(byte)) {
                assert_eq!(bus.pio_write(at, &[0x5a]), None, "{at:#x}");
            }
        }
        for (port, got) in (0..=0xffff_u16).zip(data) {
            let at = u32::from(port);
            if KVMS.iter().any(|ports| ports.contains(&at)) || TIMER.contains(&at) {
                continue;
            }
            let mut want = [0];
            bus.pio_read(port, &mut want);
            assert_eq!(got, want[0], "{width} bytes everywhere, then {port:#x}");
        }
        assert_eq!(printed, *screen.0.lock().unwrap(), "{width}");
        assert!(!printed.is_empty());
    }
}

#[test]
fn a_string_write_to_com1_prints_every_byte_once() {
    let Some(host) = host() else { return };
    let text = b"as a string";
    let mut code = vec![0xba, 0xf8, 0x03, 0, 0, 0xbe, 0, 0, 0, 0, 0xfc]; // edx, esi, cld
    code.extend([0xb9, u8::try_from(text.len()).unwrap(), 0, 0, 0, 0xf3, 0x6e]); // rep outsb
    code.extend(END);
    let at = u32::try_from(CODE).unwrap() + u32::try_from(code.len()).unwrap();
    code[6..10].copy_from_slice(&at.to_le_bytes());
    code.extend(text);
    assert_eq!(run(&host, &code).printed, text);
}
