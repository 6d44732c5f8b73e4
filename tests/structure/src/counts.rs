//! The numbers that the project monitors.

use syn::Visibility;
use syn::visit::{self, Visit};

use crate::attributes::is_test_only;
use crate::source::{Crate, attributes_of};

/// The declarations of one crate, without tests.
#[derive(Debug, Default)]
pub struct Counts {
    /// The number of items declared `pub` without a restriction, including
    /// modules; fields, variants and re-exports are not counted.
    pub public_items: usize,
    /// The number of methods and associated constants declared `pub` without a
    /// restriction.
    pub public_methods: usize,
}

/// Counts the public declarations in `tree`.
#[must_use]
pub fn count(tree: &Crate) -> Counts {
    let mut counts = Counts::default();
    for item in tree.modules.iter().flat_map(|module| &module.items) {
        Counter(&mut counts).visit_item(item);
    }
    // Modules are stored separately from items.
    counts.public_items += tree.modules.iter().filter(|it| it.is_public).count();
    counts
}

struct Counter<'a>(&'a mut Counts);

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
            self.0.public_items += 1;
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test_only(&item.attrs) {
            self.0.public_methods += usize::from(is_public(&item.vis));
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.0.public_methods += usize::from(is_public(&item.vis));
        visit::visit_impl_item_const(self, item);
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn counts(text: &str) -> Counts {
        let root = Path::new("lib.rs");
        let files = crate::testing::Texts::new(&[("lib.rs", text)]);
        count(&Crate::read(&files, root).unwrap())
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
}
