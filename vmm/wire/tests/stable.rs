//! What is exchanged with processes of an earlier version, byte for byte: keepers, and
//! workers of guests that run, outlive the program that has started them.

use mkvmm_base::state::EndReason;
use mkvmm_wire::channel::encode;
use mkvmm_wire::keeping::{ChildEnd, ChildFacts, KeeperOrder, KeeperReport, Key, StartOrder};
use mkvmm_wire::messages::{Done, LogLevel, Order, Refusal, RefusalKind, Report, WorkerState};
use serde::Serialize;

#[track_caller]
fn expect<M: Serialize>(message: &M, bytes: &[u8]) {
    // Sequence number and count of dropped notifications come first.
    let expected = [&[3, 4], bytes].concat();
    assert_eq!(encode(3, 4, message).expect("it can be encoded"), expected);
}

#[test]
fn workers_that_run_understand_later_managers() {
    expect(&Order::Run, &[5]);
    expect(&Order::Pause, &[6]);
    expect(&Order::PowerButton, &[7]);
    let registers = Order::Registers {
        ticket: 1,
        cpu: Some(2),
        translate: None,
    };
    expect(&registers, &[8, 1, 1, 2, 0]);
    expect(&Order::State(300), &[9, 0xac, 0x02]);
}

#[test]
fn later_managers_understand_workers_that_run() {
    expect(&Report::Done(Ok(Done::Loaded)), &[0, 0, 0]);
    expect(&Report::Done(Ok(Done::Paused)), &[0, 0, 2]);
    let refusal = Refusal {
        text: "x".to_owned(),
        kind: RefusalKind::Shortage,
    };
    expect(&Report::Done(Err(refusal)), &[0, 1, 1, b'x', 2]);
    expect(&Report::Ended(EndReason::Poweroff), &[1, 0]);
    let text = "x".to_owned();
    expect(&Report::Mark { at: 1, text }, &[4, 1, 1, b'x']);
    let (level, text) = (LogLevel::Warn, "x".to_owned());
    expect(&Report::Log { level, text }, &[6, 1, 1, b'x']);
    let (number, state) = (1, WorkerState::Paused);
    expect(&Report::State { number, state }, &[7, 1, 3]);
}

#[test]
fn keepers_understand_later_managers() {
    expect(&KeeperOrder::Program, &[0]);
    let start = StartOrder {
        serial: 1,
        role: "r".to_owned(),
        label: "l".to_owned(),
        environment: vec![("a".to_owned(), "b".to_owned())],
        has_output: true,
        has_cgroup: false,
    };
    let bytes = [1, 1, 1, b'r', 1, b'l', 1, 1, b'a', 1, b'b', 1, 0];
    expect(&KeeperOrder::Start(start), &bytes);
    expect(&KeeperOrder::Forget { serial: 1 }, &[2, 1]);
    expect(&KeeperOrder::Hold(Key::Journal, 1), &[3, 0, 1]);
    expect(&KeeperOrder::Hold(Key::Console(2), 1), &[3, 2, 2, 1]);
    expect(&KeeperOrder::Hold(Key::Board(1, 2), 3), &[3, 3, 1, 2, 3]);
    expect(&KeeperOrder::Hold(Key::Images(1, 2), 3), &[3, 4, 1, 2, 3]);
    expect(&KeeperOrder::Hold(Key::Log(1), 3), &[3, 5, 1, 3]);
    let memory = Key::Memory {
        number: 1,
        start: 2,
        size: 3,
    };
    expect(&KeeperOrder::Release(memory, 4), &[4, 1, 1, 2, 3, 4]);
    expect(&KeeperOrder::Stay, &[5]);
    expect(&KeeperOrder::AtWork, &[6]);
    expect(&KeeperOrder::Quit, &[7]);
    expect(&KeeperOrder::OnManagerExit { kill: true }, &[8, 1]);
    expect(&KeeperOrder::Lock(Key::Log(1)), &[9, 5, 1]);
}

#[test]
fn later_managers_understand_keepers() {
    let welcome = KeeperReport::Welcome {
        version: "v".to_owned(),
        pid: 1,
        identity: 2,
        last_serial: 3,
    };
    expect(&welcome, &[0, 1, b'v', 2, 2, 3]);
    expect(&KeeperReport::Occupied { pid: 1 }, &[1, 2]);
    expect(
        &KeeperReport::Held(vec![(Key::Journal, 5, 1)]),
        &[2, 1, 0, 5, 1],
    );
    let facts = ChildFacts {
        serial: 1,
        pid: 2,
        role: "r".to_owned(),
        end: Some(ChildEnd {
            code: Some(-1),
            signal: 0,
            used_ns: 9,
        }),
    };
    let bytes = [3, 1, 1, 4, 1, b'r', 1, 1, 1, 0, 9];
    expect(&KeeperReport::Children(vec![facts]), &bytes);
    expect(&KeeperReport::Complete, &[4]);
    expect(&KeeperReport::Started { serial: 1, pid: 1 }, &[5, 1, 2]);
    let (serial, errno) = (1, 12);
    expect(&KeeperReport::Failed { serial, errno }, &[6, 1, 24]);
    let end = ChildEnd {
        code: None,
        signal: 9,
        used_ns: 7,
    };
    expect(&KeeperReport::Ended { serial, end }, &[7, 1, 0, 18, 7]);
    let labels = vec![(1, "l".to_owned())];
    expect(&KeeperReport::Labels(labels), &[8, 1, 1, 1, b'l']);
    expect(&KeeperReport::NotExecuted { serial, errno }, &[9, 1, 24]);
    let key = Key::Log(1);
    expect(&KeeperReport::NotLocked { key, errno }, &[10, 5, 1, 24]);
}
