//! Tests of vCPUs with guests of a few instructions, on the host's KVM. Without
//! KVM the tests report that and pass, unless `MKVMM_REQUIRE_KVM=1`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::env;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mkpool::AddrRange;
use mkvmm_base::layout::{
    BOOT_PARAMS_START, GDT_START, LAPIC_START, LOW_WINDOW_SIZE, PAGE_SIZE, PAGE_TABLES_START,
};
use mkvmm_base::state::EndReason;
use mkvmm_machine::boot::{gdt, page_tables};
use mkvmm_machine::kvm::clock::StoppedClock;
use mkvmm_machine::kvm::cpuid::MkvmmLeaves;
use mkvmm_machine::kvm::{BareVm, Host, Vm};
use mkvmm_machine::loading::BootEntry;
use mkvmm_machine::memory::{GuestMemory, MemoryPart, PoolMapping};
use mkvmm_machine::news::{News, NewsSink};
use mkvmm_machine::vcpu::{
    self, ExitBus, ExitOutcome, HaltCheck, ReadRequest, Vcpu, VcpuCommand, VcpuHandle, VcpuSetup,
};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_wire::shared::board::Board;
use vm_memory::{Bytes, GuestAddress};

/// The address of a guest's code, in the low window.
const CODE: u64 = 0x5_0000;
/// The start address of an application processor: page 0x51.
const AP_CODE: u64 = 0x5_1000;
/// The address at which guests store their results.
const DATA: u64 = 0x6_0000;
/// The time limit for operations that take a guest microseconds.
const GUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Code that executes `cli; hlt` forever.
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
/// Code that executes `sti; hlt` forever: sleeps until an interrupt arrives.
const SLEEP: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfc];

/// Records port accesses, answered with their number; port 0x505 ends the
/// guest.
#[derive(Debug, Default)]
struct Ports(Mutex<Vec<(u16, Vec<u8>)>>);

impl ExitBus for Ports {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        let mut seen = self.0.lock().unwrap();
        data.fill(u8::try_from(seen.len()).unwrap());
        seen.push((port, data.to_vec()));
    }

    fn pio_write(&self, port: u16, data: &[u8]) -> ExitOutcome {
        self.0.lock().unwrap().push((port, data.to_vec()));
        (port == 0x505).then_some(EndReason::Panic)
    }

    fn mmio_read(&self, _addr: u64, _data: &mut [u8]) -> ExitOutcome {
        Some(EndReason::Violation)
    }

    fn mmio_write(&self, _addr: u64, _data: &[u8]) -> ExitOutcome {
        Some(EndReason::Violation)
    }

    fn first_exit(&self) {}
}

#[derive(Debug)]
struct Told(Mutex<Sender<News>>);

impl NewsSink for Told {
    fn tell(&self, news: News) {
        // A test that is done does not listen any more.
        let _ = self.0.lock().unwrap().send(news);
    }
}

/// The guest of a test. The vCPUs are dropped before the VM and its memory.
struct Guest {
    vcpus: Vec<VcpuHandle>,
    vm: Vm,
    memory: Arc<GuestMemory>,
    ports: Arc<Ports>,
    news: Receiver<News>,
}

/// Returns the host's KVM, if there is one.
fn host() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) => {
            let is_required = env::var_os("MKVMM_REQUIRE_KVM").is_some_and(|value| value == "1");
            assert!(!is_required, "MKVMM_REQUIRE_KVM=1, but {error}");
            announce(&format!("skipped: {error}"));
            None
        }
    }
}

