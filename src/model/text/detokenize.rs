//! Token by token to text: whole characters only, stop strings found across token borders.

use std::sync::Arc;

use super::tokenizer::TextTokenizer;
use crate::job::TextJob;

/// Turns one row's tokens into text as they come.
pub struct Detokenizer {}

/// What one more token made certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that nothing can take back: whole characters that are no beginning of a stop string.
    pub text: String,
    /// A stop string is complete: the row ends, and nothing more is to be flushed.
    pub stopped: bool,
}

impl Detokenizer {
    /// For one row of `job`.
    pub fn new(_tokenizer: Arc<TextTokenizer>, _job: &TextJob) -> Self {
        todo!()
    }
    /// One more token. With `may_stop` false (before `min_tokens`) stop strings are not looked for.
    pub fn push(&mut self, _token: u32, _may_stop: bool) -> Piece {
        todo!()
    }
    /// What was held back, at the end of the row.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}
