//! What each token id stands for: its bytes, and whether it is special.

/// The bytes of every token, back to back: one allocation for a vocabulary of 256k tokens.
#[derive(Default)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl Vocabulary {
    /// Adds the token with the next id.
    pub(super) fn push(&mut self, bytes: &[u8], special: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    /// Number of token ids.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.ends.len()).expect("token ids are 32-bit numbers")
    }

    /// The token's bytes; none for an unknown id.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    /// Whether the token is special; an unknown id is not.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}
