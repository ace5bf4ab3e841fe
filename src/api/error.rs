//! What a client is told when something is wrong: one [`ApiError`], written in the shape of the
//! dialect that was spoken.

use std::time::Duration;

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::Reject;
use crate::events::{Failure, FailureKind};
use crate::intake::{Invalid, InvalidKind};

/// Something is wrong with a request, or with us.
///
/// `IntoResponse` writes the native shape; [`ApiError::into_response_as`] any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A short, stable name of the fault, for programs.
    pub code: &'static str,
    /// For people: lowercase, names the thing and the limit, never holds a prompt.
    pub message: String,
    /// The field of the request that is wrong, by the name that the client used.
    pub field: Option<String>,
    /// When to come back (429 and 503).
    pub retry_after: Option<Duration>,
    /// How the queue stands that had no place.
    pub queue: Option<FullQueue>,
}

/// How a queue stands that has no place for a request: as of the engine's last turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullQueue {
    /// Requests that wait; the one refused would have been behind them.
    pub waiting: u32,
    /// When a request that came now would start, if that can be told.
    pub eta: Option<Duration>,
}

/// How an error's body looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"error": {"type", "code", "message", "field"}}`
    Native,
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"error": code, "detail": message, "body": "", "errors": message, "field"}`
    WebUi,
    /// `{"detail": message, "error": message, "code", "field"}`; of a 422, `detail` lists what is wrong, as
    /// Gradio's validators do; of a full queue there are `position`, `size` and `eta` (seconds), as in an estimation.
    Gradio,
}

impl ErrorShape {
    /// The shape that a client of this path expects, for errors that arise before any handler runs.
    pub fn for_path(path: &str) -> Self {
        const OPENAI: [&str; 4] = ["/v1/", "/tokenize", "/detokenize", "/apply-template"];
        if OPENAI.iter().any(|prefix| path.starts_with(prefix)) {
            ErrorShape::OpenAi
        } else if path.starts_with("/sdapi/") || path.starts_with("/internal/") {
            ErrorShape::WebUi
        } else if path == "/config" || path.starts_with("/gradio_api/") {
            ErrorShape::Gradio
        } else {
            ErrorShape::Native
        }
    }
}

impl ApiError {
    /// An error without field or time.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            code,
            message: message.into(),
            field: None,
            retry_after: None,
            queue: None,
        }
    }

    /// 400: this field is wrong.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            field: Some(field.into()),
            ..ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message)
        }
    }

    /// 404: there is no such model.
    pub fn unknown_model() -> Self {
        ApiError {
            field: Some("model".into()),
            ..ApiError::new(
                StatusCode::NOT_FOUND,
                "model_not_found",
                "there is no model of this name here; see /v1/models",
            )
        }
    }

    /// 404: there is no such request (or it is somebody else's).
    pub fn unknown_request() -> Self {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "request_not_found",
            "there is no request with this id",
        )
    }

    /// 410: the request's events are not kept any longer.
    pub fn expired_request() -> Self {
        ApiError::new(
            StatusCode::GONE,
            "request_expired",
            "the request has ended and its events are not kept any longer",
        )
    }

    /// 500: we have a fault; the trace knows more.
    pub fn internal() -> Self {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the service has made a mistake",
        )
    }

    /// The same with a time to come back.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The family of the fault, as both shapes name it in `type`.
    pub fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND | StatusCode::GONE => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body.
    pub fn body(&self, shape: ErrorShape) -> Value {
        match shape {
            ErrorShape::Native => json!({"error": {
                "type": self.kind(),
                "code": self.code,
                "message": self.message,
                "field": self.field,
            }}),
            ErrorShape::OpenAi => json!({"error": {
                "message": self.message,
                "type": self.kind(),
                "param": self.field,
                "code": self.code,
            }}),
            // Clients show `detail` or `errors`; the other members are those that they have seen.
            ErrorShape::WebUi => json!({
                "error": self.code,
                "detail": self.message,
                "body": "",
                "errors": self.message,
                "field": self.field,
            }),
            ErrorShape::Gradio => self.gradio_body(),
        }
    }

    fn gradio_body(&self) -> Value {
        let mut body = json!({
            "detail": match self.status {
                StatusCode::UNPROCESSABLE_ENTITY => json!([{
                    "__type__": "validate",
                    "is_valid": false,
                    "parameter_name": self.field,
                    "message": self.message,
                }]),
                _ => self.message.as_str().into(),
            },
            "error": self.message,
            "code": self.code,
            "field": self.field,
        });
        if let Some(queue) = self.queue {
            body["position"] = queue.waiting.into();
            body["size"] = queue.waiting.into();
            body["eta"] = queue.eta.map(|eta| eta.as_secs_f64()).into();
        }
        body
    }

    /// The whole response.
    pub fn into_response_as(self, shape: ErrorShape) -> Response {
        let mut response = (self.status, Json(self.body(shape))).into_response();
        if let Some(delay) = self.retry_after {
            // Whole seconds, rounded up: coming back too early only means another refusal.
            let seconds = delay.as_millis().div_ceil(1_000).max(1);
            let value = HeaderValue::from_str(&seconds.to_string())
                .expect("digits are a valid header value");
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.into_response_as(ErrorShape::Native)
    }
}

/// The same error in OpenAI's shape, so that their handlers can use `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAiError(pub ApiError);

impl<E: Into<ApiError>> From<E> for OpenAiError {
    fn from(error: E) -> Self {
        OpenAiError(error.into())
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        self.0.into_response_as(ErrorShape::OpenAi)
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        let code = match invalid.kind {
            InvalidKind::Body => "invalid_body",
            InvalidKind::Value => "invalid_value",
            InvalidKind::Missing => "missing_field",
            InvalidKind::Unsupported => "unsupported_field",
            InvalidKind::Unknown => "unknown_field",
            InvalidKind::ContextLength => "context_length_exceeded",
        };
        ApiError {
            field: Some(invalid.field).filter(|field| !field.is_empty()),
            ..ApiError::new(StatusCode::BAD_REQUEST, code, invalid.message)
        }
    }
}

/// How long a client should stay away from a service that is loading or going down.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(5);

impl From<Reject> for ApiError {
    fn from(reject: Reject) -> Self {
        let message = reject.to_string();
        let unavailable = |code| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message.clone())
                .retry_after(UNAVAILABLE_RETRY)
        };
        match reject {
            Reject::QueueFull { retry_after, .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
                    .retry_after(retry_after)
            }
            Reject::UserQueueFull { retry_after, .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, "user_queue_full", message)
                    .retry_after(retry_after)
            }
            Reject::Loading => unavailable("model_loading"),
            Reject::Draining => unavailable("draining"),
            Reject::Dead(_) => unavailable("engine_dead"),
        }
    }
}

impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        let (status, code) = match failure.kind {
            FailureKind::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
            FailureKind::Row => (StatusCode::INTERNAL_SERVER_ERROR, "row_failed"),
            FailureKind::Step => (StatusCode::INTERNAL_SERVER_ERROR, "step_failed"),
            FailureKind::EngineDead => (StatusCode::SERVICE_UNAVAILABLE, "engine_dead"),
            FailureKind::Shutdown => (StatusCode::SERVICE_UNAVAILABLE, "shutdown"),
            FailureKind::Abandoned => (StatusCode::GONE, "abandoned"),
        };
        ApiError::new(status, code, failure.message.clone())
    }
}
