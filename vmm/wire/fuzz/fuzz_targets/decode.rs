//! Decodes arbitrary bytes as a packet. Whatever decodes must survive another
//! round of encoding and decoding.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use mkvmm_wire::channel::{decode, encode};
use serde::{Deserialize, Serialize};

/// A message type with one variant for each shape of payload.
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
        let packet = encode(0, lost, &message).expect("it was decoded from no more bytes");
        let again = decode::<Sample>(&packet, 0).expect("it was just encoded");
        assert_eq!(again, (message, lost));
    }
});
