//! The configuration space of a function with a header of type 0.
//!
//! Every bit is either constant or can be written by the guest: sizing a BAR,
//! which writes ones and reads the size back, needs nothing else. Bits that the
//! function itself changes are handled by the function.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.

use mkvmm_base::layout::{PCI_WINDOW_END, PCI_WINDOW_START};

/// The size of the space in bytes.
const SIZE: usize = 256;
/// The offsets of registers.
pub const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const REVISION: u8 = 0x08;
const BARS: u8 = 0x10;
const SUBSYSTEM: u8 = 0x2c;
const CAPABILITIES: u8 = 0x34;
const LINE: u8 = 0x3c;
const PIN: u8 = 0x3d;
/// The first offset after the header.
const AFTER_HEADER: u8 = 0x40;

/// Bits of the command register: memory decoding, bus master, INTx disabled.
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const NO_LINE: u16 = 1 << 10;
/// Bits of the status register: the line is asserted, there are capabilities.
const ASSERTED: u8 = 1 << 3;
const HAS_CAPABILITIES: u8 = 1 << 4;
/// The type of a memory BAR of 64 bits.
const WIDE: u32 = 0b100;
/// The number of the pin INTA.
const PIN_A: u8 = 1;

/// What a function is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// The number of the vendor.
    pub vendor: u16,
    /// The number of the device.
    pub device: u16,
    /// Class, subclass and programming interface, in the lower 24 bits.
    pub class: u32,
    /// The revision of the device.
    pub revision: u8,
    /// The vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// The number of the subsystem.
    pub subsystem: u16,
}

/// A range of memory of a function, which the guest places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// The index of its first register, from 0 to 5.
    pub index: u8,
    /// The size in bytes: a power of two, at least a page, and at most 2 GiB unless its
    /// address has 64 bits.
    pub size: u64,
    /// Whether its address has 64 bits; it has two registers then.
    pub wide: bool,
}

/// A BAR that decodes addresses at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// The index of the BAR.
    pub bar: u8,
    /// The first address of the range.
    pub start: u64,
    /// The last address of the range.
    pub last: u64,
}

/// The addresses that a guest may give to BARs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Windows {
    /// The first and the last address above 4 GiB, if there are any.
    pub high: Option<(u64, u64)>,
}

impl Windows {
    /// The first and the last address below 4 GiB.
    pub const LOW: (u64, u64) = (PCI_WINDOW_START, PCI_WINDOW_END - 1);

    fn contain(&self, start: u64, last: u64) -> bool {
        let within = |window: (u64, u64)| window.0 <= start && last <= window.1;
        within(Self::LOW) || self.high.is_some_and(within)
    }
}

/// The configuration space of a function.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// The bits that the guest can write.
    writable: [u8; SIZE],
    bars: Vec<Bar>,
    next_capability: u8,
    last_link: u8,
}

