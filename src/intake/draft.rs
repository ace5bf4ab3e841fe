//! A text request as its client wrote it: every field optional, nothing checked yet.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Fields, Invalid};

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A conversation, for the model's chat template.
    Chat(ChatPrompt),
}

/// A conversation and how it is to be rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatPrompt {
    /// An array of objects with `role` and `content`, as in OpenAI's API.
    pub messages: Value,
    /// End with the opening of the assistant's turn. Absent means yes, unless the last message is
    /// to be continued.
    pub add_generation_prompt: Option<bool>,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further names for the template (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
}

impl ChatPrompt {
    /// Messages with nothing else said.
    pub fn new(messages: Value) -> Self {
        ChatPrompt {
            messages,
            add_generation_prompt: None,
            continue_final_message: false,
            variables: Map::new(),
        }
    }

    /// Bytes of all texts in the messages and variables.
    pub fn text_bytes(&self) -> u64 {
        text_bytes(&self.messages) + self.variables.values().map(text_bytes).sum::<u64>()
    }
}

/// Bytes of the strings in `value`; a key or a number counts as a few.
fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| key.len() as u64 + text_bytes(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// A text request, unchecked. `None` leaves a field to the model's defaults.
///
/// The names are those of the wire; see [`crate::job::TextJob`] for what they mean.
#[derive(Clone, Debug, PartialEq)]
pub struct TextDraft {
    /// What is to be continued.
    pub prompt: Prompt,
    /// Add the beginning-of-text token. Absent: yes for text, no for a chat, whose template writes
    /// it.
    pub add_special_tokens: Option<bool>,
    /// Keep only this many of the prompt's last tokens; -1 for as many as fit.
    pub truncate_prompt_tokens: Option<i64>,
    /// Answers wanted.
    pub n: Option<u64>,
    /// Answers made, of which the best `n` are given.
    pub best_of: Option<u64>,
    /// New tokens at most.
    pub max_tokens: Option<u64>,
    /// What the client called it.
    pub max_tokens_name: &'static str,
    /// What a dialect takes for an absent `max_tokens`, cut to what the context leaves.
    pub default_max_tokens: Option<u32>,
    /// New tokens at least.
    pub min_tokens: Option<u64>,
    /// Go on after end-of-text.
    pub ignore_eos: Option<bool>,
    /// Stop strings.
    pub stop: Option<Vec<String>>,
    /// Stop tokens.
    pub stop_token_ids: Option<Vec<u64>>,
    /// Keep the stop string.
    pub include_stop_str_in_output: Option<bool>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: Option<bool>,
    /// Between 0 and `max_temperature`.
    pub temperature: Option<f64>,
    /// Above 0, up to 1.
    pub top_p: Option<f64>,
    /// 0 and -1 switch it off.
    pub top_k: Option<i64>,
    /// Between 0 and 1.
    pub min_p: Option<f64>,
    /// Above 0, up to 1.
    pub typical_p: Option<f64>,
    /// Between -2 and 2.
    pub presence_penalty: Option<f64>,
    /// Between -2 and 2.
    pub frequency_penalty: Option<f64>,
    /// Above 0, up to 10.
    pub repetition_penalty: Option<f64>,
    /// Token id, as decimal digits, to a bias between -100 and 100.
    pub logit_bias: Option<Vec<(String, f64)>>,
    /// Keys the random numbers; absent draws a fresh one.
    pub seed: Option<u64>,
    /// Report log-probabilities of new tokens, with this many alternatives.
    pub logprobs: Option<u64>,
    /// What the client called it.
    pub logprobs_name: &'static str,
    /// Report log-probabilities of the prompt's tokens, with this many alternatives.
    pub prompt_logprobs: Option<u64>,
    /// Shares the prompt's cached tokens only with requests that give the same.
    pub cache_salt: Option<String>,
    /// Who asks, where keys are asked for; `api::submit` says it, no body can. Tenants share no cached
    /// tokens, whatever their salts.
    pub tenant: Option<Arc<str>>,
}

impl TextDraft {
    /// A draft that says nothing but its prompt.
    pub fn new(prompt: Prompt) -> Self {
        TextDraft {
            prompt,
            add_special_tokens: None,
            truncate_prompt_tokens: None,
            n: None,
            best_of: None,
            max_tokens: None,
            max_tokens_name: "max_tokens",
            default_max_tokens: None,
            min_tokens: None,
            ignore_eos: None,
            stop: None,
            stop_token_ids: None,
            include_stop_str_in_output: None,
            skip_special_tokens: None,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            typical_p: None,
            presence_penalty: None,
            frequency_penalty: None,
            repetition_penalty: None,
            logit_bias: None,
            seed: None,
            logprobs: None,
            logprobs_name: "logprobs",
            prompt_logprobs: None,
            cache_salt: None,
            tenant: None,
        }
    }

    /// Reads the fields whose name and shape all dialects share, which is every field above but
    /// the prompt, `best_of`, `logprobs`, `default_max_tokens` and `tenant`.
    ///
    /// # Errors
    /// A field of the wrong type.
    pub fn read_shared(&mut self, fields: &mut Fields) -> Result<(), Invalid> {
        self.add_special_tokens = fields.boolean("add_special_tokens")?;
        self.truncate_prompt_tokens = fields.integer("truncate_prompt_tokens")?;
        self.n = fields.count("n")?;
        self.max_tokens = fields.count("max_tokens")?;
        self.min_tokens = fields.count("min_tokens")?;
        self.ignore_eos = fields.boolean("ignore_eos")?;
        self.stop = fields.string_or_strings("stop")?;
        self.stop_token_ids = fields.counts("stop_token_ids")?;
        self.include_stop_str_in_output = fields.boolean("include_stop_str_in_output")?;
        self.skip_special_tokens = fields.boolean("skip_special_tokens")?;
        self.temperature = fields.number("temperature")?;
        self.top_p = fields.number("top_p")?;
        self.top_k = fields.integer("top_k")?;
        self.min_p = fields.number("min_p")?;
        self.typical_p = fields.number("typical_p")?;
        self.presence_penalty = fields.number("presence_penalty")?;
        self.frequency_penalty = fields.number("frequency_penalty")?;
        self.repetition_penalty = fields.number("repetition_penalty")?;
        self.logit_bias = fields.numbers_by_name("logit_bias")?;
        self.seed = fields.seed("seed")?;
        self.prompt_logprobs = fields.count("prompt_logprobs")?;
        self.cache_salt = fields.string("cache_salt")?;
        Ok(())
    }
}
