//! The position and the magic numbers of Linux's setup header, from the
//! Linux/x86 boot protocol (Documentation/arch/x86/boot.rst). A bzImage begins
//! with it, and the machine copies it into `boot_params`.

/// The offset of the setup header in a bzImage, and in `boot_params`.
pub const SETUP_HEADER_OFFSET: usize = 0x1f1;
/// The value of the field `boot_flag`, as in every boot sector.
pub const BOOT_FLAG: u16 = 0xaa55;
/// The value of the field `header`: the letters "HdrS".
pub const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
