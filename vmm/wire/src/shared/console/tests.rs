use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::file::{WORDS_LEN, word};
use super::*;
use crate::shared::SharedError;
use crate::shared::bell::Rung;
use crate::shared::mapping::{self, Mapping};

const NEVER: &dyn Fn() -> bool = &|| false;

/// The two sides of one console, each with a mapping and a bell of its own.
struct Sides {
    printer: Printer,
    input: Input,
    viewer: Viewer,
    typist: Typist,
    /// The manager's doorbell, then the worker's.
    bells: (Bell, Bell),
    file: OwnedFd,
}

fn sides(capacity: usize) -> Sides {
    let (ours, file) = Console::create(capacity).unwrap();
    let bells = Bell::pair().unwrap();
    let theirs = Console::open(&file).unwrap();
    assert_eq!(theirs.capacity(), capacity);
    let (printer, input) = theirs.worker(&bells.1);
    Sides {
        printer,
        input,
        viewer: ours.viewer(),
        typist: ours.typist(&bells.0),
        bells,
        file,
    }
}

fn numbered(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|i| (i % 251).to_le_bytes()[0]).collect()
}

#[test]
fn the_ring_keeps_the_last_bytes_and_knows_their_positions() {
    let mut s = sides(CAPACITY_MIN);
    assert_eq!(s.printer.print(b"hello ", NEVER), 6);
    assert_eq!(s.viewer.since(0), (b"hello ".to_vec(), 6));
    s.printer.print(b"world", NEVER);
    assert_eq!(s.viewer.since(6), (b"world".to_vec(), 11));
    assert_eq!(s.viewer.since(11), (Vec::new(), 11));
    assert_eq!(s.viewer.since(99), (Vec::new(), 11));
    s.printer.print(&numbered(11..9000), NEVER);
    assert_eq!(s.viewer.printed(), 9000);
    let kept = (numbered(9000 - CAPACITY_MIN..9000), 9000);
    assert_eq!(s.viewer.since(0), kept);
    assert_eq!(s.viewer.since(9000 - CAPACITY_MIN as u64), kept);
    assert_eq!(s.viewer.since(8999), (numbered(8999..9000), 9000));
}

#[test]
fn output_outlives_its_worker_and_the_next_one_goes_on() {
    let mut s = sides(CAPACITY_MIN);
    s.printer.print(b"first boot\n", NEVER);
    drop((s.printer, s.input));
    assert_eq!(s.viewer.since(0).0, b"first boot\n");
    let (mut printer, _) = Console::open(&s.file).unwrap().worker(&s.bells.1);
    printer.print(b"second", NEVER);
    assert_eq!(s.viewer.since(11), (b"second".to_vec(), 17));
}

