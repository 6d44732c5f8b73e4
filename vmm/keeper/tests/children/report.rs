//! Reports of a child about itself.

use std::fs;

use mkvmm_wire::channel::Message;
use serde::{Deserialize, Serialize};

/// The state in which a child finds itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub pid: i32,
    pub session: i32,
    /// The numbers and targets of its descriptors, as `/proc/self/fd` shows
    /// them.
    pub descriptors: Vec<(i32, String)>,
    pub environment: Vec<String>,
    pub arguments: Vec<String>,
    /// The name of its main thread.
    pub name: String,
    /// The mask of blocked signals.
    pub blocked: u64,
    pub ignored: u64,
}

impl Message for Report {}

/// An order to a child.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Exit(u8),
}

impl Message for Order {}

impl Report {
    /// Examines this process.
    pub fn new() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("there is procfs");
        let mask = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let digits = line.expect("the kernel tells masks").trim();
            u64::from_str_radix(digits, 16).expect("a hexadecimal mask")
        };
        let session = rustix::process::getsid(None).expect("everybody has one");
        let name = fs::read_to_string("/proc/self/comm").expect("there is procfs");
        Self {
            pid: rustix::process::getpid().as_raw_pid(),
            session: session.as_raw_pid(),
            descriptors: descriptors(),
            environment: std::env::vars().map(|(k, v)| format!("{k}={v}")).collect(),
            arguments: std::env::args().collect(),
            name: name.trim_end().to_owned(),
            blocked: mask("SigBlk:"),
            ignored: mask("SigIgn:"),
        }
    }
}

/// Returns the open descriptors of this process, except the one that lists
/// them.
pub fn descriptors() -> Vec<(i32, String)> {
    let list = fs::read_dir("/proc/self/fd").expect("there is procfs");
    let mut found = Vec::new();
    for entry in list {
        let entry = entry.expect("it can be listed");
        let number = entry.file_name().to_string_lossy().parse();
        let target = fs::read_link(entry.path()).expect("it is open");
        let target = target.to_string_lossy().into_owned();
        if !target.ends_with("/fd") {
            found.push((number.expect("a number"), target));
        }
    }
    found.sort_unstable();
    found
}
