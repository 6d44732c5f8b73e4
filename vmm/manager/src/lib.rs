//! All guests of one host: their states, their processes, the ledger of their
//! memory, and how they are controlled.
//!
//! Nothing here knows KVM: guests live in worker processes, one each, that are
//! told what to do over `mkvmm-wire`. One thread owns the [`Manager`], in a
//! tokio runtime; nothing that takes time runs on it.
//!
//! | files | what they know |
//! |---|---|
//! | `config`, `images` | what an instance is made of |
//! | `limits`, `budget` | how much there may be at once |
//! | `console`, `status` | what its workers leave in shared memory |
//! | `host`, `child`, `worker` | processes, and what is said to them |
//! | `still` | whether they stand still |
//! | `memory` | the files of its memory |
//! | `usage`, `leaves` | what it costs the host, and its cgroup |
//! | `guest`, `registry` | the record of one instance, and of all |
//! | `manager` | the owner |
//! | `questions`, `asking`, `news` | what workers are asked, answer and report |
//! | `harmless`, `pace` | what of it is passed on, and how fast |
//! | `life/` | the verbs |
//! | `audit` | the proof that ledger, slots and maps agree |
//! | `stream`, `run` | `run`: all guests or none, one stream of consoles |

mod asking;
pub mod audit;
pub mod boot_spans;
pub mod budget;
mod child;
pub mod config;
pub mod console;
pub mod console_log;
pub mod control;
mod debug;
pub mod event_log;
pub mod guest;
mod harmless;
pub mod host;
pub mod images;
mod leaves;
pub mod life;
pub mod limits;
pub mod manager;
mod manifest;
pub mod memory;
mod news;
mod pace;
pub mod questions;
pub mod registry;
pub mod resolve;
pub mod run;
pub mod status;
mod still;
pub mod stream;
pub mod usage;
pub mod view;
pub mod worker;

pub use child::{AskError, Role};
pub use host::Host;
pub use leaves::Leaves;
pub use manager::{ConsoleOptions, Manager, Options};
