//! Server-sent events, as they come in pieces.

/// Longest event that is read, in bytes.
const MAX_EVENT: usize = 256 << 20;

/// Puts events together. Fields other than `data` are of no interest here.
#[derive(Debug, Default)]
pub struct Events {
    unread: Vec<u8>,
    data: String,
}

impl Events {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// If an event is longer than any should be.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.unread.len() + self.data.len() + bytes.len() > MAX_EVENT {
            return Err("an event has no end");
        }
        self.unread.extend_from_slice(bytes);
        Ok(())
    }

    /// The data of the next event that is whole.
    pub fn next(&mut self) -> Option<String> {
        let mut read = 0;
        let mut event = None;
        while event.is_none()
            && let Some(length) = self.unread[read..].iter().position(|byte| *byte == b'\n')
        {
            let line = String::from_utf8_lossy(&self.unread[read..read + length]);
            read += length + 1;
            let line = line.trim_end_matches('\r');
            if line.is_empty() && !self.data.is_empty() {
                event = Some(std::mem::take(&mut self.data));
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        self.unread.drain(..read);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_they_are_cut() {
        let text =
            ": sign of life\n\nevent: a\ndata: {\"x\":1}\n\ndata:é\r\ndata: 2\r\n\r\ndata: rest";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut seen = vec![];
            for piece in text.as_bytes().chunks(size) {
                events.feed(piece).expect("short");
                while let Some(event) = events.next() {
                    seen.push(event);
                }
            }
            assert_eq!(seen, ["{\"x\":1}", "é\n2"], "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        assert!(events.feed(&vec![b'x'; MAX_EVENT]).is_ok());
        assert!(events.feed(b"x").is_err());
    }
}
