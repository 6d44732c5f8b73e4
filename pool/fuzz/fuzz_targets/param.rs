//! Any text as a pool parameter: nothing panics, and strict accepts only what Linux reads alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mkpool::{ParamMode, PoolParam, memparse, parse_size};

fuzz_target!(|text: &str| {
    let (value, rest) = memparse(text);
    assert!(text.ends_with(rest));
    let linux = PoolParam::parse(text, ParamMode::Linux);
    let strict = PoolParam::parse(text, ParamMode::Strict);
    let units = text.contains(['b', 'B']);
    if let Ok(param) = strict
        && !units
    {
        assert_eq!(linux, Ok(param));
        assert_eq!(param.size, value);
    }
    if let (Ok(size), false) = (parse_size(text), units) {
        assert_eq!((size, ""), (value, rest));
    }
});
