//! Resolves a path in one module to the file that defines its target.

use std::collections::BTreeSet;

use crate::source::{Crate, ModuleId};

/// The target of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A module, and nothing inside it.
    Module(ModuleId),
    /// An item defined in `module`, and the segment after its name, which is
    /// a variant, a method or a constant of it.
    Item {
        module: ModuleId,
        name: String,
        associated: Option<String>,
    },
}

impl Target {
    pub(crate) fn module(&self) -> ModuleId {
        match self {
            Target::Module(module) | Target::Item { module, .. } => *module,
        }
    }
}

/// The lookups in progress, so that circular imports terminate.
type Seen = BTreeSet<(ModuleId, String)>;

/// Resolves `path`, written in module `from`, through modules, imports and
/// re-exports. Returns `None` if the target is outside the crate.
pub(crate) fn resolve(tree: &Crate, from: ModuleId, path: &[String]) -> Option<Target> {
    resolve_seen(tree, from, path, true, &mut Seen::new())
}

/// Works like [`resolve`]; `is_last` as in [`lookup`], for the end of the path.
fn resolve_seen(
    tree: &Crate,
    from: ModuleId,
    path: &[String],
    is_last: bool,
    seen: &mut Seen,
) -> Option<Target> {
    let (first, mut rest) = path.split_first()?;
    let mut target = match first.as_str() {
        "" | "Self" => return None,
        "crate" => Target::Module(0),
        "self" => Target::Module(from),
        "super" => Target::Module(tree.modules[from].parent?),
        name => lookup(tree, from, name, rest.is_empty() && is_last, seen)?,
    };
    while let Some((next, after)) = rest.split_first() {
        match target {
            Target::Module(module) if next == "super" => {
                target = Target::Module(tree.modules[module].parent?);
            }
            Target::Module(module) => {
                target = lookup(tree, module, next, after.is_empty() && is_last, seen)?;
            }
            Target::Item { .. } => break,
        }
        rest = after;
    }
    if let Target::Item { associated, .. } = &mut target
        && associated.is_none()
    {
        *associated = rest.first().cloned();
    }
    Some(target)
}

/// Finds `name` in `module`. A module and a function may share a name: inside a
/// path the module is meant, at its end (`is_last`) the other.
fn lookup(
    tree: &Crate,
    module: ModuleId,
    name: &str,
    is_last: bool,
    seen: &mut Seen,
) -> Option<Target> {
    let here = &tree.modules[module];
    let child = here.children.get(name).map(|&child| Target::Module(child));
    if child.is_some() && !is_last {
        return child;
    }
    if here.defined.contains(name) {
        return Some(Target::Item {
            module,
            name: name.to_owned(),
            associated: None,
        });
    }
    if !seen.insert((module, name.to_owned())) {
        return child;
    }
    let found = imported(tree, module, name, is_last, seen);
    seen.remove(&(module, name.to_owned()));
    found.or(child)
}

/// Finds `name` among the imports of `module`, by name before by glob.
fn imported(
    tree: &Crate,
    module: ModuleId,
    name: &str,
    is_last: bool,
    seen: &mut Seen,
) -> Option<Target> {
    let uses = &tree.modules[module].uses;
    let named: Vec<Target> = uses
        .iter()
        .filter(|it| it.name.as_deref() == Some(name))
        .filter_map(|it| resolve_seen(tree, module, &it.path, is_last, seen))
        .collect();
    let is_wanted = |target: &&Target| matches!(target, Target::Module(_)) != is_last;
    if let Some(target) = named.iter().find(is_wanted).or(named.first()) {
        return Some(target.clone());
    }
    let mut globs = uses.iter().filter(|it| it.name.is_none());
    globs.find_map(
        |it| match resolve_seen(tree, module, &it.path, false, seen)? {
            Target::Module(other) => lookup(tree, other, name, is_last, seen),
            Target::Item { .. } => None,
        },
    )
}
