//! Text of others, made fit for terminals and logs.
//!
//! A terminal obeys more than `ESC [`: U+009B alone begins a control sequence,
//! and form feed, vertical tab and backspace move the cursor. Characters that
//! turn the direction of writing around show a line in another order than it
//! has, and line and paragraph separators end it.

/// Returns whether a terminal shows `c` where it stands, and does nothing else.
pub fn is_plain(c: char) -> bool {
    let turns_around = matches!(
        c,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    let ends_a_line = matches!(c, '\u{2028}' | '\u{2029}');
    !c.is_control() && !turns_around && !ends_a_line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_or_turns_a_line_around_is_not_plain() {
        for c in "\x07\x08\t\n\x0b\x0c\r\x1b\x7f\u{85}\u{9b}\u{9d}\u{202e}\u{2067}\u{2028}".chars()
        {
            assert!(!is_plain(c), "{c:?}");
        }
        assert!("aÄ漢🦀 ~".chars().all(is_plain));
    }
}
