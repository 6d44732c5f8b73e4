/* This kernel only writes a line to COM1 and resets the machine. */
	.globl _start
_start:
	mov $0x3f8, %dx
	mov $'x', %al
	out %al, (%dx)
	mov $'\n', %al
	out %al, (%dx)
	mov $0xfe, %al
	out %al, $0x64
1:	hlt
	jmp 1b
#ifdef PADDING
	/* As long as a kernel that does something. */
	.fill PADDING, 1, 0x90
#endif
