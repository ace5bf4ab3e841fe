//! The bodies that OpenAI's clients read, field for field.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A whole reply or one chunk of a stream: the part that all four kinds share.
#[derive(Debug, Serialize)]
pub(super) struct Envelope<'a, C> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<C>,
    /// Absent, or null in the chunks before the one that tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct UsageBody {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
    pub(super) prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: u64,
}

/// A choice of a whole chat reply.
#[derive(Debug, Serialize)]
pub(super) struct ChatChoice {
    pub(super) index: u32,
    pub(super) message: ChatMessage,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatMessage {
    pub(super) role: &'static str,
    pub(super) content: String,
    pub(super) refusal: Option<String>,
}

/// A choice of a chat chunk.
#[derive(Debug, Serialize)]
pub(super) struct ChatChunkChoice {
    pub(super) index: u32,
    pub(super) delta: ChatDelta,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatToken>,
    pub(super) refusal: Option<Vec<ChatToken>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatToken {
    #[serde(flatten)]
    pub(super) own: ChatTopToken,
    pub(super) top_logprobs: Vec<ChatTopToken>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatTopToken {
    pub(super) token: String,
    pub(super) logprob: f32,
    pub(super) bytes: Vec<u8>,
}

/// A choice of a completion, whole or in a chunk.
#[derive(Debug, Serialize)]
pub(super) struct CompletionChoice {
    pub(super) index: u32,
    pub(super) text: String,
    pub(super) logprobs: Option<LegacyLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct LegacyLogprobs {
    pub(super) tokens: Vec<String>,
    pub(super) token_logprobs: Vec<Option<f32>>,
    pub(super) top_logprobs: Vec<Option<Map<String, Value>>>,
    pub(super) text_offset: Vec<u64>,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    pub(super) object: &'static str,
    pub(super) data: Vec<ModelBody>,
}

/// One model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelBody {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) owned_by: &'static str,
    /// What it makes: `text` or `image`.
    pub(super) task: &'static str,
    /// Tokens of a prompt and its answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_model_len: Option<u32>,
}
