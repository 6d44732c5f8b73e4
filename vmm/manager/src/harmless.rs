//! Makes text from workers safe for terminals and logs.

use mkvmm_base::is_plain;

/// Longest line of a worker's that is passed on, bytes.
const LINE_MAX: usize = 1024;

/// Returns the text without control characters, truncated to one line.
pub(crate) fn harmless(text: &str) -> String {
    let end = text.floor_char_boundary(LINE_MAX);
    let text = text.get(..end).unwrap_or_default();
    let clean = |c: char| if is_plain(c) { c } else { '?' };
    text.chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_cannot_act_on_a_terminal_or_fill_a_log() {
        assert_eq!(harmless("a\x1b[2Kb\nc\u{9b}2K"), "a?[2Kb?c?2K");
        assert_eq!(harmless(&"ä".repeat(5000)).len(), LINE_MAX);
    }
}
