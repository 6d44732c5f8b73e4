//! Splits the files of the repository into passages of prose: comments, string
//! literals, and paragraphs of documents.

use std::iter::Peekable;
use std::str::CharIndices;

/// The place of a passage in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is a paragraph of a `///` or `//!` comment.
    Doc,
    /// It is a paragraph of another comment.
    Comment,
    /// It is a string literal.
    Literal,
    /// It is a paragraph of a document or of a script.
    Document,
}

/// Adjacent lines of prose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The kind of text that it belongs to.
    pub kind: Kind,
    /// The number of its first line, from 1.
    pub line: usize,
    /// Its text, with one blank between words.
    pub text: String,
}

/// Returns the comments and string literals of a Rust file, without the blocks
/// of code in doc comments.
#[must_use]
pub fn of_rust(source: &str) -> Vec<Passage> {
    let mut scanner = Scanner {
        source,
        rest: source.char_indices().peekable(),
        is_code: false,
        passages: Passages::default(),
    };
    while scanner.token() {}
    scanner.passages.done
}

/// Returns the paragraphs of a Markdown file, without its blocks of code.
#[must_use]
pub fn of_markdown(source: &str) -> Vec<Passage> {
    let mut is_code = false;
    of_lines(source, |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if is_fence || is_code { "" } else { line }
    })
}

/// Returns the paragraphs of a script or a similar file, without the marks that
/// begin its comments.
#[must_use]
pub fn of_script(source: &str) -> Vec<Passage> {
    of_lines(source, |line| {
        line.trim_start_matches([' ', '\t', '#', '/', '*'])
    })
}

fn of_lines<'a>(source: &'a str, mut strip: impl FnMut(&'a str) -> &'a str) -> Vec<Passage> {
    let mut passages = Passages::default();
    for (index, line) in source.lines().enumerate() {
        passages.line(Kind::Document, index + 1, strip(line));
    }
    passages.done
}

/// Joins lines to passages.
#[derive(Default)]
struct Passages {
    done: Vec<Passage>,
    /// The number of the line that continues the last passage; 0 if none does.
    next_line: usize,
}

impl Passages {
    /// Adds a line, which continues the last passage if that ended on the line
    /// before and is of the same kind.
    fn line(&mut self, kind: Kind, line: usize, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            self.next_line = 0;
            return;
        }
        let last = self.done.last_mut().filter(|it| it.kind == kind);
        match last {
            Some(last) if self.next_line == line => {
                last.text.push(' ');
                last.text.push_str(&words.join(" "));
            }
            _ => self.done.push(Passage {
                kind,
                line,
                text: words.join(" "),
            }),
        }
        self.next_line = line + 1;
    }

    /// Adds a text that is complete, of any number of lines.
    fn whole(&mut self, kind: Kind, line: usize, text: &str) {
        self.next_line = 0;
        self.line(kind, line, text);
        self.next_line = 0;
    }
}

/// Finds comments and string literals in Rust.
struct Scanner<'a> {
    source: &'a str,
    rest: Peekable<CharIndices<'a>>,
    /// True inside a block of code of a doc comment.
    is_code: bool,
    passages: Passages,
}

