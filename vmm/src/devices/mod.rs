//! ⑦ What a guest finds at its ports, and what it does not find in memory.

pub mod bus;
pub mod console;
pub mod serial;
pub mod violation;
