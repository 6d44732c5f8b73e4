//! Network devices against correct and hostile drivers, links and neighbours.
//!
//! | module | what |
//! |---|---|
//! | `device` | the device: queues, buffers, resets |
//! | `streams` | a link to a process behind a stream socket |
//! | `segments` | a link to other guests |
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod device;
mod segments;
mod streams;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use mkvmm_virtio::net::{Link, Mac, Net, NetSettings, Stream};
use mkvmm_virtio::testing::{Driver, Interrupts, memory};
use mkvmm_virtio::{Activation, Memory, Progress, VirtioDevice};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const HEADER: [u8; 12] = [0; 12];
const MERGEABLE: u64 = 1 << 15;
const OURS: [u8; 6] = [2, 0, 0, 0, 1, 0];
const OTHERS: [u8; 6] = [2, 0, 0, 0, 2, 0];
const ALL: [u8; 6] = [0xff; 6];

/// A device with its driver.
struct Guest {
    device: Net,
    memory: Arc<GuestMemoryMmap>,
    interrupts: Arc<Interrupts>,
    receive: Driver,
    transmit: Driver,
}

fn guest(link: impl Link + 'static, mtu: u16, features: u64) -> Guest {
    let settings = NetSettings {
        mac: Mac(OURS),
        mtu,
    };
    let memory = memory();
    let mut guest = Guest {
        device: Net::new(settings, Box::new(link)),
        interrupts: Arc::default(),
        receive: Driver::new(&memory, RECEIVE, 64),
        transmit: Driver::new(&memory, TRANSMIT, 64),
        memory,
    };
    guest.activate(features);
    guest
}

fn stream_guest(mtu: u16) -> (Guest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let guest = guest(Stream::new(ours.into()), mtu, MERGEABLE);
    (guest, theirs)
}

impl Guest {
    fn activate(&mut self, features: u64) {
        let queues = vec![
            self.receive.ring(&self.interrupts, false),
            self.transmit.ring(&self.interrupts, false),
        ];
        let active = Activation {
            features,
            memory: Arc::clone(&self.memory) as Memory,
            queues,
        };
        self.device.activate(active).unwrap();
    }

    /// Calls the device until it has nothing more to do.
    fn settle(&mut self) {
        while self.device.on_queue(RECEIVE).unwrap() == Progress::More {}
        while self.device.on_queue(TRANSMIT).unwrap() == Progress::More {}
        while self.device.on_descriptor(0, EventSet::IN).unwrap() == Progress::More {}
    }

    fn send(&mut self, frame: &[u8]) {
        self.transmit.add(&[&HEADER, frame], &[]);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.device.read_config(6, &mut status);
        status[0]
    }

    /// Returns the frames that have arrived, of buffers that were offered in
    /// order.
    fn arrived(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((head, written)) = self.receive.used() {
            let mut bytes = self.receive.written(head);
            bytes.truncate(usize::try_from(written).unwrap());
            let count = u16::from_le_bytes([bytes[10], bytes[11]]);
            let mut frame = bytes.split_off(HEADER.len());
            for _ in 1..count {
                let (head, written) = self.receive.used().unwrap();
                let more = self.receive.written(head);
                frame.extend(&more[..usize::try_from(written).unwrap()]);
            }
            frames.push(frame);
        }
        frames
    }
}

/// Returns a frame of `len` bytes with a pattern that depends on `seed`.
fn frame(to: [u8; 6], from: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
    frame.resize_with(len, || 0);
    for (index, byte) in frame.iter_mut().enumerate().skip(14) {
        *byte = u8::try_from(index % 251).unwrap() ^ seed;
    }
    frame
}

fn framed(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap();
    [&length.to_be_bytes()[..], frame].concat()
}

/// Reads whole frames, as far as there are any; the rest stays in `buffer`.
fn frames(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let mut piece = vec![0; 1 << 20];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        buffer.extend(&piece[..count]);
    }
    let mut frames = Vec::new();
    while let Some(length) = buffer.first_chunk() {
        let end = 4 + usize::try_from(u32::from_be_bytes(*length)).unwrap();
        if buffer.len() < end {
            break;
        }
        frames.push(buffer[4..end].to_vec());
        buffer.drain(..end);
    }
    frames
}
