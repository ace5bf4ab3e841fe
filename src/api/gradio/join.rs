//! `queue/join`, `cancel` and `reset`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;

use super::{GradioError, address, arguments, options};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::submit::{Idempotency, find, submit};
use crate::intake::{Fields, Invalid};

/// An event was accepted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct EventId {
    /// Its id, which is its request's.
    pub(super) event_id: String,
}

/// Joins a queue.
///
/// The event's messages come over the session's stream, `queue/data`. It is given up when nobody reads that
/// for the grace time.
#[utoipa::path(post, path = "/gradio_api/queue/join", tag = "gradio",
    request_body(content = super::docs::JoinBody),
    responses(
        (status = 200, description = "accepted", body = EventId),
        (status = 400, description = "no session_hash"),
        (status = 404, description = "no endpoint of this fn_index"),
        (status = 422, description = "an argument is wrong; it is named"),
        (status = 503, description = "the queue is full, or the service loads or drains; see Retry-After"),
    ))]
pub(super) async fn join(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<EventId>, GradioError> {
    const PATH: &str = "/gradio_api/queue/join";
    let mut fields = Fields::parse(&body)?;
    let data = list(&mut fields, "data")?;
    let fn_index = fields
        .count("fn_index")?
        .ok_or_else(|| Invalid::value("fn_index", "is required"))?;
    let hash = fields.string("session_hash")?.unwrap_or_default();
    let endpoint = state.gradio.by_index(fn_index)?;
    let idempotency = Idempotency::from_headers(&headers, PATH, &body)?;

    let place = state.gradio.sessions.place(&caller, &hash)?;
    let given = arguments::by_position(endpoint, data)?;
    let draft = arguments::draft(&state, &caller, endpoint, given).await?;
    let submission = options(&state, caller, idempotency);
    let accepted = submit(&state, &endpoint.model, draft, submission).await?;
    let id = accepted.request.id;
    let closed_at = place.take(id, address(&state, &headers));
    if let Some(closed_at) = closed_at {
        // The client may not have heard yet that its stream is over, and would wait for this event's
        // messages there. By then it has, and opens another.
        let heard = closed_at + state.config.gradio.linger;
        sleep_until(Instant::from_std(state.clock.instant(heard))).await;
    }
    Ok(Json(EventId {
        event_id: id.to_string(),
    }))
}

/// A list, empty if it is left out.
pub(super) fn list(fields: &mut Fields, name: &str) -> Result<Vec<Value>, Invalid> {
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => Ok(values),
        Some(_) => Err(Invalid::value(name, "must be a list")),
    }
}

/// Cancels an event, within one step of the model. The others of its session go on.
///
/// It ends in `process_completed` with its last values. One that has ended stays as it is.
#[utoipa::path(post, path = "/gradio_api/cancel", tag = "gradio",
    request_body(content = super::docs::CancelBody),
    responses(
        (status = 200, description = "it ends with the model's current step"),
        (status = 404, description = "there is no such event"),
    ))]
pub(super) async fn cancel(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Json<Value>, GradioError> {
    let id = Fields::parse(&body)?.string("event_id")?;
    let id = id
        .and_then(|id| id.parse().ok())
        .ok_or_else(ApiError::unknown_request)?;
    let (request, _) = find(&state, id, &caller)?;
    request.model.engine.cancel(id);
    Ok(Json(json!({"success": true})))
}

/// Has no effect; clients call it after `cancel`.
pub(super) async fn reset() -> (StatusCode, Json<Value>) {
    (StatusCode::OK, Json(json!({"success": true})))
}
