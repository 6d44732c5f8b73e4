//! Numbers that the project watches.

use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Meta, Visibility};

use crate::attributes::{is_test_only, string_value};
use crate::source::{Crate, attributes_of};

/// What one crate declares, tests left out.
#[derive(Debug, Default)]
pub struct Counts {
    /// Items declared `pub` without a restriction, modules among them; fields,
    /// variants and re-exports are not counted.
    pub public_items: usize,
    /// Methods and associated constants declared `pub` without a restriction.
    pub public_methods: usize,
    /// Places of doc comments that consist of one or two words.
    pub short_docs: Vec<String>,
}

/// Counts in `tree`, whose paths are printed relative to `relative_to`.
#[must_use]
pub fn count(tree: &Crate, relative_to: &Path) -> Counts {
    let mut counts = Counts::default();
    for module in &tree.modules {
        let path = &tree.files[module.file];
        let path = path.strip_prefix(relative_to).unwrap_or(path);
        let mut visitor = Counter {
            counts: &mut counts,
            docs: Vec::new(),
        };
        for item in &module.items {
            visitor.visit_item(item);
        }
        let docs = visitor.docs;
        let short = docs.into_iter().filter(|doc| is_short(&doc.text));
        let file = path.display();
        let place = |doc: Doc| format!("{file}:{}: {}", doc.line, doc.text.trim());
        counts.short_docs.extend(short.map(place));
    }
    // Modules are kept apart from items.
    counts.public_items += tree.modules.iter().filter(|it| it.is_public).count();
    counts
}

struct Counter<'a> {
    counts: &'a mut Counts,
    docs: Vec<Doc>,
}

impl<'ast> Visit<'ast> for Counter<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if attributes_of(item).is_some_and(is_test_only) {
            return;
        }
        let visibility = match item {
            syn::Item::Const(item) => Some(&item.vis),
            syn::Item::Enum(item) => Some(&item.vis),
            syn::Item::Fn(item) => Some(&item.vis),
            syn::Item::Static(item) => Some(&item.vis),
            syn::Item::Struct(item) => Some(&item.vis),
            syn::Item::Trait(item) => Some(&item.vis),
            syn::Item::Type(item) => Some(&item.vis),
            syn::Item::Union(item) => Some(&item.vis),
            _ => None,
        };
        if visibility.is_some_and(is_public) {
            self.counts.public_items += 1;
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test_only(&item.attrs) {
            self.counts.public_methods += usize::from(is_public(&item.vis));
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.counts.public_methods += usize::from(is_public(&item.vis));
        visit::visit_impl_item_const(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let Some((text, line)) = doc_line(attribute) else {
            return;
        };
        match self.docs.last_mut() {
            Some(doc) if doc.last_line + 1 == line => {
                doc.last_line = line;
                doc.text.push_str(&text);
            }
            _ => self.docs.push(Doc {
                line,
                last_line: line,
                text,
            }),
        }
    }
}

/// One doc comment: adjacent lines.
struct Doc {
    line: usize,
    last_line: usize,
    text: String,
}

/// Returns the text and the line of one line of a doc comment.
fn doc_line(attribute: &Attribute) -> Option<(String, usize)> {
    let Meta::NameValue(pair) = &attribute.meta else {
        return None;
    };
    if !pair.path.is_ident("doc") {
        return None;
    }
    let line = attribute.pound_token.spans[0].start().line;
    Some((string_value(&pair.value)?, line))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_short(text: &str) -> bool {
    matches!(text.split_whitespace().count(), 1 | 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Counts {
        let root = Path::new("lib.rs");
        let files = crate::testing::Texts::new(&[("lib.rs", text)]);
        count(&Crate::read(&files, root).unwrap(), Path::new(""))
    }

    #[test]
    fn only_unrestricted_items_outside_of_tests_are_public() {
        let counts = counts(
            "pub mod a { pub fn f() {} pub(crate) fn g() {} }
             pub struct S { pub field: u8 }
             impl S { pub const C: u8 = 1; pub fn m(&self) {} fn n(&self) {} }
             #[cfg(test)] mod tests { pub fn t() {} }",
        );
        assert_eq!((counts.public_items, counts.public_methods), (3, 2));
    }

    #[test]
    fn docs_of_one_or_two_words_are_short_wherever_they_stand() {
        let counts = counts(
            "/// Why.
             pub struct S {
                 /// The
                 /// same.
                 pub a: u8,
                 /// Returns the count.
                 pub b: u8,
             }",
        );
        assert_eq!(counts.short_docs, ["lib.rs:1: Why.", "lib.rs:3: The same."]);
    }
}
