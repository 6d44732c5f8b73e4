//! The schemas of the keys that take one value or a list of values.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Ref, Schema, Type};

use crate::net::FORWARDS_MAX;

/// Describes the key `initrd`.
pub(super) fn initrd() -> RefOr<Schema> {
    let path = Ref::from_schema_name("Path");
    one_or_several(
        "One or several initramfs archives, concatenated; they require a kernel.",
        path,
    )
}

/// Describes the key `label`.
pub(super) fn label() -> RefOr<Schema> {
    let label = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[0-9A-Za-z._/-]{1,63}=[ -~]{0,255}$"))
        .examples(["job=17"]);
    one_or_several(
        "One or several labels, `KEY=VALUE`, by which its users find it; mkvmm only shows them.",
        label,
    )
}

/// Describes the key `disk`.
pub(super) fn disk() -> RefOr<Schema> {
    let options = each_once(&["ro", "direct", "format=raw"]);
    let disk = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!(r"^[^,\x00]{{1,4095}}{options}$")))
        .examples(["/srv/root.img,ro"]);
    one_or_several(
        "One or several disks: the path of a file or a block device, and after commas `ro` (only \
         read), `format=raw` (the default), `direct` (no page cache).",
        disk,
    )
}

/// Describes the key `net`. Ranges of forwarded ports are accepted as well;
/// no pattern says that two of them are equally long.
pub(super) fn net() -> RefOr<Schema> {
    const MAC: &str = "mac=(?!00(:00){5})[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}";
    const MTU: &str = "mtu=(12[89][0-9]|1[3-9][0-9]{2}|[2-9][0-9]{3}|[1-5][0-9]{4}|6[0-4][0-9]{3}\
                       |65[0-4][0-9]{2}|655[01][0-9]|65520)";
    const PORT: &str = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]\
                        |6553[0-5])";
    let once = each_once(&[MAC, MTU]);
    let forward = format!("(,forward=(udp:|tcp:)?{PORT}(:{PORT})?){{0,{FORWARDS_MAX}}}");
    let device = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!(
            "^(pool:[A-Za-z0-9][A-Za-z0-9._-]{{0,31}}{once}|passt{once}{forward})$"
        )))
        .examples(["passt,forward=8080:80"]);
    one_or_several(
        "One or several network devices: passt for the network of the host, or pool:SEGMENT for \
         the guests on that segment; options follow after commas.",
        device,
    )
}

/// Describes one `item` or a list of them. How many devices there may be is a
/// limit for all lists together, which no schema can tell.
fn one_or_several(description: &str, item: impl Into<RefOr<Schema>>) -> RefOr<Schema> {
    let item = item.into();
    let list = ArrayBuilder::new().items(item.clone());
    OneOfBuilder::new()
        .description(Some(description))
        .item(item)
        .item(list)
        .into()
}

/// Returns the pattern of some of `words`, in any order, each at most once and
/// after a comma.
fn each_once(words: &[&str]) -> String {
    let ways = (0..words.len()).map(|first| {
        let others: Vec<&str> = [&words[..first], &words[first + 1..]].concat();
        format!(",{}{}", words[first], each_once(&others))
    });
    let ways: Vec<String> = ways.collect();
    match ways.is_empty() {
        true => String::new(),
        false => format!("({})?", ways.join("|")),
    }
}
