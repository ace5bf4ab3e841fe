//! Request bodies: read whole before a handler runs, within a size, a time, and a sum over all.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, ErrorShape};
use super::{AppState, EdgeConfig};

/// Bytes that request bodies may still take, all together.
#[derive(Clone)]
pub(super) struct BodyBudget(Arc<Semaphore>);

impl BodyBudget {
    /// A budget of `max_bytes`.
    pub(super) fn new(max_bytes: usize) -> Self {
        BodyBudget(Arc::new(Semaphore::new(
            max_bytes.min(Semaphore::MAX_PERMITS),
        )))
    }
}

/// A body and its share of the budget, which is given back with the last reference to the bytes: whoever
/// still holds them, or a file among them, still counts.
struct Buffered {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Buffered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the body before the handler runs.
pub(super) async fn layer(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let shape = ErrorShape::for_path(request.uri().path());
    let (parts, body) = request.into_parts();
    let announced = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > state.config.max_body_bytes) {
        return too_large(&state.config).into_response_as(shape);
    }
    let reading = read(body, &state.config, &state.body_budget);
    let buffered = tokio::time::timeout(state.config.body_read_timeout, reading)
        .await
        .unwrap_or_else(|_| Err(too_slow(&state.config)));
    match buffered {
        Err(error) => error.into_response_as(shape),
        Ok(buffered) => {
            let body = Body::from(Bytes::from_owner(buffered));
            next.run(Request::from_parts(parts, body)).await
        }
    }
}

async fn read(body: Body, config: &EdgeConfig, budget: &BodyBudget) -> Result<Buffered, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| broken())?;
        if bytes.len() + chunk.len() > config.max_body_bytes {
            return Err(too_large(config));
        }
        let size = u32::try_from(chunk.len()).map_err(|_| too_large(config))?;
        let more = Arc::clone(&budget.0)
            .try_acquire_many_owned(size)
            .map_err(|_| overloaded())?;
        match &mut share {
            Some(share) => share.merge(more),
            None => share = Some(more),
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Buffered {
        bytes,
        _share: share,
    })
}

fn too_large(config: &EdgeConfig) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!(
            "the body is limited to {} bytes (max_body_bytes)",
            config.max_body_bytes
        ),
    )
}

fn too_slow(config: &EdgeConfig) -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        "body_too_slow",
        format!(
            "the body did not arrive within {} ms (body_read_timeout_ms)",
            config.body_read_timeout.as_millis()
        ),
    )
}

fn broken() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "invalid_body",
        "the body broke off",
    )
}

fn overloaded() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "bodies_full",
        "too many bytes of request bodies are being read (max_body_bytes_in_flight)",
    )
    .retry_after(Duration::from_secs(1))
}
