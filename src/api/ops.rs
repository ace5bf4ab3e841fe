//! For operators: is it alive, is it ready, how loaded is it, what does it serve.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model_details::{ImageDetails, TextDetails};
use super::{AppState, ServedModel};
use crate::engine::{DeviceSnapshot, EngineState};
use crate::intake::Intake;

/// The routes of this file.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/load", get(load))
        .route("/api/v1/models", get(models))
}

/// Whether every model is ready, and where each one is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether all are.
    pub ready: bool,
    /// Each.
    pub models: Vec<ModelReadiness>,
}

/// Where one model is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelReadiness {
    /// Its name.
    pub name: String,
    /// `loading`, `ready`, `draining`, `stopped` or `failed`. On several devices it is ready from when all have
    /// loaded it for as long as one of them runs.
    pub state: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How loaded every model is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Load {
    /// Each.
    pub models: Vec<ModelLoad>,
}

/// How loaded one model is, as of its last step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelLoad {
    /// Its name.
    pub name: String,
    /// See [`ModelReadiness::state`].
    pub state: String,
    /// Requests that wait.
    pub waiting_requests: u32,
    /// Rows that wait (a request with `n` answers has `n` rows).
    pub waiting_rows: u32,
    /// Rows that run.
    pub running_rows: u32,
    /// Rows that may run at once.
    pub slots: u32,
    /// Memory units (KV blocks) in use.
    pub memory_units_used: u32,
    /// Memory units in all.
    pub memory_units_total: u32,
    /// Prompt tokens of all requests in the engine.
    pub queued_tokens: u64,
    /// When a request that came now would start, in milliseconds.
    pub eta_ms: Option<u64>,
    /// Each device that serves it; the numbers above are those of all of them together.
    #[serde(default)]
    pub devices: Vec<DeviceLoad>,
}

/// How loaded one device is, as of its last step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceLoad {
    /// Its name.
    pub name: String,
    /// See [`ModelReadiness::state`]. One that failed does not take the others along.
    pub state: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Rows that run on it.
    pub running_rows: u32,
    /// Rows that may run on it at once.
    pub slots: u32,
    /// Its memory units in use.
    pub memory_units_used: u32,
    /// Its memory units in all.
    pub memory_units_total: u32,
}

/// The models served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Models {
    /// Each; the first is the default.
    pub models: Vec<ModelInfo>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// What it does: `text` or `image`.
    pub task: String,
    /// See [`ModelReadiness::state`].
    pub state: String,
    /// When it was loaded: seconds since the Unix epoch.
    pub created: u64,
    /// Tokens that prompt and answer may have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_context: Option<u32>,
    /// Whether it can be given messages.
    pub chat: bool,
    /// The devices that serve it.
    #[serde(default)]
    pub devices: Vec<String>,
    /// What a request for text gets that leaves a field out, and how far one may go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextDetails>,
    /// The same of a request for pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDetails>,
}

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "operations",
    responses((status = 200, description = "the process answers")))]
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Every model is ready.
#[utoipa::path(get, path = "/health/ready", tag = "operations", responses(
    (status = 200, description = "every model is ready", body = Readiness),
    (status = 503, description = "some model is not", body = Readiness),
))]
pub(super) async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let models: Vec<ModelReadiness> = state.models.iter().map(readiness).collect();
    let ready = models.iter().all(|model| model.state == "ready");
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { ready, models })).into_response()
}

/// All metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "metrics as text", body = String)))]
pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, FORMAT)], state.metrics.render()).into_response()
}

/// How loaded every model is.
#[utoipa::path(get, path = "/load", tag = "operations",
    responses((status = 200, description = "as of each model's last step", body = Load)))]
pub(super) async fn load(State(state): State<Arc<AppState>>) -> Json<Load> {
    let models = state.models.iter().map(model_load).collect();
    Json(Load { models })
}

/// The models served.
#[utoipa::path(get, path = "/api/v1/models", tag = "native",
    responses((status = 200, description = "the first is the default", body = Models)))]
pub(super) async fn models(State(state): State<Arc<AppState>>) -> Json<Models> {
    let models = state.models.iter().map(model_info).collect();
    Json(Models { models })
}

fn state_name(state: &EngineState) -> &'static str {
    match state {
        EngineState::Loading => "loading",
        EngineState::Ready => "ready",
        EngineState::Draining => "draining",
        EngineState::Stopped => "stopped",
        EngineState::Failed(_) => "failed",
    }
}

fn reason(state: &EngineState) -> Option<String> {
    match state {
        EngineState::Failed(reason) => Some(reason.clone()),
        _ => None,
    }
}

fn readiness(model: &Arc<ServedModel>) -> ModelReadiness {
    let state = model.engine.state();
    ModelReadiness {
        name: model.name.clone(),
        state: state_name(&state).to_owned(),
        reason: reason(&state),
    }
}

fn device_load(device: &DeviceSnapshot) -> DeviceLoad {
    DeviceLoad {
        name: device.name.to_string(),
        state: state_name(&device.state).to_owned(),
        reason: reason(&device.state),
        running_rows: device.running_rows,
        slots: device.slots,
        memory_units_used: device.memory_units_used,
        memory_units_total: device.memory_units_total,
    }
}

pub(super) fn model_load(model: &Arc<ServedModel>) -> ModelLoad {
    let snapshot = model.engine.snapshot();
    ModelLoad {
        name: model.name.clone(),
        state: state_name(&model.engine.state()).to_owned(),
        waiting_requests: snapshot.waiting_requests,
        waiting_rows: snapshot.waiting_rows,
        running_rows: snapshot.running_rows,
        slots: snapshot.slots,
        memory_units_used: snapshot.memory_units_used,
        memory_units_total: snapshot.memory_units_total,
        queued_tokens: snapshot.queued_tokens,
        eta_ms: snapshot.eta.map(super::milliseconds),
        devices: snapshot.devices.iter().map(device_load).collect(),
    }
}

fn model_info(model: &Arc<ServedModel>) -> ModelInfo {
    ModelInfo {
        name: model.name.clone(),
        task: match model.intake {
            Intake::Text(_) => "text",
            Intake::Image(_) => "image",
        }
        .to_owned(),
        state: state_name(&model.engine.state()).to_owned(),
        created: model.created,
        max_context: model.intake.text().ok().map(|text| text.max_context),
        chat: model
            .intake
            .text()
            .is_ok_and(|text| text.template.is_some()),
        devices: model
            .engine
            .devices()
            .iter()
            .map(ToString::to_string)
            .collect(),
        text: model.intake.text().ok().map(TextDetails::of),
        image: model.intake.image().ok().map(ImageDetails::of),
    }
}
