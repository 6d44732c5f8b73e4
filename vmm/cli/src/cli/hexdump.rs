//! Formats bytes for people, as `hexdump -C` does.

use std::fmt::Write as _;

/// The number of bytes in a line.
const LINE: usize = 16;

/// Formats `bytes` with addresses from `addr` on. Repeated equal lines are
/// printed as one `*`; the last line is the end address.
pub fn hexdump(addr: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last: Option<&[u8]> = None;
    let mut skips = false;
    for (index, line) in bytes.chunks(LINE).enumerate() {
        if last == Some(line) {
            if !skips {
                text.push_str("*\n");
            }
            skips = true;
            continue;
        }
        (last, skips) = (Some(line), false);
        hexdump_line(&mut text, behind(addr, index * LINE), line);
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:08x}", behind(addr, bytes.len()));
    text
}

fn behind(addr: u64, bytes: usize) -> u64 {
    addr.wrapping_add(bytes as u64)
}

fn hexdump_line(text: &mut String, addr: u64, line: &[u8]) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{addr:08x} ");
    for column in 0..LINE {
        if column % 8 == 0 {
            text.push(' ');
        }
        let _ = match line.get(column) {
            Some(byte) => write!(text, "{byte:02x} "),
            None => write!(text, "   "),
        };
    }
    text.push_str(" |");
    let printable = |&byte: &u8| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '.',
    };
    text.extend(line.iter().map(printable));
    text.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_hexdump() {
        let mut bytes = b"mkvmm\x00\xff".to_vec();
        bytes.resize(0x40, 0);
        bytes.extend(b"tail");
        let expected = "\
00001000  6d 6b 76 6d 6d 00 ff 00  00 00 00 00 00 00 00 00  |mkvmm...........|
00001010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
*
00001040  74 61 69 6c                                       |tail|
00001044
";
        assert_eq!(hexdump(0x1000, &bytes), expected);
    }
}
