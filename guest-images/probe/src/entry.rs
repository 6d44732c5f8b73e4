//! All code that runs in ring 0: the entry code, the exception entries and the
//! services for ring 3, in assembly so that it contains no SSE instructions.
//!
//! A paravirtual KVM emulates supervisor code, about a million instructions per
//! second, and supports only part of the instruction set, while ring 3 runs at
//! full speed. So ring 0 does only what ring 3 cannot do: about 700
//! instructions until the `iretq`, and about ten per printed line plus one per
//! byte.
//!
//! Ring 3 requests a service with `ud2` (`rax` = number, `r8` = [`MAGIC`]): an
//! exception enters ring 0 on every kind of KVM, whereas a paravirtual one
//! refuses `int n` from ring 3, and I/O through `IOPL`.

// UNSAFETY: ring 0 is written in assembly.
#![expect(unsafe_code, reason = "ring 0 is written in assembly")]

use core::arch::global_asm;

/// Marks a `ud2` as a service request, unlike those that the compiler
/// generates.
pub const MAGIC: u32 = 0x6d6b_766d;

/// The number of page tables in the bss, of which the entry code uses the
/// first.
pub const PAGE_TABLES: usize = 24;

pub const SERVICE_PRINT: u64 = 0;
pub const SERVICE_OUT8: u64 = 1;
pub const SERVICE_HALT: u64 = 2;
pub const SERVICE_CRASH: u64 = 3;
pub const SERVICE_INT3: u64 = 4;
pub const SERVICE_CMPXCHG16B: u64 = 5;
pub const SERVICE_XSAVE: u64 = 6;
pub const SERVICE_CPUID: u64 = 7;
pub const SERVICE_FLUSH: u64 = 8;
pub const SERVICE_OUT16: u64 = 9;
pub const SERVICE_READ: u64 = 10;
pub const SERVICE_OUT32: u64 = 11;
pub const SERVICE_IN32: u64 = 12;

/// The vector of the 8259's first line; COM1 has line 4.
const PIC_VECTORS: usize = 32;
const COM1_VECTOR: usize = PIC_VECTORS + 4;
/// The number of gates in the IDT.
const GATES: usize = COM1_VECTOR + 1;

