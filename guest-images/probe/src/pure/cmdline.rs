//! The probe's command line: the VMM's information about the instance, then the
//! user's requests. README.md of this crate has the table of the keys.

use super::range::Range;
use super::script;

/// One word of the command line. Addresses are hexadecimal with `0x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word<'a> {
    /// The word `name=NAME` with the instance's name.
    Name(&'a str),
    /// The word `pool=START-END` with the range of the pool.
    Pool(Range),
    /// The word `chunks=START-END,…`, to be parsed by [`ranges`].
    Chunks(&'a str),
    /// The word `initrd=SIZE:CRC32` with the initramfs.
    Initrd {
        /// The size in bytes.
        size: u64,
        /// The CRC-32 checksum of all bytes.
        crc32: u32,
    },
    /// The word `touch=ADDR,…`, to be parsed by [`addresses`].
    Touch(&'a str),
    /// The word `do=STEP/…`, to be parsed by [`script::steps`].
    Do(&'a str),
    /// The word `loop=STEP/…`, a script that never ends.
    Loop(&'a str),
    /// The word `send=START-END:COUNT:BELL:NUMBER:PAUSE`: messages over a ring.
    Send(RingSide),
    /// The word `receive=START-END:COUNT:BELL:NUMBER:RECORD`.
    Receive(RingSide),
    /// The word `wreck=START-END:COUNT:BELL:NUMBER:SEED`: what a hostile member does.
    Wreck(RingSide),
    /// The word `endure=START-END:COUNT:BELL:NUMBER:0x0`: receives from a ring that
    /// is wrecked.
    Endure(RingSide),
    /// The word `hold=N`, in millions of TSC cycles.
    Hold(u64),
    /// The word `shell`, which starts the shell.
    Shell,
    /// The word `spin`, for an endless loop.
    Spin,
    /// The word `caps`, which tests instructions.
    Caps,
    /// The word `marks`, which writes debug marks.
    Marks,
    /// The word `end=reset|acpi-reset|poweroff|panic|crash|halt` with the way
    /// to end.
    End(End),
    /// A known key with an invalid value.
    Malformed(&'a str),
    /// Any other word, which the probe ignores.
    Unknown(&'a str),
}

/// One side of a ring of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSide {
    /// The memory of the ring.
    pub ring: Range,
    /// The number of messages.
    pub count: u64,
    /// The address of the doorbell register.
    pub doorbell: u64,
    /// The number that rings the other side.
    pub number: u64,
    /// The TSC cycles between two messages, or the address of the record.
    pub extra: u64,
}

/// The way in which the probe ends after it has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The probe resets through the keyboard controller.
    Reset,
    /// The probe resets through the ACPI reset register.
    AcpiReset,
    /// The probe powers off through ACPI soft-off.
    Poweroff,
    /// The probe reports a panic to the pvpanic device.
    Panic,
    /// The probe causes a triple fault.
    Crash,
    /// The probe executes `cli; hlt`.
    Halt,
}

/// Returns the words of a command line, in their order.
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
            "do" => script::steps(value)
                .all(|step| step.is_some())
                .then_some(Word::Do(value)),
            "loop" => script::steps(value)
                .all(|step| step.is_some())
                .then_some(Word::Loop(value)),
            "send" => ring_side(value).map(Word::Send),
            "receive" => ring_side(value).map(Word::Receive),
            "wreck" => ring_side(value).map(Word::Wreck),
            "endure" => ring_side(value).map(Word::Endure),
            "hold" => value.parse().ok().map(Word::Hold),
            "end" => end(value).map(Word::End),
            _ => return Word::Unknown(text),
        },
    };
    known.unwrap_or(Word::Malformed(text))
}

/// Parses the ranges of a `chunks` value; `None` for an invalid one.
pub fn ranges(value: &str) -> impl Iterator<Item = Option<Range>> {
    value.split(',').map(range)
}

/// Parses the addresses of a `touch` value; `None` for an invalid one.
pub fn addresses(value: &str) -> impl Iterator<Item = Option<u64>> {
    value.split(',').map(address)
}

/// Parses one hexadecimal address.
pub fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would accept a sign.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

fn range(text: &str) -> Option<Range> {
    let (start, end) = text.split_once('-')?;
    Range::new(address(start)?, address(end)?)
}

fn ring_side(value: &str) -> Option<RingSide> {
    let mut fields = value.split(':');
    let mut next = || fields.next();
    let side = RingSide {
        ring: range(next()?)?,
        count: next()?.parse().ok()?,
        doorbell: address(next()?)?,
        number: address(next()?)?,
        extra: address(next()?)?,
    };
    next().is_none().then_some(side)
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
    fn the_sides_of_a_ring_are_read() {
        let side = RingSide {
            ring: Range {
                start: 0x1000,
                end: 0x9000,
            },
            count: 100,
            doorbell: 0xc000_000c,
            number: 0x1_0000,
            extra: 0x9000,
        };
        assert_eq!(
            all("send=0x1000-0x9000:100:0xc000000c:0x10000:0x9000"),
            [Word::Send(side)]
        );
        assert_eq!(
            all("receive=0x1000-0x9000:100:0xc000000c:0x10000:0x9000"),
            [Word::Receive(side)]
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
            "do=",
            "loop=",
            "do=r4",
            "do=r3:0",
            "do=w4:10:20/",
            "do=x4:10",
            "send=0x1000-0x9000:100:0xc000000c:0x10000",
            "receive=0x1000-0x9000:100:0xc000000c:0x10000:0x9000:",
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
