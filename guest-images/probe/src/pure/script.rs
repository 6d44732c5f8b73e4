//! Scripts of the word `do`: accesses to memory, to devices in it and to PCI
//! configuration space, with which a test drives a device as it likes.
//!
//! A script is a list of steps, separated by `/`. A step is a letter and a
//! width of 1, 2, 4 or 8 bytes, followed by hexadecimal fields without `0x`,
//! separated by `:`.

/// One step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The step `rW:ADDR`: reads, and prints the value.
    Read {
        /// The number of bytes.
        width: u8,
        /// The address of the first byte.
        addr: u64,
    },
    /// The step `wW:ADDR:VALUE`: writes, once or (`wW:ADDR:VALUE:COUNT`) often.
    Write {
        /// The number of bytes.
        width: u8,
        /// The address of the first byte.
        addr: u64,
        /// The value that is written.
        value: u64,
        /// The number of writes.
        count: u64,
    },
    /// The step `uW:ADDR:MASK:VALUE`: reads until the masked value is `VALUE`.
    Until {
        /// The number of bytes.
        width: u8,
        /// The address of the first byte.
        addr: u64,
        /// The bits that count.
        mask: u64,
        /// The value that is waited for.
        value: u64,
    },
    /// The step `aW:ADDR:VALUE`: adds to what is there, which may wrap.
    Add {
        /// The number of bytes.
        width: u8,
        /// The address of the first byte.
        addr: u64,
        /// The value that is added.
        value: u64,
    },
    /// The step `sW:ADDR:OTHER`: reads both until they are the same.
    Same {
        /// The number of bytes of each.
        width: u8,
        /// The address of the one.
        addr: u64,
        /// The address of the other.
        other: u64,
    },
    /// The step `q4:AT`: reads PCI configuration space, and prints the value.
    /// `AT` has the slot in its bits 15:11, and the offset in 7:0.
    ReadConfig {
        /// The slot and the offset.
        at: u32,
    },
    /// The step `pW:AT:VALUE`: writes PCI configuration space.
    WriteConfig {
        /// The number of bytes.
        width: u8,
        /// The slot and the offset.
        at: u32,
        /// The value that is written.
        value: u32,
    },
}

/// Parses the steps of a script; `None` for an invalid one.
pub fn steps(script: &str) -> impl Iterator<Item = Option<Step>> {
    script.split('/').map(step)
}

fn step(text: &str) -> Option<Step> {
    let (head, rest) = text.split_once(':')?;
    let width = match head.get(1..)? {
        "1" => 1,
        "2" => 2,
        "4" => 4,
        "8" => 8,
        _ => return None,
    };
    let mut fields = [0; 4];
    let mut count = 0;
    for field in rest.split(':') {
        *fields.get_mut(count)? = u64::from_str_radix(field, 16).ok()?;
        count += 1;
    }
    let [first, second, third, _] = fields;
    let step = match (head.as_bytes().first()?, count) {
        (b'r', 1) => Step::Read { width, addr: first },
        (b'w', 2 | 3) => Step::Write {
            width,
            addr: first,
            value: second,
            count: if count == 3 { third } else { 1 },
        },
        (b'u', 3) => Step::Until {
            width,
            addr: first,
            mask: second,
            value: third,
        },
        (b'a', 2) => Step::Add {
            width,
            addr: first,
            value: second,
        },
        (b's', 2) => Step::Same {
            width,
            addr: first,
            other: second,
        },
        (b'q', 1) if width == 4 => Step::ReadConfig {
            at: first.try_into().ok()?,
        },
        (b'p', 2) if width < 8 => Step::WriteConfig {
            width,
            at: first.try_into().ok()?,
            value: second.try_into().ok()?,
        },
        _ => return None,
    };
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_step_is_read() {
        let script =
            "r4:c0100000/w2:10:ff/w1:10:ff:3e8/u8:10:ff00:100/a2:10:1/s2:10:20/q4:810/p2:804:6";
        let all: Option<Vec<Step>> = steps(script).collect();
        let expected = [
            Step::Read {
                width: 4,
                addr: 0xc010_0000,
            },
            Step::Write {
                width: 2,
                addr: 0x10,
                value: 0xff,
                count: 1,
            },
            Step::Write {
                width: 1,
                addr: 0x10,
                value: 0xff,
                count: 1000,
            },
            Step::Until {
                width: 8,
                addr: 0x10,
                mask: 0xff00,
                value: 0x100,
            },
            Step::Add {
                width: 2,
                addr: 0x10,
                value: 1,
            },
            Step::Same {
                width: 2,
                addr: 0x10,
                other: 0x20,
            },
            Step::ReadConfig { at: 0x810 },
            Step::WriteConfig {
                width: 2,
                at: 0x804,
                value: 6,
            },
        ];
        assert_eq!(all.unwrap(), expected);
    }
}
