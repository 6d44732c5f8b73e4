//! Server-sent events, as far as mkvmm sends them: the data of each is one line.
//!
//! Source: HTML Living Standard, section 9.2.6.

/// Collects what arrives, and returns the data of complete events.
#[derive(Debug, Default)]
pub struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    /// Adds bytes, which may end anywhere; returns the data of the events that
    /// they complete, without line ends.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.pending.extend_from_slice(bytes);
        let Some(end) = self.pending.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let lines: Vec<u8> = self.pending.drain(..=end).collect();
        let lines = lines.split(|&byte| byte == b'\n');
        let data = lines.filter_map(|line| line.strip_prefix(b"data: "));
        data.map(<[u8]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_arrives_in_any_number_of_pieces() {
        let mut frames = Frames::default();
        assert!(frames.push(b"id: 1\ndata: {\"a").is_empty());
        assert_eq!(frames.push(b"\":1}\n\nid: 2\n"), [b"{\"a\":1}".to_vec()]);
        assert_eq!(
            frames.push(b"data: x\n\n:\n\ndata: y\n"),
            [b"x".to_vec(), b"y".to_vec()]
        );
    }
}
