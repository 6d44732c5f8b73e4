//! Tests the output of the feature `serde`, and that it checks its input.
#![cfg(feature = "serde")]

use mkpool::instance::ChunkPolicy;
use mkpool::param::PoolParam;
use mkpool::{AddrRange, Algo};

#[test]
fn ranges_are_read_as_they_are_written() {
    let range = AddrRange::new(0x1000, 0x3000).unwrap();
    let text = serde_json::to_string(&range).unwrap();
    assert_eq!(text, r#"{"start":4096,"end":12288}"#);
    assert_eq!(serde_json::from_str::<AddrRange>(&text).unwrap(), range);
}

#[test]
fn a_range_that_cannot_be_is_refused() {
    for text in [r#"{"start":5,"end":5}"#, r#"{"start":5,"end":4}"#] {
        let error = serde_json::from_str::<AddrRange>(text).unwrap_err();
        assert!(error.to_string().starts_with("the range"), "{error}");
    }
}

#[test]
fn names_are_in_snake_case() {
    let names = (
        Algo::FirstFitAlign { align: 4096 },
        Algo::At(8192),
        ChunkPolicy::Halving,
        PoolParam::parse("1M@4G").unwrap(),
    );
    let text = serde_json::to_string(&names).unwrap();
    assert_eq!(
        text,
        r#"[{"first_fit_align":{"align":4096}},{"at":8192},"halving",{"size":1048576,"start":4294967296}]"#
    );
    let read: (Algo, Algo, ChunkPolicy, PoolParam) = serde_json::from_str(&text).unwrap();
    assert_eq!(read, names);
}
