//! The service on a port of its own: a model for texts first, then two that draw.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use girandole::api::auth::ApiKeys;
use girandole::api::serve::serve;
use girandole::api::{AppState, EdgeConfig, EdgeMetrics, ServedModel};
use girandole::engine::{EngineConfig, EngineHandle, EngineState, Observer, spawn};
use girandole::events::store::{EventStore, Retention};
use girandole::intake::{
    ImageDefaults, ImageIntake, ImageLimits, Intake, TextDefaults, TextIntake, TextLimits,
};
use girandole::model::Model;
use girandole::model::scripted::{
    SIZE_FACTOR, Script, ScriptedFrontend, ScriptedImageModel, ScriptedModel, sleep,
};
use girandole::model::text::tokenizer::TextTokenizer;
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::{Clock, RealClock};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// After so long without its client a request is given up.
pub(crate) const GRACE: Duration = Duration::from_millis(300);

/// Two keys, and one that is nobody's.
pub(crate) const ALICE: &str = "alice-secret-0123456789";
pub(crate) const BOB: &str = "bob-secret-0123456789ab";

/// A running service.
pub(crate) struct Service {
    address: SocketAddr,
    pub(crate) state: Arc<AppState>,
}

/// One client of it.
#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
    key: Option<&'static str>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) request_id: String,
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

/// The limits and defaults of the models that draw.
pub(crate) fn image_intake() -> ImageIntake {
    ImageIntake {
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
            max_image_pixels: 256 * 256,
            max_source_pixels: 512 * 512,
            ..ImageLimits::default()
        },
    }
}

/// An engine whose batches have so many rows.
pub(crate) async fn engine(
    name: &str,
    clock: &Arc<RealClock>,
    batch_size: u32,
    model: impl FnOnce() -> Box<dyn Model> + Send + 'static,
) -> EngineHandle {
    let config = EngineConfig {
        devices: 1,
        scheduler: SchedulerConfig {
            batch_size,
            max_queue_delay: Duration::ZERO,
            batching: Batching::Continuous,
            step_budget: Duration::from_millis(50),
            fairness: Fairness::default(),
        },
        max_queued_requests: 8,
        max_queued_tokens: 100_000,
        max_queued_source_bytes: 1 << 30,
    };
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    let engine = spawn(name, config, clock, Arc::new(Silent), || Ok(model()));
    assert_eq!(engine.until_started().await, EngineState::Ready);
    engine
}

/// An engine that draws by this script.
pub(crate) async fn drawing_engine(
    name: &str,
    clock: &Arc<RealClock>,
    script: &str,
    batch_size: u32,
) -> EngineHandle {
    let script = Script::parse(script).expect("the script is sound");
    engine(name, clock, batch_size, || {
        Box::new(ScriptedImageModel::new(script, sleep()).expect("it loads"))
    })
    .await
}

impl Service {
    /// One that asks for no keys.
    pub(crate) async fn start(script: &str) -> Self {
        Self::start_with(script, 8, "").await
    }

