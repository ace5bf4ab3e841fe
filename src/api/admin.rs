//! For the operator's page: how every model does, what is in it, what the last hour was like; cancel, drain.
//!
//! Behind keys of its own ([`super::auth`]), and off without one. Shows ids and never a prompt or an answer.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::history::{ModelHistory, RESOLUTION};
use super::ops::{self, ModelLoad};
use super::requests::Request;
use super::{AppState, ServedModel, milliseconds};
use crate::events::EventKind;
use crate::events::store::SharedLog;
use crate::intake::Intake;
use crate::job::RequestId;
use crate::time::{Clock, Time};

const OVERVIEW: &str = "/api/v1/admin/overview";
const HISTORY: &str = "/api/v1/admin/history";
const REQUEST: &str = "/api/v1/admin/requests/{id}";
const DRAIN: &str = "/api/v1/admin/models/{name}/drain";

const PREFIX: &str = "/api/v1/admin/";

/// Requests shown at most, the oldest first.
const MAX_SHOWN: usize = 500;

/// The routes of this file.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route(OVERVIEW, get(overview))
        .route(HISTORY, get(history))
        .route(REQUEST, delete(cancel))
        .route(DRAIN, post(drain))
}

/// Whether this path is the operator's: it takes the admin keys and no others.
pub(super) fn is_admin(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Stands among the arguments of every handler here: who calls has shown an admin key.
pub(super) struct Operator;

impl FromRequestParts<Arc<AppState>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<Self, ApiError> {
        state.keys.check_operator(&parts.headers)?;
        Ok(Operator)
    }
}

/// How the service does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// The program's version.
    pub version: String,
    /// How long it has been running.
    pub up_ms: u64,
    /// Bytes of all event logs.
    pub event_bytes: u64,
    /// Each model.
    pub models: Vec<ModelOverview>,
    /// Requests that wait or run, the oldest first.
    pub requests: Vec<RequestOverview>,
    /// Requests that wait or run beyond those shown.
    pub more_requests: usize,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelOverview {
    /// `text` or `image`.
    pub task: String,
    /// Memory units kept for prompts that begin alike.
    pub memory_units_cached: u32,
    /// The rest.
    #[serde(flatten)]
    pub load: ModelLoad,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RequestOverview {
    /// Its id.
    pub id: String,
    /// The model it was sent to.
    pub model: String,
    /// The name of the key it came with.
    pub owner: Option<String>,
    /// `queued` or `running`.
    pub state: String,
    /// While it waits: requests ahead of it.
    pub position: Option<u32>,
    /// Since it was accepted.
    pub age_ms: u64,
    /// Answers or pictures that it wants.
    pub choices: u32,
    /// Events in its log.
    pub events: u64,
    /// Of a picture that is being drawn: steps done and steps in all.
    pub progress: Option<(u32, u32)>,
}

/// What the models did lately, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// How long a point lasts. The last one is still going on.
    pub resolution_ms: u64,
    /// Each model.
    pub models: Vec<ModelHistory>,
}

/// How the service does, with ids of what waits and runs.
#[utoipa::path(get, path = OVERVIEW, tag = "admin", responses(
    (status = 200, description = "as of each model's last step", body = Overview),
    (status = 401, description = "the admin key is missing or not known"),
    (status = 404, description = "no admin_key_file is set"),
))]
pub(super) async fn overview(_: Operator, State(state): State<Arc<AppState>>) -> Json<Overview> {
    let now = state.clock.now();
    let mut open = state.requests.open();
    open.sort_by_key(|(request, _)| request.id);
    let more_requests = open.len().saturating_sub(MAX_SHOWN);
    let shown = open.iter().take(MAX_SHOWN);
    Json(Overview {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        up_ms: milliseconds(now - Time::ZERO),
        event_bytes: state.store.bytes(),
        models: state.models.iter().map(model_overview).collect(),
        requests: shown
            .map(|(request, log)| request_overview(now, request, log))
            .collect(),
        more_requests,
    })
}

/// What every model did in the time that `admin_history_s` names.
#[utoipa::path(get, path = HISTORY, tag = "admin", responses(
    (status = 200, description = "sums and states of equal stretches of time", body = History),
    (status = 401, description = "the admin key is missing or not known"),
    (status = 404, description = "no admin_key_file is set"),
))]
pub(super) async fn history(_: Operator, State(state): State<Arc<AppState>>) -> Json<History> {
    let of = |model: &Arc<ServedModel>| ModelHistory {
        name: model.name.clone(),
        points: state.metrics.history(&model.name),
    };
    Json(History {
        resolution_ms: milliseconds(RESOLUTION),
        models: state.models.iter().map(of).collect(),
    })
}

/// Cancels anybody's request, within one step of the model.
#[utoipa::path(delete, path = REQUEST, tag = "admin",
    params(("id" = String, Path, description = "the request's id")),
    responses(
        (status = 202, description = "the request ends with the model's current step"),
        (status = 401, description = "the admin key is missing or not known"),
        (status = 404, description = "no request of this id waits or runs, or no admin_key_file is set"),
    ))]
pub(super) async fn cancel(
    _: Operator,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id: RequestId = id.parse().map_err(|_| ApiError::unknown_request())?;
    let mut open = state.requests.open().into_iter();
    let (request, _) = open
        .find(|(request, _)| request.id == id)
        .ok_or_else(ApiError::unknown_request)?;
    request.model.engine.cancel(id);
    tracing::info!(%id, "cancelled by an operator");
    Ok(StatusCode::ACCEPTED)
}

/// Has a model take no more requests and finish what it has, within `drain_timeout_ms`. It cannot be undone
/// but by starting the service anew.
#[utoipa::path(post, path = DRAIN, tag = "admin",
    params(("name" = String, Path, description = "the model's name")),
    responses(
        (status = 202, description = "it drains", body = ModelOverview),
        (status = 401, description = "the admin key is missing or not known"),
        (status = 404, description = "there is no such model, or no admin_key_file is set"),
    ))]
pub(super) async fn drain(
    _: Operator,
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<ModelOverview>), ApiError> {
    let model = state.model(Some(&name))?;
    model
        .engine
        .drain(state.clock.now() + state.config.drain_timeout);
    tracing::info!(model = name, "drained by an operator");
    Ok((StatusCode::ACCEPTED, Json(model_overview(model))))
}

fn model_overview(model: &Arc<ServedModel>) -> ModelOverview {
    ModelOverview {
        task: match model.intake {
            Intake::Text(_) => "text",
            Intake::Image(_) => "image",
        }
        .to_owned(),
        memory_units_cached: model.engine.snapshot().cache.memory_units,
        load: ops::model_load(model),
    }
}

/// Its last event tells where a request is; the whole log would be long.
fn request_overview(now: Time, request: &Request, log: &SharedLog) -> RequestOverview {
    let last = log.read_from(log.last_seq().max(1)).pop();
    let kind = last.as_ref().map(|event| &event.kind);
    let position = match kind {
        Some(EventKind::Queued { position, .. }) => Some(*position),
        _ => None,
    };
    let waits = kind.is_none() || position.is_some();
    RequestOverview {
        id: request.id.to_string(),
        model: request.model.name.clone(),
        owner: request.owner.key().map(|key| key.to_string()),
        state: if waits { "queued" } else { "running" }.to_owned(),
        position,
        age_ms: milliseconds(now - request.accepted_at),
        choices: request.choices,
        events: log.last_seq(),
        progress: match kind {
            Some(EventKind::Progress { step, steps, .. }) => Some((*step, *steps)),
            _ => None,
        },
    }
}
