//! Formats errors for people: each layer describes itself, on one common line.

/// Formats an error and its causes on one line. A cause that its predecessor
/// already quotes, as errors of some other crates do, is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Self>>);

    #[test]
    fn nothing_is_said_twice() {
        let told = |text, cause| Told(text, Some(Box::new(cause)));
        let last = Told("no such file", None);
        let error = told("config", told("a.toml: no such file", last));
        assert_eq!(chain(&error), "config: a.toml: no such file");
    }
}
