//! Tests of who waits for which work, and of when the work ends.

use super::*;

/// The memory of an instance that can hold any of these kernels: 256 MiB.
const MEMORY: u64 = 256 << 20;

/// C7: a request waits only for its own content.
#[tokio::test]
async fn the_same_image_is_waited_for_together_and_others_are_not_delayed() {
    let dir = Dir::new("together");
    let slow = dir.settled("k", &bzimage()).await;
    let other = dir.file("i", b"an archive");
    let gated = Gated::new();
    let store = store(gated.clone(), BUDGET);
    let (one, two, ()) = tokio::join!(
        kernel(&store, &slow, ROOMY),
        async {
            gated.until_working(1).await;
            kernel(&store, &slow, ROOMY >> 1).await
        },
        async {
            while store.counters().joined == 0 {
                tokio::task::yield_now().await;
            }
            // The slow one makes no progress during this time.
            assert_eq!(
                bytes(&archive(&store, &other).await.unwrap()),
                b"an archive"
            );
            store.probe().unwrap();
            assert_eq!(gated.working.get(), 1);
            gated.gate.add_permits(1);
        }
    );
    assert!(Arc::ptr_eq(&one.unwrap().image, &two.unwrap().image));
    assert_eq!(store.counters().joined, 1);
    assert_eq!(gated.inner.0.get(), 2);
}

#[tokio::test]
async fn a_refusal_is_told_to_all_that_wait_and_not_kept() {
    let dir = Dir::new("refusal");
    let text = dir.settled("k", b"#!/bin/sh").await;
    let gated = Gated::new();
    let store = store(gated.clone(), BUDGET);
    let (one, two, ()) = tokio::join!(
        kernel(&store, &text, ROOMY),
        kernel(&store, &text, ROOMY),
        async {
            while store.counters().joined == 0 {
                tokio::task::yield_now().await;
            }
            gated.gate.add_permits(2);
        }
    );
    assert_eq!(one.unwrap_err().to_string(), two.unwrap_err().to_string());
    kernel(&store, &text, ROOMY).await.unwrap_err();
    assert_eq!(gated.inner.0.get(), 2);
}

/// An image refused for a small instance may be acceptable for a larger one.
#[tokio::test]
async fn a_larger_instance_does_not_wait_for_the_verdict_on_a_smaller() {
    let dir = Dir::new("larger");
    let source = dir.settled("k", &bzimage()).await;
    let gated = Gated::new();
    let store = store(gated.clone(), BUDGET);
    let (small, large, ()) = tokio::join!(
        kernel(&store, &source, 8 << 20),
        async {
            gated.until_working(1).await;
            kernel(&store, &source, ROOMY).await
        },
        async {
            gated.until_working(2).await;
            gated.gate.add_permits(2);
        }
    );
    let error = small.unwrap_err().to_string();
    assert_eq!(
        error,
        "needs 16777216 bytes of memory, exceeding the limit of 8388608"
    );
    large.unwrap();
    assert_eq!(store.counters().joined, 0);
    // The limit still applies to a cached image: sizes are checked again.
    let error = kernel(&store, &source, 8 << 20).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Size(SizeError::Memory { .. })),
        "{error}"
    );
    assert_eq!(gated.inner.0.get(), 2);
}

/// C7: the work ends with its last waiter, and not before.
#[tokio::test]
async fn work_ends_with_the_last_that_waits_for_it() {
    let dir = Dir::new("abandoned");
    let source = dir.settled("k", &bzimage()).await;
    let gated = Gated::new();
    let store = store(gated.clone(), BUDGET);
    let mut first = Box::pin(kernel(&store, &source, ROOMY));
    let mut second = Box::pin(kernel(&store, &source, ROOMY));
    tokio::select! {
        _ = &mut first => panic!("the gate is closed"),
        _ = &mut second => panic!("the gate is closed"),
        () = async {
            while store.counters().joined == 0 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    drop(first);
    // The other waiter continues the work, whichever started it.
    tokio::select! {
        _ = &mut second => panic!("the gate is closed"),
        () = tokio::time::sleep(Duration::from_millis(10)) => {}
    }
    assert_eq!(gated.working.get(), 1);
    assert!(store.counters().bytes_in_flight > 0);
    drop(second);
    assert_eq!(gated.working.get(), 0);
    let counters = store.counters();
    assert_eq!((counters.abandoned, counters.bytes_in_flight), (1, 0));
    // A later request starts again.
    gated.gate.add_permits(1);
    kernel(&store, &source, ROOMY).await.unwrap();
}

/// C2: the bytes in flight have a budget.
#[tokio::test]
async fn what_unpackers_use_together_is_bounded() {
    let dir = Dir::new("budget");
    let (a, b) = (dir.file("a", &bzimage()), dir.file("b", &bzimage()));
    let gated = Gated::new();
    let size = bzimage().len() as u64;
    // This is the size that it may unpack to, and its payload.
    let needed = (64 << 20) + size * 32 + size;
    let budget = Budget {
        in_flight: needed + 100,
        ..BUDGET
    };
    let store = store(gated.clone(), budget);
    let (first, error) = tokio::join!(kernel(&store, &a, MEMORY), async {
        gated.until_working(1).await;
        let error = kernel(&store, &b, MEMORY).await.unwrap_err();
        // A request that fits into the rest does not wait.
        let small = dir.file("i", &[1; 100]);
        archive(&store, &small).await.unwrap();
        let large = dir.file("j", &[1; 101]);
        archive(&store, &large).await.unwrap_err();
        gated.gate.add_permits(2);
        error
    });
    first.unwrap();
    let expected = format!(
        "needs up to {needed} bytes to be unpacked; {needed} of {} are in use",
        needed + 100
    );
    assert_eq!(error.to_string(), expected);
    kernel(&store, &b, MEMORY).await.unwrap();
    assert_eq!(store.counters().bytes_in_flight, 0);
}
