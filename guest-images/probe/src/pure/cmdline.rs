//! The probe's command line: what the VMM says about the instance, then what
//! the user asks for. README.md of this crate has the table of the keys.

use super::range::Range;

/// One word of the command line. Addresses are hexadecimal with `0x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word<'a> {
    /// `name=NAME`
    Name(&'a str),
    /// `pool=START-END`
    Pool(Range),
    /// `chunks=START-END,…`, still to be taken apart with [`ranges`].
    Chunks(&'a str),
    /// `initrd=SIZE:CRC32`
    Initrd {
        /// Bytes.
        size: u64,
        /// Checksum of all of them.
        crc32: u32,
    },
    /// `touch=ADDR,…`, to be taken apart with [`addresses`].
    Touch(&'a str),
    /// `hold=N`, in millions of TSC cycles.
    Hold(u64),
    /// `shell`
    Shell,
    /// `spin`
    Spin,
    /// `caps`
    Caps,
    /// `marks`
    Marks,
    /// `end=reset|acpi-reset|poweroff|panic|crash|halt`
    End(End),
    /// A known key whose value cannot be read.
    Malformed(&'a str),
    /// Anything else, which is none of the probe's business.
    Unknown(&'a str),
}

/// How the probe ends after it has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Reset through the keyboard controller.
    Reset,
    /// Reset through the register that ACPI names.
    AcpiReset,
    /// ACPI soft-off.
    Poweroff,
    /// What a panicking kernel tells a pvpanic device.
    Panic,
    /// Triple fault.
    Crash,
    /// `cli; hlt`
    Halt,
}

/// The words of a command line, in its order.
pub fn words(cmdline: &str) -> impl Iterator<Item = Word<'_>> {
    cmdline.split_ascii_whitespace().map(word)
}

fn word(text: &str) -> Word<'_> {
    let known = match text.split_once('=') {
        None => match text {
            "shell" => Some(Word::Shell),
            "spin" => Some(Word::Spin),
            "caps" => Some(Word::Caps),
            "marks" => Some(Word::Marks),
            _ => return Word::Unknown(text),
        },
        Some((key, value)) => match key {
            "name" => Some(Word::Name(value)),
            "pool" => range(value).map(Word::Pool),
            "chunks" => ranges(value)
                .all(|r| r.is_some())
                .then_some(Word::Chunks(value)),
            "initrd" => initrd(value),
            "touch" => addresses(value)
                .all(|a| a.is_some())
                .then_some(Word::Touch(value)),
            "hold" => value.parse().ok().map(Word::Hold),
            "end" => end(value).map(Word::End),
            _ => return Word::Unknown(text),
        },
    };
    known.unwrap_or(Word::Malformed(text))
}

/// The ranges of a `chunks` value; none where one cannot be read.
pub fn ranges(value: &str) -> impl Iterator<Item = Option<Range>> {
    value.split(',').map(range)
}

/// The addresses of a `touch` value; none where one cannot be read.
pub fn addresses(value: &str) -> impl Iterator<Item = Option<u64>> {
    value.split(',').map(address)
}

/// One address.
pub fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would take a sign.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

fn range(text: &str) -> Option<Range> {
    let (start, end) = text.split_once('-')?;
    Range::new(address(start)?, address(end)?)
}

fn initrd(value: &str) -> Option<Word<'_>> {
    let (size, crc32) = value.split_once(':')?;
    Some(Word::Initrd {
        size: size.parse().ok()?,
        crc32: u32::from_str_radix(crc32, 16).ok()?,
    })
}

fn end(value: &str) -> Option<End> {
    match value {
        "reset" => Some(End::Reset),
        "acpi-reset" => Some(End::AcpiReset),
        "poweroff" => Some(End::Poweroff),
        "panic" => Some(End::Panic),
        "crash" => Some(End::Crash),
        "halt" => Some(End::Halt),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Word<'_>> {
        words(text).collect()
    }

    #[test]
    fn the_line_of_the_vmm_is_read() {
        let line = "name=web pool=0x100000000-0x140000000 chunks=0x100000000-0x102000000,0x110000000-0x111000000 initrd=1234:1a2b3c4d";
        let pool = Range {
            start: 0x1_0000_0000,
            end: 0x1_4000_0000,
        };
        let chunks = "0x100000000-0x102000000,0x110000000-0x111000000";
        assert_eq!(
            all(line),
            [
                Word::Name("web"),
                Word::Pool(pool),
                Word::Chunks(chunks),
                Word::Initrd {
                    size: 1234,
                    crc32: 0x1a2b_3c4d
                }
            ]
        );
        assert_eq!(
            ranges(chunks)
                .flatten()
                .map(Range::size)
                .collect::<Vec<_>>(),
            [0x200_0000, 0x100_0000]
        );
    }

    #[test]
    fn the_users_words_keep_their_order() {
        assert_eq!(
            all("  hold=20  touch=0x10,0x20 shell spin caps marks end=halt"),
            [
                Word::Hold(20),
                Word::Touch("0x10,0x20"),
                Word::Shell,
                Word::Spin,
                Word::Caps,
                Word::Marks,
                Word::End(End::Halt)
            ]
        );
        assert_eq!(
            addresses("0x10,0x20").collect::<Vec<_>>(),
            [Some(0x10), Some(0x20)]
        );
    }

    #[test]
    fn known_keys_with_unreadable_values_are_malformed() {
        for text in [
            "pool=1-2",
            "pool=0x2-0x1",
            "pool=0x1",
            "chunks=",
            "chunks=0x1-0x2,",
            "initrd=12",
            "initrd=x:1",
            "touch=12",
            "touch=0x",
            "touch=0x+1",
            "touch=0x10000000000000000",
            "hold=",
            "hold=-1",
            "end=later",
        ] {
            assert_eq!(all(text), [Word::Malformed(text)]);
        }
    }

    #[test]
    fn other_words_are_unknown() {
        assert_eq!(
            all("console=ttyS0 quiet"),
            [Word::Unknown("console=ttyS0"), Word::Unknown("quiet")]
        );
        assert_eq!(all(""), []);
    }
}
