//! Requests for an upgrade of the connection.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, Version, header};

/// Whether a request may be answered with an upgrade to `protocol`: it names the
/// protocol, perhaps among others, and says that the connection is to be
/// upgraded. `HEAD` only asks about a `GET`, and HTTP/1.0 knows no upgrades.
///
/// Source: RFC 9110, sections 7.6.1, 7.8 and 9.3.2.
pub fn asks_for(request: &Request, protocol: &str) -> bool {
    let headers = request.headers();
    request.method() != Method::HEAD
        && request.version() >= Version::HTTP_11
        && lists(headers, &header::CONNECTION, "upgrade")
        && lists(headers, &header::UPGRADE, protocol)
}

/// Whether a header, a list that may come in several lines, has `word`.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name).into_iter();
    let lines = lines.filter_map(|value| value.to_str().ok());
    let mut words = lines.flat_map(|line| line.split(','));
    words.any(|one| one.trim().eq_ignore_ascii_case(word))
}
