//! Images made by the tests: an ELF kernel, and a bzImage around anything.

use std::path::PathBuf;

/// Bytes in front of an ELF kernel's segment.
pub const ELF_HEAD: usize = 0x1000;
/// Bytes of zeros behind it in memory.
pub const ELF_BSS: u64 = 0x5000;

/// An ELF kernel with `data` as its one segment, at 16 MiB, and its BSS.
pub fn elf(data: &[u8]) -> Vec<u8> {
    let mut file = vec![0; ELF_HEAD];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0, 1]);
    put(&mut file, 24, &0x100_0000_u64.to_le_bytes()); // e_entry
    put(&mut file, 32, &64_u64.to_le_bytes()); // e_phoff
    put(&mut file, 52, &[64, 0, 56, 0, 1, 0]); // e_ehsize, e_phentsize, e_phnum
    let size = data.len() as u64;
    put(&mut file, 64, &[1, 0, 0, 0, 7]); // PT_LOAD, rwx
    let fields = [ELF_HEAD as u64, 0x100_0000, 0x100_0000, size];
    for (i, field) in fields.into_iter().enumerate() {
        put(&mut file, 72 + 8 * i, &field.to_le_bytes());
    }
    put(&mut file, 104, &(size + ELF_BSS).to_le_bytes());
    file.extend_from_slice(data);
    file
}

/// x86-64 code for [`elf`], as bytes: what these tests want a guest to do is
/// too little for a compiler, and a paravirtual KVM emulates it.
pub mod code {
    /// `mov rax, value`.
    pub fn mov_rax(value: u64) -> Vec<u8> {
        [&[0x48, 0xb8], value.to_le_bytes().as_slice()].concat()
    }

    /// `mov r15, value`.
    pub fn mov_r15(value: u64) -> Vec<u8> {
        [&[0x49, 0xbf], value.to_le_bytes().as_slice()].concat()
    }

    /// `jmp` to itself.
    pub const SPIN: &[u8] = &[0xeb, 0xfe];
    /// `cli; hlt; jmp` back.
    pub const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
    /// `ud2`, for which no boot state has a handler: a triple fault.
    pub const CRASH: &[u8] = &[0x0f, 0x0b];

    /// Resets by the i8042, at once.
    pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
    /// Has its power button told (PM1 enable, 0x602), looks until it is pressed
    /// (PM1 status, 0x600), and resets then: a guest that evades its end.
    pub const EVADE: &[u8] = &[
        0x66, 0xba, 0x02, 0x06, // mov dx, 0x602
        0x66, 0xb8, 0x00, 0x01, // mov ax, 0x100
        0x66, 0xef, // out dx, ax
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
        0x66, 0xed, // in ax, dx
        0x66, 0xa9, 0x00, 0x01, // test ax, 0x100
        0x74, 0xf4, // jz, back to the look
        0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd, // as `RESET`
    ];

    /// Prints `text` on COM1: `mov dx, 0x3f8`, then `mov al, byte; out dx, al`
    /// for each.
    pub fn print(text: &[u8]) -> Vec<u8> {
        let mut code = vec![0x66, 0xba, 0xf8, 0x03];
        code.extend(text.iter().flat_map(|&byte| [0xb0, byte, 0xee]));
        code
    }

    /// Prints `byte` for ever; behind [`print()`], which sets `dx`.
    pub fn print_for_ever(byte: u8) -> Vec<u8> {
        vec![0xb0, byte, 0xee, 0xeb, 0xfd]
    }

    /// Prints what is typed, for ever.
    pub const ECHO: &[u8] = &[
        0x66, 0xba, 0xfd, 0x03, // 0: mov dx, 0x3fd (line status)
        0xec, //                   4: in al, dx
        0xa8, 0x01, //             5: test al, 1
        0x74, 0xf7, //             7: jz 0
        0x66, 0xba, 0xf8, 0x03, // 9: mov dx, 0x3f8
        0xec, //                  13: in al, dx
        0xee, //                  14: out dx, al
        0xeb, 0xef, //            15: jmp 0
    ];
}

/// A bzImage around `payload`, which must end with its unpacked size, for a
/// kernel of up to `init_size` bytes.
pub fn bzimage(payload: &[u8], init_size: u32) -> Vec<u8> {
    const SETUP: usize = 1024;
    const STUB: usize = 0x400;
    let mut file = vec![0; SETUP + STUB];
    let u32_of = |n: usize| u32::try_from(n).expect("a test's image is small");
    put(&mut file, 0x1f1, &[1]); // setup_sects
    let paragraphs = u32_of((STUB + payload.len()).div_ceil(16));
    put(&mut file, 0x1f4, &paragraphs.to_le_bytes()); // syssize
    put(&mut file, 0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
    put(&mut file, 0x211, &[1]); // LOADED_HIGH
    put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(&mut file, 0x234, &[1, 21]); // relocatable, min_alignment
    put(&mut file, 0x236, &[3]); // xloadflags
    put(&mut file, 0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(&mut file, 0x248, &u32_of(STUB).to_le_bytes()); // payload_offset
    put(&mut file, 0x24c, &u32_of(payload.len()).to_le_bytes());
    put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(&mut file, 0x260, &init_size.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// Debian's kernel `version`, where `scripts/fetch-kernels` has put it; says
/// so when it has not.
///
/// # Panics
/// When it has not, and [`is_required`](crate::tier::is_required).
pub fn debian_kernel(version: &str) -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let path = PathBuf::from(root).join(format!(".cache/guests/vmlinuz-{version}"));
    if path.is_file() {
        return Some(path);
    }
    crate::tier::skip(&format!(
        "no Debian kernel {version}: scripts/fetch-kernels fetches it"
    ));
    None
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
