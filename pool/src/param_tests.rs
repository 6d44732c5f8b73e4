//! Tests of the parameter's grammar; the recorded table of Linux's answers replays elsewhere.

use super::*;

#[test]
fn strict_sizes_know_byte_units() {
    for (text, want) in [
        ("0", 0),
        ("4096B", 4096),
        ("1KB", 1024),
        ("1kib", 1024),
        ("1GiB", 1 << 30),
        ("3T", 3 << 40),
        ("5PiB", 5 << 50),
        ("0x10M", 16 << 20),
        ("0x1B", 0x1b),
    ] {
        assert_eq!(parse_size(text), Ok(want), "{text}");
    }
    for text in [
        "1iB", "1KBB", "1KiBs", "1 G", "1G ", "1KK", "0x1iB", "0x1EiB", "08",
    ] {
        assert!(
            matches!(parse_size(text), Err(ParamError::Junk { .. })),
            "{text}"
        );
    }
    for text in ["", "G", " 1", "-1", "+1", "@", "é"] {
        assert!(
            matches!(parse_size(text), Err(ParamError::NoNumber { .. })),
            "{text}"
        );
    }
    for text in [
        "16E",
        "17E",
        "18446744073709551616",
        "0x1ffffffffffffffff",
        "99999999999999999999K",
    ] {
        assert!(
            matches!(parse_size(text), Err(ParamError::Overflow { .. })),
            "{text}"
        );
    }
    assert_eq!(parse_size("15E"), Ok(15 << 60));
}

#[test]
fn a_number_that_wraps_more_than_once_is_still_too_large() {
    let nines = (20..60).map(|digits| "9".repeat(digits));
    // Twice and eleven times 2^64, which are 0 after the last wrap.
    let multiples = ["36893488147419103232", "202914184810805067776"];
    for text in nines.chain(multiples.map(str::to_owned)) {
        let got = parse_size(&text);
        assert!(matches!(got, Err(ParamError::Overflow { .. })), "{text}");
    }
}

#[test]
fn strict_addresses_have_no_byte_units() {
    assert_eq!(parse_addr("4G"), Ok(4 << 30));
    assert!(matches!(parse_addr("4GB"), Err(ParamError::Junk { .. })));
}

#[test]
fn strict_parameters_refuse_what_linux_swallows() {
    let strict = PoolParam::parse;
    for text in [
        "1G@4Gjunk",
        "1G@4G@8G",
        "1G@4G ",
        "17E@4G",
        "15E@4E",
        "1G@4GB",
    ] {
        #[cfg(feature = "linux")]
        assert!(parse_linux(text).is_ok(), "{text}");
        assert!(strict(text).is_err(), "{text}");
    }
    assert!(matches!(
        strict("1G@4G@8G"),
        Err(ParamError::RepeatedAddr { .. })
    ));
    assert!(matches!(strict("1G@"), Err(ParamError::ZeroAddr { .. })));
    assert!(matches!(strict("1G@0"), Err(ParamError::ZeroAddr { .. })));
    assert!(matches!(strict("0@4G"), Err(ParamError::ZeroSize { .. })));
    assert!(matches!(strict("15E@4E"), Err(ParamError::Wraps { .. })));
    assert_eq!(
        strict("1G"),
        Ok(PoolParam {
            size: 1 << 30,
            start: None
        })
    );
}

#[test]
fn rounding_goes_up_and_refuses_unaligned_addresses() {
    let param = |size, start| PoolParam { size, start };
    assert_eq!(
        param(5000, Some(0x10000)).rounded_to(4096),
        Ok(param(8192, Some(0x10000)))
    );
    assert_eq!(param(8192, None).rounded_to(4096), Ok(param(8192, None)));
    assert_eq!(
        param(4096, Some(0x1001)).rounded_to(4096),
        Err(ParamError::Unaligned {
            start: 0x1001,
            granule: 4096
        })
    );
    assert!(matches!(
        param(u64::MAX, None).rounded_to(4096),
        Err(ParamError::Wraps { .. })
    ));
    let last_page = 0xffff_ffff_ffff_f000;
    assert!(matches!(
        param(1, Some(last_page)).rounded_to(4096),
        Err(ParamError::Wraps { .. })
    ));
}
