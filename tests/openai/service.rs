//! The service on a port of its own, with the scripted model behind it.

use std::sync::Arc;
use std::time::Duration;

use girandole::api::auth::ApiKeys;
use girandole::api::serve::serve;
use girandole::api::{AppState, EdgeConfig, EdgeMetrics, ServedModel};
use girandole::engine::{EngineConfig, EngineState, Observer, spawn};
use girandole::events::store::{EventStore, Retention};
use girandole::intake::image::{ImageDefaults, ImageIntake, ImageLimits};
use girandole::intake::{Intake, TextDefaults, TextIntake, TextLimits};
use girandole::model::Model;
use girandole::model::scripted::{
    SIZE_FACTOR, Script, ScriptedFrontend, ScriptedImageModel, ScriptedModel, sleep,
};
use girandole::model::text::chat_template::ChatTemplate;
use girandole::model::text::tokenizer::TextTokenizer;
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::{Clock, RealClock};
use serde_json::Value;
use tokio::net::TcpListener;

/// `<role>content|` for each message, and `<assistant>` to open the answer.
const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}|\
    {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{{ extra | default('') }}";

/// Tokens of a prompt and its answer together.
pub(crate) const CONTEXT_TOKENS: u32 = 400;
/// The longest deadline.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_secs(60);

/// A running service.
pub(crate) struct Service {
    base: String,
    client: reqwest::Client,
    key: Option<&'static str>,
}

/// An answer that is no stream.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) request_id: String,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Value,
}

struct Silent;
impl Observer for Silent {}
impl EdgeMetrics for Silent {
    fn render(&self) -> String {
        String::new()
    }
    fn http_request(&self, _route: &str, _method: &str, _status: u16, _seconds: f64) {}
    fn open_streams(&self, _delta: i64) {}
    fn frames(&self, _dialect: &'static str, _count: u64) {}
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        devices: 1,
        scheduler: SchedulerConfig {
            batch_size: 8,
            max_queue_delay: Duration::ZERO,
            batching: Batching::Continuous,
            step_budget: Duration::from_millis(50),
            fairness: Fairness::default(),
        },
        max_queued_requests: 8,
        max_queued_tokens: 100_000,
        max_queued_source_bytes: 1 << 30,
    }
}

fn limits() -> TextLimits {
    TextLimits {
        max_choices: 6,
        max_prompts: 3,
        max_top_logprobs: 5,
        ..TextLimits::default()
    }
}

fn text_intake() -> Intake {
    Intake::Text(Box::new(TextIntake {
        tokenizer: Arc::new(TextTokenizer::bytes(257)),
        template: Some(ChatTemplate::new(TEMPLATE, "", "").expect("the template is sound")),
        max_context: CONTEXT_TOKENS,
        defaults: TextDefaults::default(),
        limits: limits(),
    }))
}

fn image_intake() -> Intake {
    Intake::Image(ImageIntake {
        frontend: Arc::new(ScriptedFrontend),
        size_factor: SIZE_FACTOR,
        defaults: ImageDefaults {
            width: 64,
            height: 64,
            steps: 4,
            ..ImageDefaults::default()
        },
        limits: ImageLimits {
            max_images: 6,
            max_image_pixels: 128 * 128,
            max_steps: 50,
            max_prompt_bytes: 1_000,
            max_source_pixels: 100_000,
            ..ImageLimits::default()
        },
    })
}

impl Service {
    /// Starts one that follows this script.
    pub(crate) async fn start(script: &str) -> Self {
        Self::start_with(script, None).await
    }

    /// Starts one that asks for this key.
    pub(crate) async fn start_with_key(script: &str, key: &'static str) -> Self {
        Self::start_with(script, Some(key)).await
    }

