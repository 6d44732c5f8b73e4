//! What a machine has to tell whoever runs it.

use std::fmt;

use mkvmm_base::registers::Registers;
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::Stage;
use mkvmm_base::violation::Violation;

/// One thing that happened to a guest.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A vCPU has left its guest permanently.
    Ended {
        /// Why it left.
        reason: EndReason,
    },
    /// The guest accessed memory it does not own.
    Violation {
        /// The access that the guest made.
        violation: Violation,
        /// Whether later violations of this guest are only counted.
        last_reported: bool,
    },
    /// The guest's boot reached a stage; told once per run.
    Reached {
        /// The stage that was reached.
        stage: Stage,
        /// Nanoseconds of CLOCK_MONOTONIC.
        at: u64,
    },
    /// The guest left a mark at a debug port.
    Mark {
        /// Nanoseconds of CLOCK_MONOTONIC.
        at: u64,
        /// A POST code in hex, or a line of text.
        text: String,
    },
    /// A vCPU answers [`crate::vcpu::ReadRequest`].
    Registers {
        /// The request's ticket.
        ticket: u64,
        /// Which vCPU, from 0.
        cpu: u8,
        /// The registers of the stopped vCPU.
        registers: Box<Registers>,
        /// What [`crate::kvm::snapshot::translate`] found; `None` also where
        /// no translation was asked for.
        translated: Option<Option<u64>>,
    },
}

/// Receives news, from any of the machine's threads. It must not wait.
pub trait NewsSink: fmt::Debug + Send + Sync {
    /// Takes one piece of news.
    fn tell(&self, news: News);
}

#[cfg(test)]
pub mod tests {
    //! A listener for the tests of whoever tells news.

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Keeps what it is told.
    #[derive(Debug, Default)]
    pub struct Heard(Mutex<VecDeque<News>>);

    impl Heard {
        /// Takes the oldest piece of news that was not taken yet.
        pub fn next(&self) -> Option<News> {
            self.0.lock().unwrap().pop_front()
        }

        /// Takes all news there are, and returns the texts of the marks.
        pub fn marks(&self) -> Vec<String> {
            let text = |news| match news {
                News::Mark { text, .. } => Some(text),
                _ => None,
            };
            let all = std::mem::take(&mut *self.0.lock().unwrap());
            all.into_iter().filter_map(text).collect()
        }
    }

    impl NewsSink for Heard {
        fn tell(&self, news: News) {
            self.0.lock().unwrap().push_back(news);
        }
    }
}
