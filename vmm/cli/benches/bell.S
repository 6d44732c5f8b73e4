/* This kernel measures how long a doorbell of a channel takes to its handler, in
 * cycles of the time-stamp counter, and prints all samples, one a line. channels.rs
 * starts it with mkvmm, bell.c without.
 *
 * With one doorbell for each member it rings its own; with two that of the other
 * member: member 0 measures a round trip then, and member 1 answers. With three it
 * rings its own, which comes by the interrupt line instead of MSI-X.
 *
 * What is measured runs in ring 3, as a paravirtual KVM emulates ring 0. Only the
 * handler is in ring 0. */
	.intel_syntax noprefix
#define SAMPLES 4000
#define BAR 0xc1f00000
#define BELL (BAR + 0x0c)
#define MEMBER (BAR + 0x118)
#define DOORBELLS (BAR + 0x120)
#define TABLE (BAR + 0x1000)
#define LAPIC 0xfee00000
#define IOAPIC 0xfec00000
#define VECTOR 0x60
#define LINE_VECTOR 0x61
/* The pin of slot 31, a level. */
#define LINE 23

	.text
	.globl _start
_start:
	cld
	lea	rsp, [rip + stack_top]
	/* No interrupts but those of doorbells. */
	mov	al, 0xff
	out	0x21, al
	out	0xa1, al

	lea	r14, [rip + page_tables + 0x1000]
	lea	rdi, [rip + _start]
	call	map_2m
	mov	edi, BAR
	call	map_2m
	mov	edi, LAPIC
	call	map_2m
	mov	edi, IOAPIC
	call	map_2m
	lea	rax, [rip + page_tables]
	mov	cr3, rax

	/* The task state has the stack for entries from ring 3. */
	lea	rdi, [rip + gdt]
	lea	rax, [rip + tss]
	lea	rcx, [rip + stack_top]
	mov	[rax + 4], rcx
	mov	word ptr [rax + 0x66], 0x68
	mov	[rdi + 0x32], ax
	shr	rax, 16
	mov	[rdi + 0x34], al
	mov	[rdi + 0x37], ah
	shr	rax, 16
	mov	[rdi + 0x38], eax
	sub	rsp, 16
	mov	word ptr [rsp], 8 * 8 - 1
	mov	[rsp + 2], rdi
	lgdt	[rsp]
	mov	ax, 0x30
	ltr	ax
	lea	rdi, [rip + idt + 6 * 16]
	lea	rax, [rip + finish]
	call	write_gate
	lea	rdi, [rip + idt + VECTOR * 16]
	lea	rax, [rip + handler]
	call	write_gate
	lea	rdi, [rip + idt + LINE_VECTOR * 16]
	lea	rax, [rip + line_handler]
	call	write_gate
	lea	rax, [rip + idt]
	mov	word ptr [rsp], 256 * 16 - 1
	mov	[rsp + 2], rax
	lidt	[rsp]

	/* Memory of the function; then either its line, where the last vector, which
	 * tells of states, is muted, or its MSI-X, and the first vector, unmasked last. */
	mov	dx, 0xcf8
	mov	eax, 0x8000f804
	out	dx, eax
	mov	dx, 0xcfc
	mov	ax, 6
	out	dx, ax
	mov	esi, LAPIC
	mov	dword ptr [rsi + 0xf0], 0x1ff
	mov	r12d, 2000
	mov	esi, DOORBELLS
	cmp	dword ptr [rsi], 3
	jne	1f
	/* The process listens again some time after the handler's acknowledgement. */
	mov	r12d, 20000
	mov	esi, IOAPIC
	mov	dword ptr [rsi], 0x11 + 2 * LINE
	mov	dword ptr [rsi + 0x10], 0
	mov	dword ptr [rsi], 0x10 + 2 * LINE
	mov	dword ptr [rsi + 0x10], 0x8000 | LINE_VECTOR
	mov	esi, BAR
	mov	dword ptr [rsi + 0x20], 0x80
	mov	dword ptr [rsi + 0x18], -1
	mov	dword ptr [rsi], 1
	jmp	2f
1:	mov	dx, 0xcf8
	mov	eax, 0x8000f840
	out	dx, eax
	mov	dx, 0xcff
	mov	al, 0x80
	out	dx, al
	mov	esi, TABLE
	mov	dword ptr [rsi], LAPIC
	mov	dword ptr [rsi + 4], 0
	mov	dword ptr [rsi + 8], VECTOR
	mov	dword ptr [rsi + 12], 0

