//! Attributes and macros, whose contents are tokens and not syntax.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{Attribute, Meta};

/// A path as written, with the line it starts in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mention {
    /// The segments; a leading `::` is an empty first segment.
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// True for a method called on `self`, which is then the only segment.
    pub(crate) on_self: bool,
}

impl Mention {
    pub(crate) fn of_path(path: &syn::Path) -> Mention {
        let leading = path.leading_colon.as_ref().map(|_| String::new());
        let segments = path.segments.iter().map(|segment| word(&segment.ident));
        let line = path
            .segments
            .first()
            .map_or(0, |first| first.ident.span().start().line);
        Mention {
            path: leading.into_iter().chain(segments).collect(),
            line,
            on_self: false,
        }
    }
}

/// Returns the identifier without the `r#` of a raw one.
pub(crate) fn word(ident: &proc_macro2::Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map_or(text.clone(), str::to_owned)
}

/// Returns whether an item with these attributes exists in test builds only.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return attribute.path().is_ident("test");
        };
        list.path.is_ident("cfg") && requires_test(list.tokens.clone())
    })
}

/// Returns whether the condition of a `cfg` is `test` or `all(…, test, …)`.
fn requires_test(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(name)] => *name == "test",
        [TokenTree::Ident(all), TokenTree::Group(group)] if *all == "all" => {
            let parts: Vec<TokenTree> = group.stream().into_iter().collect();
            parts
                .split(|token| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ','))
                .any(|part| requires_test(part.iter().cloned().collect()))
        }
        _ => false,
    }
}

/// Returns the value of `#[path = "…"]`.
pub(crate) fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        if !pair.path.is_ident("path") {
            return None;
        }
        string_value(&pair.value)
    })
}

/// Returns the text of a string literal.
fn string_value(value: &syn::Expr) -> Option<String> {
    match value {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

/// Returns the paths in an attribute's arguments. serde names functions in
/// strings, so strings that are paths count there.
pub(crate) fn mentions_of_attribute(attribute: &Attribute) -> Vec<Mention> {
    const WITHOUT_CODE: [&str; 8] = [
        "allow", "cfg", "cfg_attr", "deny", "doc", "expect", "path", "warn",
    ];
    let name = attribute.path();
    match &attribute.meta {
        Meta::List(list) if !WITHOUT_CODE.iter().any(|other| name.is_ident(other)) => {
            let mut mentions = Vec::new();
            collect(list.tokens.clone(), name.is_ident("serde"), &mut mentions);
            mentions
        }
        _ => Vec::new(),
    }
}

/// Returns the paths in the arguments or the body of a macro.
pub(crate) fn mentions_of_tokens(tokens: TokenStream) -> Vec<Mention> {
    let mut mentions = Vec::new();
    collect(tokens, false, &mut mentions);
    mentions
}

/// Adds every path in `tokens` to `mentions`, including those in groups.
fn collect(tokens: TokenStream, with_strings: bool, mentions: &mut Vec<Mention>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(first) => {
                let mention = path_at(&tokens, at);
                let after_dot = at > 0 && is_punct(tokens.get(at - 1), '.');
                let length = 3 * mention.path.len() - 2;
                if !after_dot {
                    mentions.push(mention);
                } else if is_self_call(&tokens, at) {
                    mentions.push(Mention {
                        path: vec![word(first)],
                        line: first.span().start().line,
                        on_self: true,
                    });
                }
                at += length;
            }
            TokenTree::Group(group) => {
                collect(group.stream(), with_strings, mentions);
                at += 1;
            }
            TokenTree::Literal(literal) => {
                if with_strings {
                    mentions.extend(path_in_string(literal));
                }
                at += 1;
            }
            TokenTree::Punct(_) => at += 1,
        }
    }
}

/// Returns the path `a::b::c` that starts at `tokens[at]`, an identifier.
fn path_at(tokens: &[TokenTree], mut at: usize) -> Mention {
    let mut path = Vec::new();
    let mut line = 0;
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        if path.is_empty() {
            line = ident.span().start().line;
        }
        path.push(word(ident));
        if !(is_punct(tokens.get(at + 1), ':') && is_punct(tokens.get(at + 2), ':')) {
            break;
        }
        at += 3;
    }
    Mention {
        path,
        line,
        on_self: false,
    }
}

/// Returns whether `tokens[at]` is `name` in `self.name(…)`.
fn is_self_call(tokens: &[TokenTree], at: usize) -> bool {
    let receiver = at.checked_sub(2).and_then(|before| tokens.get(before));
    let is_self = matches!(receiver, Some(TokenTree::Ident(ident)) if *ident == "self");
    let arguments = tokens.get(at + 1);
    is_self
        && matches!(arguments, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis)
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn path_in_string(literal: &proc_macro2::Literal) -> Option<Mention> {
    let text = literal.to_string();
    let path = syn::parse_str::<syn::Path>(text.trim_matches('"')).ok()?;
    Some(Mention {
        line: literal.span().start().line,
        ..Mention::of_path(&path)
    })
}
