//! Any bytes as a packet. What decodes must encode again to what decodes alike.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use mkvmm_wire::channel::{decode, encode};
use serde::{Deserialize, Serialize};

/// One of each shape that messages are made of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Sample {
    Unit,
    Text(String),
    Bytes(Vec<u8>),
    Words(Vec<u64>),
    Names(Vec<String>),
    Table(BTreeMap<u32, Option<String>>),
    Whole {
        id: u32,
        wide: u128,
        signed: i64,
        flag: bool,
        sign: char,
        words: [u64; 4],
    },
}

fuzz_target!(|data: &[u8]| {
    if let Ok((message, lost)) = decode::<Sample>(data, 0) {
        let packet = encode(0, lost, &message).expect("it came from as few bytes");
        let again = decode::<Sample>(&packet, 0).expect("it was just encoded");
        assert_eq!(again, (message, lost));
    }
});
