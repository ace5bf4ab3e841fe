//! A whole service in this process: scripted model, real engine thread, HTTP on a free port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use girandole::api::auth::ApiKeys;
use girandole::api::native::wire::{Status, SubmitBody};
use girandole::api::serve::serve;
use girandole::api::{AppState, EdgeConfig, EdgeMetrics, ServedModel};
use girandole::batch::DeviceNumber;
use girandole::client::{Client, ClientError, StreamEvent};
use girandole::engine::{DeviceEngine, EngineConfig, Observer, spawn_on_devices};
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
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How the service under test differs from the ordinary.
pub(crate) struct Setup {
    pub(crate) script: &'static str,
    /// How many devices it is on.
    pub(crate) devices: u32,
    pub(crate) batch_size: u32,
    pub(crate) max_queued_requests: u32,
    pub(crate) fairness: Fairness,
    pub(crate) edge: EdgeConfig,
    pub(crate) retention: Retention,
    pub(crate) keys: &'static str,
    pub(crate) admin_keys: &'static str,
}

/// Says "Light upon light. " for ever, at once.
pub(crate) const INSTANT: &str = r#"
[output]
kind = "text"
text = "Light upon light. "
"#;

/// The same at 200 tokens a second.
pub(crate) const STEADY: &str = r#"
[cost]
tokens_per_second = 200.0
[output]
kind = "text"
text = "Light upon light. "
"#;

impl Default for Setup {
    fn default() -> Self {
        Setup {
            script: STEADY,
            devices: 1,
            batch_size: 16,
            max_queued_requests: 64,
            fairness: Fairness::default(),
            edge: EdgeConfig::default(),
            retention: Retention::default(),
            keys: "",
            admin_keys: "",
        }
    }
}

/// Counts what the engine and the edge report.
#[derive(Default)]
pub(crate) struct Counters {
    /// Requests that were started.
    pub(crate) started: AtomicU32,
    pub(crate) open_streams: AtomicI64,
    pub(crate) frames: AtomicU64,
}

impl Observer for Counters {
    fn started(&self, _: &str, _: Duration, _: u32, _: u32) {
        self.started.fetch_add(1, Ordering::SeqCst);
    }
}

impl EdgeMetrics for Counters {
    fn render(&self) -> String {
        format!(
            "test_frames_total {}\n# EOF\n",
            self.frames.load(Ordering::SeqCst)
        )
    }
    fn http_request(&self, route: &str, _: &str, _: u16, _: f64) {
        assert!(
            route == "other" || !route.contains("/api/v1/requests/0"),
            "a label set must be closed: {route}"
        );
    }
    fn open_streams(&self, delta: i64) {
        self.open_streams.fetch_add(delta, Ordering::SeqCst);
    }
    fn frames(&self, _: &'static str, count: u64) {
        self.frames.fetch_add(count, Ordering::SeqCst);
    }
}

pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<AppState>,
    pub(crate) counters: Arc<Counters>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

fn text_intake(max_context: u32) -> Intake {
    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    Intake::Text(Box::new(TextIntake {
        tokenizer: Arc::new(TextTokenizer::bytes(300)),
        template: Some(ChatTemplate::new(TEMPLATE, "", "").expect("the template is valid")),
        max_context,
        defaults: TextDefaults::default(),
        limits: TextLimits::default(),
    }))
}

fn image_intake() -> Intake {
    Intake::Image(ImageIntake {
        frontend: Arc::new(ScriptedFrontend),
        size_factor: SIZE_FACTOR,
        defaults: ImageDefaults {
            width: 64,
            height: 64,
            ..ImageDefaults::default()
        },
        limits: ImageLimits::default(),
    })
}

