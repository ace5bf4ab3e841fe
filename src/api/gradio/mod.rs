//! Gradio's dialect: what `gradio_client` and `@gradio/client` need to work unchanged, and plain HTTP beside
//! it (`call`, `run`).
//!
//! - *Set-up:* `/config` and `info` describe the [`endpoints`].
//! - *Submit:* `queue/join` and `call/{api}` go through [`submit`](super::submit) like every other request;
//!   no route reaches a model by another way. An event's id is its request's id.
//! - *Stream:* one per session carries all its events, in `data:` lines of one JSON object with nothing
//!   else, since the Python client knows no other framing. It is a reader of the events' logs: nothing is
//!   copied for a session that is not read, and a reader that stalls holds one snapshot of each event.
//! - *Endings:* every accepted event ends in `process_completed`. A cancelled one says its last values with
//!   success true; a failed one its error, with success false.
//! - *Resuming* is asked for by `?resume=1` or `Last-Event-ID`: see [`data`].
//!
//! Extra fields in a call's envelope are passed over, as clients add to it with every version; arguments
//! are held against the endpoint's parameters, and wrong ones answered with 422 by name.
//!
//! Not served: `stream/{event_id}` (input in chunks), `/login` and `gr.State` (a conversation is in the
//! request), `/monitoring` (see `/metrics` and `/load`).

mod arguments;
mod call;
mod cursor;
mod data;
mod describe;
mod dialect;
mod diff;
mod docs;
mod endpoints;
mod files;
mod join;
mod session;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use uuid::Uuid;

use super::error::{ApiError, ErrorShape};
use super::submit::{Idempotency, OnDisconnect, SubmitOptions};
use super::{AppState, ServedModel};
use crate::api::auth::Caller;
use crate::time::RealClock;

pub(super) use docs::description;
use endpoints::Endpoint;
use session::Sessions;
use uploads::Uploads;

/// This dialect's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradioConfig {
    /// An event that nobody reads is given up after this.
    pub grace: Duration,
    /// A session's stream stays open for so long when its last event has ended: a client's next call then
    /// needs no new one.
    pub linger: Duration,
    /// Sessions remembered.
    pub max_sessions: usize,
    /// Events of one session that have not been told to their end.
    pub max_session_events: usize,
    /// A session without a reader is forgotten after this.
    pub session_ttl: Duration,
    /// Uploaded files kept.
    pub max_uploads: usize,
    /// Their bytes together.
    pub max_upload_bytes: usize,
    /// How long each is kept.
    pub upload_ttl: Duration,
}

impl Default for GradioConfig {
    fn default() -> Self {
        GradioConfig {
            grace: Duration::from_secs(30),
            linger: Duration::from_millis(100),
            max_sessions: 10_000,
            max_session_events: 64,
            session_ttl: Duration::from_secs(600),
            max_uploads: 1_024,
            max_upload_bytes: 256 << 20,
            upload_ttl: Duration::from_secs(600),
        }
    }
}

/// What the dialect keeps between calls.
pub(super) struct Gradio {
    endpoints: Vec<Arc<Endpoint>>,
    sessions: Sessions,
    uploads: Uploads,
    /// Another one after every start: clients ask whether the application has changed.
    app_id: u64,
}

impl Gradio {
    /// Nothing yet.
    pub(super) fn new(
        models: &[Arc<ServedModel>],
        config: &GradioConfig,
        clock: &Arc<RealClock>,
    ) -> Self {
        // Within what JavaScript's numbers hold exactly.
        let app_id = Uuid::now_v7().as_u128() as u64 >> 12;
        Gradio {
            endpoints: endpoints::endpoints(models),
            sessions: Sessions::new(config.clone(), Arc::clone(clock)),
            uploads: Uploads::new(config.clone(), Arc::clone(clock)),
            app_id,
        }
    }

    /// Forgets what is too old. The service calls it now and then.
    pub(super) fn sweep(&self) {
        self.sessions.sweep();
        self.uploads.sweep();
    }

    fn by_index(&self, fn_index: u64) -> Result<&Arc<Endpoint>, ApiError> {
        usize::try_from(fn_index)
            .ok()
            .and_then(|index| self.endpoints.get(index))
            .ok_or_else(|| no_such_endpoint("fn_index"))
    }

    fn by_name(&self, api_name: &str) -> Result<&Arc<Endpoint>, ApiError> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.api_name == api_name)
            .ok_or_else(|| no_such_endpoint("api_name"))
    }
}

fn no_such_endpoint(field: &str) -> ApiError {
    ApiError {
        field: Some(field.into()),
        ..ApiError::new(
            StatusCode::NOT_FOUND,
            "endpoint_not_found",
            format!("there is no endpoint of this {field} here; see /gradio_api/info"),
        )
    }
}

/// The routes of this dialect.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/config", get(describe::config))
        .route("/gradio_api/info", get(describe::info))
        .route("/gradio_api/app_id", get(describe::app_id))
        .route("/gradio_api/startup-events", get(describe::startup_events))
        .route("/gradio_api/queue/join", post(join::join))
        .route("/gradio_api/queue/data", get(data::stream))
        .route("/gradio_api/queue/status", get(describe::status))
        .route("/gradio_api/cancel", post(join::cancel))
        .route("/gradio_api/reset", post(join::reset))
        .route("/gradio_api/heartbeat/{session_hash}", get(data::heartbeat))
        .route("/gradio_api/call/{api_name}", post(call::by_position))
        .route("/gradio_api/call/v2/{api_name}", post(call::by_name))
        .route("/gradio_api/call/{api_name}/{event_id}", get(call::events))
        .route(
            "/gradio_api/call/v2/{api_name}/{event_id}",
            get(call::events),
        )
        .route("/gradio_api/run/{api_name}", post(call::run))
        .route("/gradio_api/api/{api_name}", post(call::run))
        .route("/gradio_api/upload", post(files::upload))
        .route("/gradio_api/{*file}", get(files::file))
}

/// An error as these clients know it, so that handlers can use `?`: a full queue is 503 to them, and a wrong
/// argument 422.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GradioError(ApiError);

impl<E: Into<ApiError>> From<E> for GradioError {
    fn from(error: E) -> Self {
        let mut error = error.into();
        error.status = match error.status {
            StatusCode::TOO_MANY_REQUESTS => StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::BAD_REQUEST if error.field.is_some() => StatusCode::UNPROCESSABLE_ENTITY,
            status => status,
        };
        GradioError(error)
    }
}

impl IntoResponse for GradioError {
    fn into_response(self) -> Response {
        self.0.into_response_as(ErrorShape::Gradio)
    }
}

/// How this dialect's requests are submitted.
fn options(state: &AppState, caller: Caller, idempotency: Option<Idempotency>) -> SubmitOptions {
    SubmitOptions {
        caller,
        deadline: None,
        priority: None,
        idempotency,
        on_disconnect: OnDisconnect::AbandonAfter(state.config.gradio.grace),
        openai: None,
        dialect: "gradio",
    }
}

/// Where the client reaches the service, for links to files: a setting, or the host that it called.
fn address(state: &AppState, headers: &HeaderMap) -> Arc<str> {
    match &state.config.public_url {
        Some(url) => url.as_str().into(),
        None => {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            format!("http://{}", host.unwrap_or("localhost")).into()
        }
    }
}
