//! All guests of one host: their states, their processes, the ledger of their
//! memory, and the control socket.
//!
//! This crate does not use KVM: guests live in worker processes, one each,
//! which receive orders over `mkvmm-wire`. One thread owns the [`Manager`], in
//! a tokio runtime; nothing that takes time runs on it.
//!
//! | files | contents |
//! |---|---|
//! | `devices` | what devices need of the host |
//! | `config`, `images` | the configuration and the contents of an instance |
//! | `limits`, `budget` | limits of simultaneous use |
//! | `console`, `status` | the data of workers in shared memory |
//! | `host`, `child`, `begun`, `worker` | child processes, and the communication with them |
//! | `still` | whether they are stopped |
//! | `stock` | workers that wait for a guest |
//! | `memory` | the files of its memory |
//! | `usage`, `leaves` | resource usage, and cgroups |
//! | `guest`, `registry` | the records of instances |
//! | `manager` | the owner of all instances |
//! | `questions`, `asking`, `news` | requests to workers, their answers and reports |
//! | `threads` | runtimes whose threads are started at the beginning |
//! | `journal/`, `journaling`, `adopt` | continuing after another manager |
//! | `upgrade` | continuing with another program |
//! | `console_log`, `log_writer` | console logs, and the threads that write them |
//! | `passt`, `segments`, `links` | what network devices are connected to |
//! | `channels` | memory and doorbells that several guests share |
//! | `harmless`, `pace` | filtering and rate limiting of their messages |
//! | `life/` | the verbs |
//! | `transaction` | several verbs, all of them or none |
//! | `audit` | checks that ledger, slots and maps agree |
//! | `stream`, `run` | `run`: all guests or none, one stream of consoles |

pub mod adopt;
mod asking;
pub mod audit;
mod begun;
pub mod boot_spans;
pub mod budget;
pub mod channels;
mod child;
pub mod config;
pub mod console;
pub mod console_log;
pub mod control;
mod debug;
pub mod devices;
pub mod event_log;
pub mod guest;
mod harmless;
pub mod host;
pub mod images;
pub mod journal;
mod journaling;
mod lease;
mod leaves;
pub mod life;
pub mod limits;
mod links;
pub mod log_writer;
pub mod manager;
mod manifest;
pub mod memory;
mod news;
mod pace;
mod passt;
pub mod questions;
pub mod registry;
pub mod resolve;
pub mod run;
mod segments;
pub mod status;
mod still;
mod stock;
pub mod stream;
pub mod threads;
pub mod transaction;
pub mod upgrade;
pub mod usage;
pub mod view;
pub mod worker;

pub use begun::Begun;
pub use child::{AskError, Children, Role, Unreaped};
pub use host::{Facts, Host, KvmFacts};
pub use journaling::RegistryMut;
pub use leaves::Leaves;
pub use manager::{ConsoleOptions, Manager, Options};
pub use stock::STOCK_MAX;
