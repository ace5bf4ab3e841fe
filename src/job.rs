//! What a request asks for, once it has been checked.
//!
//! A [`Job`] is built by `intake` only and is valid by construction: deeper layers do not check it
//! again. One request may ask for several answers (`n`, `best_of`); each is one *row* of a batch,
//! named by a [`RowId`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Names one request for as long as anybody may ask about it.
///
/// Written as 32 lowercase hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// Wraps a number that the caller knows to be unique (the edge takes a UUID v7).
    pub const fn from_u128(value: u128) -> Self {
        RequestId(value)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidRequestId;

impl fmt::Display for InvalidRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request id is 32 hexadecimal digits")
    }
}

impl std::error::Error for InvalidRequestId {}

impl FromStr for RequestId {
    type Err = InvalidRequestId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidRequestId);
        }
        u128::from_str_radix(text, 16)
            .map(RequestId)
            .map_err(|_| InvalidRequestId)
    }
}

/// One answer of one request: one row of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The request that the row answers.
    pub request: RequestId,
    /// Which of the request's answers, from 0.
    pub choice: u32,
}

/// Keeps prefix caches apart: a row finds only what rows of jobs with the same salt have left there.
///
/// A digest of who asks and of the salt that they gave, made by `intake`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSalt(pub [u8; 32]);

impl fmt::Debug for CacheSalt {
    /// Shows nothing: what it is made of is a secret, and may be short enough to be guessed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheSalt(..)")
    }
}

/// What to make.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Continue a text.
    Text(TextJob),
}

impl Job {
    /// How many rows the job takes.
    pub fn rows(&self) -> u32 {
        match self {
            Job::Text(text) => text.rows,
        }
    }
}

/// Continue a tokenized prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct TextJob {
    /// Token ids, at least one. With `max_tokens` they fit the model's context.
    pub prompt: Arc<[u32]>,
    /// Rows to generate: `n`, or `best_of` when that is larger. At least 1.
    pub rows: u32,
    /// At most this many new tokens a row. At least 1, unless only the prompt is to be scored
    /// (`prompt_logprobs` with 0).
    pub max_tokens: u32,
    /// Stop tokens and stop strings are ignored before this many new tokens.
    pub min_tokens: u32,
    /// Go on after the model's own end-of-text tokens.
    pub ignore_eos: bool,
    /// Texts that end a row. None is empty.
    pub stop: Arc<[String]>,
    /// Tokens that end a row, beside the model's own.
    pub stop_token_ids: Arc<[u32]>,
    /// Leave the stop string that ended the row in its text.
    pub include_stop_str_in_output: bool,
    /// Leave special tokens (such as end-of-text) out of the text.
    pub skip_special_tokens: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Report log-probabilities of each new token and this many alternatives.
    pub logprobs: Option<u32>,
    /// Report log-probabilities of each prompt token and this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// With whom the prompt's cached tokens may be shared.
    pub cache_salt: CacheSalt,
}

/// How one row chooses its tokens. The neutral values switch each part off.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; 1 is neutral.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 is neutral.
    pub top_p: f32,
    /// Keep this many most probable tokens; 0 is neutral.
    pub top_k: u32,
    /// Drop tokens below this share of the most probable one's probability; 0 is neutral.
    pub min_p: f32,
    /// Locally typical sampling's mass; 1 is neutral.
    pub typical_p: f32,
    /// Subtracted from the logit of each token generated so far; 0 is neutral.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was generated so far; 0 is neutral.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the text so far
    /// (CTRL, arXiv 1909.05858); 1 is neutral.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Keys the row's random numbers, with the choice and the position.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, with every other part off.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Arc::from([]),
            seed: 0,
        }
    }
}

impl TextJob {
    /// A greedy job with everything optional off: the starting point of tests and tools.
    pub fn greedy(prompt: impl Into<Arc<[u32]>>, max_tokens: u32) -> Self {
        TextJob {
            prompt: prompt.into(),
            rows: 1,
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            stop: Arc::from([]),
            stop_token_ids: Arc::from([]),
            include_stop_str_in_output: false,
            skip_special_tokens: true,
            sampling: Sampling::default(),
            logprobs: None,
            prompt_logprobs: None,
            cache_salt: CacheSalt::default(),
        }
    }
}

/// A prompt, as one text encoder reads it: chunks of equal length, whose states are put side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptTokens {
    /// At least one.
    pub chunks: Vec<PromptChunk>,
}

/// One window of a text encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptChunk {
    /// Token ids, with the beginning, the end and the padding: as many as the encoder has positions.
    pub tokens: Vec<u32>,
    /// What each token's state is multiplied by; as many, 1 being neutral.
    pub weights: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_survives_its_text() {
        let id = RequestId::from_u128(0x0193_5f00_dead_beef);
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "12",
            "+0000000000000000000000000000001",
            &"g".repeat(32),
        ] {
            assert_eq!(wrong.parse::<RequestId>(), Err(InvalidRequestId), "{wrong}");
        }
    }
}
