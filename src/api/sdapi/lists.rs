//! What there is: samplers, schedulers, models, and the many things of which there are none.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::WebUiError;
use super::options::{ChosenModels, image_models};
use super::who::Who;
use crate::api::AppState;

/// Lists that clients ask for, and that are empty here.
const NONE: [&str; 10] = [
    "/sdapi/v1/sd-vae",
    "/sdapi/v1/upscalers",
    "/sdapi/v1/latent-upscale-modes",
    "/sdapi/v1/loras",
    "/sdapi/v1/hypernetworks",
    "/sdapi/v1/face-restorers",
    "/sdapi/v1/realesrgan-models",
    "/sdapi/v1/prompt-styles",
    "/sdapi/v1/script-info",
    "/sdapi/v1/extensions",
];

/// The routes of this file, but for `ping`.
pub(super) fn routes() -> Router<Arc<AppState>> {
    let mut routes = Router::new()
        .route("/sdapi/v1/samplers", get(samplers))
        .route("/sdapi/v1/schedulers", get(schedulers))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/embeddings", get(embeddings))
        .route("/sdapi/v1/scripts", get(scripts))
        .route("/sdapi/v1/cmd-flags", get(flags))
        .route("/sdapi/v1/memory", get(memory))
        // The models are those that the service was started with.
        .route("/sdapi/v1/refresh-checkpoints", post(nothing_to_do))
        .route("/sdapi/v1/refresh-vae", post(nothing_to_do))
        .route("/sdapi/v1/refresh-loras", post(nothing_to_do))
        .route("/sdapi/v1/refresh-embeddings", post(nothing_to_do));
    for path in NONE {
        routes = routes.route(path, get(none));
    }
    routes
}

/// The samplers of the caller's model.
#[utoipa::path(get, path = "/sdapi/v1/samplers", tag = "web UI",
    responses((status = 200, description = "a list of {name, aliases, options}")))]
pub(super) async fn samplers(
    State(state): State<Arc<AppState>>,
    Extension(chosen): Extension<Arc<ChosenModels>>,
    who: Who,
) -> Result<Json<Value>, WebUiError> {
    let model = chosen.of(&state, &who)?;
    let names = model.intake.image()?.frontend.schedule_names();
    let list = names
        .into_iter()
        .map(|(title, name)| json!({"name": title, "aliases": [name], "options": {}}));
    Ok(Json(list.collect()))
}

/// `karras` spaces the noise levels as in Karras et al., whose exponent is 7.
async fn schedulers() -> Json<Value> {
    let scheduler = |name: &str, label: &str, rho: f64| {
        json!({
            "name": name,
            "label": label,
            "aliases": null,
            "default_rho": rho,
            "need_inner_model": false,
        })
    };
    Json(json!([
        scheduler("automatic", "Automatic", -1.0),
        scheduler("karras", "Karras", 7.0),
    ]))
}

/// The models that draw.
#[utoipa::path(get, path = "/sdapi/v1/sd-models", tag = "web UI",
    responses((status = 200, description = "a list; `title` and `model_name` are the model's name")))]
pub(super) async fn models(State(state): State<Arc<AppState>>) -> Json<Value> {
    let list = image_models(&state).map(|model| {
        json!({
            "title": model.name,
            "model_name": model.name,
            "hash": null,
            "sha256": null,
            "filename": model.name,
            "config": null,
        })
    });
    Json(list.collect())
}

async fn embeddings() -> Json<Value> {
    Json(json!({"loaded": {}, "skipped": {}}))
}

async fn scripts() -> Json<Value> {
    Json(json!({"txt2img": [], "img2img": []}))
}

async fn flags() -> Json<Value> {
    Json(json!({"api": true, "nowebui": true, "api_server_stop": false}))
}

/// The web UI says `error` where it cannot tell.
async fn memory() -> Json<Value> {
    let elsewhere = json!({"error": "not told here; see /load and /metrics"});
    Json(json!({"ram": elsewhere, "cuda": elsewhere}))
}

async fn none() -> Json<Value> {
    Json(json!([]))
}

async fn nothing_to_do() -> Json<Value> {
    Json(Value::Null)
}

pub(super) async fn ping() -> Json<Value> {
    Json(json!({}))
}
