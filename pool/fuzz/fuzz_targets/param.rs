//! Parses any text as a pool parameter: nothing panics, and accepted text has the value that Linux
//! reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mkpool::linux::{memparse, parse_pool_param};
use mkpool::param::{PoolParam, parse_size};

fuzz_target!(|text: &str| {
    let (value, rest) = memparse(text);
    assert!(text.ends_with(rest));
    let linux = parse_pool_param(text);
    let units = text.contains(['b', 'B']);
    if let Ok(param) = PoolParam::parse(text)
        && !units
    {
        assert_eq!(linux, Ok(param));
        assert_eq!(param.size, value);
    }
    if let (Ok(size), false) = (parse_size(text), units) {
        assert_eq!((size, ""), (value, rest));
    }
});
