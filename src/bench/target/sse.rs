//! Server-sent events, line by line, without keeping more of a line than is asked for: a picture's line holds
//! megabytes, of which the first words tell all that is measured.

/// The longest beginning of a line that is kept, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Cuts a stream into lines.
#[derive(Debug)]
pub(super) struct Lines {
    /// Of a line longer than this, only so much is told.
    head: usize,
    /// The beginning of a line that has not ended yet.
    begun: Vec<u8>,
}

impl Lines {
    /// Lines of which at most `head` bytes are told.
    pub(super) fn new(head: usize) -> Self {
        Lines {
            head: head.min(MAX_HEAD),
            begun: Vec::new(),
        }
    }

    /// Takes what came and tells the lines that are complete, without their ends.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (piece, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.begun.is_empty() {
                line(without_return(&piece[..piece.len().min(self.head)]));
            } else {
                self.keep(piece);
                line(without_return(&self.begun));
                self.begun.clear();
            }
            bytes = rest;
        }
        self.keep(bytes);
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = self.head.saturating_sub(self.begun.len());
        self.begun
            .extend_from_slice(&piece[..piece.len().min(room)]);
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// What a line says: a field and its value. Comments and empty lines say nothing.
pub(super) fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let value = value.strip_prefix(b" ").unwrap_or(value);
    (!name.is_empty()).then_some((name, value))
}

/// The text behind `"name":`, blanks skipped. Inside a JSON string the quotes are escaped, so nothing that a
/// model says is taken for a field.
pub(super) fn after<'a>(json: &'a [u8], quoted_name_and_colon: &[u8]) -> Option<&'a [u8]> {
    let at = memchr::memmem::find(json, quoted_name_and_colon)?;
    let value = &json[at + quoted_name_and_colon.len()..];
    let blanks = value.iter().take_while(|byte| **byte == b' ').count();
    Some(&value[blanks..])
}

/// Whether the field holds a string that is not empty.
pub(super) fn says_something(json: &[u8], quoted_name_and_colon: &[u8]) -> bool {
    after(json, quoted_name_and_colon)
        .is_some_and(|value| value.len() > 1 && value[0] == b'"' && value[1] != b'"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(head: usize, pieces: &[&str]) -> Vec<String> {
        let mut lines = Lines::new(head);
        let mut told = Vec::new();
        for piece in pieces {
            lines.feed(piece.as_bytes(), |line| {
                told.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        told
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        let text = "event: text\r\ndata: {\"a\": 1}\n\n: x\n";
        let expected = ["event: text", "data: {\"a\": 1}", "", ": x"];
        for size in 1..text.len() {
            let pieces: Vec<&str> = text
                .as_bytes()
                .chunks(size)
                .map(|piece| std::str::from_utf8(piece).unwrap())
                .collect();
            assert_eq!(lines(100, &pieces), expected, "{size}");
        }
        assert_eq!(lines(3, &["abcdef\nab", "cd\nx\n"]), ["abc", "abc", "x"]);
    }

    #[test]
    fn fields_are_found_and_words_are_no_fields() {
        assert_eq!(field(b"data: {}"), Some((&b"data"[..], &b"{}"[..])));
        assert_eq!(field(b"data:x"), Some((&b"data"[..], &b"x"[..])));
        assert_eq!(field(b": comment"), None);
        assert_eq!(field(b""), None);
        for (json, said) in [
            (r#"{"content":"a"}"#, true),
            (r#"{"content": "a"}"#, true),
            (r#"{"content":""}"#, false),
            (r#"{"content":null}"#, false),
            (r#"{"text":"\"content\":\"a\""}"#, false),
        ] {
            assert_eq!(
                says_something(json.as_bytes(), b"\"content\":"),
                said,
                "{json}"
            );
        }
    }
}
