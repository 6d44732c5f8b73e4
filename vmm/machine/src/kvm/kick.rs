//! Kicking a vCPU thread out of KVM_RUN, without a race.
//!
//! A signal alone is lost if it arrives just before KVM_RUN. So the signal
//! handler sets `immediate_exit` in the thread's own `kvm_run`: a KVM_RUN
//! entered after that returns EINTR at once (Documentation/virt/kvm/api.rst,
//! `immediate_exit`). The thread clears the flag before it reads its commands,
//! never after.
//!
//! UNSAFETY: the handler writes through a raw pointer, since a signal handler
//! cannot borrow anything.
#![expect(unsafe_code, reason = "a signal handler reaches kvm_run by pointer")]

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

thread_local! {
    /// The `immediate_exit` of the vCPU that this thread runs; null if there is
    /// none. A plain cell without a destructor, so that it is safe to read in a
    /// handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Returns the signal to use: the first real-time signal not used by the C
/// library.
fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler if necessary. To be called before a vCPU thread starts.
///
/// # Errors
/// Returns the error of sigaction.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), errno::Error>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(set_handler);
    installed.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Has `on_kick` handle the signal. All system calls but KVM_RUN, which never
/// restarts, go on after it (`SA_RESTART`): a tracer or a seccomp listener makes
/// even calls interruptible that cannot fail with EINTR otherwise, such as mmap.
fn set_handler() -> Result<(), errno::Error> {
    // SAFETY: all fields of a sigaction may be zero: no flags, no signal in the
    // mask, no restorer (the C library has its own).
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_kick as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` lives throughout the call, nothing is returned through
    // the null pointer, and `on_kick` has the signature that SA_SIGINFO demands
    // and does only what is allowed in a handler (see there).
    match unsafe { libc::sigaction(kick_signal(), &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => errno::errno_result(),
    }
}

/// Kicks the vCPU thread behind `thread`. Has no effect if it has ended.
pub fn kick<T>(thread: &JoinHandle<T>) {
    if let Err(error) = thread.kill(kick_signal()) {
        log::warn!("a vCPU thread cannot be signalled: {error}");
    }
}

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: a non-null pointer was stored by `KickTarget::new` on this
        // very thread and is the address of a byte of a live kvm_run mapping:
        // `KickTarget` clears it before the vCPU can be dropped. The byte is
        // shared with the kernel, hence the atomic store.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

/// A vCPU that the current thread runs and that can be kicked.
#[derive(Debug)]
pub struct KickTarget {
    vcpu: VcpuFd,
    // Not Send: the handler finds the vCPU only through this thread.
    _thread: PhantomData<*mut ()>,
}

impl KickTarget {
    /// Associates `vcpu` with the current thread.
    pub fn new(mut vcpu: VcpuFd) -> Self {
        let flag = ptr::addr_of_mut!(vcpu.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.set(flag);
        Self {
            vcpu,
            _thread: PhantomData,
        }
    }

    /// Returns the vCPU of this thread.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Returns whether `error` of KVM_RUN means that a kick (or another signal)
    /// arrived. Clears the flag in that case, so that all commands sent before
    /// the kick are visible from now on.
    pub fn was_kicked(&mut self, error: &kvm_ioctls::Error) -> bool {
        let kicked =
            io::Error::from_raw_os_error(error.errno()).kind() == io::ErrorKind::Interrupted;
        if kicked {
            self.vcpu.set_kvm_immediate_exit(0);
        }
        kicked
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
