//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::messages;
use super::neutral;
use super::reply::Endpoint;
use super::request::{self, Call};
use super::respond::{Client, respond};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::OpenAiError;
use crate::intake::{ChatPrompt, Fields, Invalid, Prompt, TextDraft};

/// Answers a chat.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai",
    request_body(content = super::docs::ChatBody, example = json!({
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 64,
        "stream": true,
    })),
    responses(
        (status = 200, description = "a `chat.completion`, or a stream of `chat.completion.chunk`"),
        (status = 400, description = "a field is wrong; it is named in `param`"),
        (status = 404, description = "there is no such model"),
        (status = 429, description = "the queue is full; see Retry-After"),
        (status = 503, description = "loading or draining; see Retry-After"),
        (status = 504, description = "the deadline has passed"),
    ))]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    let (model, fields) = request::parse(&body)?;
    let model = Arc::clone(state.model(Some(&model))?);
    let call = read(fields, state.config.max_deadline)?;
    let client = Client::new(caller, &headers, Endpoint::Chat, &body)?;
    // Not kept while the answer is made.
    drop(body);
    respond(&state, &model, Endpoint::Chat, call, client).await
}

/// Reads the body's fields.
///
/// # Errors
/// See [`Invalid`].
pub(super) fn read(mut fields: Fields, max_deadline: Duration) -> Result<Call, Invalid> {
    let messages = fields
        .take("messages")
        .ok_or_else(|| request::missing("messages"))?;
    let mut draft = TextDraft::new(Prompt::Chat(read_chat(messages, &mut fields)?));
    let stream = request::read_stream(&mut fields)?;
    let deadline = request::read_deadline(&mut fields, max_deadline)?;
    let priority = request::read_priority(&mut fields)?;
    neutral::read_chat(&mut fields)?;

    draft.logprobs = read_logprobs(&mut fields)?;
    draft.logprobs_name = "top_logprobs";
    let max_completion_tokens = fields.count("max_completion_tokens")?;
    request::finish(&mut draft, fields)?;
    // `max_tokens` is the older name of the same.
    if let Some(most) = max_completion_tokens {
        if draft.max_tokens.is_some_and(|other| other != most) {
            return Err(Invalid::value(
                "max_completion_tokens",
                "must equal max_tokens where both are given",
            ));
        }
        draft.max_tokens = Some(most);
        draft.max_tokens_name = "max_completion_tokens";
    }
    request::not_in_streams(
        "prompt_logprobs",
        draft.prompt_logprobs.is_some(),
        stream.as_ref(),
    )?;
    Ok(Call {
        top_logprobs: request::shown(draft.logprobs),
        prompt_logprobs: request::shown(draft.prompt_logprobs),
        drafts: vec![draft],
        echo: false,
        stream,
        priority,
        deadline,
    })
}

/// A conversation, and the fields that say how it is to be rendered.
///
/// # Errors
/// See [`Invalid`].
pub(crate) fn read_chat(messages: Value, fields: &mut Fields) -> Result<ChatPrompt, Invalid> {
    Ok(ChatPrompt {
        messages: messages::normalized(messages)?,
        add_generation_prompt: fields.boolean("add_generation_prompt")?,
        continue_final_message: fields.boolean("continue_final_message")?.unwrap_or(false),
        variables: fields.object("chat_template_kwargs")?.unwrap_or_default(),
    })
}

/// `logprobs` says whether, `top_logprobs` how many.
fn read_logprobs(fields: &mut Fields) -> Result<Option<u64>, Invalid> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs")?;
    match (wanted, top) {
        (false, Some(1..)) => Err(Invalid::value(
            "top_logprobs",
            "is allowed only when logprobs is true",
        )),
        (wanted, top) => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}
