//! Without a session: `call/{api}` answers with an event's id and `call/{api}/{id}` streams it; `run/{api}`
//! answers when the result is there. All are admitted like every other request.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Map, Value, json};

use super::dialect::{Form, GradioDialect, Outputs};
use super::endpoints::Endpoint;
use super::join::{EventId, list};
use super::{GradioError, address, arguments, options};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::sse;
use crate::api::submit::{Accepted, Idempotency, find, submit};
use crate::events::EventKind;
use crate::intake::{Fields, Invalid, InvalidKind};

/// Calls an endpoint with arguments by position.
#[utoipa::path(post, path = "/gradio_api/call/{api_name}", tag = "gradio",
    params(("api_name" = String, Path, description = "the endpoint, such as `chat`")),
    request_body(content = super::docs::CallBody),
    responses(
        (status = 200, description = "accepted", body = EventId),
        (status = 404, description = "no endpoint of this name"),
        (status = 422, description = "an argument is wrong; it is named"),
        (status = 503, description = "the queue is full, or the service loads or drains; see Retry-After"),
    ))]
pub(super) async fn by_position(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(api_name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<EventId>, GradioError> {
    let endpoint = state.gradio.by_name(&api_name)?;
    let arguments = arguments::by_position(endpoint, list(&mut Fields::parse(&body)?, "data")?)?;
    let call = Call {
        caller,
        headers: &headers,
        body: &body,
    };
    Ok(event_id(&call.submit(&state, endpoint, arguments).await?))
}

/// Calls an endpoint with arguments by name.
#[utoipa::path(post, path = "/gradio_api/call/v2/{api_name}", tag = "gradio",
    params(("api_name" = String, Path, description = "the endpoint, such as `chat`")),
    responses(
        (status = 200, description = "accepted", body = EventId),
        (status = 404, description = "no endpoint of this name"),
        (status = 422, description = "an argument is wrong; it is named"),
        (status = 503, description = "the queue is full, or the service loads or drains; see Retry-After"),
    ))]
pub(super) async fn by_name(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(api_name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<EventId>, GradioError> {
    let endpoint = state.gradio.by_name(&api_name)?;
    let arguments = match serde_json::from_slice(&body) {
        Ok(Value::Object(arguments)) => arguments,
        _ => {
            let message = "the body must be a JSON object of arguments";
            return Err(Invalid::new(InvalidKind::Body, "", message).into());
        }
    };
    let call = Call {
        caller,
        headers: &headers,
        body: &body,
    };
    Ok(event_id(&call.submit(&state, endpoint, arguments).await?))
}

/// The stream of a call: `estimation` and `progress` on change, `generating` with what there is so far, and
/// last `complete` or `error`.
#[utoipa::path(get, path = "/gradio_api/call/{api_name}/{event_id}", tag = "gradio",
    params(
        ("api_name" = String, Path, description = "the endpoint"),
        ("event_id" = String, Path, description = "the event"),
        ("Last-Event-ID" = Option<u64>, Header, description = "goes on behind this frame"),
    ),
    responses(
        (status = 200, description = "values in full, as a JSON list", content_type = "text/event-stream"),
        (status = 404, description = "there is no such event"),
        (status = 410, description = "its events are not kept any longer"),
    ))]
pub(super) async fn events(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path((_api_name, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, GradioError> {
    let id = id.parse().map_err(|_| ApiError::unknown_request())?;
    let (request, log) = find(&state, id, &caller)?;
    let after = sse::resume_point(&headers, None, &log)?;
    let dialect = GradioDialect::of(&request, address(&state, &headers), Form::Call);
    Ok(sse::stream(&state, &request, log, after, Box::new(dialect)))
}

/// Calls an endpoint and waits for its result.
#[utoipa::path(post, path = "/gradio_api/run/{api_name}", tag = "gradio",
    params(("api_name" = String, Path, description = "the endpoint, such as `chat`")),
    request_body(content = super::docs::CallBody),
    responses(
        (status = 200, description = "`data`: the values, and `duration` in seconds"),
        (status = 404, description = "no endpoint of this name"),
        (status = 422, description = "an argument is wrong; it is named"),
        (status = 503, description = "the queue is full, or the service loads or drains; see Retry-After"),
    ))]
pub(super) async fn run(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(api_name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, GradioError> {
    let endpoint = state.gradio.by_name(&api_name)?;
    let arguments = arguments::by_position(endpoint, list(&mut Fields::parse(&body)?, "data")?)?;
    let call = Call {
        caller,
        headers: &headers,
        body: &body,
    };
    let Accepted { request, log, .. } = call.submit(&state, endpoint, arguments).await?;
    let _reader = request.reader();
    log.until_closed().await;
    let mut outputs = Outputs::of(&request, address(&state, &headers));
    let mut duration = None;
    for event in log.read_from(1) {
        outputs.take(request.id, &event.kind);
        match &event.kind {
            EventKind::Failed { failure, .. } => return Err(ApiError::from(failure).into()),
            EventKind::Finished { .. } => {
                let taken = event.at.saturating_since(request.accepted_at);
                duration = Some(taken.as_secs_f64());
            }
            _ => {}
        }
    }
    Ok(Json(json!({
        "data": outputs.values(),
        "is_generating": false,
        "duration": duration,
    })))
}

struct Call<'a> {
    caller: Caller,
    headers: &'a HeaderMap,
    body: &'a [u8],
}

impl Call<'_> {
    async fn submit(
        self,
        state: &Arc<AppState>,
        endpoint: &Endpoint,
        arguments: Map<String, Value>,
    ) -> Result<Accepted, GradioError> {
        let idempotency = Idempotency::from_headers(self.headers, &endpoint.api_name, self.body)?;
        let draft = arguments::draft(state, &self.caller, endpoint, arguments).await?;
        let submission = options(state, self.caller, idempotency);
        Ok(submit(state, &endpoint.model, draft, submission).await?)
    }
}

fn event_id(accepted: &Accepted) -> Json<EventId> {
    Json(EventId {
        event_id: accepted.request.id.to_string(),
    })
}