global_asm!(
    r#"
    .section .text.entry, "ax"
    .globl _start
_start:
    cld
    lea     rsp, [rip + supervisor_stack_top]
    mov     r15, rsi                    // boot_params
    lea     rbx, [rip + __image_start]

    // The current map is the loader's and has no user pages. The first map of
    // our own covers the low window and this image; ring 3 adds the ranges that
    // it accesses.
    lea     r14, [rip + page_tables + 0x1000]
    xor     edi, edi
    call    map_2m
    mov     rdi, rbx
    call    map_2m
    lea     rax, [rip + page_tables]
    mov     cr3, rax

    // SSE for ring 3: OSFXSR, OSXMMEXCPT; no emulation, no trap on first use.
    // SMEP and SMAP are off, since all our pages are user pages.
    mov     rax, cr4
    and     eax, 0xffcfffff
    or      eax, 0x600
    mov     cr4, rax
    mov     rax, cr0
    and     eax, 0xfffffff3
    or      eax, 0x2
    mov     cr0, rax

    // Set up the GDT, with the TSS that contains the stack for entries from
    // ring 3.
    lea     rdi, [rip + gdt]
    lea     rax, [rip + tss]
    lea     rcx, [rip + supervisor_stack_top]
    mov     [rax + 4], rcx              // RSP0
    mov     word ptr [rax + 0x66], 0x68 // no I/O bitmap
    mov     [rdi + 0x32], ax
    shr     rax, 16
    mov     [rdi + 0x34], al
    mov     [rdi + 0x37], ah
    shr     rax, 16
    mov     [rdi + 0x38], eax
    sub     rsp, 16
    mov     word ptr [rsp], 8 * 8 - 1
    mov     [rsp + 2], rdi
    lgdt    [rsp]
    mov     ax, 0x30
    ltr     ax

    // Set up the IDT: one 8-byte stub per exception; #BP and #UD have entries
    // of their own.
    lea     rdi, [rip + idt]
    lea     rdx, [rip + exception_stubs]
    mov     ecx, 32
2:  mov     rax, rdx
    call    write_gate
    add     rdx, 8
    dec     ecx
    jnz     2b
    lea     rdi, [rip + idt + 3 * 16]
    lea     rax, [rip + breakpoint_entry]
    call    write_gate
    lea     rdi, [rip + idt + 6 * 16]
    lea     rax, [rip + invalid_opcode_entry]
    call    write_gate
    lea     rdi, [rip + idt + {com1_vector} * 16]
    lea     rax, [rip + com1_entry]
    call    write_gate
    lea     rax, [rip + idt]
    mov     word ptr [rsp], {gates} * 16 - 1
    mov     [rsp + 2], rax
    lidt    [rsp]

    lea     rsp, [rip + supervisor_stack_top]
    lea     rax, [rip + user_stack_top]
    lea     rcx, [rip + user_start]
    push    0x23
    push    rax
    push    0x2                         // rflags: IF clear, IOPL 0
    push    0x2b
    push    rcx
    iretq

// Writes the gate for handler rax at rdi and advances rdi. All gates are
// interrupt gates of ring 0.
write_gate:
    mov     [rdi], ax
    mov     dword ptr [rdi + 2], 0x8e000010 // selector 0x10, IST 0, type
    shr     rax, 16
    mov     [rdi + 6], ax
    shr     rax, 16
    mov     [rdi + 8], rax
    add     rdi, 16
    ret

// Maps the 2 MiB page of address rdi for ring 3, taking tables at r14.
map_2m:
    lea     rdx, [rip + page_tables]
    mov     ecx, 39
2:  mov     rax, rdi
    shr     rax, cl
    and     eax, 511
    lea     rsi, [rdx + rax * 8]
    cmp     ecx, 21
    je      4f
    mov     rdx, [rsi]
    test    rdx, rdx
    jnz     3f
    lea     rdx, [r14 + 7]
    add     r14, 0x1000
    mov     [rsi], rdx
3:  and     rdx, -4096
    sub     ecx, 9
    jmp     2b
4:  mov     rax, rdi
    and     rax, -0x200000
    or      rax, 0x87
    mov     [rsi], rax
    ret

// ---- ring 3 ------------------------------------------------------------

user_start:
    // Every entry is R_X86_64_RELATIVE (the build checks it): *(offset) =
    // addend, both moved by the distance from the link address.
    lea     rdi, [rip + __rela_start]
    lea     rdx, [rip + __rela_end]
    lea     rcx, [rbx - 0x200000]
2:  cmp     rdi, rdx
    jae     3f
    mov     rax, [rdi + 16]
    add     rax, rcx
    mov     r8, [rdi]
    mov     [r8 + rcx], rax
    add     rdi, 24
    jmp     2b
3:  mov     rdi, r15
    lea     rsi, [rip + page_tables]
    mov     rdx, rbx
    lea     rcx, [rip + __image_end]
    sub     rcx, rbx
    mov     r8, r14
    xor     ebp, ebp
    call    probe_main
    ud2

// ---- entries from exceptions --------------------------------------------

    .balign 8
exception_stubs:
    .rept 32
    call    exception_entry
    .balign 8
    .endr

exception_entry:
    pop     rdi
    lea     rax, [rip + exception_stubs]
    sub     rdi, rax
    shr     edi, 3                      // the vector
    xor     ecx, ecx
    mov     eax, 0x60227d00             // vectors that push an error code
    bt      eax, edi
    jnc     report_exception
    pop     rcx
    jmp     report_exception

invalid_opcode_entry:
    cmp     r8, {magic}
    jne     2f
    test    byte ptr [rsp + 8], 3
    jnz     service
2:  mov     edi, 6
    xor     ecx, ecx

// Continues at fault_main in ring 3, on a fresh stack: (vector, rip, cr2, error
// code, cs). A second exception means that even this failed.
report_exception:
    cmp     byte ptr [rip + reporting], 0
    jne     service_crash
    mov     byte ptr [rip + reporting], 1
    mov     rsi, [rsp]
    mov     r8, [rsp + 8]
    mov     rdx, cr2
    lea     rsp, [rip + supervisor_stack_top]
    lea     rax, [rip + user_stack_top - 8]
    lea     r9, [rip + fault_main]
    push    0x23
    push    rax
    push    0x2
    push    0x2b
    push    r9
    iretq

breakpoint_entry:
    inc     byte ptr [rip + breakpoints]
    iretq

// Occurs only while service_read waits, which then checks for input.
com1_entry:
    push    rax
    mov     al, 0x20                    // end of interrupt
    out     0x20, al
    pop     rax
    iretq

// ---- services: rax number; rdi, rsi, rdx arguments; results in rax and rdi ----

service:
    add     qword ptr [rsp], 2          // continue after the ud2
    cmp     eax, {print}
    je      service_print
    cmp     eax, {out8}
    je      service_out8
    cmp     eax, {out16}
    je      service_out16
    cmp     eax, {halt}
    je      service_halt
    cmp     eax, {int3}
    je      service_int3
    cmp     eax, {cmpxchg16b}
    je      service_cmpxchg16b
    cmp     eax, {xsave}
    je      service_xsave
    cmp     eax, {cpuid}
    je      service_cpuid
    cmp     eax, {flush}
    je      service_flush
    cmp     eax, {read}
    je      service_read
    cmp     eax, {out32}
    je      service_out32
    cmp     eax, {in32}
    je      service_in32

service_crash:
    sub     rsp, 16
    mov     qword ptr [rsp], 0
    mov     qword ptr [rsp + 8], 0
    lidt    [rsp]
    ud2

// The emulated 16550 is always ready, so its LSR need not be polled; one exit
// per byte costs a quarter of what it costs from ring 3.
service_print:
    mov     rcx, rsi
    mov     rsi, rdi
    cld
    rep outsb
    iretq

service_out8:
    mov     edx, edi
    mov     eax, esi
    out     dx, al
    iretq

service_out16:
    mov     edx, edi
    mov     eax, esi
    out     dx, ax
    iretq

service_out32:
    mov     edx, edi
    mov     eax, esi
    out     dx, eax
    iretq

service_in32:
    mov     edx, edi
    in      eax, dx
    iretq

service_halt:
    cli
    hlt
    jmp     service_halt

service_int3:
    mov     byte ptr [rip + breakpoints], 0
    int3
    movzx   eax, byte ptr [rip + breakpoints]
    iretq

// Performs a failing and a matching exchange. rbx must be preserved.
service_cmpxchg16b:
    mov     r9, rbx
    lea     rdi, [rip + scratch]
    mov     qword ptr [rdi], 1
    mov     qword ptr [rdi + 8], 2
    xor     eax, eax
    xor     edx, edx
    mov     ebx, 3
    mov     ecx, 4
    lock cmpxchg16b [rdi]               // fails and loads rdx:rax
    lock cmpxchg16b [rdi]
    setz    al
    movzx   eax, al
    mov     rbx, r9
    cmp     qword ptr [rdi], 3
    je      2f
    xor     eax, eax
2:  iretq

service_xsave:
    mov     rax, cr4
    or      eax, 0x40000                // OSXSAVE
    mov     cr4, rax
    lea     rdi, [rip + scratch]
    mov     eax, 1                      // x87, which is always enabled
    xor     edx, edx
    xsave   [rdi]
    xrstor  [rdi]
    mov     eax, 1
    iretq

// In ring 3, CPUID may return the host's own values. Returns edx:eax and
// ebx:ecx.
service_cpuid:
    mov     r9, rbx
    mov     eax, edi
    xor     ecx, ecx
    cpuid
    shl     rdx, 32
    or      rax, rdx
    shl     rbx, 32
    lea     rdi, [rbx + rcx]
    mov     rbx, r9
    iretq

service_flush:
    mov     rax, cr3
    mov     cr3, rax
    iretq

// The first call sets up the 8259 for COM1's interrupt alone, and COM1 to raise
// it when it receives data.
service_read:
    cmp     byte ptr [rip + listens], 0
    jne     2f
    mov     byte ptr [rip + listens], 1
    mov     al, 0x11                    // ICW1: edges, cascade, ICW4 follows
    out     0x20, al
    mov     al, {pic_vectors}
    out     0x21, al
    mov     al, 4                       // ICW3: the other 8259 is at line 2
    out     0x21, al
    mov     al, 1                       // ICW4: 8086
    out     0x21, al
    mov     al, 0xef                    // masks all lines but 4
    out     0x21, al
    mov     edx, 0x3fc
    mov     al, 0xb                     // MCR: DTR, RTS, OUT2 lets interrupts out
    out     dx, al
    mov     edx, 0x3f9
    mov     al, 1                       // IER: received data
    out     dx, al
2:  mov     edx, 0x3fd
    in      al, dx
    test    al, 1                       // LSR: data ready
    jnz     3f
    sti                                 // takes effect after the hlt
    hlt
    cli
    jmp     2b
3:  mov     edx, 0x3f8
    in      al, dx
    movzx   eax, al
    iretq

// ---- data ----------------------------------------------------------------

    .section .data.gdt, "aw"
    .balign 16
gdt:
    .quad   0, 0
    .quad   0x00af9b000000ffff          // 0x10: ring 0 code
    .quad   0x00cf93000000ffff          // 0x18: ring 0 data
    .quad   0x00cff3000000ffff          // 0x20: ring 3 data
    .quad   0x00affb000000ffff          // 0x28: ring 3 code
    .quad   0x0000890000000067, 0       // 0x30: TSS, address filled in

    .section .bss.entry, "aw", @nobits
    .balign 4096
page_tables:
    .skip   {tables} * 4096
    .balign 4096
idt:
    .skip   {gates} * 16
tss:
    .skip   0x68
    .balign 64
scratch:                                // operand of the capability tests
    .skip   1024
breakpoints:
    .skip   1
reporting:
    .skip   1
listens:
    .skip   1
    .balign 4096
    .skip   4096
supervisor_stack_top:
    .skip   32768
user_stack_top:
"#,
    magic = const MAGIC,
    tables = const PAGE_TABLES,
    print = const SERVICE_PRINT,
    out8 = const SERVICE_OUT8,
    out16 = const SERVICE_OUT16,
    halt = const SERVICE_HALT,
    int3 = const SERVICE_INT3,
    cmpxchg16b = const SERVICE_CMPXCHG16B,
    xsave = const SERVICE_XSAVE,
    cpuid = const SERVICE_CPUID,
    flush = const SERVICE_FLUSH,
    read = const SERVICE_READ,
    out32 = const SERVICE_OUT32,
    in32 = const SERVICE_IN32,
    pic_vectors = const PIC_VECTORS,
    com1_vector = const COM1_VECTOR,
    gates = const GATES,
);