/// Prints a message even if libtest captures the output of passing tests.
fn announce(what: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // An error of writing the message is ignored.
    let _ = writeln!(io::stderr(), "{test}: {what}");
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Creates memory of `range` with the low window at its beginning.
fn memory(range: AddrRange) -> GuestMemory {
    let file = MemoryFile::make(range, &ReservationConfig::default()).unwrap();
    let file = file.as_fd().try_clone_to_owned().unwrap();
    let page = usize::try_from(PAGE_SIZE).unwrap();
    let mapping = PoolMapping::new(&[MemoryPart { range, file }], page, false).unwrap();
    let low = AddrRange::with_size(range.start(), LOW_WINDOW_SIZE).unwrap();
    GuestMemory::new(&Arc::new(mapping), Some(low)).unwrap()
}

impl Guest {
    /// Starts a guest with `cpus` vCPUs whose first one runs `code`.
    fn start(host: &Host, cpus: u8, code: &[u8]) -> Self {
        let range = AddrRange::with_size(1 << 32, 4 << 20).unwrap();
        let memory = memory(range);
        let mapped = [(0, LOW_WINDOW_SIZE), (LAPIC_START, PAGE_SIZE)];
        let mapped = mapped.map(|(start, size)| AddrRange::with_size(start, size).unwrap());
        let tables = page_tables::build(&mapped).unwrap();
        let gdt = words(&gdt::table());
        let tables = words(tables.as_flattened());
        for (at, bytes) in [
            (GDT_START, gdt.as_slice()),
            (PAGE_TABLES_START, &tables),
            (CODE, code),
            (AP_CODE, SLEEP),
        ] {
            memory.guest().write_slice(bytes, GuestAddress(at)).unwrap();
        }
        let memory = Arc::new(memory);
        let mut vm = {
            let bare = BareVm::new(host.kvm()).unwrap();
            Vm::new(host, bare, Arc::clone(&memory), Vec::new()).unwrap()
        };
        vm.add_timer().unwrap();
        let setup = VcpuSetup {
            cpus,
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
        let (sender, news) = mpsc::channel();
        let sink: Arc<dyn NewsSink> = Arc::new(Told(Mutex::new(sender)));
        let ports = Arc::new(Ports::default());
        let board = Board::create().unwrap().0.writer();
        let name = "a".parse().unwrap();
        // Create all of them before the first runs, as a machine does.
        let made: Vec<Vcpu> = (0..cpus)
            .map(|index| Vcpu::new(host, &vm, index, &setup).unwrap())
            .collect();
        let start = |(index, vcpu): (usize, Vcpu)| {
            let slot = board.vcpu(index).unwrap();
            vcpu.start(&name, None, slot, ports.clone(), &sink).unwrap()
        };
        let vcpus: Vec<VcpuHandle> = made.into_iter().enumerate().map(start).collect();
        vcpus.iter().for_each(|vcpu| vcpu.send(VcpuCommand::Run));
        Self {
            vcpus,
            vm,
            memory,
            ports,
            news,
        }
    }

    fn end(&self) -> EndReason {
        loop {
            if let News::Ended { reason, .. } = self.news.recv_timeout(GUEST_TIMEOUT).unwrap() {
                return reason;
            }
        }
    }

    /// Returns the first 64-bit word of the data.
    fn word(&self) -> u64 {
        let mut bytes = [0; 8];
        let data = self.memory.guest();
        data.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Waits until the first word is different from `old`.
    fn word_after(&self, old: u64) -> u64 {
        let start = Instant::now();
        loop {
            match self.word() {
                word if word != old => return word,
                _ => assert!(start.elapsed() < GUEST_TIMEOUT, "the guest does not run"),
            }
        }
    }

    /// Returns whether vCPU `cpu` is halted with interrupts on, according to
    /// its registers.
    fn sleeps(&self, cpu: usize) -> bool {
        let request = ReadRequest {
            ticket: 7,
            translate: None,
        };
        self.vcpus[cpu].send(VcpuCommand::Read(request));
        loop {
            let news = self.news.recv_timeout(GUEST_TIMEOUT).unwrap();
            if let News::Registers {
                ticket, registers, ..
            } = news
            {
                assert_eq!(ticket, 7);
                // These are KVM_MP_STATE_HALTED and RFLAGS.IF.
                return registers.mp_state == Some(3) && registers.regs.rflags & 1 << 9 != 0;
            }
        }
    }
}

#[test]
fn port_accesses_arrive_one_by_one_and_with_their_width() {
    let Some(host) = host() else { return };
    let guest = Guest::start(
        &host,
        1,
        &[
            0xba, 0x08, 0x06, 0x00, 0x00, // mov edx, 0x608
            0xbf, 0x00, 0x00, 0x06, 0x00, // mov edi, DATA
            0xb9, 0x05, 0x00, 0x00, 0x00, // mov ecx, 5
            0xfc, 0x66, 0xf3, 0x6d, // cld; rep insw
            0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
            0xb8, 0x41, 0x42, 0x00, 0x00, // mov eax, 0x4241
            0x66, 0xef, // out dx, ax
            0xbe, 0x00, 0x00, 0x06, 0x00, // mov esi, DATA
            0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
            0xf3, 0x6f, // rep outsd
            0xba, 0x05, 0x05, 0x00, 0x00, // mov edx, 0x505
            0xb0, 0x01, 0xee, // mov al, 1; out dx, al
            0xeb, 0xfe, // jmp $
        ],
    );
    assert_eq!(guest.end(), EndReason::Panic);
    let mut data = [0xaa; 12];
    let memory = guest.memory.guest();
    memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    assert_eq!(data, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0]);
    let mut want: Vec<(u16, Vec<u8>)> = (0..5).map(|i| (0x608, vec![i; 2])).collect();
    want.push((0x3f8, vec![0x41, 0x42]));
    want.push((0x3f8, vec![0, 0, 1, 1]));
    want.push((0x3f8, vec![2, 2, 3, 3]));
    want.push((0x505, vec![1]));
    assert_eq!(*guest.ports.0.lock().unwrap(), want);
}

/// Code that stores its TSC repeatedly.
const STORE_TSC: &[u8] = &[
    0xbf, 0x00, 0x00, 0x06, 0x00, // mov edi, DATA
    0x0f, 0x31, // again: rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
    0x48, 0x09, 0xd0, // or rax, rdx
    0x48, 0x89, 0x07, // mov [rdi], rax
    0xeb, 0xf2, // jmp again
];

#[test]
fn the_clocks_stand_still_while_a_guest_is_paused() {
    let Some(host) = host() else { return };
    let made = Instant::now();
    let guest = Guest::start(&host, 1, STORE_TSC);
    let (first, start) = (guest.word_after(0), Instant::now());
    while start.elapsed() < Duration::from_millis(200) {}
    let ticks_per_ns = (guest.word() - first) as f64 / 2e8;
    // A TSC of the guest's own began at zero when its vCPU was created.
    let is_own = (first as f64) < made.elapsed().as_nanos() as f64 * ticks_per_ns * 2.0;

    let clock = || StoppedClock::read(&guest.vm).unwrap().guest_ns();
    let (asked, clock_before) = (Instant::now(), clock());
    let paused = vcpu::pause(&guest.vm, &guest.vcpus);
    assert!(!paused.is_late());
    let (tsc_before, mut ran) = (guest.word(), asked.elapsed());
    let pause = 20 * ran.max(Duration::from_millis(100));
    thread::sleep(pause);
    assert_eq!(guest.word(), tsc_before);
    let asked = Instant::now();
    paused.resume(&guest.vm, &guest.vcpus);
    let (tsc_after, clock_after) = (guest.word_after(tsc_before), clock());
    ran += asked.elapsed();

    // The guest ran no longer than the host observed; half of the pause is a
    // margin for measurement errors.
    let most = (ran + pause / 2).as_nanos() as f64;
    let ns = clock_after - clock_before;
    assert!((ns as f64) < most, "kvm-clock: {ns} ns, at most {most}");
    if is_own {
        let ticks = (tsc_after - tsc_before) as f64;
        let most = most * ticks_per_ns;
        assert!(ticks < most, "TSC: {ticks} ticks, at most {most}");
    } else {
        announce("this KVM gives guests the host's TSC, which nobody can stop");
    }
}

#[test]
fn a_guest_whose_last_vcpu_halted_is_halted() {
    let Some(host) = host() else { return };
    let mut guest = Guest::start(&host, 2, HALT);
    let (mut check, start) = (HaltCheck::default(), Instant::now());
    while !check.check(&mut guest.vcpus) {
        assert!(start.elapsed() < GUEST_TIMEOUT, "no verdict");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_started_processor_that_sleeps_is_not_halted() {
    let Some(host) = host() else { return };
    let mut guest = Guest::start(
        &host,
        2,
        &[
            0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, LAPIC
            // Enable the APIC; send INIT and SIPI (page 0x51) to APIC 1.
            0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, //
            0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, //
            0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x00, 0x00, //
            0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, //
            0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x51, 0x46, 0x00, 0x00, //
            0xfa, 0xf4, 0xeb, 0xfc, // cli; hlt
        ],
    );
    let start = Instant::now();
    while !guest.sleeps(1) {
        assert!(
            start.elapsed() < GUEST_TIMEOUT,
            "the processor does not start"
        );
    }
    let mut check = HaltCheck::default();
    for _ in 0..20 {
        assert!(!check.check(&mut guest.vcpus));
        thread::sleep(Duration::from_millis(50));
    }
}
