//! Any bytes as a journal, and as the contents of its frames. What is accepted is
//! a ledger whose books balance.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mkvmm_manager::adopt;
use mkvmm_manager::journal::contents::read;
use mkvmm_manager::journal::file::{Binding, whole};
use mkvmm_manager::journal::record::{Record, decode, encode};

const BINDING: Binding = Binding { boot: 1, keeper: 2 };

fn check(journal: &[u8]) {
    if let Ok(contents) = read(journal, BINDING) {
        // Refused, or balanced; never a panic.
        let _ = adopt::check(&contents);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Past the checksums: frames of any contents.
    let parts: Vec<&[u8]> = bytes.split(|byte| *byte == 0xff).collect();
    check(&whole(BINDING, &parts));
    check(&whole(BINDING, &[bytes]));
    if let Ok(records) = decode(0, bytes) {
        let again: Vec<Record> = decode(0, &encode(&records)).expect("it was encoded");
        assert_eq!(again, records);
    }
});
