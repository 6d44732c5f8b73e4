use std::time::Duration;

use mkvmm_wire::channel;
use rustix::net::{RecvFlags, SendFlags};

use super::*;

type Device = channel::Channel<SegmentReport, SegmentNews>;

fn place(segment: &str, id: u32, device: u8) -> Place {
    Place {
        segment: segment.parse().unwrap(),
        id: InstanceId(id),
        device,
        mac: Mac::derived(id, device),
    }
}

fn join(segments: &Segments, place: &Place) -> Result<Device, SegmentError> {
    let (ours, theirs) = channel::pair()?;
    segments.join(place, Channel::open(ours)?)?;
    Ok(Device::open(theirs)?)
}

/// Returns the next news of a device.
async fn news(device: &mut Device) -> (u64, [u8; 6], OwnedFd) {
    for _ in 0..500 {
        match device.receiver.try_recv() {
            Ok(Some(mut received)) => {
                let socket = received.descriptors.pop().unwrap();
                return (received.message.id, received.message.mac, socket);
            }
            Err(WireError::WouldBlock) => tokio::time::sleep(Duration::from_millis(2)).await,
            other => panic!("{other:?}"),
        }
    }
    panic!("nothing was received");
}

fn on_this_thread(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn each_two_members_have_a_pair_of_sockets() {
    on_this_thread(async {
        let segments = Segments::default();
        let places = [place("lan", 1, 0), place("lan", 2, 0), place("lan", 2, 1)];
        let mut devices: Vec<Device> = Vec::new();
        for place in &places {
            devices.push(join(&segments, place).unwrap());
        }
        let mut elsewhere = join(&segments, &place("other", 3, 0)).unwrap();
        assert_eq!(segments.segments.borrow()[&places[0].segment].len(), 3);
        let mut sockets = BTreeMap::new();
        for (device, own) in devices.iter_mut().zip(&places) {
            for _ in 1..places.len() {
                let (id, mac, socket) = news(device).await;
                let other = places.iter().find(|place| place.number() == id).unwrap();
                assert_eq!(mac, other.mac.bytes());
                sockets.insert((own.number(), id), socket);
            }
        }
        for ((from, to), socket) in &sockets {
            let frame = [from.to_ne_bytes(), to.to_ne_bytes()].concat();
            rustix::net::send(socket, &frame, SendFlags::DONTWAIT).unwrap();
        }
        for ((to, from), socket) in &sockets {
            let mut frame = [0; 32];
            let received = rustix::net::recv(socket, &mut frame[..], RecvFlags::DONTWAIT);
            let (length, _) = received.unwrap();
            let expected = [from.to_ne_bytes(), to.to_ne_bytes()].concat();
            assert_eq!(frame[..length], expected);
        }
        let nothing = elsewhere.receiver.try_recv();
        assert!(matches!(nothing, Err(WireError::WouldBlock)), "{nothing:?}");
    });
}

#[test]
fn a_member_that_takes_nothing_is_told_the_last_of_each() {
    on_this_thread(async {
        let segments = Segments::default();
        let mut deaf = join(&segments, &place("lan", 1, 0)).unwrap();
        let other = place("lan", 2, 0);
        // More often than its channel has room for.
        for _ in 0..1000 {
            let mut device = join(&segments, &other).unwrap();
            news(&mut device).await;
            segments.leave(other.id);
        }
        let port = segments.segments.borrow()[&other.segment]
            .values()
            .next()
            .cloned();
        assert!(port.unwrap().pending.borrow().len() <= 1);
        let mut device = join(&segments, &other).unwrap();
        let (.., socket) = news(&mut device).await;
        rustix::net::send(&socket, b"the last", SendFlags::DONTWAIT).unwrap();
        for _ in 0..=1000 {
            let (id, _, socket) = news(&mut deaf).await;
            assert_eq!(id, other.number());
            let mut frame = [0; 32];
            let received = rustix::net::recv(socket, &mut frame[..], RecvFlags::DONTWAIT);
            if received.is_ok_and(|(length, _)| frame[..length] == *b"the last") {
                return;
            }
        }
        panic!("it does not have the last socket");
    });
}

#[test]
fn addresses_and_places_are_limited() {
    on_this_thread(async {
        let segments = Segments::default();
        let mut devices = Vec::new();
        for id in 0..u32::try_from(MEMBERS_MAX).unwrap() {
            devices.push(join(&segments, &place("lan", id, 0)).unwrap());
        }
        let full = join(&segments, &place("lan", 1000, 0)).unwrap_err();
        assert!(matches!(full, SegmentError::Full { .. }), "{full}");
        // The same one again, and another one with its address.
        devices.push(join(&segments, &place("lan", 5, 0)).unwrap());
        segments.leave(InstanceId(6));
        let twin = Place {
            mac: Mac::derived(5, 0),
            ..place("lan", 6, 0)
        };
        let taken = join(&segments, &twin).unwrap_err();
        assert!(matches!(taken, SegmentError::Taken { .. }), "{taken}");
        for id in 0..u32::try_from(MEMBERS_MAX).unwrap() {
            segments.leave(InstanceId(id));
        }
        assert!(segments.segments.borrow().is_empty());
    });
}
