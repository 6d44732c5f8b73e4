//! Finds a kernel's version string.

use mkvmm_base::image_facts::MAX_VERSION;

/// The beginning of `linux_banner`, which precedes the version.
const BANNER: &[u8] = b"Linux version ";
/// The maximum length of the version in bytes.
const MAX: usize = MAX_VERSION;

/// Returns the printable text up to the first NUL or line end; `None` if it is
/// empty or has no end.
pub fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .take(MAX + 1)
        .position(|&b| b == 0 || b == b'\n')?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?.trim();
    let printable = !text.is_empty() && text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    printable.then(|| text.to_owned())
}

/// Returns the version in the banner of an unpacked kernel. Linux has other
/// strings with the same beginning; in the banner a digit follows.
pub fn from_banner(kernel: &[u8]) -> Option<String> {
    memchr::memmem::find_iter(kernel, BANNER)
        .filter_map(|at| kernel.get(at + BANNER.len()..))
        .find(|rest| rest.first().is_some_and(u8::is_ascii_digit))
        .and_then(text)
}

/// Searches for the banner in a kernel that arrives piece by piece.
#[derive(Debug, Default)]
pub struct BannerSearch {
    found: Option<String>,
    /// The end of the pieces so far, which may contain the beginning of a
    /// banner.
    tail: Vec<u8>,
}

impl BannerSearch {
    /// The maximum length of a banner with its version.
    const SPAN: usize = BANNER.len() + MAX + 1;

    /// Searches the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        if self.found.is_some() {
            return;
        }
        // Search the bytes across the boundary first, then the piece itself.
        let seen = self.tail.len();
        let start = piece.get(..Self::SPAN).unwrap_or(piece);
        self.tail.extend_from_slice(start);
        self.found = from_banner(&self.tail).or_else(|| from_banner(piece));
        if start.len() == Self::SPAN {
            self.tail.clear();
            let end = piece.len() - Self::SPAN;
            self.tail
                .extend_from_slice(piece.get(end..).unwrap_or_default());
        } else {
            let surplus = (seen + start.len()).saturating_sub(Self::SPAN);
            self.tail.drain(..surplus);
        }
    }

    /// Returns the version, if it was found.
    pub fn finish(self) -> Option<String> {
        self.found
    }
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

    #[test]
    fn a_banner_is_found_however_the_kernel_is_cut() {
        let mut kernel = vec![b'.'; 700];
        kernel.extend(b"Linux version %s\0Linux version 6.1.0 (x)\n\0");
        kernel.extend(vec![b'.'; 700]);
        for size in (1..400).chain([700, 716, 720, 740, 10_000]) {
            let mut search = BannerSearch::default();
            kernel.chunks(size).for_each(|piece| search.push(piece));
            assert_eq!(search.finish().as_deref(), Some("6.1.0 (x)"), "{size}");
        }
        let mut search = BannerSearch::default();
        search.push(&kernel[..720]);
        assert_eq!(search.finish(), None);
    }
}
