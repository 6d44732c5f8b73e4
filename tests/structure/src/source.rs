//! Reads the files of one crate into a tree of modules, without tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use syn::{Item, UseTree, Visibility};

use crate::attributes::{is_test_only, path_attribute, word};

/// The index of a file in [`Crate::files`].
pub type FileId = usize;
/// The index of a module in [`Crate::modules`].
pub(crate) type ModuleId = usize;

/// The sources of one target: its root file and all modules below it.
#[derive(Debug)]
pub struct Crate {
    /// Paths of the files, in the order in which they were found.
    pub files: Vec<PathBuf>,
    /// The modules; the root is the first.
    pub(crate) modules: Vec<Module>,
}

/// One module, in a file of its own or inline.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) file: FileId,
    pub(crate) parent: Option<ModuleId>,
    /// True if it is declared `pub` without a restriction.
    pub(crate) is_public: bool,
    pub(crate) children: BTreeMap<String, ModuleId>,
    /// The names that it defines itself, except modules.
    pub(crate) defined: BTreeSet<String>,
    pub(crate) uses: Vec<Use>,
    /// Its items, without modules and tests.
    pub(crate) items: Vec<Item>,
}

/// One name that a `use` imports, or one glob.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    /// The name in this module; `None` for a glob.
    pub(crate) name: Option<String>,
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// True if it is visible beyond its module, as a re-export is.
    pub(crate) is_reexport: bool,
}

/// A reason why sources cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("{} cannot be read", file.display())]
    Read {
        /// The path of the file.
        file: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// The file is not valid Rust.
    #[error("{}:{} is not valid Rust", file.display(), source.span().start().line)]
    Parse {
        /// The path of the file.
        file: PathBuf,
        /// The parser's error, with its position.
        source: syn::Error,
    },
    /// No file was found for `mod name;`.
    #[error("no file of module {module}, declared in {}", parent.display())]
    NoFile {
        /// The name of the module.
        module: String,
        /// The file that declares it.
        parent: PathBuf,
    },
}

/// Access to source text by path: the file system, or a map in tests.
pub trait Files {
    /// Returns the text of `file`, or `NotFound`.
    ///
    /// # Errors
    /// Returns the errors of the file system.
    fn read(&self, file: &Path) -> io::Result<String>;
}

/// The file system, as a source of files.
#[derive(Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, file: &Path) -> io::Result<String> {
        std::fs::read_to_string(file)
    }
}

impl Crate {
    /// Reads the target whose root file is `root`, and all its modules. Items
    /// under `#[cfg(test)]` and files named `*tests.rs` are left out.
    ///
    /// # Errors
    /// Returns a [`SourceError`] for a file that is missing or is not Rust.
    pub fn read(files: &dyn Files, root: &Path) -> Result<Crate, SourceError> {
        let mut reader = Reader {
            files,
            tree: Crate {
                files: Vec::new(),
                modules: Vec::new(),
            },
        };
        let directory = root.parent().unwrap_or(Path::new("")).to_owned();
        let text = read(files, root)?;
        reader.file(root, &text, &directory, None)?;
        Ok(reader.tree)
    }

    /// Returns whether `module` is `ancestor` or lies below it.
    pub(crate) fn is_within(&self, module: ModuleId, ancestor: ModuleId) -> bool {
        let mut at = Some(module);
        while let Some(id) = at {
            if id == ancestor {
                return true;
            }
            at = self.modules[id].parent;
        }
        false
    }
}

struct Reader<'a> {
    files: &'a dyn Files,
    tree: Crate,
}

