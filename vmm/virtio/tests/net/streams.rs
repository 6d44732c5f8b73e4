//! A link to a process behind a stream socket, such as passt.

use std::collections::VecDeque;
use std::io::Write;

use mkvmm_virtio::{Progress, VirtioDevice};
use vmm_sys_util::epoll::EventSet;

use crate::{OTHERS, OURS, frame, framed, frames, stream_guest};

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