    /// One with so many rows in a batch, and these keys.
    pub(crate) async fn start_with(script: &str, batch_size: u32, keys: &str) -> Self {
        let clock = Arc::new(RealClock::start());
        let words = engine("words", &clock, 4, || {
            let script = Script::parse("").expect("the script is sound");
            Box::new(ScriptedModel::new(script, sleep()).expect("it loads"))
        })
        .await;
        let words = ServedModel {
            name: "words".to_owned(),
            created: 1_700_000_000,
            engine: words,
            intake: Intake::Text(Box::new(TextIntake {
                tokenizer: Arc::new(TextTokenizer::bytes(257)),
                template: None,
                max_context: 100,
                defaults: TextDefaults::default(),
                limits: TextLimits::default(),
            })),
        };
        let mut models = vec![Arc::new(words)];
        for name in ["pictures", "more/pictures"] {
            models.push(Arc::new(ServedModel {
                name: name.to_owned(),
                created: 1_700_000_000,
                engine: drawing_engine(name, &clock, script, batch_size).await,
                intake: Intake::Image(image_intake()),
            }));
        }
        let config = EdgeConfig {
            openai_grace: GRACE,
            ..EdgeConfig::default()
        };
        let store = EventStore::new(Retention::default(), Arc::clone(&clock) as Arc<dyn Clock>);
        let keys = ApiKeys::parse(keys).expect("keys");
        let state = AppState::new(
            models,
            Arc::new(store),
            clock,
            config,
            keys,
            Arc::new(Silent),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(serve(listener, Arc::clone(&state), std::future::pending()));
        Service { address, state }
    }

    /// A client that calls from 127.0.0.`last`, with a key or without.
    pub(crate) fn client(&self, last: u8, key: Option<&'static str>) -> Client {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let http = reqwest::Client::builder()
            .local_address(from)
            .timeout(Duration::from_secs(20))
            .build()
            .expect("a client");
        Client {
            base: format!("http://{}", self.address),
            http,
            key,
        }
    }
}

impl Client {
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.answered(self.http.get(format!("{}{path}", self.base)))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, body, &[]).await
    }

    pub(crate) async fn post_with(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Reply {
        let mut request = self
            .http
            .post(format!("{}{path}", self.base))
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.answered(request).await
    }

    /// A file in Base64.
    pub(crate) async fn file(&self, path: &str) -> String {
        use base64::Engine;
        let request = self.http.get(format!("{}{path}", self.base));
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let file = response.bytes().await.expect("a whole file");
        base64::engine::general_purpose::STANDARD.encode(file)
    }

    /// As the web UI's clients do: the key is the password.
    async fn answered(&self, request: reqwest::RequestBuilder) -> Reply {
        let request = match self.key {
            Some(key) => request.basic_auth("anybody", Some(key)),
            None => request,
        };
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let id = response.headers()["x-request-id"].to_str();
        let request_id = id.expect("visible").to_owned();
        let text = response.text().await.expect("a whole body");
        Reply {
            status,
            request_id,
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        }
    }

    /// Draws; the answer must be good.
    pub(crate) async fn draw(&self, body: &Value) -> Reply {
        let reply = self.post("/sdapi/v1/txt2img", body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply
    }

    pub(crate) async fn progress(&self, query: &str) -> Value {
        let reply = self.get(&format!("/sdapi/v1/progress{query}")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body
    }

    /// Asks until a task of this client runs and has done a step.
    pub(crate) async fn until_running(&self, query: &str) -> Value {
        for _ in 0..1_000 {
            let progress = self.progress(query).await;
            if progress["state"]["sampling_step"].as_u64() > Some(0) {
                return progress;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nothing runs");
    }

    pub(crate) async fn interrupt(&self, query: &str) {
        let reply = self
            .post(&format!("/sdapi/v1/interrupt{query}"), &Value::Null)
            .await;
        assert_eq!((reply.status, reply.body), (200, json!({})));
    }
}

impl Reply {
    /// The `info` of a drawing.
    pub(crate) fn info(&self) -> Value {
        let info = self.body["info"].as_str().expect("a string");
        serde_json::from_str(info).expect("with JSON in it")
    }

    /// How many pictures there are.
    pub(crate) fn images(&self) -> usize {
        self.body["images"].as_array().expect("a list").len()
    }

    /// A picture's file in Base64.
    pub(crate) fn image(&self, index: usize) -> &str {
        self.body["images"][index].as_str().expect("a picture")
    }

    /// A picture's size and pixels.
    pub(crate) fn pixels(&self, index: usize) -> (u32, u32, Vec<u8>) {
        pixels(self.image(index))
    }
}

/// Size and pixels of a PNG file in Base64.
pub(crate) fn pixels(base64: &str) -> (u32, u32, Vec<u8>) {
    use base64::Engine;
    let file = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .expect("Base64");
    let format = image::ImageFormat::Png;
    let picture = image::load_from_memory_with_format(&file, format).expect("a PNG file");
    let rgb = picture.into_rgb8();
    (rgb.width(), rgb.height(), rgb.into_raw())
}

/// A PNG file of one colour, in Base64.
pub(crate) fn png(width: u32, height: u32, rgb: [u8; 3]) -> String {
    use base64::Engine;
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb(rgb));
    let mut file = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut file, image::ImageFormat::Png)
        .expect("it is written");
    base64::engine::general_purpose::STANDARD.encode(file.into_inner())
}