impl Scanner<'_> {
    /// Reads one token or less; returns false at the end of the file.
    fn token(&mut self) -> bool {
        let Some((start, first)) = self.rest.next() else {
            return false;
        };
        match first {
            '/' if self.take('/') => self.line_comment(start),
            '/' if self.take('*') => self.block_comment(start),
            '"' => self.string(start),
            '\'' => self.char_or_lifetime(),
            _ if is_word(first) => self.word(start),
            _ => {}
        }
        true
    }

    /// Reads the next character if it is `wanted`.
    fn take(&mut self, wanted: char) -> bool {
        self.rest.next_if(|(_, it)| *it == wanted).is_some()
    }

    /// Returns the position of the next character.
    fn position(&mut self) -> usize {
        self.rest.peek().map_or(self.source.len(), |(at, _)| *at)
    }

    fn line_number(&self, position: usize) -> usize {
        self.source[..position].matches('\n').count() + 1
    }

    fn line_comment(&mut self, start: usize) {
        while self.rest.next_if(|(_, it)| *it != '\n').is_some() {}
        let text = &self.source[start..self.position()];
        let is_doc =
            text.starts_with("//!") || (text.starts_with("///") && !text.starts_with("////"));
        let kind = if is_doc { Kind::Doc } else { Kind::Comment };
        let line = self.line_number(start);
        let text = text.trim_start_matches(['/', '!']).trim_start();
        let is_fence = is_doc && text.starts_with("```");
        self.is_code ^= is_fence;
        let is_code = is_doc && (is_fence || self.is_code);
        self.passages
            .line(kind, line, if is_code { "" } else { text });
    }

    fn block_comment(&mut self, start: usize) {
        let mut depth = 1;
        while depth > 0 {
            match self.rest.next() {
                Some((_, '/')) if self.take('*') => depth += 1,
                Some((_, '*')) if self.take('/') => depth -= 1,
                Some(_) => {}
                None => break,
            }
        }
        let text = &self.source[start..self.position()];
        let line = self.line_number(start);
        self.passages
            .whole(Kind::Comment, line, text.trim_matches(['/', '*', '!']));
    }

    /// Reads a string literal with escapes, after its opening quotation mark.
    fn string(&mut self, start: usize) {
        let from = self.position();
        let mut to = from;
        while let Some((at, it)) = self.rest.next() {
            to = at;
            match it {
                '\\' => drop(self.rest.next()),
                '"' => break,
                _ => {}
            }
        }
        // A backslash at the end of a line continues the text on the next one.
        let text = self.source[from..to]
            .replace("\\\n", " ")
            .replace("\\n", " ");
        let line = self.line_number(start);
        self.passages.whole(Kind::Literal, line, &text);
    }

    /// Reads a raw string literal that ends with a quotation mark and `end`.
    fn raw_string(&mut self, start: usize, end: &str) {
        let from = self.position();
        let close = format!("\"{end}");
        let to = self.source[from..]
            .find(&close)
            .map_or(self.source.len(), |it| from + it);
        while self
            .rest
            .next_if(|(at, _)| *at < to + close.len())
            .is_some()
        {}
        let line = self.line_number(start);
        self.passages
            .whole(Kind::Literal, line, &self.source[from..to]);
    }

    /// Reads a character literal, or the quotation mark of a lifetime.
    fn char_or_lifetime(&mut self) {
        let from = self.position();
        let mut next = self.source[from..].chars();
        match (next.next(), next.next()) {
            (Some('\\'), _) => {
                self.rest.next();
                self.rest.next();
                while self.rest.next_if(|(_, it)| *it != '\'').is_some() {}
                self.take('\'');
            }
            (_, Some('\'')) => {
                self.rest.next();
                self.rest.next();
            }
            _ => {}
        }
    }

    /// Reads a keyword, a name or a number, or the raw string that it begins.
    fn word(&mut self, start: usize) {
        while self.rest.next_if(|(_, it)| is_word(*it)).is_some() {}
        let from = self.position();
        if !matches!(&self.source[start..from], "r" | "br" | "cr") {
            return;
        }
        let marks = self.source[from..].len() - self.source[from..].trim_start_matches('#').len();
        if !self.source[from + marks..].starts_with('"') {
            return;
        }
        for _ in 0..=marks {
            self.rest.next();
        }
        self.raw_string(start, &"#".repeat(marks));
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(passages: &[Passage]) -> Vec<(Kind, usize, &str)> {
        let row = |it: &'_ Passage| (it.kind, it.line);
        let rows = passages.iter().map(|it| (row(it), it.text.as_str()));
        rows.map(|((kind, line), text)| (kind, line, text))
            .collect()
    }

    #[test]
    fn comments_are_told_from_literals() {
        let passages = of_rust(
            "//! A crate of\n//! two lines.\n//!\n//! Another.\n//! ```\n//! f();\n//! ```\n\
             // Not a doc.\nfn f<'a>(x: &'a str) -> char {\n\
             let c = '\"'; let d = '\\''; // Behind code.\n\
             let u = \"http://x \\\" y\"; let r = r#\"raw \" // no\"#;\n\
             /* a /* nested */ one */ 'x'\n}\n/// The last.\n",
        );
        assert_eq!(
            found(&passages),
            [
                (Kind::Doc, 1, "A crate of two lines."),
                (Kind::Doc, 4, "Another."),
                (Kind::Comment, 8, "Not a doc."),
                (Kind::Comment, 10, "Behind code."),
                (Kind::Literal, 11, "http://x \\\" y"),
                (Kind::Literal, 11, "raw \" // no"),
                (Kind::Comment, 12, "a /* nested */ one"),
                (Kind::Doc, 14, "The last."),
            ]
        );
    }

    #[test]
    fn code_between_comments_separates_them() {
        let passages = of_rust("/// One field.\na: u8,\n/// Its\n/// neighbour.\nb: u8,\n");
        let expected = [
            (Kind::Doc, 1, "One field."),
            (Kind::Doc, 3, "Its neighbour."),
        ];
        assert_eq!(found(&passages), expected);
    }

    #[test]
    fn documents_are_read_without_code_and_scripts_without_marks() {
        let document = of_markdown("# Title\n\nOne\ntwo.\n```\ncode\n```\nThree.\n");
        let texts: Vec<&str> = document.iter().map(|it| it.text.as_str()).collect();
        assert_eq!(texts, ["# Title", "One two.", "Three."]);
        let script = of_script("# Builds\n# it.\n\nmake\n");
        let expected = [
            (Kind::Document, 1, "Builds it."),
            (Kind::Document, 4, "make"),
        ];
        assert_eq!(found(&script), expected);
    }
}
