//! A worker that does its work in its sandbox, like mkvmm's workers: it
//! receives `/dev/kvm` and a memory file as descriptors, creates its VM inside,
//! runs vCPUs on threads and an event loop, and survives events that processes
//! encounter.
//!
//! The allow-list was derived from running it under `strace -f`.
//!
//! UNSAFETY: maps guest memory and takes ownership of a descriptor by number.
#![expect(unsafe_code, reason = "guest memory is mapped, /dev/kvm has a number")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::panic;
use std::ptr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_bindings::{kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};
use vmm_sys_util::timerfd::TimerFd;

use crate::setup::Role;

const MEMORY_SIZE: usize = 2 << 20;
const CODE_AT: usize = 0x1000;

/// Code in real mode that prints a letter to port 0x3f8 and halts.
const SPEAKER: [u8; 7] = [0xba, 0xf8, 0x03, 0xb0, b'G', 0xee, 0xf4];
/// Code in real mode that jumps to itself.
const SPINNER: [u8; 2] = [0xeb, 0xfe];

type Anything<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The main function of the worker's process; everything runs inside the
/// sandbox.
pub fn run(role: &Role) -> Anything<()> {
    let memory = memfd_create(c"guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, MEMORY_SIZE as u64)?;
    fcntl_add_seals(
        &memory,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    let report = role.enter();
    say(&format!("entered, {} warnings", report.warnings().len()))?;

    let memory = Arc::new(Memory::map(File::from(memory))?);
    // SAFETY: the test put /dev/kvm at number 0, and nothing else owns it.
    let kvm = unsafe { Kvm::from_raw_fd(0) };
    speak_and_halt(&kvm, &memory)?;
    spin_and_be_kicked(&kvm, &memory)?;
    make_what_devices_need(&kvm, &memory)?;
    use_threads_and_heap()?;
    panic_and_go_on()?;
    be_stopped()?;
    say("done")?;
    Ok(())
}

/// Writes a line without buffering, as the process may be killed at any time.
fn say(line: &str) -> io::Result<()> {
    io::stdout().write_all(format!("{line}\n").as_bytes())
}

/// The guest's memory: one shared mapping of a file whose descriptor is closed.
struct Memory {
    address: *mut u8,
}

// SAFETY: the address is that of a mapping that all threads share, and is
// written by volatile stores before a vCPU runs.
unsafe impl Send for Memory {}
// SAFETY: no method returns a reference into the mapping, and it is written as
// described for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(file: File) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so no mapping is replaced.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                MEMORY_SIZE,
                access,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        // A worker does not need the descriptors of files that it has mapped.
        drop(file);
        let address = address.cast();
        Ok(Self { address })
    }

    fn store(&self, at: usize, code: &[u8]) {
        for (offset, byte) in (at..).zip(code) {
            assert!(offset < MEMORY_SIZE);
            // SAFETY: the offset is inside the mapping, as checked above.
            let target = unsafe { self.address.add(offset) };
            // SAFETY: the mapping is writable and lives as long as `self`.
            unsafe { target.write_volatile(*byte) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was created by `map` with this size, and every VM
        // that has it as a slot is closed before: `guest` keeps an `Arc`.
        let unmapped = unsafe { munmap(self.address.cast(), MEMORY_SIZE) };
        unmapped.expect("the range was mapped by this type");
    }
}

/// A VM with one slot and one vCPU in real mode at `CODE_AT`.
struct Guest {
    // The fields are in the order in which they must be dropped.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Arc<Memory>,
}

fn guest(kvm: &Kvm, memory: &Arc<Memory>, code: &[u8]) -> Anything<Guest> {
    memory.store(CODE_AT, code);
    let vm = kvm.create_vm()?;
    set_slot(&vm, memory)?;
    let vcpu = vm.create_vcpu(0)?;
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    vcpu.set_cpuid2(&cpuid)?;
    let mut special = vcpu.get_sregs()?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE_AT as u64;
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    Ok(Guest {
        vcpu,
        _vm: vm,
        _memory: Arc::clone(memory),
    })
}

fn set_slot(vm: &VmFd, memory: &Memory) -> Anything<()> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_SIZE as u64,
        userspace_addr: memory.address.expose_provenance() as u64,
    };
    // SAFETY: the range is mapped, and remains so as long as the VM exists: its
    // owner keeps the memory in an `Arc`.
    unsafe { vm.set_user_memory_region(region) }?;
    Ok(())
}

/// A message of a vCPU thread to the event loop.
enum News {
    Printed(Vec<u8>),
    Halted,
}

/// The event loop's side: receives messages when the eventfd signals them.
struct Console {
    wake_up: Arc<EventFd>,
    timer: TimerFd,
    news: Receiver<News>,
    printed: Vec<u8>,
    halted: bool,
    ticked: bool,
}

