//! The rules for the project's English: comments are sentences, in words that
//! the field uses.

use crate::passages::{Kind, Passage};

/// A phrase that is not the field's English, and what to write instead.
#[derive(Debug, Clone, Copy)]
pub struct Idiom {
    /// The phrase, in lower case.
    pub phrase: &'static str,
    /// The usual term.
    pub write: &'static str,
}

/// The phrases that may not occur in comments, documents and messages.
pub const IDIOMS: &[Idiom] = &[
    idiom("as above", "the reason itself"),
    idiom("at most so many", "at most `limit`"),
    idiom("bring in", "load, or populate memory"),
    idiom("brings in", "loads, or populates memory"),
    idiom("bringing in", "loading, or populating memory"),
    idiom("brought in", "loaded, or populated"),
    idiom("but for", "except"),
    idiom("by and by", "gradually"),
    idiom("every so many", "every N"),
    idiom("for ever", "forever, or permanently"),
    idiom("for good", "permanently"),
    idiom("held against", "checked against"),
    idiom("hold against", "check against"),
    idiom("in earnest", "the effect, for example `logged`"),
    idiom("is made of", "consists of"),
    idiom("it is of no consequence", "it has no effect"),
    idiom("last words", "the last message, or the registers"),
    idiom("nearest thing", "a hint for fixing the error"),
    idiom("no news", "stale"),
    idiom("not its own", "that it does not own"),
    idiom("says what would come of it", "validates only (dry run)"),
    idiom("set aside", "reserve, or reserved"),
    idiom("sets aside", "reserves"),
    idiom("setting aside", "reserving"),
    idiom("standing still", "stopped, or stalled"),
    idiom("stands still", "is stopped, or is stalled"),
    idiom("surroundings", "context"),
    idiom(
        "the books are",
        "the accounting is, or an internal accounting error",
    ),
    idiom("the dearest", "the most expensive"),
    idiom("the kernel said", "the underlying error"),
    idiom("a bug in mkvmm", "an internal error, please report it"),
    idiom("what mmap said", "the underlying error"),
    idiom("what there is of", "the list of, or the number of"),
    idiom("whatever panicked", "valid even if the lock is poisoned"),
    idiom("whose rules hold", "the compatibility mode"),
];

const fn idiom(phrase: &'static str, write: &'static str) -> Idiom {
    Idiom { phrase, write }
}

/// Returns the idioms in `passage`.
pub fn idioms(passage: &Passage) -> impl Iterator<Item = &'static Idiom> {
    let text = passage.text.to_lowercase();
    let is_in = move |idiom: &&Idiom| contains_words(&text, idiom.phrase);
    IDIOMS.iter().filter(is_in)
}

/// Returns whether `passage` is a doc comment of one or two words, other than
/// a heading.
#[must_use]
pub fn is_short_doc(passage: &Passage) -> bool {
    passage.kind == Kind::Doc
        && !passage.text.starts_with(['#', '|'])
        && matches!(passage.text.split(' ').count(), 1 | 2)
}

/// Returns whether `phrase` occurs in `text` as whole words.
fn contains_words(text: &str, phrase: &str) -> bool {
    let is_outside =
        |it: Option<char>| it.is_none_or(|it| !it.is_alphanumeric() && !"-_".contains(it));
    text.match_indices(phrase).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + phrase.len()..].chars().next();
        is_outside(before) && is_outside(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passages::of_rust;

    #[test]
    fn docs_of_one_or_two_words_are_short_wherever_they_stand() {
        let text =
            "//! Why.\n\n/// The\n/// same.\n///\n/// # Errors\n/// Returns the count.\n// No.";
        let passages = of_rust(text);
        let short = passages.iter().filter(|it| is_short_doc(it));
        let short: Vec<&str> = short.map(|it| it.text.as_str()).collect();
        assert_eq!(short, ["Why.", "The same."]);
    }

    #[test]
    fn idioms_are_found_across_lines_and_only_as_whole_words() {
        let found = |text: &str| -> Vec<&str> {
            let passages = of_rust(text);
            let all = passages.iter().flat_map(idioms);
            all.map(|it| it.phrase).collect()
        };
        assert_eq!(
            found("// It is empty, but\n// for the first page."),
            ["but for"]
        );
        assert_eq!(found("f(\"Closed For Good: no retry\")"), ["for good"]);
        assert!(
            found("// A button but forwarded; not-for good-byes.\nfor good in all {}").is_empty()
        );
    }
}
