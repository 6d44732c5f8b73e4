//! The device itself: what its driver reads, buffers of every size, and resets.

use std::io::Write;
use std::os::unix::net::UnixStream;

use mkvmm_virtio::net::{FRAME_MAX, Stream};
use mkvmm_virtio::testing::Driver;
use mkvmm_virtio::{Broken, Progress, VirtioDevice};

use crate::{
    HEADER, MERGEABLE, OTHERS, OURS, RECEIVE, TRANSMIT, frame, framed, frames, guest, stream_guest,
};

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

#[test]
fn a_chain_that_is_announced_and_taken_back_each_time_does_not_hold_it_up() {
    let (mut guest, _theirs) = stream_guest(1500);
    assert_eq!(guest.device.reset(), Progress::Done);
    guest.transmit = Driver::new(&guest.memory, 3, 64);
    guest.transmit.overlap();
    let packet = guest.transmit.buffer(100);
    guest.transmit.set_descriptor(0, packet, 100, 0, 0);
    guest.activate(MERGEABLE);
    for _ in 0..10 {
        let progress = guest.device.on_queue(TRANSMIT).unwrap();
        assert_eq!(progress, Progress::More);
    }
}
