//! Notifications of a machine to the code that runs it.

use std::fmt;

use mkvmm_base::registers::Registers;
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::Stage;
use mkvmm_base::violation::Violation;

/// A notification about a guest.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A vCPU has left its guest permanently.
    Ended {
        /// The reason why it left.
        reason: EndReason,
    },
    /// The guest accessed memory it does not own.
    Violation {
        /// The access that the guest made.
        violation: Violation,
        /// True if later violations of this guest are only counted.
        last_reported: bool,
    },
    /// The guest's boot reached a stage; reported once per run.
    Reached {
        /// The stage that was reached.
        stage: Stage,
        /// The time in nanoseconds of CLOCK_MONOTONIC.
        at: u64,
    },
    /// The guest wrote a mark to a debug port.
    Mark {
        /// The time in nanoseconds of CLOCK_MONOTONIC.
        at: u64,
        /// A POST code in hex, or a line of text.
        text: String,
    },
    /// A vCPU answers [`crate::vcpu::ReadRequest`].
    Registers {
        /// The ticket of the request.
        ticket: u64,
        /// The index of the vCPU, from 0.
        cpu: u8,
        /// The registers of the stopped vCPU.
        registers: Box<Registers>,
        /// The result of [`crate::kvm::snapshot::translate`]; also `None` if no
        /// translation was requested.
        translated: Option<Option<u64>>,
    },
}

/// A receiver of notifications, from any of the machine's threads. It must not
/// block.
pub trait NewsSink: fmt::Debug + Send + Sync {
    /// Receives a notification.
    fn tell(&self, news: News);
}

#[cfg(test)]
pub mod tests {
    //! A receiver for tests of code that sends notifications.

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Records the notifications that it receives.
    #[derive(Debug, Default)]
    pub struct Heard(Mutex<VecDeque<News>>);

    impl Heard {
        /// Returns the oldest notification that was not returned yet.
        pub fn next(&self) -> Option<News> {
            self.0.lock().unwrap().pop_front()
        }

        /// Removes all notifications, and returns the texts of the marks.
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
