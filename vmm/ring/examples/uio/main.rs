//! A ring between two Linux guests of mkvmm, through a channel and `uio_pci_generic`.
//!
//! ```text
//! guest a # modprobe uio_pci_generic
//! guest a # echo 1af4 1110 >/sys/bus/pci/drivers/uio_pci_generic/new_id
//! guest a # uio send 1000
//! guest b # (the same module)
//! guest b # uio receive
//! ```
//!
//! `uio flood MEBIBYTES` and `uio drain` measure what the ring carries, `uio ping COUNT` and
//! `uio echo` how long a message takes, with both sides asleep in between.
//!
//! Either guest may be killed and started again: its successor goes on where it stopped. It needs
//! nothing but the standard library and mkvmm-ring, so that `scripts/linux-initramfs --channels`
//! compiles it without cargo, statically.

use std::error::Error;
use std::thread;
use std::time::Duration;

use mkvmm_ring::{Consumer, InDoubt, Memory, Producer, PushError, State};

use device::{Device, Mapping};

mod device;
mod measure;

/// The bytes of the ring, few enough for the producer to wait for room.
const RING: usize = 4096;
/// The messages after which the receiver tells of its progress.
const PROGRESS: u64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let device = Device::open()?;
    if let [word @ ("flood" | "drain" | "ping" | "echo"), rest @ ..] = &words[..] {
        let count = rest.first().map(|text| text.parse()).transpose()?;
        return measure::carry_out(word, &device, count.unwrap_or(0));
    }
    let memory = device.memory(RING)?;
    match words[..] {
        ["send", count] => send(&device, memory, count.parse()?, None),
        ["send", count, pause] => {
            let pause = Duration::from_millis(pause.parse()?);
            send(&device, memory, count.parse()?, Some(pause))
        }
        ["receive"] => receive(&device, memory),
        _ => Err("usage: uio send COUNT [MILLISECONDS] | receive | flood MEBIBYTES | drain | ping COUNT | echo".into()),
    }
}

/// Returns message `sequence`.
fn content(sequence: u64) -> String {
    format!(
        "message {sequence} {:x}",
        sequence.wrapping_mul(0x9e37_79b9)
    )
}

fn send(
    device: &Device,
    memory: Mapping,
    count: u64,
    pause: Option<Duration>,
) -> Result<(), Box<dyn Error>> {
    let mut producer = Producer::join(memory)?;
    let first = producer.sequence();
    println!("uio: producer {} from {first}", producer.epoch());
    while producer.sequence() < first + count {
        let text = content(producer.sequence());
        let waits = match producer.try_push(text.as_bytes()) {
            Ok(_) => false,
            Err(PushError::Full { .. }) => producer.will_wait(text.len())?,
            Err(error) => return Err(error.into()),
        };
        if producer.needs_doorbell() {
            device.ring_others();
        }
        if waits {
            device.wait()?;
        }
        if let Some(pause) = pause {
            thread::sleep(pause);
        }
    }
    let sequence = producer.sequence();
    producer.leave();
    device.ring_others();
    println!("uio: sent up to {sequence}");
    Ok(())
}

fn receive(device: &Device, memory: impl Memory) -> Result<(), Box<dyn Error>> {
    let mut consumer = Consumer::join(memory, InDoubt::Lose)?;
    println!("uio: consumer {}", consumer.epoch());
    let mut buffer = vec![0; consumer.max_message()];
    let (mut received, mut lost) = (0_u64, 0_u64);
    let mut states = device.states();
    loop {
        // This comes first: what was sent before the producer left is in the ring now.
        let has_left = consumer.peer().state == State::Left;
        while let Some(one) = consumer.try_pop(&mut buffer)? {
            if buffer[..one.len] != *content(one.sequence).as_bytes() {
                return Err(format!("message {} is wrong", one.sequence).into());
            }
            (received, lost) = (received + 1, lost + u64::from(one.lost));
            if received % PROGRESS == 0 {
                println!("uio: received {received}");
            }
        }
        let now = device.states();
        for (member, state) in now.iter().enumerate() {
            if states.get(member) != Some(state) {
                let word = if state.0 { "present" } else { "absent" };
                println!("uio: member {member} is {word}, boot {}", state.1);
            }
        }
        states = now;
        if has_left {
            consumer.leave();
            println!("uio: received {received} in all, lost {lost}");
            return Ok(());
        }
        let waits = consumer.will_wait()?;
        if consumer.needs_doorbell() {
            device.ring_others();
        }
        if waits {
            device.wait()?;
        }
    }
}
