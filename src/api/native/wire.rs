//! The native API's bodies, as they stand on the wire. Part of the contract with clients: an
//! internal rename must not change them, so they are converted by hand.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::wire_image::ImageStatus;
use crate::batch::{FinishReason, TokenLogprob, Usage};

/// A request to make. Exactly one of `prompt`, `tokens` and `messages` is given; what else is left
/// out takes the model's default. Unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct SubmitBody {
    /// Which model; the first one served if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A text to continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Token ids to continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<u32>>,
    /// A conversation: objects with `role` and `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Value>,
    /// New tokens at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// New tokens at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<u64>,
    /// 0 takes the most probable token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Keeps the smallest set of tokens whose probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Keeps this many most probable tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Keys the random numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts that end an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Goes on after end-of-text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// Answers wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Answers made, of which the result keeps the best `n`. The events tell all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u64>,
    /// Log-probabilities of new tokens, with this many alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u64>,
    /// The request is given up when it has not ended after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Runs to its end, whether or not anybody reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detach: Option<bool>,
    /// `interactive`, `normal` (the default) or `batch`: the more urgent start first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// Further fields: `min_p`, `typical_p`, `presence_penalty`, `frequency_penalty`,
    /// `repetition_penalty`, `logit_bias`, `stop_token_ids`, `include_stop_str_in_output`,
    /// `skip_special_tokens`, `prompt_logprobs`, `truncate_prompt_tokens`, `add_special_tokens`,
    /// `cache_salt` (cached tokens of the prompt are shared only where it is the same), and for `messages` `add_generation_prompt`, `continue_final_message`,
    /// `chat_template_kwargs`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub more: Map<String, Value>,
}

/// A request was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Submitted {
    /// Its id.
    pub id: String,
    /// The model it was sent to.
    pub model: String,
    /// When: seconds since the Unix epoch.
    pub created: u64,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits.
    Queued,
    /// It has started.
    Running,
    /// It has ended, well or by a cancel (see `finish_reason`).
    Finished,
    /// It has failed (see `error`).
    Failed,
}

/// A request and its result so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Its id.
    pub id: String,
    /// The model it was sent to.
    pub model: String,
    /// When it was accepted: seconds since the Unix epoch.
    pub created: u64,
    /// Where it is.
    pub state: State,
    /// While it waits: its place, 0 for the next.
    pub queue: Option<Queued>,
    /// Its answers so far; with `best_of`, at the end, the best of them, best first.
    pub choices: Vec<Choice>,
    /// Log-probabilities of the prompt's tokens, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Logprob>>,
    /// Its pictures, if it is for an image model; `choices` is then empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<ImageStatus>>,
    /// What it used, at the end.
    pub usage: Option<UsageBody>,
    /// Why it failed: as the body of an error.
    #[schema(value_type = Option<Object>)]
    pub error: Option<Value>,
    /// How long things took.
    pub timings: Timings,
    /// Number of the last event.
    pub last_seq: u64,
}

/// A place in the queue. Also the data of an event `queued`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queued {
    /// Requests ahead of it.
    pub position: u32,
    /// Requests that wait in all.
    pub waiting: u32,
    /// Expected time until it starts.
    pub eta_ms: Option<u64>,
}

/// One answer, or the next part of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Choice {
    /// Which.
    pub index: u32,
    /// Its text; in an event, text to be appended.
    pub text: String,
    /// Its token ids; likewise.
    pub tokens: Vec<u32>,
    /// One entry per token, if asked for; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Logprob>>,
    /// Why it ended (`stop`, `length`, `cancelled`), once it has.
    pub finish_reason: Option<Reason>,
    /// Sum of its tokens' log-probabilities, once it has ended. Known where they were computed:
    /// with `logprobs` or `best_of`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cumulative_logprob: Option<f64>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A stop token or a stop text.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// It was cancelled.
    Cancelled,
}

impl From<FinishReason> for Reason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Reason::Stop,
            FinishReason::Length => Reason::Length,
            FinishReason::Cancelled => Reason::Cancelled,
        }
    }
}

/// One token's log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Logprob {
    /// The token and its own.
    #[serde(flatten)]
    pub own: RankedToken,
    /// The most probable tokens, best first.
    pub top: Vec<RankedToken>,
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RankedToken {
    /// Its id.
    pub token: u32,
    /// Its bytes; a token may end within a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; null for the first token of a prompt, which has none,
    /// and for a probability of 0.
    pub logprob: Option<f32>,
}

impl From<&TokenLogprob> for Logprob {
    fn from(entry: &TokenLogprob) -> Self {
        let ranked = |token: u32, bytes: &[u8], logprob: f32| RankedToken {
            token,
            bytes: bytes.to_vec(),
            logprob: logprob.is_finite().then_some(logprob),
        };
        Logprob {
            own: ranked(entry.token, &entry.bytes, entry.logprob),
            top: entry
                .top
                .iter()
                .map(|(token, bytes, logprob)| ranked(*token, bytes, *logprob))
                .collect(),
        }
    }
}

/// What a request has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageBody {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens found in the prefix cache.
    pub cached_tokens: u32,
    /// New tokens of all answers.
    pub completion_tokens: u32,
    /// Pictures drawn; left out if none were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub images: u32,
    /// Denoising steps of all pictures; left out if there were none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub denoising_steps: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        UsageBody {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            images: usage.images,
            denoising_steps: usage.denoising_steps,
        }
    }
}

/// How long things took since the request was accepted, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timings {
    /// Until it started.
    pub queued_ms: Option<u64>,
    /// Until its first token.
    pub first_token_ms: Option<u64>,
    /// Until its end.
    pub total_ms: Option<u64>,
}

/// Data of the events `text` and `choice_finished`.
///
/// With one answer, a `text` only appends and a `choice_finished` only tells the end. With several,
/// one `text` holds what all of them said, and may end some of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChoicesFrame {
    /// One entry for each answer that has news.
    pub choices: Vec<Choice>,
    /// To be appended to those of earlier events; only where rows ran side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Logprob>>,
}

/// Data of the event `prompt_logprobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromptLogprobsFrame {
    /// To be appended to those of earlier events.
    pub prompt_logprobs: Vec<Logprob>,
}

/// Data of the event `finished`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FinishedFrame {
    /// What the request used.
    pub usage: UsageBody,
}

/// Data of the event `failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FailedFrame {
    /// Why: as the body of an error.
    #[schema(value_type = Object)]
    pub error: Value,
    /// What the request used until then.
    pub usage: UsageBody,
}

/// Data of every event on a stream of several requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionFrame {
    /// The request that has news.
    pub request: String,
    /// Number of its last event that is covered: the place to go on from.
    pub seq: u64,
    /// The data that the event has on the stream of that request alone; of `gone`, a [`GoneBody`].
    #[schema(value_type = Object)]
    pub data: Value,
}

/// Data of the event `gone`: the request cannot be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GoneBody {
    /// The status that its own stream would be answered with: 404 or 410.
    pub status: u16,
    /// The body of that answer.
    #[schema(value_type = Object)]
    pub error: Value,
}
