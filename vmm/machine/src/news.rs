//! What a machine has to tell whoever runs it.

use std::fmt;

use mkvmm_base::state::EndReason;
use mkvmm_base::violation::Violation;
use mkvmm_base::{InstanceId, RunId};

/// One thing that happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A vCPU has left its guest permanently.
    Ended {
        /// The run of the instance whose vCPU it was.
        run: RunId,
        /// Why it left.
        reason: EndReason,
    },
    /// The guest accessed memory it does not own.
    Violation {
        /// The instance.
        id: InstanceId,
        /// The access.
        violation: Violation,
        /// Whether later violations of this guest are only counted.
        last_reported: bool,
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
        /// The oldest piece of news that was not taken yet.
        pub fn next(&self) -> Option<News> {
            self.0.lock().unwrap().pop_front()
        }
    }

    impl NewsSink for Heard {
        fn tell(&self, news: News) {
            self.0.lock().unwrap().push_back(news);
        }
    }
}
