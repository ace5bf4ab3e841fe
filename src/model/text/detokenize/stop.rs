//! Stop strings, found byte by byte as a text comes (Knuth, Morris and Pratt's matching), so that
//! the work per byte does not grow with the text.

/// Looks for several stop strings at once.
pub(super) struct StopStrings(Vec<StopString>);

struct StopString {
    bytes: Box<[u8]>,
    /// For each number of matched bytes: how many still match when the next one doesn't. That is the
    /// longest beginning of the string that is also an end of what matched.
    fallback: Box<[usize]>,
    /// How much of the string the text now ends with.
    matched: usize,
}

impl StopStrings {
    pub(super) fn new(strings: &[String]) -> Self {
        StopStrings(
            strings
                .iter()
                .filter(|string| !string.is_empty())
                .map(|string| StopString::new(string.as_bytes()))
                .collect(),
        )
    }

    /// One more byte of text. Returns the length of the longest stop string that it completes.
    pub(super) fn advance(&mut self, byte: u8) -> Option<usize> {
        self.0
            .iter_mut()
            .filter_map(|string| string.advance(byte).then_some(string.bytes.len()))
            .max()
    }

    /// How many bytes at the end of the text may be the beginning of a stop string.
    pub(super) fn begun(&self) -> usize {
        self.0
            .iter()
            .map(|string| string.matched)
            .max()
            .unwrap_or(0)
    }
}

impl StopString {
    fn new(bytes: &[u8]) -> Self {
        let mut fallback = vec![0; bytes.len() + 1];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = fallback[matched];
            }
            if bytes[at] == bytes[matched] {
                matched += 1;
            }
            fallback[at + 1] = matched;
        }
        StopString {
            bytes: bytes.into(),
            fallback: fallback.into(),
            matched: 0,
        }
    }

    /// One more byte; true if it completes the string.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        let complete = self.matched == self.bytes.len();
        if complete {
            self.matched = self.fallback[self.matched];
        }
        complete
    }
}