impl Reader<'_> {
    /// Adds the module in `file`, whose children's files are in `directory`.
    fn file(
        &mut self,
        file: &Path,
        text: &str,
        directory: &Path,
        parent: Option<ModuleId>,
    ) -> Result<ModuleId, SourceError> {
        let syntax = syn::parse_file(text).map_err(|source| SourceError::Parse {
            file: file.to_owned(),
            source,
        })?;
        let id = self.tree.files.len();
        self.tree.files.push(file.to_owned());
        self.module(id, syntax.items, directory, parent)
    }

    fn module(
        &mut self,
        file: FileId,
        items: Vec<Item>,
        directory: &Path,
        parent: Option<ModuleId>,
    ) -> Result<ModuleId, SourceError> {
        let id = self.tree.modules.len();
        self.tree.modules.push(Module {
            file,
            parent,
            is_public: false,
            children: BTreeMap::new(),
            defined: BTreeSet::new(),
            uses: Vec::new(),
            items: Vec::new(),
        });
        for item in items {
            if attributes_of(&item).is_some_and(is_test_only) {
                continue;
            }
            match item {
                Item::Mod(module) => self.child(id, module, directory)?,
                Item::Use(item) => {
                    let uses = uses_of(&item);
                    self.tree.modules[id].uses.extend(uses);
                }
                item => {
                    let module = &mut self.tree.modules[id];
                    module.defined.extend(name_of(&item));
                    module.items.push(item);
                }
            }
        }
        Ok(id)
    }

    /// Adds the module that `item` declares in `parent`.
    fn child(
        &mut self,
        parent: ModuleId,
        item: syn::ItemMod,
        directory: &Path,
    ) -> Result<(), SourceError> {
        let name = word(&item.ident);
        let below = directory.join(&name);
        let file = self.tree.modules[parent].file;
        let id = if let Some((_, items)) = item.content {
            self.module(file, items, &below, Some(parent))?
        } else {
            let here = self.tree.files[file].clone();
            let candidates = match path_attribute(&item.attrs) {
                Some(path) => vec![here.parent().unwrap_or(Path::new("")).join(path)],
                None => vec![below.with_extension("rs"), below.join("mod.rs")],
            };
            if candidates[0].to_string_lossy().ends_with("tests.rs") {
                return Ok(());
            }
            let (found, text) = self.first_of(candidates, &name, &here)?;
            self.file(&found, &text, &below, Some(parent))?
        };
        self.tree.modules[id].is_public = matches!(item.vis, Visibility::Public(_));
        self.tree.modules[parent].children.insert(name, id);
        Ok(())
    }

    fn first_of(
        &self,
        candidates: Vec<PathBuf>,
        module: &str,
        parent: &Path,
    ) -> Result<(PathBuf, String), SourceError> {
        for candidate in candidates {
            match self.files.read(&candidate) {
                Ok(text) => return Ok((candidate, text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let file = candidate;
                    return Err(SourceError::Read { file, source });
                }
            }
        }
        Err(SourceError::NoFile {
            module: module.to_owned(),
            parent: parent.to_owned(),
        })
    }
}

fn read(files: &dyn Files, file: &Path) -> Result<String, SourceError> {
    files.read(file).map_err(|source| SourceError::Read {
        file: file.to_owned(),
        source,
    })
}

/// Returns the single names that a `use` imports.
pub(crate) fn uses_of(item: &syn::ItemUse) -> Vec<Use> {
    let mut uses = Vec::new();
    let start = item.leading_colon.as_ref().map(|_| String::new());
    let is_reexport = !matches!(item.vis, Visibility::Inherited);
    flatten(
        &item.tree,
        start.into_iter().collect(),
        is_reexport,
        &mut uses,
    );
    uses
}

fn flatten(tree: &UseTree, mut path: Vec<String>, is_reexport: bool, uses: &mut Vec<Use>) {
    let mut push = |name: Option<String>, path, line| {
        uses.push(Use {
            name,
            path,
            line,
            is_reexport,
        });
    };
    match tree {
        UseTree::Path(step) => {
            path.push(word(&step.ident));
            flatten(&step.tree, path, is_reexport, uses);
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, path.clone(), is_reexport, uses);
            }
        }
        UseTree::Glob(glob) => push(None, path, glob.star_token.spans[0].start().line),
        UseTree::Name(name) => {
            let line = name.ident.span().start().line;
            if name.ident != "self" {
                path.push(word(&name.ident));
            }
            push(path.last().cloned(), path, line);
        }
        UseTree::Rename(rename) => {
            let line = rename.ident.span().start().line;
            if rename.ident != "self" {
                path.push(word(&rename.ident));
            }
            push(Some(word(&rename.rename)), path, line);
        }
    }
}

/// Returns the name that the item defines in its module.
fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(word(ident))
}

/// Returns the attributes of any item that has them.
pub(crate) fn attributes_of(item: &Item) -> Option<&[syn::Attribute]> {
    Some(match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => return None,
    })
}
