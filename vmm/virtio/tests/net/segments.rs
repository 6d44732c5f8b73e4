//! A link to other guests on a segment.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use mkvmm_virtio::net::{Change, Changes, MEMBERS_MAX, Mac, Member, Segment};
use mkvmm_virtio::testing::Driver;
use mkvmm_virtio::{Progress, VirtioDevice};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use crate::{ALL, Guest, MERGEABLE, OURS, TRANSMIT, frame, guest};

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
