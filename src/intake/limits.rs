//! Limits and defaults of a text request, each with the name it has in the configuration.

use serde::{Deserialize, Serialize};

/// How far a request may go. What a request costs in memory is bounded by these, never by a number
/// that it carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextLimits {
    /// `n` and `best_of`: rows of one prompt.
    pub max_choices: u32,
    /// Prompts of one completion request. All their rows together are bounded by `max_choices`
    /// times this.
    pub max_prompts: u32,
    /// Bytes of a prompt's text, or of all texts of a chat, before it is tokenized.
    pub max_prompt_bytes: usize,
    /// Messages of one chat.
    pub max_messages: usize,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// Ids in `stop_token_ids`.
    pub max_stop_token_ids: usize,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Alternatives reported for each token.
    pub max_top_logprobs: u32,
    /// New tokens a row, below what the context leaves.
    pub max_new_tokens: Option<u32>,
    /// The highest `temperature`.
    pub max_temperature: f32,
}

impl Default for TextLimits {
    fn default() -> Self {
        TextLimits {
            max_choices: 32,
            max_prompts: 32,
            max_prompt_bytes: 4 << 20,
            max_messages: 1024,
            max_stop_strings: 16,
            max_stop_bytes: 1024,
            max_stop_token_ids: 128,
            max_logit_bias: 1024,
            max_top_logprobs: 20,
            max_new_tokens: None,
            max_temperature: 2.0,
        }
    }
}

/// What a request that leaves a field out gets: from the manifest, or from the model's
/// `generation_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextDefaults {
    /// See [`crate::job::Sampling::temperature`].
    pub temperature: f32,
    /// See [`crate::job::Sampling::top_p`].
    pub top_p: f32,
    /// See [`crate::job::Sampling::top_k`].
    pub top_k: u32,
    /// See [`crate::job::Sampling::min_p`].
    pub min_p: f32,
    /// See [`crate::job::Sampling::typical_p`].
    pub typical_p: f32,
    /// See [`crate::job::Sampling::repetition_penalty`].
    pub repetition_penalty: f32,
    /// New tokens; `None` for what the context leaves.
    pub max_tokens: Option<u32>,
}

impl Default for TextDefaults {
    /// OpenAI's: temperature 1, nothing filtered.
    fn default() -> Self {
        TextDefaults {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            max_tokens: None,
        }
    }
}
