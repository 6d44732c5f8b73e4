//! A PCI host bridge with nothing behind it: configuration mechanism 1.
//!
//! There are no PCI devices. The bridge is there because Linux enters the
//! reserved ranges of its e820 map into `/proc/iomem` only on a machine that
//! answers PCI configuration accesses (`pcibios_resource_survey`), and the
//! rest of the pool is to be seen there.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2.

/// Address register: enable bit.
const ENABLE: u32 = 1 << 31;
/// Address register: the dword of a function's configuration space.
const REGISTER: u32 = 0xfc;

/// Vendor 0x8086, device 0x1237: the host bridge of the 440FX, which every
/// hypervisor shows and no driver wants.
const ID: u32 = 0x1237_8086;
/// Class 06 (bridge), subclass 00 (host), revision 0.
const CLASS: u32 = 0x0600_0000;

/// The host bridge: bus 0, device 0, function 0.
#[derive(Debug, Default)]
pub struct PciHost {
    address: u32,
}

impl PciHost {
    /// `in` from one of the eight ports; `offset` counts from the address
    /// register, the data register is at 4.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let (register, offset) = match offset {
            0..4 => (self.address, offset),
            _ => (self.config(), offset - 4),
        };
        let bytes = register.to_le_bytes();
        let mut rest = bytes.iter().skip(usize::from(offset));
        data.fill_with(|| *rest.next().unwrap_or(&0xff));
    }

    /// `out` to one of those ports. The address register takes 32-bit accesses
    /// only, the configuration space is read-only.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.address = u32::from_le_bytes(address);
        }
    }

    /// The configuration dword that the address register points to.
    fn config(&self) -> u32 {
        if self.address & !REGISTER != ENABLE {
            return u32::MAX; // disabled, or no function there
        }
        match self.address & REGISTER {
            0x00 => ID,
            0x08 => CLASS,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: u32) -> u32 {
        let mut host = PciHost::default();
        host.write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        host.read(4, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn linux_finds_mechanism_1_and_a_host_bridge() {
        let mut host = PciHost::default();
        host.write(3, &[1]); // its probe for mechanism 2: no effect
        host.write(0, &0x8000_0000_u32.to_le_bytes());
        let mut latch = [0; 4];
        host.read(0, &mut latch);
        assert_eq!(latch, 0x8000_0000_u32.to_le_bytes());
        host.write(0, &0x8000_0008_u32.to_le_bytes());
        let mut class = [0; 2];
        host.read(6, &mut class);
        assert_eq!(class, [0x00, 0x06]);
    }

    #[test]
    fn there_is_one_function_and_no_other() {
        assert_eq!(config(0x8000_0000), 0x1237_8086);
        for absent in [0, 0x8000_0100, 0x8000_0800, 0x8001_0000] {
            assert_eq!(config(absent), u32::MAX, "{absent:#x}");
        }
    }
}
