//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::neutral;
use super::reply::Endpoint;
use super::request::{self, Call, StreamOptions};
use super::respond::{Client, respond};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::OpenAiError;
use crate::intake::{Fields, Invalid, InvalidKind, Prompt, TextDraft};

/// OpenAI's default of `max_tokens` at this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Answers a completion.
#[utoipa::path(post, path = "/v1/completions", tag = "openai",
    request_body(content = super::docs::CompletionBody, example = json!({
        "model": "smollm2-135m-instruct",
        "prompt": "Once upon a time",
        "max_tokens": 64,
    })),
    responses(
        (status = 200, description = "a `text_completion`, or a stream of them"),
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
    let max_prompts = model.intake.text()?.limits.max_prompts as usize;
    let call = read(fields, state.config.max_deadline, max_prompts)?;
    let client = Client::new(caller, &headers, Endpoint::Completions, &body)?;
    // Not kept while the answer is made.
    drop(body);
    respond(&state, &model, Endpoint::Completions, call, client).await
}

/// Reads the body's fields.
///
/// # Errors
/// See [`Invalid`].
pub(super) fn read(
    mut fields: Fields,
    max_deadline: Duration,
    max_prompts: usize,
) -> Result<Call, Invalid> {
    let prompts = read_prompts(&mut fields, max_prompts)?;
    let stream = request::read_stream(&mut fields)?;
    let deadline = request::read_deadline(&mut fields, max_deadline)?;
    let priority = request::read_priority(&mut fields)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    neutral::read_completions(&mut fields)?;

    // The settings are the same for all prompts; the first stands in for them.
    let mut draft = TextDraft::new(prompts[0].clone());
    draft.default_max_tokens = Some(DEFAULT_MAX_TOKENS);
    draft.best_of = fields.count("best_of")?;
    draft.logprobs = fields.count("logprobs")?;
    request::finish(&mut draft, fields)?;

    let prompt_logprobs = request::shown(draft.prompt_logprobs);
    if echo {
        prepare_echo(&mut draft)?;
    }
    check_stream(
        &draft,
        prompts.len(),
        prompt_logprobs,
        echo,
        stream.as_ref(),
    )?;
    let drafts = prompts
        .into_iter()
        .map(|prompt| TextDraft {
            prompt,
            ..draft.clone()
        })
        .collect();
    Ok(Call {
        top_logprobs: request::shown(draft.logprobs),
        prompt_logprobs,
        drafts,
        echo,
        stream,
        priority,
        deadline,
    })
}

/// An echoed prompt is scored like the new tokens.
fn prepare_echo(draft: &mut TextDraft) -> Result<(), Invalid> {
    if draft.truncate_prompt_tokens.is_some() {
        return Err(Invalid::new(
            InvalidKind::Unsupported,
            "truncate_prompt_tokens",
            "cannot be combined with echo",
        ));
    }
    draft.prompt_logprobs = draft.prompt_logprobs.max(draft.logprobs);
    if draft.max_tokens == Some(0) {
        // Nothing but the prompt is asked for, and that needs a reason to run at all.
        draft.prompt_logprobs = draft.prompt_logprobs.or(Some(0));
    }
    Ok(())
}

/// Refuses what cannot be told piece by piece.
fn check_stream(
    draft: &TextDraft,
    prompts: usize,
    prompt_logprobs: Option<u32>,
    echo: bool,
    stream: Option<&StreamOptions>,
) -> Result<(), Invalid> {
    let n = draft.n.unwrap_or(1);
    let ranked = draft.best_of.is_some_and(|best_of| best_of != n);
    let several_scored = echo && draft.logprobs.is_some() && n > 1;
    request::not_in_streams("best_of", ranked, stream)?;
    request::not_in_streams("prompt_logprobs", prompt_logprobs.is_some(), stream)?;
    request::not_in_streams("echo with logprobs and n above 1", several_scored, stream).map_err(
        |invalid| Invalid {
            field: "n".to_owned(),
            ..invalid
        },
    )?;
    if stream.is_some() && prompts > 1 {
        return Err(Invalid::new(
            InvalidKind::Unsupported,
            "prompt",
            "must be a single one in a stream",
        ));
    }
    Ok(())
}

/// A text, token ids, or a list of either.
fn read_prompts(fields: &mut Fields, max_prompts: usize) -> Result<Vec<Prompt>, Invalid> {
    let prompt = fields
        .take("prompt")
        .ok_or_else(|| request::missing("prompt"))?;
    let items = match prompt {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            return Ok(vec![Prompt::Tokens(token_ids(items)?)]);
        }
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(wrong_prompt()),
    };
    if items.len() > max_prompts {
        return Err(Invalid::value(
            "prompt",
            format!(
                "has {} entries; the limit is {max_prompts} (max_prompts)",
                items.len()
            ),
        ));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) => Ok(Prompt::Tokens(token_ids(ids)?)),
            _ => Err(wrong_prompt()),
        })
        .collect()
}

fn token_ids(items: Vec<Value>) -> Result<Vec<u32>, Invalid> {
    items
        .iter()
        .map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<Vec<u32>>>()
        .ok_or_else(wrong_prompt)
}

fn wrong_prompt() -> Invalid {
    Invalid::value(
        "prompt",
        "must be a string, a list of token ids, or a list of either, and not empty",
    )
}
