//! Network devices against correct and hostile drivers, links and neighbours.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use mkvmm_virtio::net::{
    Change, Changes, FRAME_MAX, Link, MEMBERS_MAX, Mac, Member, Net, NetSettings, Segment, Stream,
};
use mkvmm_virtio::testing::{Driver, Interrupts, memory};
use mkvmm_virtio::{Activation, Broken, Memory, Progress, VirtioDevice};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
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

#[test]
fn the_driver_reads_address_status_and_mtu() {
    let (guest, _theirs) = stream_guest(9000);
    let mut config = [0xaa; 16];
    guest.device.read_config(0, &mut config);
    assert_eq!(config[..6], OURS);
    assert_eq!(config[6..], [1, 0, 1, 0, 0x28, 0x23, 0, 0, 0, 0]);
    let mut beyond = [1; 4];
    guest.device.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn frames_go_both_ways_with_their_lengths() {
    let (mut guest, mut theirs) = stream_guest(1500);
    let out = frame(OTHERS, OURS, 100, 1);
    guest.send(&out);
    guest.settle();
    assert_eq!(frames(&mut theirs, &mut Vec::new()), [out]);
    assert!(guest.transmit.used().is_some());

    let back = frame(OURS, OTHERS, 1514, 2);
    guest.receive.add(&[], &[2048]);
    let bytes = framed(&back);
    // It arrives in pieces, of which the second one ends inside the header.
    for piece in [&bytes[..2], &bytes[2..7], &bytes[7..1000], &bytes[1000..]] {
        assert!(guest.arrived().is_empty());
        theirs.write_all(piece).unwrap();
        guest.settle();
    }
    assert_eq!(guest.arrived(), [back]);
    assert!(guest.interrupts.used_count() >= 2);
}

#[test]
fn the_longest_frames_fill_many_buffers() {
    let (mut guest, mut theirs) = stream_guest(65520);
    let long = frame(OURS, OTHERS, 65534, 3);
    let short = frame(OURS, OTHERS, 60, 4);
    theirs.set_nonblocking(false).unwrap();
    theirs.write_all(&framed(&long)).unwrap();
    theirs.write_all(&framed(&short)).unwrap();
    // Forty of them are too few.
    for _ in 0..40 {
        guest.receive.add(&[], &[1536]);
        guest.settle();
    }
    assert!(guest.arrived().is_empty());
    for _ in 0..4 {
        guest.receive.add(&[], &[1536]);
    }
    guest.settle();
    assert_eq!(guest.arrived(), [long, short]);

    let out = frame(OTHERS, OURS, 65534, 5);
    guest.send(&out);
    guest.settle();
    theirs.set_nonblocking(true).unwrap();
    assert_eq!(frames(&mut theirs, &mut Vec::new()), [out]);
}

#[test]
fn a_slow_receiver_holds_frames_up_and_loses_none() {
    let (mut guest, mut theirs) = stream_guest(65520);
    let sent: Vec<_> = (0..30)
        .map(|seed| frame(OTHERS, OURS, 60_000 + usize::from(seed), seed))
        .collect();
    let (mut buffer, mut received) = (Vec::new(), Vec::new());
    let mut waiting = VecDeque::from(sent.clone());
    let mut held = 0;
    while received.len() < sent.len() {
        // The driver's buffers are in the first MiB of theirs.
        if received.len() + held == sent.len() - waiting.len()
            && let Some(frame) = waiting.pop_front()
        {
            guest.send(&frame);
            held += 1;
        }
        guest.settle();
        if held == 8 || waiting.is_empty() {
            let more = frames(&mut theirs, &mut buffer);
            held -= more.len();
            received.extend(more);
        }
    }
    assert!(received == sent);
    assert_eq!(guest.device.drops().counts().full, 0);
}

#[test]
fn a_guest_without_buffers_receives_later() {
    let (mut guest, mut theirs) = stream_guest(1500);
    let all: Vec<_> = (0..5).map(|seed| frame(OURS, OTHERS, 200, seed)).collect();
    for frame in &all {
        theirs.write_all(&framed(frame)).unwrap();
    }
    guest.settle();
    // It is to ring for the next buffer, and is not asked to for others.
    assert!(!guest.receive.kicks_are_disabled());
    for frame in all {
        assert!(guest.arrived().is_empty());
        guest.receive.add(&[], &[1526]);
        guest.settle();
        assert_eq!(guest.arrived(), [frame]);
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_the_next_arrives() {
    for features in [0, MERGEABLE] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut guest = guest(Stream::new(ours.into()), 1500, features);
        let short = frame(OURS, OTHERS, 300, 1);
        for len in [1519, FRAME_MAX] {
            theirs
                .write_all(&framed(&frame(OURS, OTHERS, len, 0)))
                .unwrap();
        }
        theirs.write_all(&framed(&short)).unwrap();
        guest.receive.add(&[], &[1526]);
        guest.settle();
        assert_eq!(guest.arrived(), [short]);
    }
    // The driver's buffers are smaller than it was told to make them.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut guest = guest(Stream::new(ours.into()), 1500, 0);
    let short = frame(OURS, OTHERS, 80, 1);
    theirs
        .write_all(&framed(&frame(OURS, OTHERS, 1000, 0)))
        .unwrap();
    theirs.write_all(&framed(&short)).unwrap();
    guest.receive.add(&[], &[500]);
    guest.settle();
    assert_eq!(guest.arrived(), [short]);
}

#[test]
fn a_ring_full_of_tiny_buffers_does_not_stop_the_device() {
    let (mut guest, mut theirs) = stream_guest(65520);
    let short = frame(OURS, OTHERS, 40, 1);
    theirs
        .write_all(&framed(&frame(OURS, OTHERS, 60_000, 0)))
        .unwrap();
    theirs.write_all(&framed(&short)).unwrap();
    for _ in 0..64 {
        guest.receive.add(&[], &[13]);
    }
    guest.settle();
    assert_eq!(guest.arrived(), [short]);
}

#[test]
fn a_buffer_without_room_for_a_header_stops_the_device() {
    let (mut guest, mut theirs) = stream_guest(1500);
    theirs
        .write_all(&framed(&frame(OURS, OTHERS, 60, 0)))
        .unwrap();
    guest.receive.add(&[], &[11]);
    let error = guest.device.on_queue(RECEIVE).unwrap_err();
    assert!(matches!(error, Broken::Request { queue: RECEIVE, .. }));
    assert_eq!(guest.device.reset(), Progress::Done);
}

#[test]
fn malformed_requests_are_dropped_and_counted() {
    let (mut guest, mut theirs) = stream_guest(1500);
    let good = frame(OTHERS, OURS, 60, 1);
    let mut offload = HEADER;
    offload[1] = 1;
    let mut checksum = HEADER;
    checksum[0] = 1;
    for parts in [
        &[&HEADER[..]][..],
        &[&HEADER[..5]],
        &[&HEADER, &good[..13]],
        &[&HEADER, &frame(OTHERS, OURS, 1519, 0)],
        &[&offload, &good],
        &[&checksum, &good],
    ] {
        guest.transmit.add(parts, &[]);
    }
    // Without anything to read, with something to write, and in many pieces.
    guest.transmit.add(&[], &[100]);
    guest.transmit.add(&[&HEADER, &good], &[100]);
    guest
        .transmit
        .add(&[&HEADER[..3], &HEADER[3..], &good[..20], &good[20..]], &[]);
    guest.settle();
    assert_eq!(frames(&mut theirs, &mut Vec::new()), [good.clone(), good]);
    assert_eq!(guest.device.drops().counts().malformed, 7);
    let returned = std::iter::from_fn(|| guest.transmit.used()).count();
    assert_eq!(returned, 9);
}

#[test]
fn the_driver_learns_that_the_link_is_down_and_goes_on() {
    let (mut guest, theirs) = stream_guest(1500);
    assert_eq!((guest.status(), guest.interrupts.config_count()), (1, 0));
    drop(theirs);
    guest.settle();
    assert_eq!((guest.status(), guest.interrupts.config_count()), (0, 1));
    for seed in 0..20 {
        guest.send(&frame(OTHERS, OURS, 100, seed));
    }
    guest.settle();
    assert_eq!(std::iter::from_fn(|| guest.transmit.used()).count(), 20);
    assert_eq!(guest.device.drops().counts().down, 20);
    assert_eq!(guest.interrupts.config_count(), 1);
}

#[test]
fn a_helper_that_breaks_the_protocol_is_believed_no_more() {
    for length in [0_u32, 13, 65536, u32::MAX] {
        let (mut guest, mut theirs) = stream_guest(1500);
        theirs.write_all(&length.to_be_bytes()).unwrap();
        theirs.write_all(&[0; 64]).unwrap();
        guest.receive.add(&[], &[2048]);
        guest.settle();
        assert_eq!((guest.status(), guest.arrived().len()), (0, 0), "{length}");
    }
}

#[test]
fn a_flood_leaves_others_their_turn() {
    let (mut guest, theirs) = stream_guest(65520);
    for _ in 0..60 {
        guest.receive.add(&[], &[12_000]);
    }
    // More than the budget of a call, and less than the socket's buffer.
    let mut writer = theirs.try_clone().unwrap();
    writer.set_nonblocking(false).unwrap();
    let flood = framed(&frame(OURS, OTHERS, 40, 0));
    let sender = std::thread::spawn(move || {
        for _ in 0..1000 {
            if writer.write_all(&flood).is_err() {
                break;
            }
        }
    });
    let mut arrived = 0;
    while arrived < 1000 {
        let progress = guest.device.on_descriptor(0, EventSet::IN).unwrap();
        let now = guest.arrived().len();
        assert!(now <= 256, "{now} frames in one call");
        assert!(progress == Progress::Done || now > 0);
        arrived += now;
        for _ in 0..now {
            guest.receive.add(&[], &[100]);
        }
    }
    sender.join().unwrap();
}

#[test]
fn a_reset_in_the_middle_of_a_frame_is_followed_by_whole_ones() {
    let (mut guest, mut theirs) = stream_guest(65520);
    let long = frame(OURS, OTHERS, 50_000, 1);
    theirs.set_nonblocking(false).unwrap();
    theirs.write_all(&framed(&long)).unwrap();
    for _ in 0..10 {
        guest.receive.add(&[], &[1536]);
    }
    guest.send(&frame(OTHERS, OURS, 65534, 2));
    guest.settle();
    assert_eq!(guest.device.reset(), Progress::Done);
    // Nothing is touched while it is not active.
    assert_eq!(guest.device.on_queue(RECEIVE).unwrap(), Progress::Done);
    assert_eq!(guest.device.on_queue(TRANSMIT).unwrap(), Progress::Done);
    assert!(guest.arrived().is_empty());

    guest.receive = Driver::new(&guest.memory, 2, 64);
    guest.transmit = Driver::new(&guest.memory, 3, 64);
    guest.activate(MERGEABLE);
    for _ in 0..34 {
        guest.receive.add(&[], &[1536]);
    }
    let out = frame(OTHERS, OURS, 65000, 3);
    guest.send(&out);
    guest.settle();
    assert_eq!(guest.arrived(), [long]);
    theirs.set_nonblocking(true).unwrap();
    let received = frames(&mut theirs, &mut Vec::new());
    assert_eq!(received.last(), Some(&out));
}

/// Changes that a test makes.
#[derive(Debug, Clone)]
struct Told {
    changes: Arc<Mutex<VecDeque<Change>>>,
    event: Arc<OwnedFd>,
}

impl Told {
    fn new() -> Self {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        Self {
            changes: Arc::default(),
            event: Arc::new(event),
        }
    }

    /// Adds a member, and returns its socket.
    fn join(&self, id: u64, mac: Mac) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (socket, other) = pair.unwrap();
        self.tell(Change::Joined(Member { id, mac, socket }));
        other
    }

    fn tell(&self, change: Change) {
        self.changes.lock().unwrap().push_back(change);
        rustix::io::write(&self.event, &1_u64.to_ne_bytes()).unwrap();
    }
}

impl Changes for Told {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn next(&mut self) -> Option<Change> {
        let mut changes = self.changes.lock().unwrap();
        let change = changes.pop_front();
        if changes.is_empty() {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        change
    }
}

fn member(id: u8) -> [u8; 6] {
    [2, 0, 0, 0, id, 0]
}

fn segment_guest() -> (Guest, Told) {
    let told = Told::new();
    let segment = Segment::new(Mac(OURS), told.clone()).unwrap();
    (guest(segment, 65520, MERGEABLE), told)
}

fn packet(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 17];
    let received = rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT);
    let (length, _) = received.ok()?;
    buffer.truncate(length);
    Some(buffer)
}