2:	lea	rsp, [rip + stack_top]
	lea	rax, [rip + user_top]
	lea	rcx, [rip + user]
	push	0x23
	push	rax
	push	0x202
	push	0x2b
	push	rcx
	iretq

write_gate:
	mov	[rdi], ax
	mov	dword ptr [rdi + 2], 0x8e000010
	shr	rax, 16
	mov	[rdi + 6], ax
	shr	rax, 16
	mov	[rdi + 8], rax
	ret

/* Maps the 2 MiB page of address rdi for ring 3, taking tables at r14. */
map_2m:
	lea	rdx, [rip + page_tables]
	mov	ecx, 39
2:	mov	rax, rdi
	shr	rax, cl
	and	eax, 511
	lea	rsi, [rdx + rax * 8]
	cmp	ecx, 21
	je	4f
	mov	rdx, [rsi]
	test	rdx, rdx
	jnz	3f
	lea	rdx, [r14 + 7]
	add	r14, 0x1000
	mov	[rsi], rdx
3:	and	rdx, -4096
	sub	ecx, 9
	jmp	2b
4:	mov	rax, rdi
	and	rax, -0x200000
	or	rax, 0x87
	mov	[rsi], rax
	ret

handler:
	push	rax
	push	rdx
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	[rip + handled], rax
	mov	eax, LAPIC
	mov	dword ptr [rax + 0xb0], 0
	pop	rdx
	pop	rax
	iretq

line_handler:
	push	rax
	push	rdx
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	[rip + handled], rax
	mov	eax, BAR
	mov	dword ptr [rax + 0x18], -1
	mov	eax, LAPIC
	mov	dword ptr [rax + 0xb0], 0
	pop	rdx
	pop	rax
	iretq

/* Prints the samples and resets the machine. */
finish:
	lea	rsi, [rip + samples]
	mov	r8d, SAMPLES
	mov	dx, 0x3f8
1:	mov	ebx, [rsi]
	mov	ecx, 8
2:	rol	ebx, 4
	mov	al, bl
	and	al, 15
	add	al, '0'
	cmp	al, '9'
	jbe	3f
	add	al, 'a' - '0' - 10
3:	out	dx, al
	dec	ecx
	jnz	2b
	mov	al, '\n'
	out	dx, al
	add	rsi, 4
	dec	r8d
	jnz	1b
	mov	al, 0xfe
	out	0x64, al
5:	hlt
	jmp	5b

/* ---- ring 3 ---- */
user:
	mov	esi, MEMBER
	mov	r9d, [rsi]
	mov	r10d, BELL
	mov	esi, DOORBELLS
	cmp	dword ptr [rsi], 2
	jne	measure
	xor	r9d, 1
	jz	answer
measure:
	shl	r9d, 16
	lea	rdi, [rip + samples]
	mov	r8d, SAMPLES
1:	mov	qword ptr [rip + handled], 0
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	r11, rax
	mov	[r10], r9d
2:	cmp	qword ptr [rip + handled], 0
	je	2b
	mov	rax, [rip + handled]
	sub	rax, r11
	mov	[rdi], eax
	add	rdi, 4
	/* Until the handler has returned everywhere. */
	mov	ecx, r12d
3:	pause
	dec	ecx
	jnz	3b
	dec	r8d
	jnz	1b
	ud2

answer:
	cmp	qword ptr [rip + handled], 0
	je	answer
	mov	qword ptr [rip + handled], 0
	mov	[r10], r9d
	jmp	answer

	.data
	.balign	16
gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff	/* 0x10: code, ring 0 */
	.quad	0x00cf93000000ffff
	.quad	0x00cff3000000ffff	/* 0x20: data, ring 3 */
	.quad	0x00affb000000ffff	/* 0x28: code, ring 3 */
	.quad	0x0000890000000067, 0	/* 0x30: task state */

	.bss
	.balign	4096
page_tables:
	.fill	16 * 4096, 1, 0
idt:	.fill	256 * 16, 1, 0
tss:	.fill	0x68, 1, 0
	.balign	16
	.fill	4096, 1, 0
stack_top:
	.fill	4096, 1, 0
user_top:
handled:
	.fill	8, 1, 0
samples:
	.fill	4 * SAMPLES, 1, 0