impl ConfigSpace {
    /// Creates the space of a function without BARs and capabilities, at line
    /// `line` if it has one.
    pub fn new(identity: Identity, line: Option<u32>) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: Vec::new(),
            next_capability: AFTER_HEADER,
            last_link: CAPABILITIES,
        };
        let class = identity.class << 8 | u32::from(identity.revision);
        space.put(0, &identity.vendor.to_le_bytes());
        space.put(2, &identity.device.to_le_bytes());
        space.put(REVISION, &class.to_le_bytes());
        space.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &(MEMORY | MASTER | NO_LINE).to_le_bytes());
        if let Some(line) = line {
            space.put(PIN, &[PIN_A]);
            space.put(LINE, &[u8::try_from(line).unwrap_or(u8::MAX)]);
            space.allow(LINE, &[0xff]);
        }
        space
    }

    /// Adds a BAR at `start`, where the guest finds it. Two BARs must not share
    /// a register.
    pub fn add_bar(&mut self, bar: Bar, start: u64) {
        let at = BARS + 4 * bar.index;
        let [low, high] = halves(!(bar.size - 1));
        let kind = if bar.wide { WIDE } else { 0 };
        let [address, rest] = halves(start);
        self.allow(at, &low.to_le_bytes());
        self.put(at, &(address & low | kind).to_le_bytes());
        if bar.wide {
            self.allow(at + 4, &high.to_le_bytes());
            self.put(at + 4, &(rest & high).to_le_bytes());
        }
        self.bars.push(bar);
    }

    /// Adds a capability with number `id` and the contents `body`, of which the
    /// guest can write the bits of `writable`. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.next_capability;
        let link = self.last_link;
        self.put(link, &[at]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.bytes[usize::from(STATUS)] |= HAS_CAPABILITIES;
        self.last_link = at + 1;
        let len = u8::try_from(body.len() + 2).unwrap_or(u8::MAX);
        self.next_capability = at.saturating_add(len.next_multiple_of(4));
        at
    }

    /// Reads `data.len()` bytes at `offset`; bytes beyond the end are ones.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        let mut rest = self.bytes.iter().skip(offset.into());
        data.fill_with(|| *rest.next().unwrap_or(&0xff));
    }

    /// Writes `data` at `offset`, as far as it can be written.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable);
        for ((byte, mask), new) in bytes.skip(offset.into()).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// Returns a register of 32 bits.
    pub fn dword(&self, offset: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Sets whether the status register shows an asserted line.
    pub fn show_line(&mut self, asserted: bool) {
        let status = &mut self.bytes[usize::from(STATUS)];
        *status = *status & !ASSERTED | if asserted { ASSERTED } else { 0 };
    }

    /// Returns whether the guest lets the function use its line.
    pub fn is_line_enabled(&self) -> bool {
        self.command() & NO_LINE == 0
    }

    /// Returns the BARs that decode: all that lie in a window, if the guest has
    /// enabled memory decoding.
    pub fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        if self.command() & MEMORY == 0 {
            return Vec::new();
        }
        let decoded = self.bars.iter().filter_map(|bar| {
            let start = self.address(bar);
            let last = start.checked_add(bar.size - 1)?;
            windows.contain(start, last).then_some(Decoded {
                bar: bar.index,
                start,
                last,
            })
        });
        decoded.collect()
    }

    fn address(&self, bar: &Bar) -> u64 {
        let at = BARS + 4 * bar.index;
        let high = if bar.wide { self.dword(at + 4) } else { 0 };
        u64::from(high) << 32 | u64::from(self.dword(at) & !0xf)
    }

    fn command(&self) -> u16 {
        let [low, high, ..] = self.dword(COMMAND).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Sets constants. What does not fit is a mistake of the function's author,
    /// which its tests show.
    fn put(&mut self, offset: u8, bytes: &[u8]) {
        let place = self.bytes.iter_mut().skip(offset.into());
        place.zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn allow(&mut self, offset: u8, bits: &[u8]) {
        let place = self.writable.iter_mut().skip(offset.into());
        place.zip(bits).for_each(|(to, from)| *to = *from);
    }
}

/// Returns the lower and the upper 32 bits.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows = Windows {
        high: Some((1 << 36, (1 << 36) + (16 << 30) - 1)),
    };

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1234,
            device: 0x5678,
            class: 0x01_02_03,
            revision: 7,
            ..Identity::default()
        };
        let mut space = ConfigSpace::new(identity, Some(17));
        let narrow = Bar {
            index: 0,
            size: 0x8000,
            wide: false,
        };
        let wide = Bar {
            index: 2,
            size: 1 << 20,
            wide: true,
        };
        space.add_bar(narrow, 0xc010_0000);
        space.add_bar(wide, 1 << 36);
        space
    }

    fn write32(space: &mut ConfigSpace, offset: u8, value: u32) {
        space.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn bars_have_a_size_and_an_address_as_linux_asks_for_them() {
        let mut space = space();
        assert_eq!(space.dword(0x10), 0xc010_0000);
        write32(&mut space, 0x10, u32::MAX);
        assert_eq!(!space.dword(0x10) + 1, 0x8000);
        assert_eq!([space.dword(0x18), space.dword(0x1c)], [WIDE, 0x10]);
        write32(&mut space, 0x18, u32::MAX);
        write32(&mut space, 0x1c, u32::MAX);
        assert_eq!(space.dword(0x18), 0xfff0_0000 | WIDE);
        assert_eq!(space.dword(0x1c), u32::MAX);
        // Registers that belong to no BAR stay 0.
        for offset in [0x14, 0x20, 0x24, 0x30] {
            write32(&mut space, offset, u32::MAX);
            assert_eq!(space.dword(offset), 0);
        }
    }

    #[test]
    fn bars_decode_where_they_are_but_only_in_the_windows() {
        let mut space = space();
        assert_eq!(space.decoded(&WINDOWS), []);
        space.write(COMMAND, &[2, 0]);
        let ranges = |space: &ConfigSpace| -> Vec<(u8, u64)> {
            let decoded = space.decoded(&WINDOWS);
            decoded.iter().map(|it| (it.bar, it.start)).collect()
        };
        assert_eq!(ranges(&space), [(0, 0xc010_0000), (2, 1 << 36)]);
        // Over RAM, over the interrupt controllers, at 0, wrapping around.
        for address in [0x10_0000, 0xfec0_0000, 0xfee0_0000, 0, u32::MAX] {
            write32(&mut space, 0x10, address);
            assert_eq!(ranges(&space), [(2, 1 << 36)], "{address:#x}");
        }
        write32(&mut space, 0x1c, u32::MAX);
        write32(&mut space, 0x18, u32::MAX);
        assert_eq!(ranges(&space), []);
        // A wide BAR may be low, and the last place in each window counts.
        write32(&mut space, 0x1c, 0);
        write32(&mut space, 0x18, 0xfeb0_0000);
        write32(&mut space, 0x10, 0xfebf_8000);
        assert_eq!(ranges(&space), [(0, 0xfebf_8000), (2, 0xfeb0_0000)]);
    }

    #[test]
    fn what_is_constant_stays() {
        let mut space = space();
        let before: Vec<u8> = (0..=u8::MAX)
            .map(|at| space.bytes[usize::from(at)])
            .collect();
        let at = space.add_capability(9, &[1, 2, 3, 4, 5], &[0, 0xf0]);
        let next = space.add_capability(17, &[6; 10], &[]);
        assert_eq!((at, next), (0x40, 0x48));
        assert_eq!(space.dword(0x34), 0x40);
        assert_eq!(space.dword(0x40), 0x0201_4809);
        assert_eq!(space.dword(0x48), 0x0606_0011);
        for at in 0..=u8::MAX {
            space.write(at, &[0xff]);
        }
        let mut changed: Vec<u8> = (0..0x40)
            .filter(|at| space.bytes[usize::from(*at)] != before[usize::from(*at)])
            .collect();
        changed.sort_unstable();
        // Command, status (which has capabilities now), BARs, pointer, line.
        assert_eq!(
            changed,
            [
                4, 5, 6, 0x11, 0x12, 0x13, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x34, 0x3c
            ]
        );
        let command = space.dword(COMMAND) & 0xffff;
        assert_eq!(command, 0x406);
        assert_eq!(space.dword(0x40), 0xf201_4809);
    }

    #[test]
    fn reading_beyond_the_end_gives_ones() {
        let space = space();
        let mut data = [0; 4];
        space.read(0xfe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }
}
