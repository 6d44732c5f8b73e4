//! Two processes with a ring in a memory file: `cargo run -p mkvmm-ring --example two_processes`.
//!
//! This process sends the numbers of lines, its child prints them. The child is killed in the
//! middle, and another one takes its place.

use std::error::Error;
use std::process::{Child, Command};

use mkvmm_ring::{Consumer, InDoubt, Producer, PushError, State};

use memfd::{Bell, Mapping};

mod memfd;

const LINES: u64 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => produce(),
        [path, own_bell, other_bell] => consume(path, &Bell::new(own_bell, other_bell)?),
        _ => Err("usage: two_processes".into()),
    }
}

fn produce() -> Result<(), Box<dyn Error>> {
    // A small ring, so that the producer has to wait: 256 bytes of data.
    let (file, path) = memfd::make_file(128 + 32)?;
    let names = ["producer", "consumer"].map(|side| format!("{side}-{}", std::process::id()));
    let bell = Bell::new(&names[0], &names[1])?;
    let start = || {
        let program = std::env::current_exe()?;
        Command::new(program)
            .args([&path, &names[1], &names[0]])
            .spawn()
    };
    let mut child = start()?;
    let mapping = Mapping::new(&file)?;
    let mut producer = Producer::join(&mapping[..])?;
    while producer.sequence() < LINES {
        let text = format!("line {} of {LINES}", producer.sequence());
        match producer.try_push(text.as_bytes()) {
            Ok(number) if number == LINES / 2 => {
                child.kill()?;
                child.wait()?;
                child = start()?;
            }
            Ok(_) => {}
            Err(PushError::Full { .. }) => {
                if producer.will_wait(text.len())? {
                    bell.wait()?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if producer.needs_doorbell() {
            bell.ring();
        }
    }
    println!("the producer has sent {:?}", producer.stats());
    producer.leave();
    bell.ring();
    finish(child)
}

fn finish(mut child: Child) -> Result<(), Box<dyn Error>> {
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("the consumer: {status}").into()),
    }
}

fn consume(path: &str, bell: &Bell) -> Result<(), Box<dyn Error>> {
    let mut consumer = Consumer::join(Mapping::open(path)?, InDoubt::Lose)?;
    println!("consumer {} joins", consumer.epoch());
    if !consumer.in_doubt().is_empty() {
        println!("perhaps lost: {:?}", consumer.in_doubt());
    }
    let mut buffer = vec![0; consumer.max_message()];
    loop {
        // This comes first: what was sent before the producer left is in the ring now.
        let has_left = consumer.peer().state == State::Left;
        while let Some(received) = consumer.try_pop(&mut buffer)? {
            let text = String::from_utf8_lossy(&buffer[..received.len]);
            println!("{}: {text}", received.sequence);
        }
        if has_left {
            consumer.leave();
            return Ok(());
        }
        let waits = consumer.will_wait()?;
        if consumer.needs_doorbell() {
            bell.ring();
        }
        if waits {
            bell.wait()?;
        }
    }
}
