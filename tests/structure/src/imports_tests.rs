use std::path::Path;

use super::*;
use crate::circles::circles;
use crate::testing::Texts;

/// Returns the imports between `files`, the first of which is the root, as
/// `from:line name to`.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let tree = Crate::read(&Texts::new(files), Path::new(files[0].0)).unwrap();
    let name = |file: FileId| tree.files[file].display().to_string();
    let say = |it: &Import| format!("{}:{} {} {}", name(it.from), it.line, it.what, name(it.to));
    imports(&tree).iter().map(say).collect()
}

/// Returns the files of each circle.
fn round(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let tree = Crate::read(&Texts::new(files), Path::new(files[0].0)).unwrap();
    let name = |&file: &FileId| tree.files[file].display().to_string();
    circles(tree.files.len(), &imports(&tree))
        .iter()
        .map(|it| it.files.iter().map(name).collect())
        .collect()
}

#[test]
fn siblings_that_import_each_other_are_a_circle() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;"),
        ("a.rs", "use crate::b::B;\npub struct A(B);"),
        ("b.rs", "pub struct B;\nfn f(_: super::a::A) {}"),
        ("c.rs", "use crate::a::A;\nfn f(_: A) {}"),
    ];
    assert_eq!(round(&files), [["a.rs", "b.rs"]]);
    assert_eq!(
        found(&files),
        ["a.rs:1 B b.rs", "b.rs:2 A a.rs", "c.rs:1 A a.rs"]
    );
}

#[test]
fn a_circle_of_three_is_one_circle() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "use crate::c::C; pub struct B(C);"),
        ("c.rs", "pub struct C; impl C { fn f() { crate::a::A; } }"),
        ("d.rs", "use crate::c::C; fn f(_: C) {}"),
    ];
    assert_eq!(round(&files), [["a.rs", "b.rs", "c.rs"]]);
}

#[test]
fn a_parent_that_reexports_a_child_does_not_use_it() {
    let files = [
        ("lib.rs", "pub mod a;\npub use a::A;\npub struct Root;"),
        ("a.rs", "use crate::Root;\npub struct A(Root);"),
    ];
    assert_eq!(found(&files), ["a.rs:1 Root lib.rs"]);
}

#[test]
fn a_parent_and_a_child_that_use_each_other_are_a_circle() {
    let files = [
        ("lib.rs", "mod a;\nuse a::A;\npub struct Root(A);"),
        ("a.rs", "pub struct A;\nfn f(_: super::Root) {}"),
    ];
    assert_eq!(round(&files), [["lib.rs", "a.rs"]]);
}

#[test]
fn code_that_names_its_own_reexport_uses_the_child() {
    let files = [
        ("lib.rs", "mod a;\npub use a::A;\npub struct Root(A);"),
        ("a.rs", "pub struct A;"),
    ];
    assert_eq!(found(&files), ["lib.rs:3 A a.rs"]);
}

#[test]
fn imports_by_way_of_the_parent_lead_to_the_sibling() {
    let files = [
        ("lib.rs", "pub mod m;"),
        ("m/mod.rs", "mod a;\nmod b;\npub use a::A;\npub struct Own;"),
        ("m/a.rs", "pub struct A;"),
        ("m/b.rs", "use super::A;\nfn f(_: A) {}"),
    ];
    assert_eq!(found(&files), ["m/b.rs:1 A m/a.rs"]);
}

#[test]
fn a_reexport_of_a_sibling_is_an_import() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub use crate::b::B; pub struct A;"),
        ("b.rs", "pub struct B; fn f(_: crate::a::A) {}"),
    ];
    assert_eq!(round(&files), [["a.rs", "b.rs"]]);
}

#[test]
fn globs_are_looked_through_and_count_where_a_module_defines_something() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;\npub(crate) use a::*;"),
        ("a.rs", "pub struct A;"),
        ("b.rs", "use super::*;\nfn f(_: A) {}"),
        ("c.rs", "use crate::a::*;"),
    ];
    assert_eq!(found(&files), ["b.rs:2 A a.rs", "c.rs:1 * a.rs"]);
}

#[test]
fn tests_may_import_what_they_like() {
    let files = [
        ("lib.rs", "pub mod a; mod b;\n#[cfg(test)] mod a_tests;"),
        (
            "a.rs",
            "#[cfg(test)] use crate::b::B;\npub struct A;
            impl A { #[cfg(test)] fn f(_: crate::b::B) {} }
            #[cfg(all(test, not(loom)))] mod tests { use crate::b::B; }
            #[path = \"x_tests.rs\"] mod others;",
        ),
        ("b.rs", "use crate::a::A; pub struct B(A);"),
    ];
    assert_eq!(found(&files), ["b.rs:1 A a.rs"]);
}

#[test]
fn macros_attributes_and_functions_are_looked_into() {
    let files = [
        ("lib.rs", "mod a;\nmod m;"),
        (
            "a.rs",
            "pub fn f() {}\npub mod hex {}\npub const N: u8 = 1;",
        ),
        (
            "m.rs",
            "fn g() {
                println!(\"{}\", crate::a::f());
                use crate::a::N;
            }
            #[derive(Serialize)]
            struct S { #[serde(with = \"crate::a::hex::text\")] x: u8 }
            #[doc = \"crate::a::f\"]
            macro_rules! mine { () => { $crate::a::N } }",
        ),
    ];
    let found = found(&files);
    assert_eq!(
        found,
        ["m.rs:2 f a.rs", "m.rs:3 N a.rs"],
        "a path that leads to nothing is nothing"
    );
}

#[test]
fn methods_that_a_child_gives_its_parents_type_are_used_by_name() {
    let files = [
        (
            "lib.rs",
            "mod a;\npub struct S;\nimpl S {\n fn f(&self) { self.g(); self.h(); }\n}",
        ),
        ("a.rs", "use crate::S;\nimpl S { pub fn g(&self) {} }"),
    ];
    assert_eq!(found(&files), ["lib.rs:4 S::g a.rs", "a.rs:1 S lib.rs"]);
    let files = [
        ("lib.rs", "mod a;\npub struct S;\nfn f() { S::g(); }"),
        ("a.rs", "impl super::S { pub fn g() {} }"),
    ];
    assert_eq!(round(&files), [["lib.rs", "a.rs"]]);
}

#[test]
fn a_function_and_a_module_of_one_name_are_told_apart() {
    let files = [
        ("lib.rs", "pub mod probe;\nmod b;\npub use probe::probe;"),
        ("probe.rs", "pub fn probe() {}\npub struct P;"),
        ("b.rs", "use crate::probe;\nfn f() { probe(); probe::P; }"),
    ];
    let expected = ["b.rs:1 probe probe.rs", "b.rs:2 P probe.rs"];
    assert_eq!(found(&files), expected);
}

#[test]
fn imports_in_a_circle_end() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub use crate::b::X;"),
        ("b.rs", "pub use crate::a::X; fn f(_: X) {}"),
    ];
    assert!(found(&files).is_empty());
}

#[test]
fn other_crates_and_restricted_visibility_are_no_imports() {
    let files = [
        ("lib.rs", "pub mod log; mod m;\npub struct Root;"),
        ("log.rs", "pub struct L;"),
        (
            "m.rs",
            "use ::log::info;\nuse std::fmt;\npub(in crate::log) struct X;\npub(super) struct Y;",
        ),
    ];
    assert!(found(&files).is_empty());
}
