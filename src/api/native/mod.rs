//! The native API: submit, follow, ask, cancel. Every request is asynchronous; its id leads to its
//! events for as long as they are kept.

pub(super) mod artifact;
pub(super) mod dialect;
mod gather;
mod parse;
mod parse_image;
pub(super) mod session;
mod status;
pub mod wire;
pub mod wire_image;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};

use super::auth::Caller;
use super::blocking::read_body;
use super::error::ApiError;
use super::layers::with_id;
use super::requests::Request;
use super::submit::{Idempotency, OnDisconnect, SubmitOptions, find, submit};
use super::{AppState, openai, sse};
use crate::events::store::SharedLog;
use crate::intake::{Draft, Prompt, TextDraft, shortened};
use crate::job::RequestId;

use dialect::NativeDialect;
use wire::{Status, SubmitBody, Submitted};

const REQUESTS: &str = "/api/v1/requests";
const REQUEST: &str = "/api/v1/requests/{id}";
const EVENTS: &str = "/api/v1/requests/{id}/events";
const SESSION: &str = "/api/v1/events";
const IMAGE: &str = "/api/v1/requests/{id}/images/{index}";

/// Where a request's picture is found.
pub(crate) fn image_path(id: RequestId, index: u32) -> String {
    format!("{REQUESTS}/{id}/images/{index}")
}

/// The routes of this API.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route(REQUESTS, post(create))
        .route(REQUEST, get(show).delete(cancel))
        .route(EVENTS, get(events))
        .route(SESSION, get(session::events))
        .route(IMAGE, get(artifact::image))
}

/// Submits a request.
///
/// The model decides what is asked for: a text (the body described here) or pictures (`ImageSubmitBody`).
/// The answer comes as soon as the request is accepted. It is given up when nobody reads it (its
/// events or its status) for the grace time, unless `detach` is true.
#[utoipa::path(post, path = REQUESTS, tag = "native", request_body = SubmitBody,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "repeating the key with the same body gives the same request")),
    responses(
        (status = 201, description = "accepted", body = Submitted),
        (status = 400, description = "a field is wrong; it is named"),
        (status = 403, description = "priority is more than the caller may ask for"),
        (status = 422, description = "the Idempotency-Key was used with another body"),
        (status = 429, description = "the queue is full, or the caller's part of it; see Retry-After"),
        (status = 503, description = "loading or draining; see Retry-After"),
    ))]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let known = Arc::clone(&state);
    let (submission, idempotency) = read_body(body, move |body| {
        let submission = parse::parse(&known, body)?;
        let idempotency = Idempotency::from_headers(&headers, REQUESTS, body)?;
        Ok::<_, ApiError>((submission, idempotency))
    })
    .await?;
    let options = SubmitOptions {
        caller,
        deadline: submission.deadline,
        priority: submission.priority,
        idempotency,
        on_disconnect: if submission.detach {
            OnDisconnect::Detach
        } else {
            OnDisconnect::AbandonAfter(state.config.native_grace)
        },
        openai: None,
        dialect: "native",
    };
    let given_as_tokens = matches!(
        &submission.draft,
        Draft::Text(TextDraft {
            prompt: Prompt::Tokens(_),
            ..
        })
    );
    let accepted = submit(&state, &submission.model, submission.draft, options)
        .await
        .map_err(|error| match given_as_tokens {
            true => naming_tokens(error),
            false => error,
        })?;
    let request = accepted.request;
    let body = Submitted {
        id: request.id.to_string(),
        model: request.model.name.clone(),
        created: request.created,
    };
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    let location = format!("{REQUESTS}/{}", request.id);
    response
        .headers_mut()
        .insert(LOCATION, header_value(&location));
    if accepted.job.is_none() {
        let replayed = HeaderValue::from_static("true");
        response
            .headers_mut()
            .insert("idempotent-replayed", replayed);
    }
    Ok(with_id(response, request.id))
}

/// The state and the result so far. With `wait`, answers when the request has ended or the time is
/// up. Counts as reading the request.
#[utoipa::path(get, path = REQUEST, tag = "native",
    params(
        ("id" = String, Path, description = "the request's id"),
        ("wait" = Option<f64>, Query, description = "seconds to wait for the end"),
    ),
    responses(
        (status = 200, description = "the state and the result so far", body = Status),
        (status = 404, description = "there is no such request"),
        (status = 410, description = "its events are not kept any longer"),
    ))]
pub(super) async fn show(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<QueryFields>, QueryRejection>,
) -> Result<Response, ApiError> {
    let (request, log) = lookup(&state, &id, &caller)?;
    let mut query = read_query(query)?;
    let wait = wait(query.remove("wait"), state.config.max_wait)?;
    no_more(query)?;
    let _reader = request.reader();
    // Running out of time is no fault: the status says how far it has come.
    let _ = tokio::time::timeout(wait, log.until_closed()).await;
    let body = status::status(&request, &log.read_from(1));
    Ok(with_id(Json(body).into_response(), request.id))
}

