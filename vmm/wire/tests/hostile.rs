//! Decodes bytes that a compromised worker might send. Decoding may fail, but
//! it must not panic, and the memory it uses must be bounded by the packet.

use std::collections::BTreeMap;

use mkvmm_wire::channel::{MESSAGE_MAX, decode, encode};
use peak_alloc::PeakAlloc;
use serde::{Deserialize, Serialize};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A message type with one variant for each shape of payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        pair: (u16, Option<Box<[u8; 3]>>),
        words: [u64; 4],
    },
}

fn samples() -> Vec<Sample> {
    let whole = Sample::Whole {
        id: 7,
        wide: u128::MAX,
        signed: i64::MIN,
        flag: true,
        sign: 'ß',
        pair: (3, Some(Box::new([1, 2, 3]))),
        words: [1, 2, u64::MAX, 4],
    };
    vec![
        Sample::Unit,
        Sample::Text("a few words".to_owned()),
        Sample::Bytes(vec![0xa5; 300]),
        Sample::Words((0..100).map(|i| i << 40).collect()),
        Sample::Names(vec!["web".to_owned(), String::new(), "db".to_owned()]),
        Sample::Table(BTreeMap::from([(1, None), (2, Some("x".to_owned()))])),
        whole,
    ]
}

/// A generator of pseudo-random numbers (xorshift64): the same cases in every
/// run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

fn mutate(packet: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(packet.len().max(1)).min(packet.len());
        match random.below(5) {
            0 if at < packet.len() => packet[at] = random.byte(),
            1 if at < packet.len() => packet[at] ^= 1 << random.below(8),
            2 => packet.truncate(at),
            3 => packet.insert(at, random.byte()),
            // Insert a length that announces more than there can be.
            _ => drop(packet.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x7f])),
        }
    }
}

/// Decodes while measuring the memory it uses; returns whether it succeeded.
fn check(packet: &[u8]) -> bool {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let decoded = decode::<Sample>(packet, 0);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    // A byte can stand for an empty String of 24 bytes, and a growing list
    // exists twice while it is moved; the rest is for nodes of small maps.
    let allowed = packet.len() * 24 * 3 + 4096;
    assert!(
        taken <= allowed,
        "{} bytes took {taken} of memory: {packet:x?}",
        packet.len()
    );
    if let Ok((message, lost)) = &decoded {
        // Whatever can be decoded can be encoded: it is a value like any other.
        let again = encode(0, *lost, message).expect("a value like any other");
        assert_eq!(
            &decode::<Sample>(&again, 0).expect("the same bytes").0,
            message
        );
    }
    decoded.is_ok()
}

// This is one test, since the allocator's counters are those of the process.
#[test]
fn any_bytes_decode_or_are_refused_within_their_own_memory() {
    for sample in samples() {
        let packet = encode(0, 5, &sample).unwrap();
        assert_eq!(decode::<Sample>(&packet, 0).unwrap(), (sample, 5));
        for cut in 0..packet.len() {
            assert!(!check(&packet[..cut]), "a part is no message");
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut good, mut bad) = (0, 0);
    for round in 0..200_000 {
        let samples = samples();
        let sample = &samples[round % samples.len()];
        let mut packet = encode(0, 0, sample).unwrap();
        mutate(&mut packet, &mut random);
        if check(&packet) { good += 1 } else { bad += 1 }
    }
    // Both outcomes of the decoder occurred.
    assert!(good > 10_000 && bad > 10_000, "{good} good, {bad} bad");
    for _ in 0..20_000 {
        let noise: Vec<u8> = (0..random.below(200)).map(|_| random.byte()).collect();
        check(&noise);
    }
    check(&vec![0; MESSAGE_MAX]);
    check(&vec![0xff; MESSAGE_MAX]);
}