impl Service {
    pub(crate) async fn start(setup: Setup) -> Self {
        let clock = Arc::new(RealClock::start());
        let counters = Arc::new(Counters::default());
        let script = Script::parse(setup.script).expect("the script is valid");
        let max_context = script.model.context_tokens;
        let draws = script.image.is_some();
        let device = |number: u32| {
            let script = script.clone();
            let build = move || match draws {
                true => Ok(Box::new(ScriptedImageModel::new(script, sleep())?) as Box<dyn Model>),
                false => {
                    let model = ScriptedModel::new(script, sleep())?;
                    Ok(Box::new(model.on_device(DeviceNumber(number))) as Box<dyn Model>)
                }
            };
            DeviceEngine {
                name: format!("cpu:{number}").into(),
                build: Box::new(build),
            }
        };
        let engine = spawn_on_devices(
            "scripted",
            EngineConfig {
                devices: setup.devices,
                scheduler: SchedulerConfig {
                    batch_size: setup.batch_size,
                    max_queue_delay: Duration::from_millis(1),
                    batching: Batching::Continuous,
                    step_budget: Duration::from_millis(50),
                    fairness: setup.fairness,
                },
                max_queued_requests: setup.max_queued_requests,
                max_queued_tokens: 1_000_000,
                max_queued_source_bytes: 1 << 30,
            },
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::clone(&counters) as Arc<dyn Observer>,
            (0..setup.devices).map(device).collect(),
        );
        engine.until_started().await;
        let model = ServedModel {
            name: "scripted".into(),
            created: 1_700_000_000,
            engine,
            intake: if draws {
                image_intake()
            } else {
                text_intake(max_context)
            },
        };
        let store = EventStore::new(setup.retention, Arc::clone(&clock) as Arc<dyn Clock>);
        let state = AppState::new(
            vec![Arc::new(model)],
            Arc::new(store),
            clock,
            setup.edge,
            ApiKeys::parse(setup.keys)
                .expect("the keys are valid")
                .with_admin_keys(ApiKeys::parse(setup.admin_keys).expect("the keys are valid")),
            Arc::clone(&counters) as Arc<dyn EdgeMetrics>,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = async move {
            let _ = stopped.await;
            Duration::from_secs(5)
        };
        let server = tokio::spawn(serve(listener, Arc::clone(&state), stopped));
        Service {
            client: Client::new(format!("http://{address}")),
            address,
            state,
            counters,
            stop,
            server,
        }
    }

    /// Ends the service and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("the server runs");
        self.server.await.expect("the server ends in good order");
    }

    pub(crate) async fn submit(&self, body: &SubmitBody) -> String {
        self.client.submit(body).await.expect("accepted").id
    }

    /// The status once the request has ended.
    pub(crate) async fn ended(&self, id: &str) -> Status {
        let status = self.client.status(id, Duration::from_secs(20)).await;
        let status = status.expect("the request is there");
        assert!(status.usage.is_some(), "it should have ended: {status:?}");
        status
    }

    /// All events from behind number `after`.
    pub(crate) async fn events(&self, id: &str, after: u64) -> Vec<StreamEvent> {
        let stream = self.client.events(id, after).await.expect("a stream");
        stream.collect().await.expect("a whole stream")
    }

    /// Waits until nothing waits and nothing runs.
    pub(crate) async fn until_idle(&self) {
        eventually("idle", async || {
            let load = self.client.load().await.unwrap().models.remove(0);
            load.waiting_requests == 0 && load.running_rows == 0 && load.memory_units_used == 0
        })
        .await;
    }
}

/// A request for `max_tokens` tokens.
pub(crate) fn body(prompt: &str, max_tokens: u64) -> SubmitBody {
    SubmitBody {
        prompt: Some(prompt.into()),
        max_tokens: Some(max_tokens),
        seed: Some(1),
        ..SubmitBody::default()
    }
}

/// The first `length` bytes of what the scripts say.
pub(crate) fn said(length: usize) -> String {
    "Light upon light. ".chars().cycle().take(length).collect()
}

/// Waits until `done`, at most ten seconds.
pub(crate) async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..1_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}

/// What a refusal says: status, code, field.
pub(crate) fn refusal<T: std::fmt::Debug>(
    result: Result<T, ClientError>,
) -> (u16, String, Option<String>) {
    match result {
        Err(ClientError::Refused {
            status,
            code,
            field,
            ..
        }) => (status.as_u16(), code, field),
        other => panic!("not refused: {other:?}"),
    }
}

/// What native events add up to: per answer text and finish reason, and the last event's name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) texts: Vec<String>,
    pub(crate) tokens: Vec<u64>,
    pub(crate) reasons: Vec<Option<String>>,
    pub(crate) end: String,
}

impl Sum {
    pub(crate) fn of<'a>(events: impl IntoIterator<Item = &'a StreamEvent>) -> Self {
        let mut sum = Sum::default();
        let mut last_id = 0;
        for event in events {
            let id = event.id.expect("every frame has an id");
            assert!(id > last_id, "ids rise: {id} after {last_id}");
            last_id = id;
            let data: Value = event.json().unwrap();
            for choice in data["choices"].as_array().into_iter().flatten() {
                sum.add(choice);
            }
            sum.end.clone_from(&event.event);
        }
        sum
    }

    fn add(&mut self, choice: &Value) {
        let index = choice["index"].as_u64().unwrap() as usize;
        let size = self.texts.len().max(index + 1);
        self.texts.resize_with(size, String::new);
        self.tokens.resize(size, 0);
        self.reasons.resize(size, None);
        self.texts[index] += choice["text"].as_str().unwrap();
        self.tokens[index] += choice["tokens"].as_array().unwrap().len() as u64;
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert_eq!(self.reasons[index], None, "an answer ends once");
            self.reasons[index] = Some(reason.into());
        }
    }
}
