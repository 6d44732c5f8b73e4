//! Images created by the tests: an ELF kernel, and a bzImage around any
//! payload.

use std::path::PathBuf;

/// The number of bytes before an ELF kernel's segment.
pub const ELF_HEAD: usize = 0x1000;
/// The number of zero bytes after it in memory.
pub const ELF_BSS: u64 = 0x5000;

/// Returns an ELF kernel with `data` as its only segment, at 16 MiB, and its
/// BSS.
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

/// x86-64 code for [`elf`], as bytes: these tests need too little code to use a
/// compiler, and a paravirtual KVM emulates it.
pub mod code {
    /// Returns `mov rax, value`.
    pub fn mov_rax(value: u64) -> Vec<u8> {
        [&[0x48, 0xb8], value.to_le_bytes().as_slice()].concat()
    }

    /// Returns `mov r15, value`.
    pub fn mov_r15(value: u64) -> Vec<u8> {
        [&[0x49, 0xbf], value.to_le_bytes().as_slice()].concat()
    }

    /// An endless loop: `jmp` to itself.
    pub const SPIN: &[u8] = &[0xeb, 0xfe];
    /// An endless halt: `cli; hlt; jmp` back.
    pub const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
    /// A triple fault: `ud2`, for which no boot state has a handler.
    pub const CRASH: &[u8] = &[0x0f, 0x0b];

    /// An immediate reset through the i8042.
    pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
    /// Enables the power button's event (PM1 enable, 0x602), polls until it is
    /// pressed (PM1 status, 0x600), and resets then: a guest that evades its
    /// end.
    pub const EVADE: &[u8] = &[
        0x66, 0xba, 0x02, 0x06, // mov dx, 0x602
        0x66, 0xb8, 0x00, 0x01, // mov ax, 0x100
        0x66, 0xef, // out dx, ax
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
        0x66, 0xed, // in ax, dx
        0x66, 0xa9, 0x00, 0x01, // test ax, 0x100
        0x74, 0xf4, // jz, back to the poll
        0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd, // as `RESET`
    ];

    /// Returns code that prints `text` on COM1: `mov dx, 0x3f8`, then `mov al,
    /// byte; out dx, al` for each.
    pub fn print(text: &[u8]) -> Vec<u8> {
        let mut code = vec![0x66, 0xba, 0xf8, 0x03];
        code.extend(text.iter().flat_map(|&byte| [0xb0, byte, 0xee]));
        code
    }

    /// Returns code that writes to and reads from `addr` forever: memory it
    /// does not own, in the same GiB as its kernel. The boot page tables do not
    /// map it, so they are changed first.
    pub fn attack(addr: u64) -> Vec<u8> {
        let mut code = mov_rdi(addr);
        code.extend_from_slice(&[
            0x48, 0x8b, 0x04, 0x25, 0x00, 0x90, 0, 0, // mov rax, [0x9000] (PML4)
            0x48, 0x25, 0x00, 0xf0, 0xff, 0xff, //       and rax, -0x1000
            0x48, 0x89, 0xf9, //                         mov rcx, rdi
            0x48, 0xc1, 0xe9, 30, //                     shr rcx, 30
            0x81, 0xe1, 0xff, 0x01, 0, 0, //             and ecx, 511
            0x48, 0x8b, 0x04, 0xc8, //                   mov rax, [rax + 8 * rcx]
            0x48, 0x25, 0x00, 0xf0, 0xff, 0xff, //       and rax, -0x1000
            0x48, 0x89, 0xf9, //                         mov rcx, rdi
            0x48, 0xc1, 0xe9, 21, //                     shr rcx, 21
            0x81, 0xe1, 0xff, 0x01, 0, 0, //             and ecx, 511
            0x48, 0x89, 0xfa, //                         mov rdx, rdi
            0x48, 0x81, 0xe2, 0, 0, 0xe0, 0xff, //       and rdx, -0x200000
            0x48, 0x81, 0xca, 0x83, 0, 0, 0, //          or rdx, 0x83 (2 MiB, writable)
            0x48, 0x89, 0x14, 0xc8, //                   mov [rax + 8 * rcx], rdx
            0x48, 0x89, 0x3f, //                         mov [rdi], rdi
            0x48, 0x8b, 0x07, //                         mov rax, [rdi]
            0xeb, 0xf8, //                               jmp back to the writing
        ]);
        code
    }