fn put(socket: &OwnedFd, frame: &[u8]) -> bool {
    rustix::net::send(socket, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
}

#[test]
fn members_get_what_is_theirs() {
    let (mut guest, told) = segment_guest();
    let others = [2, 3, 4].map(|id| told.join(id.into(), Mac(member(id))));
    let to_one = frame(member(3), OURS, 65534, 1);
    let to_all = frame(ALL, OURS, 60, 2);
    guest.send(&to_one);
    guest.send(&to_all);
    guest.settle();
    assert_eq!(packet(&others[1]).as_ref(), Some(&to_one));
    for other in &others {
        assert_eq!(packet(other).as_ref(), Some(&to_all));
        assert_eq!(packet(other), None);
    }
    for _ in 0..60 {
        guest.receive.add(&[], &[2048]);
    }
    let back = frame(OURS, member(4), 65534, 3);
    let hello = frame(ALL, member(2), 42, 4);
    assert!(put(&others[2], &back) && put(&others[0], &hello));
    guest.settle();
    let mut arrived = guest.arrived();
    arrived.sort_by_key(Vec::len);
    assert!(arrived == [hello, back]);
}

#[test]
fn nobody_speaks_for_others() {
    let (mut guest, told) = segment_guest();
    let other = told.join(7, Mac(member(7)));
    guest.send(&frame(member(7), member(8), 60, 1));
    guest.send(&frame(member(9), OURS, 60, 1));
    guest.settle();
    assert_eq!(packet(&other), None);
    let counts = guest.device.drops().counts();
    assert_eq!((counts.foreign, counts.unknown), (1, 1));

    for _ in 0..8 {
        guest.receive.add(&[], &[2048]);
    }
    put(&other, &frame(OURS, member(8), 60, 1));
    put(&other, &frame(OURS, OURS, 60, 1));
    put(&other, &frame(member(8), member(7), 60, 1));
    put(&other, &[7; 13]);
    put(&other, &vec![7; 70_000]);
    let good = frame(OURS, member(7), 60, 2);
    put(&other, &good);
    guest.settle();
    assert_eq!(guest.arrived(), [good]);
    let counts = guest.device.drops().counts();
    assert_eq!((counts.foreign, counts.unknown), (3, 2));
    assert_eq!(counts.malformed, 2);
}

#[test]
fn who_floods_waits_for_others() {
    let (mut guest, told) = segment_guest();
    let flooder = told.join(2, Mac(member(2)));
    let quiet = told.join(3, Mac(member(3)));
    guest.settle();
    let large = frame(OURS, member(2), 1400, 1);
    let small = frame(OURS, member(3), 60, 2);
    for _ in 0..20 {
        // Its buffer is full at any time.
        while put(&flooder, &large) {}
        assert!(put(&quiet, &small));
        let mut between = 0;
        'found: loop {
            guest.receive.add(&[], &[2048]);
            guest.settle();
            for frame in guest.arrived() {
                if frame == small {
                    break 'found;
                }
                between += 1;
            }
            while put(&flooder, &large) {}
        }
        assert!(between <= 2 * 65536 / 1400, "{between} frames of the flood");
    }
}

