//! OpenAI's images: `POST /v1/images/generations` and `POST /v1/images/edits`.
//!
//! - *Honoured:* `model`, `prompt`, `n`, `size`, `output_format`, `output_compression` (of a JPEG),
//!   `response_format` (`b64_json` or `url`), `stream`, `partial_images`; of edits `image`, `images` and
//!   `mask`; and our own `seed`, `steps` (or `num_inference_steps`), `guidance_scale`, `negative_prompt`,
//!   `clip_skip`, `scheduler`, `strength`, `deadline_ms` and `stream_options.include_progress`.
//! - *Accepted, as they change no pixel by definition:* `user`.
//! - *Accepted in their neutral form only:* `quality`, `style`, `background`, `moderation`,
//!   `input_fidelity`.
//!
//! Edits come as a form or, as the newest clients send them, as JSON with `data:` URLs. One picture is
//! edited at a time. Where its mask is transparent it is drawn anew; without a mask, where it is itself
//! transparent; else everywhere.
//!
//! A stream tells `image_generation.partial_image` and `.completed` (of edits `image_edit`), each with
//! `image_index` beside OpenAI's fields, and last an `error` if it failed. `.queued`, `.started` and
//! `.progress` come only with `stream_options.include_progress`. Frames carry `id: SEQ` and streams are
//! resumed as those of texts.
//!
//! A picture has no tokens here: `output_tokens` counts denoising steps.

mod body;
mod docs;
mod request;
mod respond;
mod stream;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use serde::Serialize;

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::{ApiError, OpenAiError};
use crate::api::picture_parameters::PictureParameters;
use crate::picture::PictureFormat;

pub(super) use docs::description;
use request::Route;
pub(super) use stream::ImageDialect;

/// How the reply to an image request is to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// It begins from a picture: its events have other names.
    pub(super) is_edit: bool,
    /// The files' format.
    pub(super) format: PictureFormat,
    /// Of a JPEG, 1 to 100.
    pub(super) quality: u8,
    /// Tell the place in the queue and each step too.
    pub(super) include_progress: bool,
}

impl ImageShape {
    /// A request that came in by another dialect is shown as a generation, in PNG.
    fn foreign() -> Self {
        ImageShape {
            is_edit: false,
            format: PictureFormat::Png,
            quality: 100,
            include_progress: false,
        }
    }
}

/// The routes of this dialect's images.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route(Route::Generations.path(), post(generate))
        .route(Route::Edits.path(), post(edit))
        .route("/v1/images/variations", post(vary))
}

/// Draws pictures of a prompt.
#[utoipa::path(post, path = "/v1/images/generations", tag = "openai",
    request_body(content = docs::GenerationBody, example = json!({
        "model": "tiny-sd",
        "prompt": "a red circle",
        "size": "128x128",
        "seed": 1,
    })),
    responses(
        (status = 200, description = "the pictures, or a stream of `image_generation.partial_image` \
            and `image_generation.completed`"),
        (status = 400, description = "a field is wrong; it is named in `param`"),
        (status = 404, description = "there is no such model"),
        (status = 429, description = "the queue is full; see Retry-After"),
        (status = 503, description = "loading or draining; see Retry-After"),
        (status = 504, description = "the deadline has passed"),
    ))]
async fn generate(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    respond::respond(&state, Route::Generations, caller, &headers, body).await
}

/// Draws a picture, or a part of it, anew.
#[utoipa::path(post, path = "/v1/images/edits", tag = "openai",
    request_body(content(
        (docs::EditBody = "multipart/form-data"),
        (docs::EditBody = "application/json"),
    )),
    responses(
        (status = 200, description = "the pictures, or a stream of `image_edit.partial_image` \
            and `image_edit.completed`"),
        (status = 400, description = "a field is wrong; it is named in `param`"),
        (status = 404, description = "there is no such model"),
        (status = 413, description = "the body is larger than `max_body_bytes`"),
        (status = 429, description = "the queue is full; see Retry-After"),
        (status = 503, description = "loading or draining; see Retry-After"),
        (status = 504, description = "the deadline has passed"),
    ))]
async fn edit(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    respond::respond(&state, Route::Edits, caller, &headers, body).await
}

/// The models that OpenAI's variations were made with take a picture for a prompt; ours do not.
async fn vary() -> OpenAiError {
    OpenAiError(ApiError::new(
        StatusCode::NOT_FOUND,
        "unsupported_endpoint",
        "image variations are not served; /v1/images/edits draws a picture anew from a prompt",
    ))
}

/// OpenAI's account of an image request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct UsageBody {
    input_tokens: u64,
    input_tokens_details: InputTokensDetails,
    /// Denoising steps.
    output_tokens: u64,
    total_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct InputTokensDetails {
    image_tokens: u64,
    text_tokens: u64,
}

impl UsageBody {
    fn new(prompt_tokens: u32, denoising_steps: u32) -> Self {
        let [text_tokens, output_tokens] = [prompt_tokens, denoising_steps].map(u64::from);
        UsageBody {
            input_tokens: text_tokens,
            input_tokens_details: InputTokensDetails {
                image_tokens: 0,
                text_tokens,
            },
            output_tokens,
            total_tokens: text_tokens + output_tokens,
        }
    }
}

/// `WIDTHxHEIGHT`.
fn size_of(parameters: &PictureParameters) -> String {
    format!("{}x{}", parameters.width, parameters.height)
}
