use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    Text(String),
    Files(u8),
    Bytes(Vec<u8>),
}

impl Message for Word {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            Self::Files(count) => usize::from(*count)..=usize::from(*count),
            Self::Text(_) | Self::Bytes(_) => 0..=0,
        }
    }
}

/// A type of messages that never carry descriptors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Plain(u32);

impl Message for Plain {}

type Ends = (Channel<Word, Word>, Channel<Word, Word>);

fn ends() -> Ends {
    let (left, right) = pair().unwrap();
    (Channel::open(left).unwrap(), Channel::open(right).unwrap())
}

fn text(text: &str) -> Word {
    Word::Text(text.to_owned())
}

/// Returns a channel and the peer's bare socket after the exchange of hellos.
fn with_bare_peer() -> (Channel<Word, Word>, OwnedFd) {
    let (ours, theirs) = pair().unwrap();
    let channel = Channel::open(ours).unwrap();
    socket::send(theirs.as_fd(), &envelope::hello(VERSION), &[]).unwrap();
    (channel, theirs)
}

/// Returns a pipe; the reading end reports when all writing ends are closed.
fn pipe() -> (File, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(read)), OwnedFd::from(write))
}

fn repeat(descriptor: &OwnedFd, count: usize) -> Vec<BorrowedFd<'_>> {
    vec![descriptor.as_fd(); count]
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

#[test]
fn messages_arrive_in_order_in_both_directions_and_then_the_end() {
    let (mut a, mut b) = ends();
    for word in ["one", "two"] {
        a.send(&text(word), &[], None).unwrap();
    }
    b.send(&text("three"), &[], None).unwrap();
    assert_eq!(b.recv(None).unwrap().unwrap().message, text("one"));
    assert_eq!(b.recv(None).unwrap().unwrap().message, text("two"));
    assert_eq!(a.recv(None).unwrap().unwrap().message, text("three"));
    drop(a);
    assert!(b.recv(None).unwrap().is_none());
    assert!(matches!(
        b.send(&text("late"), &[], None),
        Err(WireError::Closed)
    ));
}

