//! What happens around every handler: a request id, a span, a count, and an answer if it panics.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::{Instrument, field};
use uuid::Uuid;

use super::error::{ApiError, ErrorShape};
use super::{AppState, EdgeConfig, auth, body};
use crate::job::RequestId;
use crate::time::Clock;

/// The header by which requests are known, in and out.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// Puts every layer around the routes, the outermost last.
pub(super) fn around(
    routes: Router<Arc<AppState>>,
    state: &Arc<AppState>,
) -> Router<Arc<AppState>> {
    let mut routes = routes
        // The body's layer holds it against our own limit; axum's would be 2 MB.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(state), body::layer))
        .layer(from_fn_with_state(Arc::clone(state), auth::layer))
        .layer(CatchPanicLayer::custom(answer_to_panic));
    if let Some(cors) = cors(&state.config) {
        routes = routes.layer(cors);
    }
    routes.layer(from_fn_with_state(Arc::clone(state), observe))
}

/// Gives the request a span, counts it, and sees that the answer carries an id.
async fn observe(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let began = state.clock.now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    let given = given_id(request.headers());
    let span = tracing::info_span!(
        "request",
        id = field::Empty,
        model = field::Empty,
        dialect = field::Empty,
        client_id = given.as_ref().and_then(|id| id.to_str().ok()),
    );
    let mut response = next.run(request).instrument(span.clone()).await;
    if !response.headers().contains_key(REQUEST_ID) {
        let id = given.unwrap_or_else(fresh_id);
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let status = response.status().as_u16();
    let seconds = state.clock.now().saturating_since(began).as_secs_f64();
    span.in_scope(|| tracing::debug!(method, route, status, seconds, "answered"));
    state.metrics.http_request(route, method, status, seconds);
    response
}

/// Metric labels come from a closed set.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The client's own id for the call, if it is harmless to repeat.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    const MAX_BYTES: usize = 64;
    let harmless = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    headers
        .get(REQUEST_ID)
        .filter(|id| (1..=MAX_BYTES).contains(&id.len()) && id.as_bytes().iter().all(harmless))
        .cloned()
}

fn fresh_id() -> HeaderValue {
    HeaderValue::from_str(&Uuid::now_v7().simple().to_string())
        .expect("hexadecimal digits are a valid header value")
}

fn answer_to_panic(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a handler panicked");
    ApiError::internal().into_response()
}

/// Cross-origin calls from browsers: refused unless origins are named.
fn cors(config: &EdgeConfig) -> Option<CorsLayer> {
    if config.cors_origins.is_empty() {
        return None;
    }
    let origins = if config.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // `config` has checked that they are valid header values.
        AllowOrigin::list(
            config
                .cors_origins
                .iter()
                .filter_map(|origin| origin.parse().ok()),
        )
    };
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Not "*": that leaves `Authorization` out.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([
                axum::http::HeaderName::from_static(REQUEST_ID),
                axum::http::header::RETRY_AFTER,
                axum::http::header::LOCATION,
            ]),
    )
}

/// 404 for a path that nobody serves.
pub(super) async fn no_such_path(uri: Uri) -> Response {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "path_not_found",
        "there is nothing at this path; see /docs",
    )
    .into_response_as(ErrorShape::for_path(uri.path()))
}

/// 405 for a path that is served by other methods.
pub(super) async fn no_such_method(uri: Uri) -> Response {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method; see /docs",
    )
    .into_response_as(ErrorShape::for_path(uri.path()))
}

/// Every response that belongs to a request tells its id.
pub(super) fn with_id(mut response: Response, id: RequestId) -> Response {
    let value = HeaderValue::from_str(&id.to_string()).expect("hexadecimal digits are visible");
    response.headers_mut().insert(REQUEST_ID, value);
    response
}
