//! `/tokenize`, `/detokenize` and `/apply-template`: what a model's tokenizer and chat template
//! make of a text, under the limits that hold for requests. The bodies are those of vLLM (and, for
//! the template, of llama.cpp's server).

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;

use super::blocking::on_blocking_pool;
use super::error::{ApiError, OpenAiError};
use super::openai::read_chat;
use super::{AppState, ServedModel};
use crate::intake::{ChatPrompt, Fields, Invalid, InvalidKind, Prompt, TextIntake};

/// The routes of this file.
pub fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/apply-template", post(apply_template))
}

/// A text's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenizeReply {
    /// How many.
    count: usize,
    /// Tokens of a prompt and its answer together.
    max_model_len: u32,
    /// Their ids.
    tokens: Vec<u32>,
    /// Each token's own text, if asked for.
    token_strs: Option<Vec<String>>,
}

/// A text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PromptReply {
    /// The text.
    prompt: String,
}

/// The tokens of `prompt`, or of what the chat template makes of `messages`.
#[utoipa::path(post, path = "/tokenize", tag = "openai",
    request_body(content = Object, example = json!({"prompt": "Hello", "return_token_strs": true})),
    responses(
        (status = 200, body = TokenizeReply),
        (status = 400, description = "a field is wrong; it is named in `param`"),
        (status = 404, description = "there is no such model"),
    ))]
pub(super) async fn tokenize(
    State(state): State<Arc<AppState>>,
    body: Bytes,
) -> Result<Json<TokenizeReply>, OpenAiError> {
    let (model, mut fields) = parse(&state, &body)?;
    let prompt = match (fields.string("prompt")?, fields.take("messages")) {
        (Some(text), None) => Prompt::Text(text),
        (None, Some(messages)) => Prompt::Chat(read_chat(messages, &mut fields)?),
        (Some(_), Some(_)) => return Err(Invalid::value("messages", "excludes prompt").into()),
        (None, None) => {
            let missing = "or messages is required";
            return Err(Invalid::new(InvalidKind::Missing, "prompt", missing).into());
        }
    };
    let add_special = fields.boolean("add_special_tokens")?;
    let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    fields.finish()?;
    let reply = on_blocking_pool(move || {
        let intake = model.intake.text()?;
        let tokens = intake.tokenize(&prompt, add_special)?;
        Ok::<_, Invalid>(TokenizeReply {
            count: tokens.len(),
            max_model_len: intake.max_context,
            token_strs: with_texts.then(|| token_texts(intake, &tokens)),
            tokens,
        })
    });
    Ok(Json(reply.await?))
}

fn token_texts(intake: &TextIntake, tokens: &[u32]) -> Vec<String> {
    tokens
        .iter()
        .map(|&token| {
            let bytes = intake.tokenizer.token_bytes(token);
            String::from_utf8_lossy(&bytes).into_owned()
        })
        .collect()
}

/// The text of `tokens`.
#[utoipa::path(post, path = "/detokenize", tag = "openai",
    request_body(content = Object, example = json!({"tokens": [1, 2, 3]})),
    responses(
        (status = 200, body = PromptReply),
        (status = 400, description = "a field is wrong; it is named in `param`"),
        (status = 404, description = "there is no such model"),
    ))]
pub(super) async fn detokenize(
    State(state): State<Arc<AppState>>,
    body: Bytes,
) -> Result<Json<PromptReply>, OpenAiError> {
    let (model, mut fields) = parse(&state, &body)?;
    let tokens = fields
        .counts("tokens")?
        .ok_or_else(|| Invalid::new(InvalidKind::Missing, "tokens", "is required"))?;
    fields.finish()?;
    let reply = on_blocking_pool(move || {
        let intake = model.intake.text()?;
        let tokens: Vec<u32> = tokens
            .iter()
            .map(|&id| u32::try_from(id).unwrap_or(u32::MAX))
            .collect();
        let prompt = intake.detokenize("tokens", &tokens)?;
        Ok::<_, Invalid>(PromptReply { prompt })
    });
    Ok(Json(reply.await?))
}

/// The prompt that the model's chat template makes of `messages`.
#[utoipa::path(post, path = "/apply-template", tag = "openai",
    request_body(content = Object, example = json!({
        "messages": [{"role": "user", "content": "Hello"}],
    })),
    responses(
        (status = 200, body = PromptReply),
        (status = 400, description = "a field is wrong; it is named in `param`"),
        (status = 404, description = "there is no such model"),
    ))]
pub(super) async fn apply_template(
    State(state): State<Arc<AppState>>,
    body: Bytes,
) -> Result<Json<PromptReply>, OpenAiError> {
    let (model, mut fields) = parse(&state, &body)?;
    let messages = fields
        .take("messages")
        .ok_or_else(|| Invalid::new(InvalidKind::Missing, "messages", "is required"))?;
    let chat: ChatPrompt = read_chat(messages, &mut fields)?;
    fields.finish()?;
    let reply = on_blocking_pool(move || {
        let intake = model.intake.text()?;
        let prompt = intake.render(&chat)?;
        Ok::<_, Invalid>(PromptReply { prompt })
    });
    Ok(Json(reply.await?))
}

/// The model that the body names, the first if it names none, and the other fields.
fn parse(state: &AppState, body: &[u8]) -> Result<(Arc<ServedModel>, Fields), ApiError> {
    let mut fields = Fields::parse(body)?;
    let name = fields.string("model")?;
    Ok((Arc::clone(state.model(name.as_deref())?), fields))
}
