//! Formats errors for people: each layer describes itself, on one common line.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

/// A cause of an error that says everything about it in its own words: [`chain`] ends
/// before it, [`causes`] does not.
#[derive(Debug)]
pub struct Detail(Box<dyn Error + Send + Sync>);

impl Detail {
    /// Returns `error` as such a cause.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Detail {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Formats an error and its causes on one line. A cause that its predecessor
/// already quotes, as errors of some other crates do, is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause.filter(|error| !error.is::<Detail>()) {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// Returns what an error and each of its causes say, down to the last one.
pub fn causes(error: &dyn Error) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !all.last().is_some_and(|last| last.ends_with(&said)) {
            all.push(said);
        }
        cause = error.source();
    }
    all
}

/// Whether an error came about because the host has no descriptors, processes
/// or memory left for it.
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    const SHORTAGES: [Errno; 5] = [
        Errno::AGAIN,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
    ];
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| {
        let of_io = |error: &io::Error| Errno::from_io_error(error);
        let shared = || cause.downcast_ref::<Arc<io::Error>>().map(Arc::as_ref);
        let errno = cause.downcast_ref::<Errno>().copied();
        let errno = errno.or_else(|| of_io(cause.downcast_ref::<io::Error>().or_else(shared)?));
        errno.is_some_and(|errno| SHORTAGES.contains(&errno))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Self>>);

    #[derive(Debug, thiserror::Error)]
    #[error("it failed")]
    struct Failed(#[source] Arc<io::Error>);

    #[test]
    fn a_shortage_is_found_however_deep_it_lies() {
        let failed = |errno: Errno| Failed(Arc::new(errno.into()));
        assert!(is_shortage(&failed(Errno::MFILE)));
        assert!(is_shortage(&io::Error::other(failed(Errno::NOMEM))));
        assert!(is_shortage(&Errno::AGAIN));
        assert!(!is_shortage(&failed(Errno::IO)));
        assert!(!is_shortage(&Told("no such file", None)));
    }

    #[test]
    fn nothing_is_said_twice() {
        let told = |text, cause| Told(text, Some(Box::new(cause)));
        let last = Told("no such file", None);
        let error = told("config", told("a.toml: no such file", last));
        assert_eq!(chain(&error), "config: a.toml: no such file");
        assert_eq!(causes(&error), ["config", "a.toml: no such file"]);
    }

    #[test]
    fn details_are_causes_that_are_not_read_to_everybody() {
        #[derive(Debug, thiserror::Error)]
        #[error("needs 2, 1 is free")]
        struct Words(#[source] Detail);
        let last = Told("the last cause", None);
        let words = Words(Detail::new(Told("no chunk", Some(Box::new(last)))));
        assert_eq!(chain(&words), "needs 2, 1 is free");
        let all = ["needs 2, 1 is free", "no chunk", "the last cause"];
        assert_eq!(causes(&words), all);
    }
}
