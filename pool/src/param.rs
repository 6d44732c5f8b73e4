//! `mkkernel_pool=SIZE[@ADDR]` and the numbers in it.
//!
//! [`memparse`] is the kernel's, wrap for wrap (`lib/cmdline.c` and `lib/kstrtox.c` of Linux
//! 6.12). On top of it [`PoolParam::parse`] has two modes: [`ParamMode::Linux`] takes and
//! refuses exactly what the multikernel RFC's parser does, [`ParamMode::Strict`] refuses the
//! nonsense that one accepts: numbers that wrap, junk behind the address, a second `@`.

use alloc::borrow::ToOwned;
use alloc::string::String;

/// Why a size, an address or a whole parameter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// There is no digit where a number has to stand.
    #[error(
        "`{text}` is no number: expected decimal, 0x hex or 0 octal digits, then K M G T P or E"
    )]
    NoNumber {
        /// What stood there instead.
        text: String,
    },
    /// The number, or the number times its suffix, does not fit 64 bits.
    #[error("`{text}` does not fit 64 bits")]
    Overflow {
        /// The number with its suffix.
        text: String,
    },
    /// Something follows that belongs to no number.
    #[error("`{junk}` follows the number in `{text}`")]
    Junk {
        /// The whole text.
        text: String,
        /// What is too much.
        junk: String,
    },
    /// A pool of no bytes.
    #[error("the size in `{text}` is zero")]
    ZeroSize {
        /// The whole parameter.
        text: String,
    },
    /// `@` with nothing, or with zero, behind it.
    #[error("the address in `{text}` is missing or zero")]
    ZeroAddr {
        /// The whole parameter.
        text: String,
    },
    /// More than one `@`.
    #[error("`{text}` names more than one address")]
    RepeatedAddr {
        /// The whole parameter.
        text: String,
    },
    /// The pool would reach past the end of the 64-bit address space.
    #[error("{size:#x} bytes from {start:#x} on reach past the end of the address space")]
    Wraps {
        /// First byte.
        start: u64,
        /// Length in bytes.
        size: u64,
    },
    /// The address is no multiple of the granule.
    #[error("the address {start:#x} is no multiple of the granule {granule:#x}")]
    Unaligned {
        /// The address given.
        start: u64,
        /// The granule in bytes.
        granule: u64,
    },
}

/// The digits of `s`: (value, whether it wrapped, rest). As the kernel's `simple_strtoull`
/// with base 0: `0x` counts only before a hex digit, any other leading `0` means octal.
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

/// The power of two a suffix letter stands for.
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

/// [`memparse`] that also tells whether anything wrapped.
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

/// The kernel's `memparse`: a number with an optional suffix, and what follows it.
///
/// Never fails: no digits are 0, and everything is modulo 2^64.
///
/// ```
/// assert_eq!(mkpool::memparse("512M@4G"), (512 << 20, "@4G"));
/// assert_eq!(mkpool::memparse("17E"), (1 << 60, "")); // wraps, as there
/// ```
#[must_use]
pub fn memparse(s: &str) -> (u64, &str) {
    let (value, _, rest) = memparse_checked(s);
    (value, rest)
}

/// A number that is all of `s`, but for a byte unit if `with_unit`; nothing wraps or is ignored.
fn parse_whole(s: &str, with_unit: bool) -> Result<u64, ParamError> {
    if !s.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(ParamError::NoNumber { text: s.to_owned() });
    }
    let (value, wrapped, rest) = memparse_checked(s);
    // "iB" makes sense behind a suffix letter only; it and "B" are binary here, as the letters.
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

/// A size in bytes, strictly: all of `s` is one number, nothing may wrap.
///
/// `K` … `E` in either case are powers of 1024, and so are `KB` and `KiB`. Zero is allowed:
/// what a size of zero means is for the caller to say.
///
/// # Errors
///
/// [`ParamError::NoNumber`], [`ParamError::Junk`] or [`ParamError::Overflow`].
///
/// ```
/// assert_eq!(mkpool::parse_size("1GiB"), Ok(1 << 30));
/// assert_eq!(mkpool::parse_size("512MB"), Ok(512 << 20));
/// assert!(mkpool::parse_size("16E").is_err());
/// ```
pub fn parse_size(s: &str) -> Result<u64, ParamError> {
    parse_whole(s, true)
}

/// An address, strictly: as [`parse_size`], without the byte units (`4G` is one, `4GB` is not).
///
/// # Errors
///
/// [`ParamError::NoNumber`], [`ParamError::Junk`] or [`ParamError::Overflow`].
pub fn parse_addr(s: &str) -> Result<u64, ParamError> {
    parse_whole(s, false)
}

/// How forgiving [`PoolParam::parse`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ParamMode {
    /// Refuse what cannot have been meant.
    #[default]
    Strict,
    /// Exactly the RFC's parser: numbers wrap, junk behind the address is ignored.
    Linux,
}

/// The value of `mkkernel_pool=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolParam {
    /// Bytes, not zero; not necessarily a multiple of a page.
    pub size: u64,
    /// Where the pool has to lie, if the text says so; not zero.
    pub start: Option<u64>,
}

impl PoolParam {
    /// Reads `SIZE[@ADDR]`.
    ///
    /// # Errors
    ///
    /// In [`ParamMode::Linux`] whatever the RFC answers `EINVAL` to; in [`ParamMode::Strict`]
    /// also numbers that do not fit 64 bits, junk, a repeated `@`, a pool that wraps.
    ///
    /// ```
    /// use mkpool::{ParamMode, PoolParam};
    /// let param = PoolParam::parse("1G@4G", ParamMode::Strict).unwrap();
    /// assert_eq!((param.size, param.start), (1 << 30, Some(4 << 30)));
    /// assert!(PoolParam::parse("1G@4Gjunk", ParamMode::Strict).is_err());
    /// assert_eq!(PoolParam::parse("1G@4Gjunk", ParamMode::Linux).unwrap(), param);
    /// ```
    pub fn parse(s: &str, mode: ParamMode) -> Result<Self, ParamError> {
        match mode {
            ParamMode::Strict => Self::parse_strict(s),
            ParamMode::Linux => Self::parse_linux(s),
        }
    }

    fn parse_linux(s: &str) -> Result<Self, ParamError> {
        let (size, rest) = memparse(s);
        if size == 0 {
            return Err(ParamError::ZeroSize { text: s.to_owned() });
        }
        let Some(addr) = rest.strip_prefix('@') else {
            if rest.is_empty() {
                return Ok(Self { size, start: None });
            }
            return Err(ParamError::Junk {
                text: s.to_owned(),
                junk: rest.to_owned(),
            });
        };
        match memparse(addr) {
            (0, _) => Err(ParamError::ZeroAddr { text: s.to_owned() }),
            (start, _) => Ok(Self {
                size,
                start: Some(start),
            }),
        }
    }

    fn parse_strict(s: &str) -> Result<Self, ParamError> {
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

    /// The same with the size rounded up to `granule` bytes, a power of two; compare the sizes
    /// to tell the user that it was.
    ///
    /// # Errors
    ///
    /// [`ParamError::Unaligned`] if the address is no multiple of the granule,
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