/// The request's events as a stream, from the first or after the last one seen, until its end.
///
/// Each frame has an `id`: returning with it in `Last-Event-ID` or `?from=` goes on behind it, with
/// nothing lost and nothing twice.
#[utoipa::path(get, path = EVENTS, tag = "native",
    params(
        ("id" = String, Path, description = "the request's id"),
        ("from" = Option<u64>, Query, description = "number of the last event seen"),
        ("Last-Event-ID" = Option<u64>, Header, description = "the same as a header"),
        ("dialect" = Option<String>, Query, description = "`native` (default) or `openai`"),
    ),
    responses(
        (status = 200, description = "events: queued, started, prompt_logprobs, text, \
            choice_finished, of pictures progress, preview and image, and last finished or failed",
            content_type = "text/event-stream"),
        (status = 204, description = "the client has seen the last event already"),
        (status = 400, description = "from or Last-Event-ID is no number of an event"),
        (status = 404, description = "there is no such request"),
        (status = 410, description = "its events are not kept any longer"),
    ))]
pub(super) async fn events(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<QueryFields>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (request, log) = lookup(&state, &id, &caller)?;
    let mut query = read_query(query)?;
    let after = sse::resume_point(&headers, query.remove("from").as_deref(), &log)?;
    let dialect: Box<dyn sse::Dialect> = match query.remove("dialect").as_deref() {
        None | Some("native") => Box::new(NativeDialect::of(&request)),
        Some("openai") => openai::dialect_for(&request),
        Some(_) => {
            let message = "dialect must be native or openai";
            return Err(ApiError::invalid("dialect", message));
        }
    };
    no_more(query)?;
    let response = sse::stream(&state, &request, log, after, dialect);
    Ok(with_id(response, request.id))
}

/// Cancels a request, within one step of the model. One that has ended stays as it is.
#[utoipa::path(delete, path = REQUEST, tag = "native",
    params(("id" = String, Path, description = "the request's id")),
    responses(
        (status = 202, description = "the request ends with the model's current step; \
            the body shows it as it was", body = Status),
        (status = 404, description = "there is no such request"),
        (status = 410, description = "its events are not kept any longer"),
    ))]
pub(super) async fn cancel(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (request, log) = lookup(&state, &id, &caller)?;
    request.model.engine.cancel(request.id);
    let body = status::status(&request, &log.read_from(1));
    let response = (StatusCode::ACCEPTED, Json(body)).into_response();
    Ok(with_id(response, request.id))
}

/// Intake calls every prompt `prompt`; here token ids have a field of their own.
fn naming_tokens(mut error: ApiError) -> ApiError {
    const INNER: &str = "prompt";
    let about_prompt = |field: &String| field == INNER || field.starts_with("prompt[");
    if let Some(field) = error.field.take_if(|field| about_prompt(field)) {
        error.field = Some(field.replacen(INNER, "tokens", 1));
        error.message = error.message.replacen(INNER, "tokens", 1);
    }
    error
}

fn lookup(
    state: &AppState,
    id: &str,
    caller: &Caller,
) -> Result<(Arc<Request>, Arc<SharedLog>), ApiError> {
    let id: RequestId = id.parse().map_err(|_| ApiError::unknown_request())?;
    find(state, id, caller)
}

/// As they stand in the address.
type QueryFields = Vec<(String, String)>;

/// The parameters by name.
fn read_query(
    query: Result<Query<QueryFields>, QueryRejection>,
) -> Result<BTreeMap<String, String>, ApiError> {
    let Ok(Query(pairs)) = query else {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_query",
            "the query string cannot be read",
        ));
    };
    let mut fields = BTreeMap::new();
    for (name, value) in pairs {
        if fields.insert(name.clone(), value).is_some() {
            let name = shortened(&name);
            let message = format!("{name} is given twice");
            return Err(ApiError::invalid(name, message));
        }
    }
    Ok(fields)
}

fn no_more(query: BTreeMap<String, String>) -> Result<(), ApiError> {
    match query.into_keys().next() {
        None => Ok(()),
        Some(name) => {
            let name = shortened(&name);
            let message = format!("{name} is not a parameter of this request");
            Err(ApiError::invalid(name, message))
        }
    }
}

fn wait(text: Option<String>, max_wait: Duration) -> Result<Duration, ApiError> {
    let Some(text) = text else {
        return Ok(Duration::ZERO);
    };
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|wait| *wait <= max_wait)
        .ok_or_else(|| {
            let most = max_wait.as_secs_f64();
            ApiError::invalid("wait", format!("wait must be 0 to {most} seconds"))
        })
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("ids and paths are visible ASCII")
}