impl MutEventSubscriber for Console {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.fd() == std::os::fd::AsRawFd::as_raw_fd(&self.timer) {
            self.ticked = self.timer.wait().is_ok();
            return;
        }
        self.wake_up.read().expect("the eventfd is readable");
        for news in self.news.try_iter() {
            match news {
                News::Printed(bytes) => self.printed.extend(bytes),
                News::Halted => self.halted = true,
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let wake_up = Events::new(&*self.wake_up, EventSet::IN);
        ops.add(wake_up).expect("an eventfd can be polled");
        let timer = Events::new(&self.timer, EventSet::IN);
        ops.add(timer).expect("a timer can be polled");
    }
}

/// Runs a guest that prints from a vCPU thread; the event loop is notified.
fn speak_and_halt(kvm: &Kvm, memory: &Arc<Memory>) -> Anything<()> {
    let wake_up = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let (sender, news) = channel();
    let mut timer = TimerFd::new()?;
    timer.reset(Duration::from_millis(1), None)?;
    let console = Arc::new(Mutex::new(Console {
        wake_up: Arc::clone(&wake_up),
        timer,
        news,
        printed: Vec::new(),
        halted: false,
        ticked: false,
    }));
    let mut event_loop = EventManager::new()?;
    event_loop.add_subscriber(Arc::clone(&console));
    let guest = guest(kvm, memory, &SPEAKER)?;
    let thread = thread::Builder::new().name("vcpu0:test".to_owned());
    let vcpu = thread.spawn(move || run_vcpu(guest, &sender, &wake_up))?;
    loop {
        event_loop.run()?;
        let console = console.lock().map_err(|error| error.to_string())?;
        if console.halted && console.ticked {
            say(&format!(
                "guest says {}",
                String::from_utf8_lossy(&console.printed)
            ))?;
            break;
        }
    }
    join(vcpu)?
}

fn run_vcpu(mut guest: Guest, news: &Sender<News>, wake_up: &EventFd) -> Anything<()> {
    loop {
        let item = match guest.vcpu.run()? {
            VcpuExit::IoOut(0x3f8, bytes) => News::Printed(bytes.to_vec()),
            VcpuExit::Hlt => News::Halted,
            other => return Err(format!("unexpected exit {other:?}").into()),
        };
        let last = matches!(item, News::Halted);
        news.send(item)?;
        wake_up.write(1)?;
        if last {
            return Ok(());
        }
    }
}

fn join<T>(thread: JoinHandle<T>) -> Anything<T> {
    thread.join().map_err(|_panic| "a thread panicked".into())
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Runs a guest that never exits, and stops it by a signal to its thread.
fn spin_and_be_kicked(kvm: &Kvm, memory: &Arc<Memory>) -> Anything<()> {
    register_signal_handler(SIGRTMIN(), on_kick)?;
    let mut guest = guest(kvm, memory, &SPINNER)?;
    let vcpu = thread::spawn(move || guest.vcpu.run().map(|exit| format!("{exit:?}")));
    // A kick before KVM_RUN is lost here, so repeat it until the thread has
    // ended.
    while !vcpu.is_finished() {
        vcpu.kill(SIGRTMIN())?;
        thread::sleep(Duration::from_millis(1));
    }
    match join(vcpu)? {
        Err(error) if error.errno() == libc::EINTR => Ok(say("vCPU kicked")?),
        other => Err(format!("a spinning guest came back with {other:?}").into()),
    }
}

/// Creates what real VMs have in addition: interrupt controllers, timer, irqfd.
fn make_what_devices_need(kvm: &Kvm, memory: &Arc<Memory>) -> Anything<()> {
    let vm = kvm.create_vm()?;
    set_slot(&vm, memory)?;
    vm.set_identity_map_address(0xfeff_c000)?;
    vm.set_tss_address(0xfeff_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config::default())?;
    let line = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&line, 4)?;
    let vcpu = vm.create_vcpu(0)?;
    let lapic = vcpu.get_lapic()?;
    vcpu.set_lapic(&lapic)?;
    let fpu = vcpu.get_fpu()?;
    vcpu.set_fpu(&fpu)?;
    vcpu.get_mp_state()?;
    vcpu.translate_gva(CODE_AT as u64)?;
    line.write(1)?;
    Ok(say("devices made")?)
}

/// Uses threads with their own heap arenas, locks, hash tables, and blocks that
/// grow too large to be kept in place.
fn use_threads_and_heap() -> Anything<()> {
    let met = Arc::new((Mutex::new(0), Condvar::new()));
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let met = Arc::clone(&met);
            thread::spawn(move || {
                let (count, changed) = &*met;
                let mut table = HashMap::new();
                let mut grown = Vec::new();
                for index in 0..400_000_usize {
                    grown.push(index);
                    table.insert(index % 64, number);
                }
                *count.lock().expect("nobody panicked") += 1;
                changed.notify_all();
                grown.len() + table.len()
            })
        })
        .collect();
    let (count, changed) = &*met;
    let all = count.lock().map_err(|error| error.to_string())?;
    drop(
        changed
            .wait_while(all, |count| *count < 8)
            .map_err(|error| error.to_string())?,
    );
    for thread in threads {
        join(thread)?;
    }
    Ok(say("threads met")?)
}

/// Panics in a thread; the hook and the joining thread notice it.
fn panic_and_go_on() -> Anything<()> {
    // The default hook prints, but opens files for a backtrace: a worker does
    // not have this variable in its environment, or has its own hook.
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        let caught = thread::spawn(|| panic!("by request, default hook")).join();
        assert!(caught.is_err());
    }
    panic::set_hook(Box::new(|panic| {
        let _written = say(&format!("hook: {}", panic.payload_as_str().unwrap_or("?")));
    }));
    match thread::spawn(|| panic!("by request")).join() {
        Err(_panic) => Ok(say("panic caught")?),
        Ok(()) => Err("a panic was not caught".into()),
    }
}

/// Waits; the wait continues after the process was stopped and continued.
fn be_stopped() -> Anything<()> {
    say("sleeping")?;
    thread::sleep(Duration::from_millis(300));
    let (never, woken) = channel::<()>();
    let waited = woken.recv_timeout(Duration::from_millis(100));
    drop(never);
    match waited {
        Err(_) => Ok(say("awake")?),
        Ok(()) => Err("nobody sends".into()),
    }
}

/// Ends like a double panic or a failed allocation.
pub fn abort(role: &Role) -> io::Result<()> {
    role.enter();
    say("aborting")?;
    std::process::abort()
}