    async fn start_with(script: &str, key: Option<&'static str>) -> Self {
        let script = Script::parse(script).expect("the script is sound");
        let draws = script.image.is_some();
        let clock = Arc::new(RealClock::start());
        let engine = spawn(
            "model/one",
            engine_config(),
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(Silent),
            move || match draws {
                true => Ok(Box::new(ScriptedImageModel::new(script, sleep())?) as Box<dyn Model>),
                false => Ok(Box::new(ScriptedModel::new(script, sleep())?) as Box<dyn Model>),
            },
        );
        assert_eq!(engine.until_started().await, EngineState::Ready);
        let intake = if draws { image_intake() } else { text_intake() };
        let model = ServedModel {
            name: "model/one".to_owned(),
            created: 1_700_000_000,
            engine,
            intake,
        };
        let retention = Retention {
            max_age: Duration::from_secs(60),
            max_bytes: 1 << 24,
            max_logs: 1_000,
            max_expired_ids: 1_000,
        };
        let config = EdgeConfig {
            max_deadline: MAX_DEADLINE,
            ..EdgeConfig::default()
        };
        let keys = ApiKeys::parse(key.unwrap_or_default()).expect("a key");
        let store = EventStore::new(retention, Arc::clone(&clock) as Arc<dyn Clock>);
        let state = AppState::new(
            vec![Arc::new(model)],
            Arc::new(store),
            clock,
            config,
            keys,
            Arc::new(Silent),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        tokio::spawn(serve(listener, state, std::future::pending()));
        Service {
            base,
            client: reqwest::Client::new(),
            key,
        }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .timeout(Duration::from_secs(20));
        match self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Posts a body and reads the whole answer.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Reply {
        self.answered(self.request(reqwest::Method::POST, path).body(body.into()))
            .await
    }

    /// Posts a body of this type.
    pub(crate) async fn post_as(&self, path: &str, content_type: &str, body: Vec<u8>) -> Reply {
        let request = self.request(reqwest::Method::POST, path);
        let request = request.header("content-type", content_type).body(body);
        self.answered(request).await
    }

    /// Gets a file: its status, its type, its bytes.
    pub(crate) async fn file(&self, url: &str) -> (u16, String, Vec<u8>) {
        let path = url.strip_prefix(&self.base).expect("it is this service's");
        let response = self.request(reqwest::Method::GET, path).send().await;
        let response = response.expect("an answer");
        let content_type = response.headers()["content-type"].to_str();
        let content_type = content_type.expect("visible").to_owned();
        let status = response.status().as_u16();
        let bytes = response.bytes().await.expect("a whole file").to_vec();
        (status, content_type, bytes)
    }

    /// Posts with a further header.
    pub(crate) async fn post_with(&self, path: &str, header: (&str, &str), body: &Value) -> Reply {
        let request = self
            .request(reqwest::Method::POST, path)
            .header(header.0, header.1)
            .body(body.to_string());
        self.answered(request).await
    }

    /// Gets the whole answer.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.answered(self.request(reqwest::Method::GET, path))
            .await
    }

    /// Gets without the key.
    pub(crate) async fn get_without_key(&self, path: &str) -> Reply {
        self.answered(self.client.get(format!("{}{path}", self.base)))
            .await
    }

    /// Cancels a request.
    pub(crate) async fn delete(&self, path: &str) -> u16 {
        let request = self.request(reqwest::Method::DELETE, path);
        request.send().await.expect("an answer").status().as_u16()
    }

    async fn answered(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = request.send().await.expect("an answer");
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().expect("visible").to_owned())
        };
        let (request_id, retry_after) = (header("x-request-id"), header("retry-after"));
        let status = response.status().as_u16();
        let text = response.text().await.expect("a whole body");
        Reply {
            status,
            request_id: request_id.expect("every answer has an id"),
            retry_after,
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        }
    }

    /// Posts a body and reads its stream to the end: the request's id, and the frames with theirs.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> (String, Vec<(u64, Value)>) {
        let request = self.request(reqwest::Method::POST, path);
        self.streamed(request.body(body.to_string())).await
    }

    /// Reads a request's stream again, in OpenAI's words, from after event number `after`.
    pub(crate) async fn resume(&self, id: &str, after: u64) -> Vec<(u64, Value)> {
        let path = format!("/api/v1/requests/{id}/events?dialect=openai");
        let request = self
            .request(reqwest::Method::GET, &path)
            .header("last-event-id", after.to_string());
        self.streamed(request).await.1
    }

    async fn streamed(&self, request: reqwest::RequestBuilder) -> (String, Vec<(u64, Value)>) {
        let response = request.send().await.expect("an answer");
        let id = response.headers()["x-request-id"]
            .to_str()
            .expect("visible");
        let id = id.to_owned();
        let status = response.status();
        let text = response.text().await.expect("a whole stream");
        assert_eq!(status, 200, "{text}");
        (id, frames(&text))
    }
}

/// The data frames of an SSE transcript.
fn frames(text: &str) -> Vec<(u64, Value)> {
    let whole = text.strip_suffix("\n\n").expect("the last frame is whole");
    whole
        .split("\n\n")
        .filter(|frame| !frame.starts_with(':'))
        .map(|frame| {
            let (id, data) = frame.split_once('\n').expect("two lines");
            let id = id.strip_prefix("id: ").expect("the id comes first");
            // A named event's data repeats its name.
            let named = data.strip_prefix("event: ");
            let data = named.map_or(data, |named| {
                let (name, data) = named.split_once('\n').expect("three lines");
                let typed = format!("\"type\":\"{name}\"");
                assert!(data.contains(&typed), "{name} is repeated in {data}");
                data
            });
            let data = data.strip_prefix("data: ").expect("then the data");
            let data = serde_json::from_str(data).unwrap_or(Value::String(data.to_owned()));
            (id.parse().expect("a number"), data)
        })
        .collect()
}
