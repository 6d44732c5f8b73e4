/* This kernel prints COUNT blocks of 4096 bytes on COM1 and resets the machine: each byte
 * with an instruction of its own, as Linux does, or, with STRING, each block with one. */
	.globl _start
_start:
	mov $0x3f8, %edx
	mov $COUNT, %ebx
	cld
1:	lea text(%rip), %rsi
	mov $4096, %ecx
#ifdef STRING
	rep outsb
#else
2:	lodsb
	out %al, (%dx)
	dec %ecx
	jnz 2b
#endif
	dec %ebx
	jnz 1b
	mov $0xfe, %al
	out %al, $0x64
3:	hlt
	jmp 3b

	.macro line number
	.byte '0' + \number / 10, '0' + \number % 10
	.ascii " the quick brown fox jumps over the lazy dog, and once again.\n"
	.endm
	.balign 4096
text:
	.set number, 0
	.rept 64
	line number
	.set number, number + 1
	.endr
