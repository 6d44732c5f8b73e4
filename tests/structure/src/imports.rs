//! Lists which file uses what of which other file of its crate.
//!
//! An import refers to the file in which the item is *defined*: through
//! re-exports, a child that imports a sibling by way of its parent uses the
//! sibling. A parent that only declares or re-exports its child does not use
//! it.
//!
//! Uses that cannot be recognised without types are not counted: a method of
//! another file's type, called on a value whose type is never named. Methods
//! that one type has in several files are counted: `self.name(…)` and
//! `Type::name`.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use crate::attributes::{Mention, is_test_only, mentions_of_attribute, mentions_of_tokens, word};
use crate::names::{Target, resolve};
use crate::source::{Crate, FileId, ModuleId, Use, attributes_of, uses_of};

/// One place in which a file uses another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// The file that imports.
    pub from: FileId,
    /// The file that defines the imported item.
    pub to: FileId,
    /// The number of the line in `from`.
    pub line: usize,
    /// The name of the imported item, as its file defines it; `*` for all.
    pub what: String,
}

/// Returns all imports between different files of `tree`, in order; an item
/// that a file uses several times is listed once, with the first line.
pub fn imports(tree: &Crate) -> Vec<Import> {
    let modules = 0..tree.modules.len();
    let code: Vec<Code> = modules.clone().map(|id| Code::of(tree, id)).collect();
    let methods = methods_of_types(tree, &code);
    let mut found: BTreeMap<(FileId, FileId, String), usize> = BTreeMap::new();
    let mut add = |from: FileId, (to, what): (FileId, String), line: usize| {
        if from != to {
            let first = found.entry((from, to, what)).or_insert(line);
            *first = line.min(*first);
        }
    };
    for id in modules {
        let from = tree.modules[id].file;
        for it in tree.modules[id].uses.iter().chain(&code[id].uses) {
            if let Some(used) = used_by_import(tree, id, it) {
                add(from, used, it.line);
            }
        }
        for (owner, mention) in &code[id].mentions {
            for used in used_by_mention(tree, id, owner.as_deref(), mention, &methods) {
                add(from, used, mention.line);
            }
        }
    }
    let imports = found.into_iter();
    let mut imports: Vec<Import> = imports
        .map(|((from, to, what), line)| Import {
            from,
            to,
            line,
            what,
        })
        .collect();
    imports.sort();
    imports
}

/// Returns the file that a `use` in `module` uses, if any, and the item.
fn used_by_import(tree: &Crate, module: ModuleId, it: &Use) -> Option<(FileId, String)> {
    let target = resolve(tree, module, &it.path)?;
    let other = &tree.modules[target.module()];
    if it.is_reexport && tree.is_within(target.module(), module) {
        return None;
    }
    match target {
        Target::Item { name, .. } => Some((other.file, name)),
        // A module's name alone uses nothing; paths through it do.
        Target::Module(_) if it.name.is_some() || other.defined.is_empty() => None,
        Target::Module(_) => Some((other.file, "*".to_owned())),
    }
}

/// Returns the files that a path in the code of `module` uses, with the items:
/// that of the item and, for a method, that of the `impl`. `owner` is the type
/// whose `impl` contains the code.
fn used_by_mention(
    tree: &Crate,
    module: ModuleId,
    owner: Option<&[String]>,
    mention: &Mention,
    methods: &Methods,
) -> Vec<(FileId, String)> {
    let is_on_owner = mention.on_self || mention.path[0] == "Self";
    let target = if is_on_owner {
        owner.and_then(|owner| resolve(tree, module, owner))
    } else {
        resolve(tree, module, &mention.path)
    };
    let Some(Target::Item {
        module: home,
        name,
        associated,
    }) = target
    else {
        return Vec::new();
    };
    let method = match (is_on_owner, mention.on_self) {
        (true, true) => mention.path.first().cloned(),
        (true, false) => mention.path.get(1).cloned(),
        (false, _) => associated,
    };
    let of_item = (!is_on_owner).then(|| (tree.modules[home].file, name.clone()));
    let of_method = method.and_then(|method| {
        let what = format!("{name}::{method}");
        Some((*methods.get(&(home, name, method))?, what))
    });
    of_item.into_iter().chain(of_method).collect()
}

/// The file of each method and associated constant in an inherent `impl`, by
/// the type's module and name and its own name.
type Methods = BTreeMap<(ModuleId, String, String), FileId>;

fn methods_of_types(tree: &Crate, code: &[Code]) -> Methods {
    let mut methods = Methods::new();
    for (id, code) in code.iter().enumerate() {
        for (owner, method) in &code.methods {
            if let Some(Target::Item { module, name, .. }) = resolve(tree, id, owner) {
                methods.insert((module, name, method.clone()), tree.modules[id].file);
            }
        }
    }
    methods
}

/// The names that the code of one module mentions.
#[derive(Debug, Default)]
struct Code {
    /// The mentions, each with the type whose `impl` contains it.
    mentions: Vec<(Option<Vec<String>>, Mention)>,
    /// The imports inside of functions.
    uses: Vec<Use>,
    /// The types and the methods that inherent `impl`s here give them.
    methods: Vec<(Vec<String>, String)>,
    /// The type of the `impl` that is being visited.
    owner: Option<Vec<String>>,
}

impl Code {
    fn of(tree: &Crate, module: ModuleId) -> Code {
        let mut code = Code::default();
        for item in &tree.modules[module].items {
            code.visit_item(item);
        }
        code
    }

    fn push(&mut self, mention: Mention) {
        self.mentions.push((self.owner.clone(), mention));
    }
}

impl<'ast> Visit<'ast> for Code {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !attributes_of(item).is_some_and(is_test_only) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.uses.extend(uses_of(item));
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let outer = self.owner.take();
        if let syn::Type::Path(path) = item.self_ty.as_ref() {
            let path = Mention::of_path(&path.path).path;
            if item.trait_.is_none() {
                for method in item.items.iter().filter_map(name_of_associated) {
                    self.methods.push((path.clone(), method));
                }
            }
            self.owner = Some(path);
        }
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Const(item) => item.attrs.as_slice(),
            syn::ImplItem::Fn(item) => item.attrs.as_slice(),
            _ => &[],
        };
        if !is_test_only(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.push(Mention::of_path(path));
        visit::visit_path(self, path);
    }

    // A `pub(in path)` does not use the module that it names.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        for mention in mentions_of_attribute(attribute) {
            self.push(mention);
        }
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        self.visit_path(&invocation.path);
        for mention in mentions_of_tokens(invocation.tokens.clone()) {
            self.push(mention);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if matches!(call.receiver.as_ref(), syn::Expr::Path(path) if path.path.is_ident("self")) {
            self.push(Mention {
                path: vec![word(&call.method)],
                line: call.method.span().start().line,
                on_self: true,
            });
        }
        visit::visit_expr_method_call(self, call);
    }
}

fn name_of_associated(item: &syn::ImplItem) -> Option<String> {
    match item {
        syn::ImplItem::Const(item) => Some(word(&item.ident)),
        syn::ImplItem::Fn(item) => Some(word(&item.sig.ident)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "imports_tests.rs"]
mod tests;
