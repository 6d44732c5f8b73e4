//! The parameter `mkkernel_pool=SIZE[@ADDR]`, and sizes and addresses as the kernel writes them.
//!
//! The grammar of numbers is that of the kernel's `memparse` (`lib/cmdline.c` and `lib/kstrtox.c`
//! of Linux 6.12). Inputs that the kernel accepts by accident are refused: numbers that wrap, junk
//! after the address, a second `@`. The feature `linux` has the kernel's own parser.

use alloc::borrow::ToOwned;
use alloc::string::String;

/// The reason why a size, an address or a whole parameter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParamError {
    /// There is no digit where a number must begin.
    #[error(
        "`{text}` is not a number: expected decimal, 0x hex or 0 octal digits, then K M G T P or E"
    )]
    NoNumber {
        /// The text that was found instead.
        text: String,
    },
    /// The number, or the number times its suffix, does not fit 64 bits.
    #[error("`{text}` does not fit 64 bits")]
    Overflow {
        /// The number with its suffix.
        text: String,
    },
    /// The number is followed by something that is not part of it.
    #[error("`{junk}` follows the number in `{text}`")]
    Junk {
        /// The whole text that was parsed.
        text: String,
        /// The part of the text that is not a number.
        junk: String,
    },
    /// The size of the pool is 0.
    #[error("the size in `{text}` is zero")]
    ZeroSize {
        /// The whole text of the parameter.
        text: String,
    },
    /// The address after the `@` is missing or 0.
    #[error("the address in `{text}` is missing or zero")]
    ZeroAddr {
        /// The whole text of the parameter.
        text: String,
    },
    /// The parameter has more than one `@`.
    #[error("`{text}` has more than one address")]
    RepeatedAddr {
        /// The whole text of the parameter.
        text: String,
    },
    /// The pool would reach past the end of the 64-bit address space.
    #[error("{size:#x} bytes from {start:#x} on reach past the end of the address space")]
    Wraps {
        /// The first address of the pool.
        start: u64,
        /// The size of the pool in bytes.
        size: u64,
    },
    /// The address is not a multiple of the granule.
    #[error("the address {start:#x} is not a multiple of the granule {granule:#x}")]
    Unaligned {
        /// The address that was given.
        start: u64,
        /// The granule in bytes.
        granule: u64,
    },
}

/// Parses the digits of `s` like the kernel's `simple_strtoull` with base 0: `0x` counts only
/// before a hex digit, any other leading `0` means octal. Returns (value, whether it wrapped,
/// rest).
fn digits(s: &str) -> (u64, bool, &str) {
    let bytes = s.as_bytes();
    let hex = matches!(bytes, [b'0', b'x' | b'X', c, ..] if c.is_ascii_hexdigit());
    let (radix, body) = match bytes.first() {
        Some(b'0') if hex => (16, s.get(2..).unwrap_or("")),
        Some(b'0') => (8, s),
        _ => (10, s),
    };
    let (mut value, mut wrapped, mut rest) = (0_u64, false, body);
    while let Some(digit) = rest.chars().next().and_then(|c| c.to_digit(radix)) {
        let (product, o1) = value.overflowing_mul(u64::from(radix));
        let (sum, o2) = product.overflowing_add(u64::from(digit));
        (value, wrapped) = (sum, wrapped | o1 | o2);
        // A digit is one ASCII byte.
        rest = rest.get(1..).unwrap_or("");
    }
    (value, wrapped, rest)
}

/// Returns the base-2 logarithm of the value of a suffix letter.
fn suffix_shift(letter: u8) -> Option<u32> {
    Some(match letter.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        b'P' => 50,
        b'E' => 60,
        _ => return None,
    })
}

/// Parses a number with an optional suffix. Returns (value, whether it wrapped, rest).
fn memparse_checked(s: &str) -> (u64, bool, &str) {
    let (value, wrapped, rest) = digits(s);
    match rest.bytes().next().and_then(suffix_shift) {
        Some(shift) => {
            let scaled = value.wrapping_shl(shift);
            let lost = scaled.wrapping_shr(shift) != value;
            (scaled, wrapped | lost, rest.get(1..).unwrap_or(""))
        }
        None => (value, wrapped, rest),
    }
}

/// Parses a number with an optional suffix like the kernel's `memparse`. Returns the number and the
/// rest of the text.
///
/// The function never fails: no digits are 0, and everything is modulo 2^64.
///
/// ```
/// use mkpool::linux::memparse;
/// assert_eq!(memparse("512M@4G"), (512 << 20, "@4G"));
/// assert_eq!(memparse("17E"), (1 << 60, "")); // wraps, as in Linux
/// ```
#[cfg(feature = "linux")]
#[must_use]
pub fn memparse(s: &str) -> (u64, &str) {
    let (value, _, rest) = memparse_checked(s);
    (value, rest)
}

/// Parses all of `s` as one number, with a byte unit if `with_unit`. Nothing wraps or is ignored.
fn parse_whole(s: &str, with_unit: bool) -> Result<u64, ParamError> {
    if !s.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(ParamError::NoNumber { text: s.to_owned() });
    }
    let (value, wrapped, rest) = memparse_checked(s);
    // "iB" is only valid after a suffix letter. It and "B" are binary here, like the letters.
    let has_suffix = digits(s).2.len() != rest.len();
    let unit = matches!(rest, "B" | "b") || (has_suffix && matches!(rest, "iB" | "ib"));
    if !(rest.is_empty() || (with_unit && unit)) {
        return Err(ParamError::Junk {
            text: s.to_owned(),
            junk: rest.to_owned(),
        });
    }
    if wrapped {
        return Err(ParamError::Overflow { text: s.to_owned() });
    }
    Ok(value)
}

