//! Throughput and latency of rings between two guests that sleep while they wait.

use std::error::Error;
use std::time::{Duration, Instant};

use mkvmm_ring::{Consumer, InDoubt, Producer, PushError, State, Word};

use crate::device::Device;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The parts of the channel's memory in bytes, behind the ring of `send` and `receive`: a ring for
/// each direction of a round trip, and one for much.
const SMALL: usize = 4096;
const LARGE: usize = 512 << 10;
/// The length of the messages of which there are many.
const LENGTH: usize = 16 << 10;

/// Carries out one side of a measurement, of `count` messages or mebibytes.
pub fn carry_out(word: &str, device: &Device, count: u64) -> Result<()> {
    let memory = device.memory(crate::RING + 2 * SMALL + LARGE)?;
    let memory = &memory[crate::RING / size_of::<Word>()..];
    let (small, large) = memory.split_at(2 * SMALL / size_of::<Word>());
    let (there, back) = small.split_at(SMALL / size_of::<Word>());
    match word {
        "flood" => flood(device, Producer::join(large)?, count),
        "drain" => drain(device, Incoming::join(large)?),
        "ping" => ping(device, Producer::join(there)?, Incoming::join(back)?, count),
        _ => echo(device, Incoming::join(there)?, Producer::join(back)?),
    }
}

/// Sends a message, and waits for room as long as there is none.
fn push(device: &Device, producer: &mut Producer<&[Word]>, bytes: &[u8]) -> Result<()> {
    loop {
        let waits = match producer.try_push(bytes) {
            Ok(_) => None,
            Err(PushError::Full { .. }) => Some(producer.will_wait(bytes.len())?),
            Err(error) => return Err(error.into()),
        };
        if producer.needs_doorbell() {
            device.ring_others();
        }
        match waits {
            None => return Ok(()),
            Some(true) => device.wait()?,
            Some(false) => {}
        }
    }
}

/// The end of a ring at which messages arrive.
struct Incoming<'a> {
    consumer: Consumer<&'a [Word]>,
    /// Whether the producer has been there: that of an earlier measurement has left.
    has_begun: bool,
}

impl<'a> Incoming<'a> {
    fn join(memory: &'a [Word]) -> Result<Self> {
        let consumer = Consumer::join(memory, InDoubt::Lose)?;
        let has_begun = false;
        Ok(Self {
            consumer,
            has_begun,
        })
    }

    /// Receives a message, and waits for one as long as there is none; returns its length, or
    /// nothing once the producer has left.
    fn pop(&mut self, device: &Device, bytes: &mut [u8]) -> Result<Option<usize>> {
        loop {
            let state = self.consumer.peer().state;
            self.has_begun |= state == State::Joined;
            if let Some(received) = self.consumer.try_pop(bytes)? {
                self.has_begun = true;
                return Ok(Some(received.len));
            }
            if self.has_begun && state == State::Left {
                return Ok(None);
            }
            let waits = self.consumer.will_wait()?;
            if self.consumer.needs_doorbell() {
                device.ring_others();
            }
            if waits {
                device.wait()?;
            }
        }
    }
}

fn flood(device: &Device, mut producer: Producer<&[Word]>, mebibytes: u64) -> Result<()> {
    let content = vec![7; LENGTH];
    for _ in 0..(mebibytes << 20) / LENGTH as u64 {
        push(device, &mut producer, &content)?;
    }
    producer.leave();
    device.ring_others();
    println!("uio: flooded {mebibytes} MiB");
    Ok(())
}

fn drain(device: &Device, mut incoming: Incoming<'_>) -> Result<()> {
    let mut buffer = vec![0; LENGTH];
    let (mut bytes, mut begin) = (0, None);
    while let Some(len) = incoming.pop(device, &mut buffer)? {
        begin.get_or_insert_with(Instant::now);
        bytes += len;
    }
    incoming.consumer.leave();
    let seconds = begin.map_or(Duration::ZERO, |begin| begin.elapsed());
    let speed = bytes as f64 / (1 << 20) as f64 / seconds.as_secs_f64();
    println!("uio: drained {} MiB, {speed:.1} MiB/s", bytes >> 20);
    // So does the processor alone.
    let (from, mut to) = (vec![7_u8; LARGE], vec![0_u8; LARGE]);
    let begin = Instant::now();
    let mut copied = 0;
    while copied < bytes {
        let at = copied % LARGE;
        to[at..at + LENGTH].copy_from_slice(std::hint::black_box(&from[at..at + LENGTH]));
        std::hint::black_box(&mut to);
        copied += LENGTH;
    }
    let speed = copied as f64 / (1 << 20) as f64 / begin.elapsed().as_secs_f64();
    println!("uio: memcpy {speed:.1} MiB/s");
    Ok(())
}

fn ping(
    device: &Device,
    mut there: Producer<&[Word]>,
    mut back: Incoming<'_>,
    count: u64,
) -> Result<()> {
    let mut samples = Vec::new();
    let mut buffer = [0; 8];
    for number in 0..count {
        let begin = Instant::now();
        push(device, &mut there, &number.to_ne_bytes())?;
        if back.pop(device, &mut buffer)? != Some(8) || u64::from_ne_bytes(buffer) != number {
            return Err(format!("message {number} did not come back").into());
        }
        samples.push(begin.elapsed());
    }
    there.leave();
    device.ring_others();
    samples.sort_unstable();
    let at = |permille: usize| samples.get(samples.len().saturating_sub(1) * permille / 1000);
    let [median, tail, most] = [500, 990, 1000].map(at);
    println!("uio: round trip {median:?}, 99 % {tail:?}, most {most:?}");
    Ok(())
}

fn echo(device: &Device, mut there: Incoming<'_>, mut back: Producer<&[Word]>) -> Result<()> {
    let mut buffer = [0; 8];
    let mut count = 0_u64;
    while let Some(len) = there.pop(device, &mut buffer)? {
        push(device, &mut back, &buffer[..len])?;
        count += 1;
    }
    back.leave();
    println!("uio: echoed {count}");
    Ok(())
}
