use std::sync::atomic::{AtomicBool, Ordering};

use super::file::{BYTES, HEADER_LEN, slot};
use super::*;
use crate::shared::SharedError;
use crate::shared::mapping::{self, Mapping};

/// Returns a worker's and a manager's mapping of one board.
fn sides() -> (BoardWriter, BoardReader) {
    let (board, file) = Board::create().unwrap();
    (Board::open(&file).unwrap().writer(), board.reader())
}

#[test]
fn an_empty_board_says_nothing() {
    let (_, reader) = sides();
    assert_eq!(reader.ended(), None);
    assert_eq!(reader.violations(), 0);
    assert_eq!(reader.stamp(0, &(0..=u64::MAX)), None);
    assert_eq!(reader.exits(63), Some([0; EXIT_KINDS]));
    assert_eq!(reader.registers(0), Some(Registers::None));
    assert_eq!(reader.exits(64), None);
    assert_eq!(reader.registers(64), None);
}

#[test]
fn what_was_written_outlives_its_writer() {
    let (writer, reader) = sides();
    for vcpu in 0..VCPUS_MAX {
        let mut slot = writer.vcpu(vcpu).unwrap();
        let registers = std::array::from_fn(|i| (vcpu * 1000 + i) as u64);
        slot.set_registers(&registers);
        for _ in 0..=vcpu {
            slot.count_exit(2);
        }
        slot.count_exit(usize::MAX);
    }
    writer.count_violation();
    writer.end(7);
    drop(writer);
    for vcpu in 0..VCPUS_MAX {
        let registers = std::array::from_fn(|i| (vcpu * 1000 + i) as u64);
        let whole = Registers::Whole(Box::new(registers));
        assert_eq!(reader.registers(vcpu), Some(whole));
        let exits = reader.exits(vcpu).unwrap();
        assert_eq!((exits[2], exits[55]), (vcpu as u64 + 1, 1));
        assert_eq!(exits.iter().sum::<u64>(), vcpu as u64 + 2);
    }
    assert_eq!((reader.violations(), reader.ended()), (1, Some(7)));
}

#[test]
fn counters_of_devices_are_read_as_they_were_written() {
    let (writer, reader) = sides();
    let device = writer.device(31).unwrap();
    device.set_faults(1);
    device.set_own(&[2, 3, 4, 5, 6, 7, 8]);
    device.set_queue(0, &[9; QUEUE_COUNTERS]);
    device.set_queue(15, &[10; QUEUE_COUNTERS]);
    device.set_queue(16, &[11; QUEUE_COUNTERS]);
    let counts = reader.device(31).unwrap();
    assert_eq!((counts.faults, counts.own), (1, [2, 3, 4, 5, 6, 7, 8]));
    let queues = &counts.queues;
    assert_eq!(
        (queues[0], queues[1], queues[15]),
        ([9; 7], [0; 7], [10; 7])
    );
    assert_eq!(DeviceCounts::from_words(&counts.words()), counts);
    // A journal of before has no counters of kinds.
    let earlier = DeviceCounts::from_words(&counts.words()[..1 + 16 * QUEUE_COUNTERS]);
    assert_eq!(
        earlier,
        DeviceCounts {
            own: [0; 7],
            ..counts
        }
    );
    assert_eq!(reader.device(30), Some(DeviceCounts::default()));
    assert!(writer.device(32).is_none() && reader.device(32).is_none());
}

#[test]
fn the_first_stamp_and_the_first_reason_count() {
    let (writer, reader) = sides();
    assert!(writer.stamp(63));
    let all = 0..=u64::MAX;
    let first = reader.stamp(63, &all).unwrap();
    assert!(!writer.stamp(63));
    assert_eq!(reader.stamp(63, &all), Some(first));
    assert!(writer.end(3) && !writer.end(4));
    assert_eq!(reader.ended(), Some(3));
    assert!(!writer.stamp(64), "there is no such stage");
    assert!(writer.vcpu(64).is_none());
}

#[test]
fn implausible_times_are_none() {
    let (writer, reader) = sides();
    writer.stamp(1);
    let time = reader.stamp(1, &(0..=u64::MAX)).unwrap();
    assert_eq!(reader.stamp(1, &(time..=time)), Some(time));
    assert_eq!(reader.stamp(1, &(0..=time - 1)), None);
    assert_eq!(reader.stamp(1, &(time + 1..=u64::MAX)), None);
}

#[test]
fn registers_whose_writer_died_are_torn() {
    let (board, file) = Board::create().unwrap();
    let mut slot = board.writer().vcpu(5).unwrap();
    slot.set_registers(&[1; REGISTER_WORDS]);
    let words = Mapping::new(&file, BYTES).unwrap();
    let base = HEADER_LEN + 5 * slot::LEN;
    words.words()[base + slot::GENERATION].store(3, Ordering::Relaxed);
    words.words()[base + slot::REGISTERS].store(9, Ordering::Relaxed);
    let Some(Registers::Torn(registers)) = board.reader().registers(5) else {
        panic!("an odd generation is a torn block");
    };
    assert_eq!((registers[0], registers[1]), (9, 1));
}

#[test]
fn registers_called_whole_are_of_one_moment() {
    let (writer, reader) = sides();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut slot = writer.vcpu(0).unwrap();
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                slot.set_registers(&[value; REGISTER_WORDS]);
                std::hint::spin_loop();
            }
        });
        // Repeat until the writer has overtaken the reader many times.
        let (mut latest, mut mixed) = (0, 0);
        while latest < 500_000 {
            if let Some(Registers::Whole(registers)) = reader.registers(0) {
                latest = registers[0];
                mixed += usize::from(registers.iter().any(|r| *r != latest));
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(mixed, 0);
    });
}

#[test]
fn any_bytes_can_be_read() {
    let (board, file) = Board::create().unwrap();
    let hostile = Mapping::new(&file, BYTES).unwrap();
    for value in [1, 2, u64::MAX - 1, u64::MAX] {
        for word in hostile.words().iter().skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        let reader = board.reader();
        assert_eq!(reader.ended(), Some(value));
        assert_eq!(reader.stamp(0, &(3..=1000)), None);
        assert_eq!(reader.exits(63), Some([value; EXIT_KINDS]));
        let torn = matches!(reader.registers(63), Some(Registers::Torn(_)));
        assert_eq!(torn, value % 2 == 1);
        // The next worker overwrites it without trusting it.
        let mut slot = board.writer().vcpu(63).unwrap();
        slot.set_registers(&[5; REGISTER_WORDS]);
        slot.count_exit(0);
        let whole = Registers::Whole(Box::new([5; REGISTER_WORDS]));
        assert_eq!(reader.registers(63), Some(whole));
    }
}

#[test]
fn other_files_are_no_boards() {
    let short = mapping::make_file("short", BYTES - 4096).unwrap();
    assert!(matches!(Board::open(&short), Err(SharedError::Size { .. })));
    let empty = mapping::make_file("empty", BYTES).unwrap();
    let refused = Board::open(&empty);
    assert!(matches!(refused, Err(SharedError::Format { found: 0, .. })));
}
