//! The functions that the compiler calls implicitly and that a C library would
//! provide. They are called in ring 3 only, where string instructions are fast.

// UNSAFETY: string functions are written in assembly.
#![expect(unsafe_code, reason = "string functions are written in assembly")]

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.mem_functions, "ax"
    .globl memcpy, memmove, memset, memcmp, bcmp
memmove:
    mov     rax, rdi
    sub     rax, rsi
    cmp     rax, rdx
    jb      2f                          // the target begins within the source
memcpy:
    mov     rax, rdi
    mov     rcx, rdx
    rep movsb
    ret
2:  mov     rax, rdi
    mov     rcx, rdx
    lea     rdi, [rdi + rdx - 1]
    lea     rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret

memset:
    mov     r8, rdi
    mov     eax, esi
    mov     rcx, rdx
    rep stosb
    mov     rax, r8
    ret

memcmp:
bcmp:
    xor     ecx, ecx
2:  cmp     rcx, rdx
    je      3f
    movzx   eax, byte ptr [rdi + rcx]
    movzx   r8d, byte ptr [rsi + rcx]
    inc     rcx
    sub     eax, r8d
    jz      2b
    ret
3:  xor     eax, eax
    ret
"#
);
