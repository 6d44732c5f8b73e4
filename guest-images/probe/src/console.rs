//! Prints whole lines to COM1.

use core::fmt::{self, Write};

use crate::service;

/// A line under construction. Text beyond its capacity is cut off.
pub struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    pub fn new(start: &str) -> Self {
        let mut line = Self {
            bytes: [0; 256],
            len: 0,
        };
        line.add(format_args!("{start}"));
        line
    }

    pub fn add(&mut self, args: fmt::Arguments<'_>) {
        // `write_str` below never fails.
        let _ = self.write_fmt(args);
    }

    pub fn print(mut self) {
        self.bytes[self.len] = b'\n';
        service::print(&self.bytes[..=self.len]);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // One byte is reserved for the line end. A newline within a line
            // (only a panic message could contain one) would lead to a line
            // without prefix.
            if self.len < self.bytes.len() - 1 {
                self.bytes[self.len] = if byte == b'\n' { b' ' } else { byte };
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Prints one line to COM1.
#[inline(never)]
pub fn print_line(start: &str, args: fmt::Arguments<'_>) {
    let mut line = Line::new(start);
    line.add(args);
    line.print();
}

/// Prints one line: `probe: ` and the formatted arguments.
macro_rules! say {
    ($($args:tt)*) => { $crate::console::print_line("probe: ", format_args!($($args)*)) };
}

/// Prints `probe: BAD …` and counts the problem.
macro_rules! bad {
    ($probe:expr, $($args:tt)*) => {{
        $crate::console::print_line("probe: BAD ", format_args!($($args)*));
        $probe.problems += 1;
    }};
}
