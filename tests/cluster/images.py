"""Guest kernels for the tests, assembled here: too little code for a compiler."""

import struct

BASE = 0x1000000


def elf(code):
    """Returns an ELF kernel with this code as its only segment, at 16 MiB."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, 0x1000, BASE, BASE, len(code), len(code) + 0x5000, 0x1000)
    return head.ljust(0x1000, b"\0") + code


def say(text):
    """Returns code that prints a text on COM1."""
    return b"\x66\xba\xf8\x03" + b"".join(b"\xb0" + bytes([byte]) + b"\xee" for byte in text)


# Enables the event of the power button (PM1 enable, port 0x602).
LISTEN = bytes.fromhex("66ba0206 66b80001 66ef")
# Reads PM1 status (port 0x600) until the button is pressed; a pause between two looks,
# since each of them is an exit to the VMM.
POLL = bytes.fromhex("66ba0006 66ed 66a90001 750d b900200000 f390 ffc9 75fa ebe7")
# Turns the machine off: SLP_TYP 5 and SLP_EN to PM1 control (port 0x604).
POWER_OFF = bytes.fromhex("66ba0406 66b80034 66ef f4 ebfd")


def button():
    """Returns a kernel that turns itself off when its power button is pressed."""
    return elf(LISTEN + say(b"waits for its power button\n") + POLL + say(b"the power button was pressed\n") + POWER_OFF)


def wrmsr(register, high, low):
    """Returns code that writes a model-specific register."""
    return b"\xb9" + struct.pack("<I", register) + b"\xb8" + struct.pack("<I", low) + b"\xba" + struct.pack("<I", high) + b"\x0f\x30"


def two():
    """Returns a kernel whose two processors spin, if KVM can start the second one."""
    spin = b"\xeb\xfe"
    # The second one begins in real mode, at 0x50000: mov word [0x50000], 0xfeeb.
    code = b"\x66\xc7\x04\x25" + struct.pack("<I", 0x50000) + spin
    x2apic = wrmsr(0x1B, 0, 0xFEE00D00)
    init, startup = wrmsr(0x830, 1, 0x4500), wrmsr(0x830, 1, 0x4650)
    pause = bytes.fromhex("b900100000 ffc9 75fc")
    return elf(code + x2apic + init + pause + startup + pause + startup + say(b"probe: pass\n") + spin)