/// Parses a size in bytes: all of `s` must be one number that fits 64 bits.
///
/// `K` … `E` in either case are powers of 1024, and so are `KB` and `KiB`. Zero is allowed: the
/// caller decides whether a size of zero is valid.
///
/// # Errors
///
/// Returns [`ParamError::NoNumber`], [`ParamError::Junk`] or [`ParamError::Overflow`].
///
/// ```
/// use mkpool::param::parse_size;
/// assert_eq!(parse_size("1GiB"), Ok(1 << 30));
/// assert_eq!(parse_size("512MB"), Ok(512 << 20));
/// assert!(parse_size("16E").is_err());
/// ```
pub fn parse_size(s: &str) -> Result<u64, ParamError> {
    parse_whole(s, true)
}

/// Parses an address: like [`parse_size`], but without byte units (`4G` is an address, `4GB` is
/// not).
///
/// # Errors
///
/// Returns [`ParamError::NoNumber`], [`ParamError::Junk`] or [`ParamError::Overflow`].
pub fn parse_addr(s: &str) -> Result<u64, ParamError> {
    parse_whole(s, false)
}

/// The value of `mkkernel_pool=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PoolParam {
    /// The size in bytes; not 0, and not necessarily a multiple of a page.
    pub size: u64,
    /// The address that the pool must have, if the text contains one; not 0.
    pub start: Option<u64>,
}

/// Parses `SIZE[@ADDR]` exactly like the multikernel RFC: numbers wrap, junk after the address is
/// ignored.
///
/// # Errors
///
/// Returns [`ParamError`] where the RFC returns `EINVAL`.
///
/// ```
/// use mkpool::linux::parse_pool_param;
/// let param = parse_pool_param("1G@4Gjunk")?;
/// assert_eq!((param.size, param.start), (1 << 30, Some(4 << 30)));
/// # Ok::<(), mkpool::param::ParamError>(())
/// ```
#[cfg(feature = "linux")]
pub fn parse_linux(s: &str) -> Result<PoolParam, ParamError> {
    let (size, rest) = memparse(s);
    if size == 0 {
        return Err(ParamError::ZeroSize { text: s.to_owned() });
    }
    let Some(addr) = rest.strip_prefix('@') else {
        if rest.is_empty() {
            return Ok(PoolParam { size, start: None });
        }
        return Err(ParamError::Junk {
            text: s.to_owned(),
            junk: rest.to_owned(),
        });
    };
    match memparse(addr) {
        (0, _) => Err(ParamError::ZeroAddr { text: s.to_owned() }),
        (start, _) => Ok(PoolParam {
            size,
            start: Some(start),
        }),
    }
}

impl PoolParam {
    /// Parses `SIZE[@ADDR]`, the value of `mkkernel_pool=`.
    ///
    /// # Errors
    ///
    /// Returns [`ParamError`] for numbers that are missing or do not fit 64 bits, for junk, for a
    /// repeated `@`, and for a pool that would wrap.
    ///
    /// ```
    /// use mkpool::param::PoolParam;
    /// let param = PoolParam::parse("1G@4G")?;
    /// assert_eq!((param.size, param.start), (1 << 30, Some(4 << 30)));
    /// assert!(PoolParam::parse("1G@4Gjunk").is_err());
    /// # Ok::<(), mkpool::param::ParamError>(())
    /// ```
    pub fn parse(s: &str) -> Result<Self, ParamError> {
        let (size_text, addr_text) = match s.split_once('@') {
            Some((size, addr)) => (size, Some(addr)),
            None => (s, None),
        };
        if addr_text.is_some_and(|addr| addr.contains('@')) {
            return Err(ParamError::RepeatedAddr { text: s.to_owned() });
        }
        let size = parse_size(size_text)?;
        if size == 0 {
            return Err(ParamError::ZeroSize { text: s.to_owned() });
        }
        let Some(addr_text) = addr_text else {
            return Ok(Self { size, start: None });
        };
        if addr_text.is_empty() {
            return Err(ParamError::ZeroAddr { text: s.to_owned() });
        }
        let start = parse_addr(addr_text)?;
        if start == 0 {
            return Err(ParamError::ZeroAddr { text: s.to_owned() });
        }
        if start.checked_add(size).is_none() {
            return Err(ParamError::Wraps { start, size });
        }
        Ok(Self {
            size,
            start: Some(start),
        })
    }

    /// Returns the parameter with its size rounded up to `granule` bytes, a power of two. Compare
    /// the sizes to find out whether it was.
    ///
    /// # Errors
    ///
    /// Returns [`ParamError::Unaligned`] if the address is not a multiple of the granule, and
    /// [`ParamError::Wraps`] if the rounded pool does not fit the address space.
    pub fn rounded_to(self, granule: u64) -> Result<Self, ParamError> {
        let start = self.start.unwrap_or(0);
        let wraps = ParamError::Wraps {
            start,
            size: self.size,
        };
        let size = self
            .size
            .checked_next_multiple_of(granule.max(1))
            .ok_or(wraps)?;
        if start.checked_rem(granule).unwrap_or(0) != 0 {
            return Err(ParamError::Unaligned { start, granule });
        }
        if start.checked_add(size).is_none() {
            return Err(ParamError::Wraps { start, size });
        }
        Ok(Self {
            size,
            start: self.start,
        })
    }
}

#[cfg(test)]
#[path = "param_tests.rs"]
mod tests;
