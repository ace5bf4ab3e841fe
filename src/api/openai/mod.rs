//! OpenAI's dialect: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, and [`images`].
//!
//! Every field of a request is honoured or refused by name with a 400; none is silently dropped.
//!
//! - *Honoured by both endpoints:* `model`, `temperature`, `top_p`, `top_k`, `min_p`, `typical_p`,
//!   `presence_penalty`, `frequency_penalty`, `repetition_penalty`, `logit_bias`, `seed`, `stop`,
//!   `stop_token_ids`, `include_stop_str_in_output`, `skip_special_tokens`, `max_tokens`,
//!   `min_tokens`, `ignore_eos`, `n`, `logprobs`, `prompt_logprobs` (not in streams),
//!   `truncate_prompt_tokens`, `add_special_tokens`, `stream`, `stream_options.include_usage`, and
//!   our own `deadline_ms`, after which a request that has not ended fails with 504.
//! - *Priority:* `service_tier` (`flex`: batch, `auto` and `default`: normal, `priority`: interactive), or vLLM's
//!   `priority` (above, at and below 0).
//! - *Chat:* `messages`, `max_completion_tokens`, `top_logprobs`, `chat_template_kwargs`,
//!   `add_generation_prompt`, `continue_final_message`.
//! - *Completions:* `prompt` (a text, token ids, or a list of either; a stream takes one),
//!   `best_of`, `echo`.
//! - *Accepted, as they change no output by definition:* `user`, `metadata`, `safety_identifier`,
//!   `prompt_cache_key`.
//! - *Accepted in their neutral form only:* see [`neutral`].
//!
//! Each prompt is a request of its own; `x-request-id` and `id` name the first.
//!
//! Streams carry `id: SEQ` on every frame and can be resumed under
//! `/api/v1/requests/{id}/events?dialect=openai`. What several choices say in one flush goes into
//! one chunk, so that no frame's id promises more than has been said. The role comes with a
//! choice's first text. After a failure, or a cancel, a stream says `{"error": ..}` and `[DONE]`.

mod chat;
mod completions;
mod docs;
mod gather;
mod images;
mod logprobs;
mod messages;
mod models;
mod neutral;
mod reply;
mod request;
mod respond;
mod stream;
mod types;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::AppState;
use super::requests::Request;
use super::sse::Dialect;

pub(crate) use chat::read_chat;
pub(super) use docs::description;
pub use images::ImageShape;
use reply::Endpoint;
pub use reply::StreamShape;
pub(crate) use request::read_deadline;

/// How a request's reply is to look in this dialect: kept with the request, so that its stream can be
/// resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyShape {
    /// A text's.
    Text(StreamShape),
    /// Pictures'.
    Images(ImageShape),
}

impl ReplyShape {
    /// A text's shape.
    fn text(&self) -> Option<&StreamShape> {
        match self {
            ReplyShape::Text(shape) => Some(shape),
            ReplyShape::Images(_) => None,
        }
    }

    /// Pictures' shape.
    fn images(&self) -> Option<&ImageShape> {
        match self {
            ReplyShape::Images(shape) => Some(shape),
            ReplyShape::Text(_) => None,
        }
    }
}

/// The routes of this dialect.
pub fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route(Endpoint::Chat.path(), post(chat::create))
        .route(Endpoint::Completions.path(), post(completions::create))
        .merge(images::routes())
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
}

/// OpenAI's frames for a request, whichever dialect it came in by.
pub fn dialect_for(request: &Request) -> Box<dyn Dialect> {
    match request.picture {
        Some(_) => Box::new(images::ImageDialect::of(request)),
        None => Box::new(stream::ChunkDialect::of(request)),
    }
}
