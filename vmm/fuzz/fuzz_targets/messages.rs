//! Any bytes as packets of both directions of every channel: a manager decodes
//! what its workers, unpackers and cleaners send, and they what it sends. What
//! decodes encodes to what decodes alike, and says how many descriptors belong
//! to it without overflow.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use mkvmm_base::unpacking::{ImageRole, Job, Limits};
use mkvmm_image::BootMode;
use mkvmm_wire::channel::{Message, decode, encode};
use mkvmm_wire::messages::{CleanOrder, Cleaned, Order, Report, UnpackOrder, UnpackReport};

fn check<M: Message + PartialEq + Debug>(data: &[u8]) -> Option<M> {
    let (message, lost) = decode::<M>(data, 0).ok()?;
    let packet = encode(0, lost, &message).expect("it came from as few bytes");
    let again = decode::<M>(&packet, 0).expect("it was just encoded");
    assert_eq!(again, (message, lost));
    let descriptors = again.0.descriptors();
    assert!(descriptors.start() <= descriptors.end());
    Some(again.0)
}

fuzz_target!(|data: &[u8]| {
    check::<Order>(data);
    check::<Report>(data);
    check::<CleanOrder>(data);
    check::<Cleaned>(data);
    check::<UnpackOrder>(data);
    // What a manager believes of an unpacker only after a check.
    if let Some(UnpackReport(Ok(unpacked))) = check(data) {
        for role in [
            ImageRole::Initramfs,
            ImageRole::Kernel(BootMode::Elf),
            ImageRole::Kernel(BootMode::BzImage),
        ] {
            let limits = Limits {
                input: 1 << 20,
                output: 1 << 20,
                memory: 1 << 20,
            };
            let job = Job { role, limits };
            // Accepted or refused, and in no case a panic.
            let _ = unpacked.check(&job, 4096);
        }
    }
});