#[test]
fn a_member_that_reads_nothing_holds_nobody_up() {
    let (mut guest, told) = segment_guest();
    let deaf = told.join(2, Mac(member(2)));
    let other = told.join(3, Mac(member(3)));
    for round in 0..400 {
        let seed = u8::try_from(round % 256).unwrap();
        guest.send(&frame(member(2), OURS, 1514, seed));
        guest.send(&frame(ALL, OURS, 60, seed));
        let to_other = frame(member(3), OURS, 1514, seed);
        guest.send(&to_other);
        guest.settle();
        while guest.transmit.used().is_some() {}
        assert_eq!(packet(&other).map(|frame| frame.len()), Some(60));
        assert_eq!(packet(&other), Some(to_other));
        if round % 5 == 0 {
            // The driver's buffers begin again.
            assert_eq!(guest.device.reset(), Progress::Done);
            guest.transmit = Driver::new(&guest.memory, TRANSMIT, 64);
            guest.activate(MERGEABLE);
        }
    }
    assert!(guest.device.drops().counts().full > 0);
    drop(deaf);
}

#[test]
fn members_come_and_go_and_come_again() {
    let (mut guest, told) = segment_guest();
    for round in 0..50 {
        let other = told.join(2, Mac(member(2)));
        guest.settle();
        guest.send(&frame(member(2), OURS, 60, round));
        guest.settle();
        assert_eq!(packet(&other), Some(frame(member(2), OURS, 60, round)));
        if round % 2 == 0 {
            // It goes, with a frame on the way and one to it.
            put(&other, &frame(OURS, member(2), 60, round));
            drop(other);
            guest.receive.add(&[], &[2048]);
            guest.settle();
            assert_eq!(guest.arrived(), [frame(OURS, member(2), 60, round)]);
            guest.send(&frame(member(2), OURS, 60, round));
            guest.settle();
        }
        // Or it comes again while its old socket is still open.
    }
    let counts = guest.device.drops().counts();
    assert_eq!(counts.unknown, 25);
    // Too many, and some with an address that another one has had, or our own.
    let many: Vec<_> = (10..136)
        .map(|id: u8| told.join(id.into(), Mac(member(id))))
        .collect();
    let twin = told.join(1000, Mac(member(20)));
    told.join(1001, Mac(OURS));
    let late = told.join(1002, Mac(member(200)));
    told.tell(Change::Last);
    for _ in 0..8 {
        guest.settle();
    }
    guest.send(&frame(ALL, OURS, 60, 9));
    guest.settle();
    // Who was not let in, or had to leave, finds the end.
    let has_frame = |other: &&OwnedFd| packet(other).is_some_and(|frame| frame.len() == 60);
    let reached = many.iter().filter(has_frame).count();
    assert_eq!(packet(&late), Some(Vec::new()));
    assert_eq!(reached, 2 * MEMBERS_MAX - 1);
    assert_eq!(packet(&twin).map(|frame| frame.len()), Some(60));
}