#[test]
fn the_most_descriptors_arrive_close_on_exec_and_work() {
    let (mut a, mut b) = ends();
    let (mut read, write) = pipe();
    a.send(&Word::Files(253), &repeat(&write, 253), None)
        .unwrap();
    drop(write);
    let received = b.recv(soon()).unwrap().unwrap();
    assert_eq!(received.descriptors.len(), 253);
    for descriptor in &received.descriptors {
        let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
    }
    rustix::io::write(&received.descriptors[252], b"through").unwrap();
    drop(received);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[test]
fn a_sender_is_told_of_its_own_mistakes() {
    let (mut a, mut b) = ends();
    let (_read, write) = pipe();
    let sent = a.sender.try_send(&Word::Files(2), &repeat(&write, 1));
    assert!(matches!(sent, Err(WireError::Descriptors { found: 1, .. })));
    let sent = a.sender.try_send(&Word::Files(254), &repeat(&write, 254));
    assert!(matches!(
        sent,
        Err(WireError::Descriptors { found: 254, .. })
    ));
    let sent = a.sender.try_send(&Word::Bytes(vec![0; MESSAGE_MAX]), &[]);
    assert!(matches!(sent, Err(WireError::TooLong { .. })));
    // Nothing of it was sent, and the sequence numbers continue.
    let largest = Word::Bytes(vec![7; MESSAGE_MAX - 6]);
    a.sender.try_send(&largest, &[]).unwrap();
    assert_eq!(b.recv(soon()).unwrap().unwrap().message, largest);
}

#[test]
fn descriptors_that_a_message_does_not_have_are_closed_and_an_error() {
    let (mut channel, theirs) = with_bare_peer();
    let (mut read, write) = pipe();
    let packet = encode(0, 0, &text("take these")).unwrap();
    socket::send(theirs.as_fd(), &packet, &repeat(&write, 3)).unwrap();
    drop(write);
    let error = channel.recv(soon()).unwrap_err();
    assert!(matches!(error, WireError::Descriptors { found: 3, .. }));
    assert!(error.is_violation());
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_direction_without_descriptors_never_has_them() {
    let (ours, theirs) = pair().unwrap();
    let mut channel: Channel<Plain, Plain> = Channel::open(ours).unwrap();
    let (mut read, write) = pipe();
    socket::send(theirs.as_fd(), &envelope::hello(VERSION), &[]).unwrap();
    let packet = encode(0, 0, &Plain(1)).unwrap();
    socket::send(theirs.as_fd(), &packet, &repeat(&write, 1)).unwrap();
    drop(write);
    let error = channel.recv(soon()).unwrap_err();
    assert!(matches!(error, WireError::DescriptorsCut { expected: 0 }));
    assert!(error.is_violation());
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
}

#[test]
fn descriptors_without_bytes_are_closed_and_an_error() {
    let (mut channel, theirs) = with_bare_peer();
    let (mut read, write) = pipe();
    socket::send(theirs.as_fd(), &[], &repeat(&write, 1)).unwrap();
    drop(write);
    assert!(channel.recv(soon()).unwrap_err().is_violation());
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
}

#[test]
fn packets_beyond_the_limit_or_out_of_order_are_violations() {
    let too_long = vec![0; MESSAGE_MAX + 1];
    let ahead = encode(1, 0, &text("ahead")).unwrap();
    let mut trailing = encode(0, 0, &text("x")).unwrap();
    trailing.push(0);
    let cases: [(&[u8], &str); 4] = [
        (&too_long, "a message of 196609 bytes exceeds"),
        (&ahead, "received message number 1 instead of 0"),
        (&trailing, "a packet has 1 trailing bytes after its message"),
        (&[0, 0, 9], "a packet of 3 bytes cannot be decoded"),
    ];
    for (packet, words) in cases {
        let (mut channel, theirs) = with_bare_peer();
        socket::send(theirs.as_fd(), packet, &[]).unwrap();
        let error = channel.recv(soon()).unwrap_err();
        assert!(error.is_violation(), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn another_version_is_refused_with_both_numbers() {
    let (ours, theirs) = pair().unwrap();
    let mut channel: Channel<Word, Word> = Channel::open(ours).unwrap();
    socket::send(theirs.as_fd(), &envelope::hello(77), &[]).unwrap();
    let error = channel.recv(soon()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the peer has version 77 of the wire protocol, this program has version {VERSION}")
    );
}

#[test]
fn an_older_peer_is_answered_in_its_version_and_no_other_is_accepted() {
    for version in [OLDEST, VERSION] {
        let (ours, theirs) = pair().unwrap();
        let mut channel: Channel<Word, Word> = Channel::join(ours).unwrap();
        socket::send(theirs.as_fd(), &envelope::hello(version), &[]).unwrap();
        let word = encode(0, 0, &text("welcome")).unwrap();
        socket::send(theirs.as_fd(), &word, &[]).unwrap();
        channel.recv(soon()).unwrap().unwrap();
        assert_eq!(channel.receiver.version(), version);
        channel.sender.restart(version, soon()).unwrap();
        let packet = socket::receive(theirs.as_fd(), 0).unwrap().unwrap();
        assert_eq!(packet.bytes, envelope::hello(version));
    }
    for version in [OLDEST - 1, VERSION + 1] {
        let (ours, theirs) = pair().unwrap();
        let mut channel: Channel<Word, Word> = Channel::join(ours).unwrap();
        socket::send(theirs.as_fd(), &envelope::hello(version), &[]).unwrap();
        let error = channel.recv(soon()).unwrap_err();
        assert!(matches!(error, WireError::Version { .. }), "{error}");
        let (ours, _theirs) = pair().unwrap();
        let resumed = Channel::<Word, Word>::resume(ours, version, None);
        assert!(matches!(resumed, Err(WireError::Version { .. })));
    }
    // One that had said which it speaks must go on with that.
    let (ours, theirs) = pair().unwrap();
    let mut channel: Channel<Plain, Plain> = Channel::resume(ours, OLDEST, None).unwrap();
    socket::send(theirs.as_fd(), &envelope::hello(VERSION), &[]).unwrap();
    let error = channel.recv(soon()).unwrap_err();
    assert!(matches!(error, WireError::Version { .. }), "{error}");
}

#[test]
fn whoever_does_not_greet_is_refused() {
    for packet in [&b"GET / HTTP/1.1"[..], &b"mkvmm-w\n\x01\0\0\0\0"[..]] {
        let (ours, theirs) = pair().unwrap();
        let mut channel: Channel<Word, Word> = Channel::open(ours).unwrap();
        socket::send(theirs.as_fd(), packet, &[]).unwrap();
        let error = channel.recv(soon()).unwrap_err();
        assert!(matches!(error, WireError::NoHello { .. }), "{error}");
    }
}

#[test]
fn news_never_wait_and_what_was_dropped_is_counted_once() {
    let (mut a, mut b) = ends();
    let news = Word::Bytes(vec![1; 1000]);
    let mut sent = 0_u64;
    while a.sender.send_news(&news).unwrap() {
        sent += 1;
    }
    for _ in 0..9 {
        assert!(!a.sender.send_news(&news).unwrap());
    }
    assert_eq!(a.sender.lost(), 10);
    assert!(matches!(
        a.sender.try_send(&news, &[]),
        Err(WireError::WouldBlock)
    ));
    for _ in 0..sent {
        assert_eq!(b.recv(soon()).unwrap().unwrap().lost, 0);
    }
    a.send(&text("room again"), &[], soon()).unwrap();
    a.send(&text("and again"), &[], soon()).unwrap();
    assert_eq!(b.recv(soon()).unwrap().unwrap().lost, 10);
    assert_eq!(b.recv(soon()).unwrap().unwrap().lost, 0);
}

#[test]
fn what_a_peer_said_before_it_died_arrives_although_it_did_not_listen() {
    let (mut a, mut b) = ends();
    b.send(&text("never read"), &[], None).unwrap();
    for word in ["last", "words"] {
        a.send(&text(word), &[], None).unwrap();
    }
    drop(a); // the kernel resets the connection, as data is unread
    assert_eq!(b.recv(soon()).unwrap().unwrap().message, text("last"));
    assert_eq!(b.recv(soon()).unwrap().unwrap().message, text("words"));
    assert!(b.recv(soon()).unwrap().is_none());
}

#[test]
fn waits_end_at_their_deadline() {
    let (mut a, mut b) = ends();
    let now = Some(Instant::now());
    assert!(matches!(b.recv(now), Err(WireError::TimedOut)));
    while a.sender.send_news(&Word::Bytes(vec![1; 1000])).unwrap() {}
    assert!(matches!(
        a.send(&text("full"), &[], now),
        Err(WireError::TimedOut)
    ));
}

#[test]
fn a_waiting_sender_goes_on_when_there_is_room() {
    let (mut a, mut b) = ends();
    let count = 2000_u32;
    let reader = std::thread::spawn(move || {
        for number in 0..count {
            let received = b.recv(soon()).unwrap().unwrap();
            assert_eq!(received.message, text(&number.to_string()));
        }
    });
    for number in 0..count {
        a.send(&text(&number.to_string()), &[], soon()).unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn other_descriptors_are_no_channels() {
    let (_read, write) = pipe();
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for other in [write, OwnedFd::from(stream), OwnedFd::from(udp)] {
        let opened = Channel::<Word, Word>::open(other);
        assert!(matches!(opened, Err(WireError::NotSeqpacket)));
    }
}

#[test]
fn both_ends_are_the_same_descriptor_for_an_event_loop() {
    let (a, _b) = ends();
    assert_eq!(a.as_raw_fd(), a.sender.as_fd().as_raw_fd());
}

#[cfg(feature = "tokio")]
mod asynchronous {
    use super::super::asynchronous::AsyncChannel;
    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await })
            .unwrap()
    }

    #[test]
    fn a_dropped_wait_loses_no_message() {
        run(async {
            let (left, right) = pair().unwrap();
            let mut a: AsyncChannel<Word, Word> = AsyncChannel::open(left).unwrap();
            let mut b: AsyncChannel<Word, Word> = AsyncChannel::open(right).unwrap();
            let sender = tokio::spawn(async move {
                let a = &mut a; // move all of it, so that it is dropped here
                for number in 0..3000_u32 {
                    let message = text(&number.to_string());
                    a.sender.send(&message, &[]).await.unwrap();
                    if number % 7 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            });
            let (mut next, mut dropped) = (0_u32, 0_u32);
            loop {
                // The other branch is always ready, so waits are dropped all
                // the time.
                let received = tokio::select! {
                    received = b.receiver.recv() => received.unwrap(),
                    () = tokio::task::yield_now() => {
                        dropped += 1;
                        continue;
                    }
                };
                let Some(received) = received else { break };
                assert_eq!(received.message, text(&next.to_string()));
                next += 1;
            }
            assert_eq!(next, 3000);
            assert!(dropped > 0);
            sender.await.unwrap();
        });
    }

    #[test]
    fn a_flood_does_not_starve_other_tasks() {
        run(async {
            let (left, right) = pair().unwrap();
            let mut a: Channel<Word, Word> = Channel::open(left).unwrap();
            let mut b: AsyncChannel<Word, Word> = AsyncChannel::open(right).unwrap();
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let flood = std::thread::spawn(move || {
                let a = &mut a; // move all of it, so that it is dropped here
                while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                    a.sender.send_news(&text("!")).unwrap();
                }
            });
            let listener =
                tokio::spawn(async move { while b.receiver.recv().await.unwrap().is_some() {} });
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(stop);
            flood.join().unwrap();
            listener.await.unwrap();
        });
    }
}

/// Returns the next message that has arrived.
fn next(channel: &mut Channel<Plain, Plain>) -> Plain {
    channel.receiver.try_recv().unwrap().unwrap().message
}

/// A manager is replaced by another one: what the worker had sent to the first
/// reaches the second, and both count from 0 again.
#[test]
fn another_process_continues_with_the_socket() {
    let (ours, theirs) = pair().unwrap();
    let kept = ours.try_clone().unwrap();
    let mut first: Channel<Plain, Plain> = Channel::open(ours).unwrap();
    let mut worker: Channel<Plain, Plain> = Channel::open(theirs).unwrap();
    worker.receiver.allow_restarts();
    for number in 0..3 {
        first.send(&Plain(number), &[], None).unwrap();
        assert_eq!(next(&mut worker), Plain(number));
        worker.send(&Plain(10 + number), &[], None).unwrap();
    }
    assert_eq!(next(&mut first), Plain(10));
    drop(first);

    let mut second: Channel<Plain, Plain> = Channel::resume(kept, VERSION, None).unwrap();
    assert_eq!(next(&mut second), Plain(11));
    assert!(second.receiver.is_behind());
    second.send(&Plain(50), &[], None).unwrap();
    assert_eq!(worker.receiver.restarts(), 0);
    assert_eq!(next(&mut worker), Plain(50));
    assert_eq!(worker.receiver.restarts(), 1);
    worker.sender.restart(VERSION, None).unwrap();
    worker.send(&Plain(60), &[], None).unwrap();
    assert_eq!(next(&mut second), Plain(12));
    assert_eq!(next(&mut second), Plain(60));
    second.receiver.catch_up();
    assert!(!second.receiver.is_behind());
}

/// A process that takes another's place quietly receives at once, and is noticed by
/// its peer with its first message.
#[test]
fn a_quiet_successor_says_hello_with_its_first_message() {
    let (ours, theirs) = pair().unwrap();
    let kept = ours.try_clone().unwrap();
    drop(Channel::<Plain, Plain>::open(ours).unwrap());
    let mut worker: Channel<Plain, Plain> = Channel::open(theirs).unwrap();
    worker.receiver.allow_restarts();
    worker.send(&Plain(1), &[], None).unwrap();
    let mut second: Channel<Plain, Plain> =
        Channel::resume_quietly(Arc::new(kept), VERSION).unwrap();
    assert_eq!(next(&mut second), Plain(1));
    assert!(matches!(
        worker.receiver.try_recv(),
        Err(WireError::WouldBlock)
    ));
    for number in 2..4 {
        second.send(&Plain(number), &[], None).unwrap();
        assert_eq!(next(&mut worker), Plain(number));
        assert_eq!(worker.receiver.restarts(), 1);
    }
}

/// A process that dies before it has received the answer to its hello leaves that
/// to the next one.
#[test]
fn the_hello_to_a_process_that_died_is_no_violation() {
    let (ours, theirs) = pair().unwrap();
    let (kept, later) = (ours.try_clone().unwrap(), ours.try_clone().unwrap());
    drop(Channel::<Plain, Plain>::open(ours).unwrap());
    let mut worker: Channel<Plain, Plain> = Channel::open(theirs).unwrap();
    worker.receiver.allow_restarts();
    let mut second: Channel<Plain, Plain> = Channel::resume(kept, VERSION, None).unwrap();
    second.send(&Plain(1), &[], None).unwrap();
    assert_eq!(next(&mut worker), Plain(1));
    worker.sender.restart(VERSION, None).unwrap();
    worker.send(&Plain(2), &[], None).unwrap();
    drop(second);
    let mut third: Channel<Plain, Plain> = Channel::resume(later, VERSION, None).unwrap();
    third.send(&Plain(3), &[], None).unwrap();
    assert_eq!(next(&mut worker), Plain(3));
    worker.sender.restart(VERSION, None).unwrap();
    worker.send(&Plain(4), &[], None).unwrap();
    assert_eq!(next(&mut third), Plain(2));
    assert_eq!(next(&mut third), Plain(4));
    third.receiver.catch_up();
    worker.send(&Plain(5), &[], None).unwrap();
    assert_eq!(next(&mut third), Plain(5));
}

/// A peer that says nothing but hello does not keep its reader busy.
#[test]
fn endless_hellos_to_earlier_processes_are_a_violation() {
    let (ours, theirs) = pair().unwrap();
    let mut worker: Channel<Plain, Plain> = Channel::open(theirs).unwrap();
    for _ in 0..100 {
        worker.sender.restart(VERSION, None).unwrap();
    }
    let mut second: Channel<Plain, Plain> = Channel::resume(ours, VERSION, None).unwrap();
    let refused = second.receiver.try_recv();
    assert!(refused.is_err_and(|error| error.is_violation()));
}

/// Only a receiver that allows it is told hello again.
#[test]
fn a_second_hello_is_a_violation_unless_it_is_allowed() {
    let (ours, theirs) = pair().unwrap();
    let mut sender: Channel<Plain, Plain> = Channel::open(ours).unwrap();
    let mut receiver: Channel<Plain, Plain> = Channel::open(theirs).unwrap();
    sender.send(&Plain(1), &[], None).unwrap();
    assert_eq!(next(&mut receiver), Plain(1));
    sender.sender.restart(VERSION, None).unwrap();
    let refused = receiver.receiver.try_recv();
    assert!(refused.is_err_and(|error| error.is_violation()));
}
