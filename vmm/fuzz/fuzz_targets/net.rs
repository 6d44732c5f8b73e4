//! A network device, with rings and buffers of any contents, a driver that rings,
//! writes and resets at any time, and anything from the other end of its link. What
//! the device sends are whole frames within its limits.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mkvmm_virtio::net::{Mac, Net, NetSettings, Stream};
use mkvmm_virtio::ring::RingContext;
use mkvmm_virtio::{Activation, Interrupt, Memory, Progress, Ring, RingSetup, VirtioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// The size of the guest's memory.
const MEMORY: usize = 1 << 17;
/// The size of each queue, and the bytes between its parts.
const SIZE: u16 = 8;
const STEP: u64 = 0x400;
const MTU: u16 = 1500;

#[derive(Debug)]
struct Nobody;

impl Interrupt for Nobody {
    fn used(&self, _queue: u16) {}
    fn config_changed(&self) {}
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn ring(index: u16, memory: &Arc<GuestMemoryMmap>, event_index: bool) -> Ring {
    let base = u64::from(index) * 3 * STEP;
    let setup = RingSetup {
        size: SIZE,
        descriptors: base,
        available: base + STEP,
        used: base + 2 * STEP,
    };
    let context = RingContext {
        memory: Arc::clone(memory) as Memory,
        interrupt: Arc::new(Nobody),
        counters: Arc::default(),
        event_index,
    };
    Ring::new(index, SIZE, Some(setup), context).expect("it lies in memory")
}

/// Reads what the device has sent: lengths that are allowed, and as many bytes.
fn check(received: &mut Vec<u8>, theirs: &mut UnixStream) {
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = theirs.read(&mut piece) {
        received.extend(&piece[..count]);
    }
    while let Some(length) = received.first_chunk() {
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("64 bits");
        assert!((14..=usize::from(MTU) + 18).contains(&length), "{length}");
        if received.len() < 4 + length {
            break;
        }
        received.drain(..4 + length);
    }
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let memory = Arc::new(memory);
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let settings = NetSettings {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: MTU,
    };
    let mut device = Net::new(settings, Box::new(Stream::new(ours.into())));
    let mut received = Vec::new();
    let (mut is_active, event_index) = (false, input.arbitrary()?);
    while !input.is_empty() {
        if !is_active {
            let activation = Activation {
                features: input.arbitrary()?,
                memory: Arc::clone(&memory) as Memory,
                queues: vec![ring(0, &memory, event_index), ring(1, &memory, event_index)],
            };
            device.activate(activation).expect("it needs nothing");
            is_active = true;
        }
        let done = match input.int_in_range(0..=6)? {
            0 => {
                let at: u16 = input.arbitrary()?;
                let bytes = input.bytes(input.len().min(64))?;
                // It may not fit.
                let _ = memory.write(bytes, GuestAddress(at.into()));
                Ok(Progress::Done)
            }
            1 => {
                // A descriptor that is likely to be good.
                let (queue, index) = (input.int_in_range(0..=1)?, input.int_in_range(0..=7)?);
                let at = queue * 3 * STEP + index * 16;
                let addr = u64::from(input.arbitrary::<u16>()?);
                let length = u32::from(input.arbitrary::<u16>()? % 2048);
                let flags = if queue == 0 { 2_u16 } else { 0 };
                let _ = memory.write_obj(addr, GuestAddress(at));
                let _ = memory.write_obj(length, GuestAddress(at + 8));
                let _ = memory.write_obj(flags, GuestAddress(at + 12));
                Ok(Progress::Done)
            }
            2 => {
                // The next chain is made available.
                let queue = input.int_in_range(0..=1)?;
                let at = GuestAddress(queue * 3 * STEP + STEP + 2);
                let index: u16 = memory.read_obj(at).expect("memory");
                let _ = memory.write_obj(index.wrapping_add(1), at);
                device.on_queue(u16::try_from(queue).expect("0 or 1"))
            }
            3 => device.on_queue(input.arbitrary()?),
            4 => {
                let bytes = input.bytes(input.len().min(100))?;
                let length = u32::try_from(bytes.len()).expect("at most 100");
                if input.arbitrary()? {
                    let _ = theirs.write(&length.to_be_bytes());
                }
                let _ = theirs.write(bytes);
                device.on_descriptor(0, EventSet::IN)
            }
            5 => {
                let mut config = [0; 16];
                device.read_config(input.arbitrary()?, &mut config);
                device.write_config(input.arbitrary()?, &config);
                device.on_descriptor(input.arbitrary()?, EventSet::OUT)
            }
            _ => {
                assert_eq!(device.reset(), Progress::Done);
                is_active = false;
                Ok(Progress::Done)
            }
        };
        if done.is_err() {
            assert_eq!(device.reset(), Progress::Done);
            is_active = false;
        }
        check(&mut received, &mut theirs);
    }
    Ok(())
}