#[test]
fn only_a_reader_that_waits_is_woken_and_only_once() {
    let mut s = sides(CAPACITY_MIN);
    for _ in 0..100 {
        s.printer.print(b"x", NEVER);
    }
    assert_eq!(s.bells.0.answer(), Rung::No);
    assert!(!s.viewer.will_wait(0), "there is something to read");
    assert!(s.viewer.will_wait(100));
    for _ in 0..100 {
        s.printer.print(b"x", NEVER);
    }
    let mut rings = [0; 64];
    let (_, count) =
        rustix::net::recv(&s.bells.0, &mut rings[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
    assert_eq!(count, 1);
}

#[test]
fn viewers_beside_a_busy_printer_see_only_true_bytes() {
    let mut s = sides(CAPACITY_MIN);
    let total = 8 << 20;
    let (done, viewer) = (AtomicBool::new(false), &s.viewer);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut position, mut seen) = (0, 0);
                while !done.load(Ordering::Acquire) || position < viewer.printed() {
                    let (bytes, next) = viewer.since(position);
                    let start = usize::try_from(next).unwrap() - bytes.len();
                    assert!(bytes == numbered(start..start + bytes.len()));
                    seen += bytes.len();
                    position = next;
                }
                assert_eq!(position, total as u64);
                assert!(seen > 0);
            });
        }
        for start in (0..total).step_by(1024) {
            s.printer.print(&numbered(start..start + 1024), NEVER);
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn a_lossless_console_loses_nothing() {
    let mut s = sides(CAPACITY_MIN);
    s.viewer.set_lossless(true);
    let total = 1 << 20;
    thread::scope(|scope| {
        let printer = &mut s.printer;
        scope.spawn(move || {
            for start in (0..total).step_by(8192) {
                // This is longer than the ring, so it is printed in parts.
                let printed = printer.print(&numbered(start..start + 8192), NEVER);
                assert_eq!(printed, 8192);
            }
        });
        let (mut all, mut position) = (Vec::new(), 0);
        while all.len() < total {
            let (bytes, next) = s.viewer.since(position);
            all.extend(bytes);
            position = next;
            s.viewer.acknowledge(position);
            thread::yield_now();
        }
        assert!(all == numbered(0..total));
    });
    assert_eq!(s.viewer.dropped(), 0);
}

#[test]
fn a_printer_that_waits_ends_when_told_to_and_drops_what_is_left() {
    let mut s = sides(CAPACITY_MIN);
    s.viewer.set_lossless(true);
    let looks = Mutex::new(0);
    let stop = || {
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        *looks > 3
    };
    let printed = s.printer.print(&numbered(0..5000), &stop);
    assert_eq!(printed, CAPACITY_MIN);
    assert_eq!(*looks.lock().unwrap(), 4);
    assert_eq!(s.viewer.dropped(), 5000 - CAPACITY_MIN as u64);
    assert_eq!(s.viewer.since(0).0, numbered(0..CAPACITY_MIN));
    // A manager that stops reading releases the printer permanently.
    s.viewer.set_lossless(false);
    assert_eq!(s.printer.print(&numbered(0..5000), NEVER), 5000);
}

#[test]
fn input_is_bounded_and_comes_out_in_order() {
    let mut s = sides(CAPACITY_MIN);
    let paste = numbered(0..1 << 20);
    let (mut sent, mut seen) = (0, Vec::new());
    while seen.len() < paste.len() {
        sent += s.typist.type_in(&paste[sent..]);
        assert!(sent - seen.len() <= INPUT_CAPACITY);
        seen.extend(s.input.take(4096));
    }
    assert!(seen == paste);
    assert_eq!(s.typist.type_in(&paste), INPUT_CAPACITY);
    assert_eq!(s.typist.type_in(b"more"), 0);
    assert!(s.typist.will_wait_for_room());
    assert_eq!(s.input.take(1), paste[..1]);
    assert_eq!(s.bells.0.answer(), Rung::Yes);
    assert!(!s.typist.will_wait_for_room());
}

#[test]
fn a_worker_that_waits_for_input_is_woken() {
    let mut s = sides(CAPACITY_MIN);
    s.typist.type_in(b"a");
    assert_eq!(s.bells.1.answer(), Rung::No);
    assert!(!s.input.will_wait());
    assert_eq!(s.input.take(9), b"a");
    assert!(s.input.will_wait());
    s.typist.type_in(b"b");
    s.typist.type_in(b"c");
    assert_eq!(s.bells.1.answer(), Rung::Yes);
    assert_eq!(s.input.take(9), b"bc");
    assert_eq!(s.bells.1.answer(), Rung::No);
}

#[test]
fn cleared_input_is_never_taken() {
    let mut s = sides(CAPACITY_MIN);
    s.typist.type_in(&numbered(0..INPUT_CAPACITY));
    assert_eq!(s.input.take(10), numbered(0..10));
    s.typist.clear();
    assert_eq!(s.typist.room(), INPUT_CAPACITY);
    assert!(s.input.will_wait());
    s.typist.type_in(b"for the next");
    assert_eq!(s.input.take(100), b"for the next");
    // The next typist knows what the previous one discarded.
    s.typist.type_in(b"old");
    s.typist.clear();
    let mut typist = Console::open(&s.file).unwrap().typist(&s.bells.0);
    typist.type_in(b"new");
    assert_eq!(s.input.take(100), b"new");
}

#[test]
fn whatever_the_words_say_calls_stay_bounded() {
    let mut s = sides(CAPACITY_MIN);
    let hostile = Mapping::new(&s.file, WORDS_LEN).unwrap();
    let values = [
        0,
        1,
        4095,
        4096,
        1 << 40,
        u64::MAX - 4096,
        u64::MAX - 1,
        u64::MAX,
    ];
    let theirs = [word::BEGIN, word::END, word::TAKEN, word::READ, word::TYPED];
    for index in theirs.into_iter().chain([word::DISCARD]) {
        for value in values {
            hostile.words()[index].store(value, Ordering::Relaxed);
            for from in values {
                let (bytes, _) = s.viewer.since(from);
                assert!(bytes.len() <= CAPACITY_MIN);
            }
            assert!(s.typist.type_in(b"typed") <= 5);
            assert!(s.input.take(usize::MAX).len() <= INPUT_CAPACITY);
            // A new worker and a new typist continue from the words in the
            // file.
            let console = Console::open(&s.file).unwrap();
            let (mut printer, mut input) = console.worker(&s.bells.1);
            assert_eq!(printer.print(&[b'x'; 10_000], NEVER), 10_000);
            assert!(console.typist(&s.bells.0).type_in(b"typed") <= 5);
            assert!(input.take(usize::MAX).len() <= INPUT_CAPACITY);
        }
    }
}

#[test]
fn other_files_and_sizes_are_no_consoles() {
    for capacity in [0, 1, 4095, 2048, 12 << 10, 32 << 20, usize::MAX] {
        let refused = Console::create(capacity);
        assert!(matches!(refused, Err(SharedError::Capacity { .. })));
    }
    let odd = mapping::make_file("odd", WORDS_LEN + INPUT_CAPACITY + 12288).unwrap();
    assert!(matches!(Console::open(&odd), Err(SharedError::Size { .. })));
    let empty = mapping::make_file("empty", WORDS_LEN + INPUT_CAPACITY + 4096).unwrap();
    assert!(matches!(
        Console::open(&empty),
        Err(SharedError::Format { found: 0, .. })
    ));
}

/// Waits for a ring, for at most half a minute.
fn listen(bell: &Bell) {
    let half_a_minute = rustix::event::Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let mut polled = [rustix::event::PollFd::new(
        bell,
        rustix::event::PollFlags::IN,
    )];
    let ready = rustix::event::poll(&mut polled, Some(&half_a_minute)).unwrap();
    assert_eq!(ready, 1, "a wake-up was lost");
    bell.answer();
}

#[test]
fn no_wake_up_is_lost_between_two_sides_that_sleep() {
    let Sides {
        mut printer,
        mut input,
        viewer,
        mut typist,
        bells,
        file: _,
    } = sides(CAPACITY_MIN);
    let total = 50_000_usize;
    thread::scope(|scope| {
        // This guest echoes its input, and sleeps while there is none.
        scope.spawn(|| {
            let mut echoed = 0;
            while echoed < total {
                let typed = input.take(64);
                echoed += printer.print(&typed, NEVER);
                if typed.is_empty() && input.will_wait() {
                    listen(&bells.1);
                }
            }
        });
        let (mut position, mut typed) = (0, 0);
        while position < total as u64 {
            // The input is one to three bytes ahead, so both sides sleep all
            // the time.
            let ahead = typed - usize::try_from(position).unwrap();
            if typed < total && ahead < 1 + typed % 3 {
                typed += typist.type_in(&numbered(typed..typed + 1));
                continue;
            }
            let (bytes, next) = viewer.since(position);
            let start = usize::try_from(position).unwrap();
            assert_eq!(bytes, numbered(start..start + bytes.len()));
            position = next;
            if bytes.is_empty() && viewer.will_wait(position) {
                listen(&bells.0);
            }
        }
    });
}
