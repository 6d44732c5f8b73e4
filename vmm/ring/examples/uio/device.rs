//! The function for channels of an mkvmm guest, as a Linux program uses it: its registers through
//! sysfs, its interrupts through `uio_pci_generic`, the memory of its first channel through the
//! function's BAR 2, or `/dev/mem` where it has none. `docs/channels.md` of the project describes it.
//!
//! UNSAFETY: mmap returns a raw address; [`Mapping`] turns it into a slice of atomics, and does not
//! expose it.
#![expect(
    unsafe_code,
    reason = "maps memory that others change, and lends it as atomics"
)]

use std::ffi::{c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use mkvmm_ring::Word;

/// Where mkvmm has the function.
const FUNCTION: &str = "/sys/bus/pci/devices/0000:00:1f.0";
/// The size of the registers in bytes.
const REGISTERS: usize = 4096;
/// Registers, in units of 4 bytes.
const ENABLE: usize = 0;
const DOORBELL: usize = 0x0c / 4;
const RUNG: usize = 0x18 / 4;
const ADDRESS: usize = 0x100 / 4;
const SIZE: usize = 0x108 / 4;
const MEMBER: usize = 0x118 / 4;
const STATES: usize = 0x140 / 4;
/// The vectors of the first channel, in the status.
const VECTORS: u32 = 0xff;
/// The command register, and the bit with which the driver masks the line.
const COMMAND: u64 = 4;
const LINE_IS_OFF: u16 = 1 << 10;

const READ_WRITE: c_int = 3;
const SHARED: c_int = 1;

unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
}

/// Memory that is mapped until the program ends.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<Word>,
    words: usize,
}

impl Mapping {
    /// Maps `size` bytes of a file from `offset` on.
    fn new(path: &Path, offset: u64, size: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                size,
                READ_WRITE,
                SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        match NonNull::new(base.cast::<Word>()) {
            // MAP_FAILED is the last address, at which no mapping can begin.
            Some(base) if base.addr().get() != usize::MAX => Ok(Self {
                base,
                words: size / 8,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns a register of 4 bytes.
    fn register(&self, index: usize) -> &AtomicU32 {
        assert!(index < 2 * self.words, "the registers end before");
        let register = self.base.as_ptr().cast::<AtomicU32>().wrapping_add(index);
        // SAFETY: 1. it is within the mapping, and aligned as the mapping is; 2. every content is
        // valid; 3. everybody here accesses it as an atomic.
        unsafe { &*register }
    }
}

impl Deref for Mapping {
    type Target = [Word];

    fn deref(&self) -> &[Word] {
        // SAFETY: 1. the mapping starts at a page, has this many words, and is never unmapped; 2. a
        // channel does not become smaller, and one that is taken away reads as ones; 3. every content
        // is a valid Word; 4. others access it as atomics, or are other guests.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

/// The function, bound to `uio_pci_generic`.
#[derive(Debug)]
pub struct Device {
    registers: Mapping,
    config: File,
    interrupts: File,
}

impl Device {
    /// Opens the function and enables its interrupts.
    pub fn open() -> io::Result<Self> {
        let function = Path::new(FUNCTION);
        let mut names = fs::read_dir(function.join("uio"))?;
        let name = names.next().ok_or(io::ErrorKind::NotFound)??.file_name();
        let device = Self {
            registers: Mapping::new(&function.join("resource0"), 0, REGISTERS)?,
            config: File::options()
                .read(true)
                .write(true)
                .open(function.join("config"))?,
            interrupts: File::open(Path::new("/dev").join(name))?,
        };
        device.write(ENABLE, 1);
        device.unmask()?;
        Ok(device)
    }

    fn read(&self, index: usize) -> u32 {
        self.registers.register(index).load(Ordering::Acquire)
    }

    fn read_wide(&self, index: usize) -> u64 {
        u64::from(self.read(index)) | u64::from(self.read(index + 1)) << 32
    }

    fn write(&self, index: usize, value: u32) {
        self.registers
            .register(index)
            .store(value, Ordering::Release);
    }

    /// Maps the first `size` bytes of the first channel.
    pub fn memory(&self, size: usize) -> io::Result<Mapping> {
        let (address, room) = (self.read_wide(ADDRESS), self.read_wide(SIZE));
        if room < size as u64 {
            return Err(io::Error::other("there is no channel, or a small one"));
        }
        let function = Path::new(FUNCTION);
        let ranges = fs::read_to_string(function.join("resource"))?;
        let area = ranges.lines().nth(2).unwrap_or_default();
        let mut numbers = area.split_whitespace().map(|text| {
            let digits = text.trim_start_matches("0x");
            u64::from_str_radix(digits, 16).unwrap_or(0)
        });
        let (start, last) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        match start <= address && address < last {
            true => Mapping::new(&function.join("resource2"), address - start, size),
            false => Mapping::new(Path::new("/dev/mem"), address, size),
        }
    }

    /// Rings the first doorbell of all other members.
    pub fn ring_others(&self) {
        let own = self.read(MEMBER);
        for member in (0..self.read(MEMBER + 1)).filter(|member| *member != own) {
            self.write(DOORBELL, member << 16);
        }
    }

    /// Returns of each member whether it is present, and in which boot.
    pub fn states(&self) -> Vec<(bool, u32)> {
        let members = (0..self.read(MEMBER + 1)).map(|member| STATES + 2 * member as usize);
        let state = |at| (self.read(at) & 1 != 0, self.read(at + 1));
        members.map(state).collect()
    }

    /// Waits until somebody rings, or a member's state changes, and acknowledges that.
    pub fn wait(&self) -> io::Result<()> {
        let mut count = [0; 4];
        (&self.interrupts).read_exact(&mut count)?;
        // Before the caller looks: what rings from here on is another interrupt.
        self.write(RUNG, VECTORS);
        self.unmask()
    }

    /// Ends the effect of the driver's handler, which has masked the line.
    fn unmask(&self) -> io::Result<()> {
        let mut command = [0; 2];
        self.config.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command) & !LINE_IS_OFF;
        self.config.write_all_at(&command.to_le_bytes(), COMMAND)
    }
}
