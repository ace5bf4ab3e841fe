//! The HTTP API of the Stable Diffusion web UI (AUTOMATIC1111's): `/sdapi/v1/…` and the two routes under
//! `/internal/` that its clients poll.
//!
//! Every field of a request is honoured, or accepted in the form that asks for nothing, or refused by
//! name with a 400. What a request leaves out is the model's own default, as in our other dialects, not
//! the web UI's: a model of 128 pixels draws 128 pixels.
//!
//! - *Honoured:* `prompt`, `negative_prompt`, `seed` (-1 draws one), `steps`, `cfg_scale`, `width`,
//!   `height`, `batch_size` and `n_iter` (`batch_size * n_iter` pictures at once, with the seeds
//!   `seed + i`), `sampler_name` or `sampler_index`, `scheduler` (`Automatic`: as the sampler's name
//!   says; `Karras`), `eta` (of DDIM; most others pass it over, as
//!   there), `send_images`, `force_task_id`, `override_settings` as far as
//!   [`options`] goes; for `img2img` also `init_images` (one), `denoising_strength`, `mask` with
//!   `inpainting_mask_invert`, `include_init_images`.
//! - *Accepted in their neutral form only:* see [`neutral`].
//!
//! `txt2img` and `img2img` answer when the pictures are there. The request behind the answer is one like
//! any other: `x-request-id` (and `state.job` of its progress) names it for the native API, a client that
//! has gone is waited for as long as OpenAI's are, and an `Idempotency-Key` repeats the answer.
//!
//! *Whose progress, whose interrupt.* The web UI has one job at a time and lets everybody stop it. Here
//! `progress`, `interrupt`, `skip` and `/internal/progress` reach the caller's own requests alone. The
//! caller is known by the API key (`Bearer`, or the password of `Basic`, which is what these clients can
//! send); where no keys are asked for, by the address it calls from. Of these requests:
//!
//! - with `?id_task=` (a parameter that the web UI lacks; `id_task` in the body of `/internal/progress`):
//!   the one that gave it as `force_task_id`, the youngest if several did;
//! - without: the oldest one that gave *no* `force_task_id`. A task id thus tells clients apart that share
//!   a key or an address.
//!
//! `interrupt` ends the request within a step, and the waiting call is answered with the pictures that
//! were finished by then; `info.interrupted` says so. Pictures of one request are drawn together, so
//! there is no next one to `skip` to: it ends the request as well.

mod draw;
mod lists;
mod neutral;
pub(super) mod options;
mod png_info;
mod progress;
mod read;
mod reply;
mod tasks;
mod who;
mod wire;

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use utoipa::OpenApi;

use super::AppState;
use super::error::{ApiError, ErrorShape};

use options::ChosenModels;
use tasks::Tasks;

/// The routes of this dialect.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/sdapi/v1/txt2img", post(draw::txt2img))
        .route("/sdapi/v1/img2img", post(draw::img2img))
        .route("/sdapi/v1/progress", get(progress::show))
        .route("/sdapi/v1/interrupt", post(progress::interrupt))
        .route("/sdapi/v1/skip", post(progress::skip))
        .route(
            "/sdapi/v1/options",
            get(options::show).post(options::choose),
        )
        .route("/sdapi/v1/png-info", post(png_info::read))
        .route("/internal/progress", post(progress::internal))
        .route("/internal/ping", get(lists::ping))
        .merge(lists::routes())
        .layer(Extension(Arc::<Tasks>::default()))
        .layer(Extension(Arc::<ChosenModels>::default()))
}

/// An error in the shape that these clients know, so that handlers can use `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WebUiError(ApiError);

impl<E: Into<ApiError>> From<E> for WebUiError {
    fn from(error: E) -> Self {
        WebUiError(error.into())
    }
}

impl IntoResponse for WebUiError {
    fn into_response(self) -> Response {
        self.0.into_response_as(ErrorShape::WebUi)
    }
}

#[derive(OpenApi)]
#[openapi(
    paths(
        draw::txt2img,
        draw::img2img,
        progress::show,
        progress::interrupt,
        progress::skip,
        progress::internal,
        options::show,
        options::choose,
        png_info::read,
        lists::samplers,
        lists::models,
    ),
    tags((name = "web UI", description = "for clients of the Stable Diffusion web UI's API; what is \
        not served is refused by name"))
)]
struct Description;

/// This dialect's part of `/openapi.json`.
pub(super) fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}
