//! Requests as text.

use serde::Serialize;

use crate::error::ClientError;

/// A request: method, path with query, a header, and body.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The method, such as `GET`.
    pub method: &'a str,
    /// The path with its query, such as `/v1/instances`.
    pub path: String,
    /// A header with its value, if there is to be one.
    pub header: Option<(&'static str, &'static str)>,
    /// The body, which is JSON, if there is to be one.
    pub body: Option<String>,
}

impl<'a> Call<'a> {
    /// Returns a request that changes nothing.
    #[must_use]
    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    /// Returns a request without a body.
    #[must_use]
    pub fn new(method: &'a str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            header: None,
            body: None,
        }
    }

    /// Returns a request about the instance `name`: `rest` begins with a slash, or is
    /// empty for the instance itself.
    #[must_use]
    pub fn of_instance(method: &'a str, name: &str, rest: &str) -> Self {
        Self::new(method, format!("/v1/instances/{}{rest}", escape(name)))
    }

    /// Adds a JSON body.
    ///
    /// # Errors
    /// Returns [`ClientError::Json`] if `body` has no JSON.
    pub fn with(mut self, body: &impl Serialize) -> Result<Self, ClientError> {
        self.body = Some(serde_json::to_string(body).map_err(ClientError::Json)?);
        Ok(self)
    }
}

/// Returns `part` percent-encoded, for use as one segment of a path.
#[must_use]
pub fn escape(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let byte = |b: u8| {
        if plain(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    part.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment_of_the_path_whatever_is_in_it() {
        let call = Call::of_instance("GET", "a/b?c", "/output");
        assert_eq!(call.path, "/v1/instances/a%2Fb%3Fc/output");
    }
}