    /// Returns `mov rdi, value`.
    fn mov_rdi(value: u64) -> Vec<u8> {
        [&[0x48, 0xbf], value.to_le_bytes().as_slice()].concat()
    }

    /// Prints the numbers from 0 on, one per line, forever: eight digits, of
    /// which `a` is 0 and `p` is 15. Uses no memory. See [`super::number`].
    pub const COUNT: &[u8] = &[
        0x31, 0xdb, //             0: xor ebx, ebx
        0x66, 0xba, 0xf8, 0x03, // 2: mov dx, 0x3f8
        0xb9, 28, 0, 0, 0, //      6: mov ecx, 28
        0x89, 0xd8, //            11: mov eax, ebx
        0xd3, 0xe8, //            13: shr eax, cl
        0x24, 0x0f, //            15: and al, 15
        0x04, b'a', //            17: add al, 'a'
        0xee, //                  19: out dx, al
        0x83, 0xe9, 4, //         20: sub ecx, 4
        0x79, 0xf2, //            23: jns 11
        0xb0, b'\n', //           25: mov al, newline
        0xee,  //                  27: out dx, al
        0xff, 0xc3, //            28: inc ebx
        0xb9, 0xd0, 0x07, 0, 0, //30: mov ecx, 2000
        0xe2, 0xfe, //            35: loop 35
        0xeb, 0xdf, //            37: jmp 6
    ];

    /// Returns [`COUNT`] with a pause of `pause` turns of a loop behind each
    /// line.
    pub fn count_slowly(pause: u32) -> Vec<u8> {
        let mut code = COUNT.to_vec();
        code[31..35].copy_from_slice(&pause.to_le_bytes());
        code
    }

    /// Counts forever, in the eight bytes that lie 24 behind its start.
    pub fn count_in_memory() -> Vec<u8> {
        vec![
            0x48, 0x8d, 0x1d, 17, 0, 0, 0, //  0: lea rbx, [24]
            0x48, 0xff, 0x03, //               7: inc qword [rbx]
            0xeb, 0xfb, //                    10: jmp 7
            0, 0, 0, 0, //                    12: nothing, up to 16
        ]
    }

    /// Prints `byte` forever; behind [`print()`], which sets `dx`.
    pub fn print_for_ever(byte: u8) -> Vec<u8> {
        vec![0xb0, byte, 0xee, 0xeb, 0xfd]
    }

    /// Prints its input, forever.
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

/// Parses a line of [`code::COUNT`].
pub fn number(line: &str) -> Option<u32> {
    let digit = |byte: u8| match byte {
        b'a'..=b'p' => Some(u32::from(byte - b'a')),
        _ => None,
    };
    let is_whole = line.len() == 8;
    let digits = line.bytes().map(digit);
    let sum = |sum: u32, digit: Option<u32>| Some((sum << 4) | digit?);
    is_whole.then(|| digits.into_iter().try_fold(0, sum))?
}

/// Returns the numbers of the whole lines of [`code::COUNT`] in `text`, of which
/// the beginning may be missing.
///
/// # Panics
/// Panics if one is missing between two others, or is there twice.
#[track_caller]
pub fn numbers(text: &str) -> std::ops::Range<u32> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut lines = whole.lines().peekable();
    // Of the oldest line that a console keeps the beginning may be gone.
    lines.next_if(|line| number(line).is_none());
    let first = lines.peek().and_then(|line| number(line)).unwrap_or(0);
    let mut next = first;
    for line in lines {
        assert_eq!(number(line), Some(next), "{next} is `{line}`");
        next += 1;
    }
    first..next
}

/// Returns a bzImage around `payload`, which must end with its unpacked size,
/// for a kernel of up to `init_size` bytes.
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

/// Returns Debian's kernel `version` from `scripts/fetch-kernels`; prints a
/// message if it is missing.
///
/// # Panics
/// Panics if it is missing and [`is_required`](crate::tier::is_required) is
/// true.
pub fn debian_kernel(version: &str) -> Option<PathBuf> {
    let path = crate::root().join(format!(".cache/guests/vmlinuz-{version}"));
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
