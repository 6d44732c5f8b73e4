//! The progress of a guest's boot, reported once per step.
//!
//! The first vCPU that reaches a stage reports it. After that, reaching it
//! again costs one load, which matters since `first exit` is on the path of
//! every exit. Marks are what a guest writes to its debug ports; they are
//! limited, so that a guest cannot fill the receiver's memory.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mkvmm_base::timeline::{Stage, monotonic};

use crate::news::{News, NewsSink};

/// The maximum number of marks reported per run; later ones are not part of the
/// boot.
const MARKS_MAX: usize = 64;
/// The maximum length of a mark in bytes; a longer line becomes several marks.
const MARK_TEXT_MAX: usize = 80;

#[derive(Debug, Default)]
struct Marks {
    told: usize,
    last_post: Option<u8>,
    line: Vec<u8>,
}

/// The progress of one run of a guest.
#[derive(Debug)]
pub struct Progress {
    /// One bit for each stage that was reported.
    reached: AtomicU8,
    marks: Mutex<Marks>,
    news: Arc<dyn NewsSink>,
}

impl Progress {
    /// Creates the progress of a run that has not begun, reported to `news`.
    pub fn new(news: Arc<dyn NewsSink>) -> Self {
        Self {
            reached: AtomicU8::new(0),
            marks: Mutex::default(),
            news,
        }
    }

    /// Reports that `stage` is reached, unless it was reported before.
    pub fn reach(&self, stage: Stage) {
        let bit = 1 << stage as u8;
        if self.reached.load(Ordering::Relaxed) & bit == 0
            && self.reached.fetch_or(bit, Ordering::Relaxed) & bit == 0
        {
            let at = monotonic();
            self.news.tell(News::Reached { stage, at });
        }
    }

    /// Handles a POST code. Linux also writes to that port as a delay, so a
    /// code is a mark only if it differs from the previous one.
    pub fn post(&self, code: u8) {
        let mut marks = self.lock();
        if marks.last_post != Some(code) {
            marks.last_post = Some(code);
            self.mark(&mut marks, format!("{code:#04x}"));
        }
    }

    /// Handles a byte of a line of text, which becomes a mark at its newline.
    pub fn text(&self, byte: u8) {
        let mut marks = self.lock();
        if byte == b'\n' || marks.line.len() >= MARK_TEXT_MAX {
            let line = std::mem::take(&mut marks.line);
            self.mark(&mut marks, String::from_utf8_lossy(&line).into_owned());
        }
        if byte != b'\n' {
            marks.line.push(byte);
        }
    }

    /// Reports a mark that a device derives from the guest's actions.
    pub fn note(&self, text: &str) {
        self.mark(&mut self.lock(), text.to_owned());
    }

    fn mark(&self, marks: &mut Marks, text: String) {
        if marks.told < MARKS_MAX {
            marks.told += 1;
            let at = monotonic();
            self.news.tell(News::Mark { at, text });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        // The marks are valid even if the lock is poisoned.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::news::tests::Heard;

    #[test]
    fn a_stage_is_told_once() {
        let heard = Arc::new(Heard::default());
        let progress = Progress::new(heard.clone());
        let before = monotonic();
        for _ in 0..3 {
            progress.reach(Stage::FirstExit);
            progress.reach(Stage::FirstOutput);
        }
        for want in [Stage::FirstExit, Stage::FirstOutput] {
            let news = heard.next();
            assert!(
                matches!(news, Some(News::Reached { stage, at })
                    if stage == want && (before..=monotonic()).contains(&at)),
                "{news:?}"
            );
        }
        assert_eq!(heard.next(), None);
    }

    #[test]
    fn marks_are_bounded_and_waiting_makes_none() {
        let heard = Arc::new(Heard::default());
        let progress = Progress::new(heard.clone());
        for _ in 0..1000 {
            progress.post(0);
        }
        b"kernel entered\n".iter().for_each(|&b| progress.text(b));
        assert_eq!(heard.marks(), ["0x00", "kernel entered"]);
        [b'x'; MARK_TEXT_MAX + 1]
            .iter()
            .chain(b"\n")
            .for_each(|&b| progress.text(b));
        let lengths: Vec<usize> = heard.marks().iter().map(String::len).collect();
        assert_eq!(lengths, [MARK_TEXT_MAX, 1]);
        for i in 0..200_u8 {
            progress.post(i);
        }
        assert_eq!(heard.marks().len(), MARKS_MAX - 4);
    }
}
