//! Token by token to text: whole characters only, stop strings found across token borders.
//!
//! A byte counts as invalid (and becomes U+FFFD) only when no further byte can make it valid. A text
//! that may be the beginning of a stop string is held back until it is certain. The result does not
//! depend on how the text is cut into tokens: the stop string that is complete first ends the row,
//! the longest if several end at the same place.

mod stop;

use std::sync::Arc;

use super::tokenizer::TextTokenizer;
use crate::job::TextJob;
use stop::StopStrings;

/// Turns one row's tokens into text as they come.
pub struct Detokenizer {
    tokenizer: Arc<TextTokenizer>,
    skips_special: bool,
    keeps_stop: bool,
    stop: StopStrings,
    /// The next byte is the first of a text whose leading space is to be left out.
    strips_space: bool,
    /// The beginning of a character: at most three bytes.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

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
    pub fn new(tokenizer: Arc<TextTokenizer>, job: &TextJob) -> Self {
        let is_silent = |&token: &u32| {
            tokenizer.bytes_of(token).is_empty()
                || (job.skip_special_tokens && tokenizer.is_special(token))
        };
        Detokenizer {
            skips_special: job.skip_special_tokens,
            keeps_stop: job.include_stop_str_in_output,
            stop: StopStrings::new(&job.stop),
            // A space is left out at the start of a whole text. A row's text goes on from its
            // prompt's, so its first space counts, unless there is no text before it.
            strips_space: tokenizer.strips_leading_space() && job.prompt.iter().all(is_silent),
            partial: Vec::new(),
            held: String::new(),
            tokenizer,
        }
    }

    /// One more token. With `may_stop` false (before `min_tokens`) a stop string that is complete
    /// with this token does not end the row.
    pub fn push(&mut self, token: u32, may_stop: bool) -> Piece {
        let text = self.whole_characters(token);
        for (at, byte) in text.bytes().enumerate() {
            let completed = self.stop.advance(byte);
            if let Some(stop_len) = completed.filter(|_| may_stop) {
                return self.stopped(&text[..=at], stop_len);
            }
        }
        self.held.push_str(&text);
        let certain = self.held.len() - self.stop.begun();
        Piece {
            text: self.held.drain(..certain).collect(),
            stopped: false,
        }
    }

    /// What was held back, at the end of the row.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        text
    }

    /// The token's bytes, with what was left over before, as far as they are whole characters.
    fn whole_characters(&mut self, token: u32) -> String {
        let mut bytes = self.tokenizer.bytes_of(token);
        if self.skips_special && self.tokenizer.is_special(token) {
            bytes = &[];
        }
        if self.strips_space && !bytes.is_empty() {
            self.strips_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.partial.extend_from_slice(bytes);
        take_whole_characters(&mut self.partial)
    }

    /// The last piece: `text` ends with a stop string of `stop_len` bytes.
    fn stopped(&mut self, text: &str, stop_len: usize) -> Piece {
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        if !self.keeps_stop {
            all.truncate(all.len() - stop_len);
        }
        self.partial.clear();
        Piece {
            text: all,
            stopped: true,
        }
    }
}

/// Takes all but the beginning of an unfinished character off `bytes`. What can't become a character
/// is U+FFFD, one for each run that `String::from_utf8_lossy` would replace.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes.as_slice();
    let unfinished = loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                break 0;
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid_len) = error.error_len() else {
                    break invalid.len();
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &invalid[invalid_len..];
            }
        }
    };
    bytes.drain(..bytes.len() - unfinished);
    text
}

#[cfg(test)]
mod tests;
