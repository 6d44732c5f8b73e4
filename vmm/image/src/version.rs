//! A kernel's own words about its version.

/// What Linux prints first, in `linux_banner`, before its version.
const BANNER: &[u8] = b"Linux version ";
/// Longest version that is shown, bytes; a setup header's has some 100.
const MAX: usize = 256;

/// The printable text up to the first NUL or line end; `None` when there is
/// none, or no end.
pub fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .take(MAX + 1)
        .position(|&b| b == 0 || b == b'\n')?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?.trim();
    let printable = !text.is_empty() && text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    printable.then(|| text.to_owned())
}

/// The version in the banner of an unpacked kernel. Linux has other strings
/// with the same beginning; the banner goes on with a digit.
pub fn from_banner(kernel: &[u8]) -> Option<String> {
    memchr::memmem::find_iter(kernel, BANNER)
        .filter_map(|at| kernel.get(at + BANNER.len()..))
        .find(|rest| rest.first().is_some_and(u8::is_ascii_digit))
        .and_then(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_the_one_with_a_number() {
        let kernel = b"\x7fELF Linux version %s\0Linux version 6.1.0-49-amd64 (a@b) #1 SMP\n\0";
        assert_eq!(from_banner(kernel).unwrap(), "6.1.0-49-amd64 (a@b) #1 SMP");
        assert_eq!(from_banner(b"no such thing"), None);
        assert_eq!(from_banner(b"Linux version 6"), None);
    }

    #[test]
    fn a_version_is_bounded_and_printable() {
        assert_eq!(text(b"6.1\0").unwrap(), "6.1");
        assert_eq!(text(&[b'x'; 4096]), None);
        assert_eq!(text(b"6.1\x1b[2J\0"), None);
        assert_eq!(text(b"\0"), None);
        assert_eq!(text(b"6.1"), None);
    }
}
