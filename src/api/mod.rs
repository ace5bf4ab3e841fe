//! The HTTP edge: router, shared state, limits and layers.
//!
//! A handler reads its dialect's body into a draft, hands it to [`submit`], and reads the
//! request's log; see [`sse`] for streams. No handler knows a scheduler or a tensor.

mod address;
pub mod admin;
pub mod auth;
mod blocking;
mod body;
pub mod error;
mod form;
pub mod gradio;
pub mod history;
mod layers;
pub mod model_details;
pub mod native;
pub mod openai;
mod openapi;
pub mod ops;
mod picture_file;
pub mod picture_parameters;
pub mod requests;
mod sdapi;
pub mod serve;
mod socket;
pub mod sse;
pub mod submit;
pub mod tokens;
mod web;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use crate::engine::EngineHandle;
use crate::events::store::EventStore;
use crate::intake::Intake;
use crate::job::Priority;
use crate::time::{Clock, RealClock, Time};

pub use address::{AddressHeader, Network, Proxies};
use auth::{ApiKeys, UserIds};
use body::BodyBudget;
use error::ApiError;
use history::HistoryPoint;
use requests::Requests;

/// The edge's settings. Every one is a bound or a default with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// SSE data messages that one stream shows in any second, at most.
    pub max_frames_per_second: u32,
    /// Requests that one stream of several follows.
    pub max_stream_requests: usize,
    /// A silent stream says something this often. Below the 15 s after which the strictest proxies
    /// seen give up.
    pub keep_alive: Duration,
    /// A native request that nobody reads is given up after this.
    pub native_grace: Duration,
    /// The same for OpenAI's dialect and the web UI's, whose clients seldom come back.
    pub openai_grace: Duration,
    /// The longest `?wait=`.
    pub max_wait: Duration,
    /// The longest `deadline_ms`.
    pub max_deadline: Duration,
    /// Connections open at once.
    pub max_connections: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Bytes of all bodies that are being read or worked on.
    pub max_body_bytes_in_flight: usize,
    /// Requests whose prompts are tokenized, or whose pictures are decoded, at once. The process's: the
    /// first service in it decides.
    pub max_concurrent_intake: usize,
    /// Pictures that are written as files at once; likewise.
    pub max_concurrent_encodings: usize,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    /// Header lines of a request.
    pub max_headers: usize,
    /// How long a request's head may take to arrive.
    pub header_read_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_read_timeout: Duration,
    /// A stream that its client can go on with elsewhere ends after this, between two messages; `None` for
    /// when all is said. For what lies between and cuts long answers anywhere.
    pub max_stream_age: Option<Duration>,
    /// The same for streams that answer a POST in OpenAI's dialect, whose clients cannot go on by
    /// themselves.
    pub openai_max_stream_age: Option<Duration>,
    /// Whom to believe about clients' addresses.
    pub proxies: Proxies,
    /// The most urgent class that requests may ask for, unless their key says otherwise.
    pub max_priority: Priority,
    /// Origins that browsers may call from; empty switches CORS off, `*` allows all.
    pub cors_origins: Vec<String>,
    /// Where clients reach the service, without a slash at the end; `None`: where the request says.
    pub public_url: Option<String>,
    /// Gradio's dialect.
    pub gradio: gradio::GradioConfig,
    /// How long a model that an operator drains may go on with what it has.
    pub drain_timeout: Duration,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        EdgeConfig {
            max_frames_per_second: 20,
            max_stream_requests: 64,
            keep_alive: Duration::from_secs(10),
            native_grace: Duration::from_secs(30),
            openai_grace: Duration::from_secs(5),
            max_wait: Duration::from_secs(60),
            max_deadline: Duration::from_secs(24 * 3_600),
            max_connections: 4_096,
            max_body_bytes: 8 << 20,
            max_body_bytes_in_flight: 512 << 20,
            max_concurrent_intake: 2,
            max_concurrent_encodings: 2,
            max_header_bytes: 16 << 10,
            max_headers: 64,
            header_read_timeout: Duration::from_secs(10),
            body_read_timeout: Duration::from_secs(30),
            max_stream_age: None,
            openai_max_stream_age: None,
            proxies: Proxies::default(),
            max_priority: Priority::Normal,
            cors_origins: Vec::new(),
            public_url: None,
            gradio: gradio::GradioConfig::default(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// What the edge tells the metrics, and asks them for. Implemented by `telemetry`.
pub trait EdgeMetrics: Send + Sync {
    /// All metrics of the service as Prometheus text.
    fn render(&self) -> String;
    /// A request was answered: for a stream, its head was. `route` is the route's pattern, so the
    /// label set is closed.
    fn http_request(&self, route: &str, method: &str, status: u16, seconds: f64);
    /// A stream was opened (+1) or has ended (-1).
    fn open_streams(&self, delta: i64);
    /// SSE data messages were handed to a connection.
    fn frames(&self, dialect: &'static str, count: u64);
    /// What this model did lately, oldest first; nothing where that is not kept.
    fn history(&self, _model: &str) -> Vec<HistoryPoint> {
        Vec::new()
    }
}

/// One model and the way to it.
pub struct ServedModel {
    /// Its name in requests.
    pub name: String,
    /// When it was loaded: seconds since the Unix epoch, as OpenAI's model list shows it.
    pub created: u64,
    /// Its engine.
    pub engine: EngineHandle,
    /// From draft to job.
    pub intake: Intake,
}

/// What all handlers share.
pub struct AppState {
    /// The models served; the first is meant where a dialect lets the name be left out.
    pub models: Vec<Arc<ServedModel>>,
    /// All logs.
    pub store: Arc<EventStore>,
    /// The clock of the engines and logs.
    pub clock: Arc<RealClock>,
    /// Settings.
    pub config: EdgeConfig,
    /// Who may call; empty lets everybody.
    pub keys: ApiKeys,
    /// The service's metrics.
    pub metrics: Arc<dyn EdgeMetrics>,
    /// What the edge knows of each request whose log is kept.
    pub requests: Arc<Requests>,
    gradio: gradio::Gradio,
    body_budget: BodyBudget,
    user_ids: UserIds,
}

impl AppState {
    /// State for [`router`].
    ///
    /// # Panics
    /// If there is no model.
    pub fn new(
        models: Vec<Arc<ServedModel>>,
        store: Arc<EventStore>,
        clock: Arc<RealClock>,
        config: EdgeConfig,
        keys: ApiKeys,
        metrics: Arc<dyn EdgeMetrics>,
    ) -> Arc<Self> {
        assert!(!models.is_empty(), "the service serves at least one model");
        let body_budget = BodyBudget::new(config.max_body_bytes_in_flight);
        blocking::set_places(&config);
        Arc::new(AppState {
            gradio: gradio::Gradio::new(&models, &config.gradio, &clock),
            body_budget,
            user_ids: UserIds::default(),
            models,
            store,
            clock,
            config,
            keys,
            metrics,
            requests: Arc::default(),
        })
    }

    /// When a stream that begins now has to end.
    fn end_of_stream(&self, max_age: Option<Duration>) -> Time {
        max_age.map_or(Time::FAR_FUTURE, |age| self.clock.now() + age)
    }

    /// The model of this name; the first for `None`.
    ///
    /// # Errors
    /// 404 if there is none.
    pub fn model(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, ApiError> {
        match name {
            None => Ok(&self.models[0]),
            Some(name) => self
                .models
                .iter()
                .find(|model| model.name == name)
                .ok_or_else(ApiError::unknown_model),
        }
    }
}

/// All routes with all layers.
pub fn router(state: Arc<AppState>) -> Router {
    let routes = Router::new()
        .merge(native::routes())
        .merge(openai::routes())
        .merge(sdapi::routes())
        .merge(gradio::routes())
        .merge(tokens::routes())
        .merge(ops::routes())
        .merge(openapi::routes())
        .merge(admin::routes())
        .merge(web::routes())
        .fallback(layers::no_such_path)
        .method_not_allowed_fallback(layers::no_such_method);
    layers::around(routes, &state).with_state(state)
}

/// Whole milliseconds, as durations are written on the wire.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
