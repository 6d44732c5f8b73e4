//! A ring of messages in shared memory, from one producer to one consumer that do not trust each
//! other and may die at any time.
//!
//! ```text
//!   Producer                       shared memory                          Consumer
//!
//!   try_push ─▶ ┌ producer part: tail │ record │ record │ … │ free ┐ ─▶ try_pop
//!   reserve     └──────────────────────────────────────────────────┘    receive
//!   room    ◀── ┌ consumer part: head, taken ┐ ◀──────────────────────── acknowledge
//!               └────────────────────────────┘
//!   needs_doorbell, will_wait                              will_wait, needs_doorbell
//! ```
//!
//! The two sides are programs, kernels, or a guest and its host, which map the same memory at any
//! address. Memory of zeroes is an empty ring that nobody has joined. `docs/ring.md` of the project
//! describes every byte of it, so that others can implement one of the sides.
//!
//! # Promises
//!
//! - **Each message is delivered once and in order, or reported lost**, whichever side dies at
//!   whichever instruction. A successor joins the ring where its predecessor stopped. What the
//!   predecessor of a consumer had taken, and may or may not have processed, is reported as a range
//!   of sequence numbers ([`Consumer::in_doubt`]); no message is invented or delivered twice.
//! - **A hostile peer can only send garbage, or nothing.** Every value is copied out of the shared
//!   memory once, checked, and then used. A peer that writes anything anywhere at any time causes a
//!   message with arbitrary content or a [`ProtocolError`]; it causes no panic, no access outside
//!   of the ring, and no call that takes longer than copying one ring.
//! - **Each word has one writer.** If the two parts are separate mappings ([`Parts`]), each side
//!   needs to write to its own one only, and the other side cannot change it.
//! - **There is no unsafe code**: the memory is a slice of [`Word`]s, which are atomics. Whoever maps
//!   the memory makes that slice.
//!
//! The peer's death is not visible in the memory: whoever starts the sides knows it. There must be
//! one producer and one consumer at a time; a second one breaks the promise of order and of single
//! delivery, but nothing else.
//!
//! # An example
//!
//! ```
//! use mkvmm_ring::{Consumer, InDoubt, Producer, Word};
//!
//! // Usually this is a mapping that two processes or kernels share.
//! let memory: Vec<Word> = (0..1024).map(|_| Word::new(0)).collect();
//! let mut producer = Producer::join(&memory[..])?;
//! let mut consumer = Consumer::join(&memory[..], InDoubt::Lose)?;
//!
//! producer.try_push(b"first")?;
//! // A message may be written in pieces, directly into the ring.
//! let mut message = producer.reserve(100)?;
//! message.append(b"sec")?;
//! message.append(b"ond")?;
//! assert_eq!(message.commit(), 1);
//!
//! let mut buffer = [0; 64];
//! let first = consumer.try_pop(&mut buffer)?.expect("two messages were sent");
//! assert_eq!((&buffer[..first.len], first.sequence), (&b"first"[..], 0));
//!
//! // This consumer dies here: it had taken the first message, and is not heard of again.
//! drop(consumer);
//! let mut consumer = Consumer::join(&memory[..], InDoubt::Lose)?;
//! assert_eq!(consumer.in_doubt(), 0..1);
//! let second = consumer.try_pop(&mut buffer)?.expect("the second is still there");
//! assert_eq!((&buffer[..second.len], second.sequence), (&b"second"[..], 1));
//! assert!(consumer.try_pop(&mut buffer)?.is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The modules
//!
//! | module | contents |
//! |---|---|
//! | `word` | [`Word`], an atomic of 64 bits |
//! | [`memory`] | [`Memory`], the trait of shared memory, and its parts |
//! | [`error`] | the errors |
//! | [`layout`] | where each word is, and the header of a record |
//! | `data` | copying in and out of the data area |
//! | [`side`] | what the two sides have in common: identity, states, doorbells |
//! | [`reservation`] | [`Reservation`], room for a message that is written in pieces |
//! | [`message`] | [`Message`], one that is read in pieces, and what is known about it |
//! | [`producer`] | [`Producer`], the side that sends |
//! | [`consumer`] | [`Consumer`], the side that receives |
//!
//! # Why the orderings suffice
//!
//! Each access to shared memory is `Relaxed` unless it is one of these:
//!
//! - The producer stores *tail* with `Release` after the records before it; the consumer loads it
//!   with `Acquire` before it reads them. So it sees whole records.
//! - The consumer stores *head* with `Release` after it has copied the records before it; the
//!   producer loads it with `Acquire` before it overwrites them. So no copy sees the next lap.
//! - The consumer stores *taken* with `Release` before it copies a record. A successor, which
//!   starts after the death, sees all stores of its predecessor, and so every record that was
//!   copied. The compiler does not move the effects that the embedder has afterwards (a system call,
//!   a store to a device) before a store with `Release` of a word that they could observe.
//! - Before one side sleeps it stores its *event*, passes a `SeqCst` fence, and loads the position of
//!   the other side; the other side stores its position, passes a `SeqCst` fence, and loads the
//!   *event*. Whichever fence is first in their total order, one of the two sees the other's store,
//!   so no wake-up is lost.
//!
//! `tests/loom.rs` explores the interleavings of these accesses with the model checker loom, with a
//! death at each of them.

#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "tests may panic"
    )
)]

#[cfg(any(loom, test))]
extern crate std;

// The modules are in the order in which they import each other.
mod word;

pub mod error;
pub mod layout;
pub mod memory;

mod data;
pub mod side;

pub mod message;
pub mod reservation;

pub mod consumer;
pub mod producer;

pub use consumer::Consumer;
pub use error::{JoinError, PopError, ProtocolError, PushError};
pub use memory::{Memory, Parts};
pub use message::{InDoubt, Message, Received, Skipped};
pub use producer::Producer;
pub use reservation::Reservation;
pub use side::{Peer, State, Stats};
pub use word::Word;

/// Compiles the README's examples as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(loom)]
pub use word::mortality;
