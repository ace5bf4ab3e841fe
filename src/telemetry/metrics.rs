//! The list of metrics: names, labels, buckets, meanings.
//!
//! Everything an engine may record is looked up once, when the service starts: on the engine's
//! thread a record is a short lock or an atomic addition. What is recorded when stands in
//! [`observer`](super::observer).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::history::History;
use crate::engine::StepReport;
use crate::job::Priority;
use crate::time::Clock;

/// Buckets for what takes a step or less, in seconds.
const STEP_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0,
    5.0, 10.0,
];
/// Buckets for what a client waits for, in seconds.
const WAIT_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];
/// Buckets for rows in a step.
const ROW_BUCKETS: &[f64] = &[
    1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0,
];
/// Buckets for units of work in a step: a picture may count thousands.
const UNIT_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    model: String,
    device: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    model: String,
    device: String,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    model: String,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    model: String,
    end: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    model: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PriorityLabels {
    model: String,
    priority: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HttpLabels {
    pub(super) route: String,
    pub(super) method: String,
    pub(super) status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RouteLabel {
    pub(super) route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DialectLabel {
    pub(super) dialect: &'static str,
}

pub(super) type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

fn step_histogram() -> Histogram {
    Histogram::new(STEP_BUCKETS.iter().copied())
}

fn wait_histogram() -> Histogram {
    Histogram::new(WAIT_BUCKETS.iter().copied())
}

fn row_histogram() -> Histogram {
    Histogram::new(ROW_BUCKETS.iter().copied())
}

fn unit_histogram() -> Histogram {
    Histogram::new(UNIT_BUCKETS.iter().copied())
}

/// All metrics of the service.
pub struct Metrics {
    pub(super) registry: Registry,
    models: BTreeMap<String, ModelMetrics>,
    pub(super) http_requests: Family<HttpLabels, Counter>,
    pub(super) http_request_seconds: HistogramFamily<RouteLabel>,
    pub(super) open_streams: Gauge,
    pub(super) stream_frames: Family<DialectLabel, Counter>,
    pub(super) history: Option<History>,
}

/// The list: every metric of an engine, with its labels.
struct ModelFamilies {
    request_queue_seconds: HistogramFamily<ModelLabel>,
    time_to_first_token_seconds: HistogramFamily<ModelLabel>,
    inter_token_seconds: HistogramFamily<ModelLabel>,
    request_duration_seconds: HistogramFamily<ModelLabel>,
    batch_fill_rows: HistogramFamily<DeviceLabels>,
    batch_fill_units: HistogramFamily<DeviceLabels>,
    step_seconds: HistogramFamily<StepLabels>,
    requests: Family<EndLabels, Counter>,
    requests_rejected: Family<ReasonLabels, Counter>,
    requests_cancelled: Family<PhaseLabels, Counter>,
    prompt_tokens: Family<ModelLabel, Counter>,
    cached_tokens: Family<ModelLabel, Counter>,
    prefill_tokens: Family<ModelLabel, Counter>,
    generation_tokens: Family<ModelLabel, Counter>,
    denoising_steps: Family<ModelLabel, Counter>,
    images: Family<ModelLabel, Counter>,
    out_of_memory_steps: Family<ModelLabel, Counter>,
    requests_waiting: Family<ModelLabel, Gauge>,
    requests_waiting_by_priority: Family<PriorityLabels, Gauge>,
    rows_waiting: Family<ModelLabel, Gauge>,
    rows_running: Family<DeviceLabels, Gauge>,
    slots: Family<DeviceLabels, Gauge>,
    queued_tokens: Family<ModelLabel, Gauge>,
    queue_eta_seconds: Family<ModelLabel, Gauge<f64, AtomicU64>>,
    kv_blocks_used: Family<DeviceLabels, Gauge>,
    kv_blocks_total: Family<DeviceLabels, Gauge>,
    kv_blocks_cached: Family<DeviceLabels, Gauge>,
    kv_blocks_evicted: Family<DeviceLabels, Counter>,
}

impl ModelFamilies {
    /// Names and meanings. Counters get their `_total` when they are written out.
    fn register(registry: &mut Registry) -> Self {
        macro_rules! family {
            ($name:literal, $help:literal, $family:expr) => {{
                let family = $family;
                registry.register($name, $help, family.clone());
                family
            }};
        }
        let step: fn() -> Histogram = step_histogram;
        let wait: fn() -> Histogram = wait_histogram;
        let rows: fn() -> Histogram = row_histogram;
        let units: fn() -> Histogram = unit_histogram;
        let histogram = Family::new_with_constructor;
        ModelFamilies {
            request_queue_seconds: family!(
                "request_queue_seconds",
                "From submission until a request's first row started",
                histogram(wait)
            ),
            time_to_first_token_seconds: family!(
                "time_to_first_token_seconds",
                "From submission until a row's first token, at the engine's step",
                histogram(wait)
            ),
            inter_token_seconds: family!(
                "inter_token_seconds",
                "Between two tokens of a row, at the engine's step",
                histogram(step)
            ),
            request_duration_seconds: family!(
                "request_duration_seconds",
                "From submission until a request's end",
                histogram(wait)
            ),
            batch_fill_rows: family!(
                "batch_fill_rows",
                "Rows that shared a step",
                Family::new_with_constructor(rows)
            ),
            batch_fill_units: family!(
                "batch_fill_units",
                "Units of work of the rows that iterated or finished in a step: 1 for a text's row, \
                 for a picture's what its model counts",
                Family::new_with_constructor(units)
            ),
            step_seconds: family!(
                "step_seconds",
                "Length of a step, by what its rows did",
                Family::new_with_constructor(step)
            ),
            requests: family!("requests", "Requests that ended, by how", Family::default()),
            requests_rejected: family!(
                "requests_rejected",
                "Requests that were not taken, by why",
                Family::default()
            ),
            requests_cancelled: family!(
                "requests_cancelled",
                "Requests that were cancelled, by where they stood",
                Family::default()
            ),
            prompt_tokens: family!(
                "prompt_tokens",
                "Prompt tokens of the requests that started",
                Family::default()
            ),
            cached_tokens: family!(
                "cached_tokens",
                "Of these, tokens found in the prefix cache",
                Family::default()
            ),
            prefill_tokens: family!(
                "prefill_tokens",
                "Prompt tokens computed, counted per row; of text models only",
                Family::default()
            ),
            generation_tokens: family!(
                "generation_tokens",
                "New tokens of the requests that ended",
                Family::default()
            ),
            denoising_steps: family!(
                "denoising_steps",
                "Denoising steps of the requests that ended, counted per picture",
                Family::default()
            ),
            images: family!(
                "images",
                "Pictures of the requests that ended",
                Family::default()
            ),
            out_of_memory_steps: family!(
                "out_of_memory_steps",
                "Passes that memory ran out in, and that were tried again with less",
                Family::default()
            ),
            requests_waiting: family!(
                "requests_waiting",
                "Requests that wait for a slot",
                Family::default()
            ),
            requests_waiting_by_priority: family!(
                "requests_waiting_by_priority",
                "Requests that wait for a slot, by the class that they asked for",
                Family::default()
            ),
            rows_waiting: family!(
                "rows_waiting",
                "Rows that wait for a slot",
                Family::default()
            ),
            rows_running: family!("rows_running", "Rows that have a slot", Family::default()),
            slots: family!("slots", "Rows that may run at once", Family::default()),
            queued_tokens: family!(
                "queued_tokens",
                "Prompt tokens of the requests in the engine",
                Family::default()
            ),
            queue_eta_seconds: family!(
                "queue_eta_seconds",
                "Expected wait of a request that came now; NaN while it cannot be told",
                Family::default()
            ),
            kv_blocks_used: family!(
                "kv_blocks_used",
                "Memory units (of a text model KV cache blocks) that running rows have reserved; a shared one counts once for each row",
                Family::default()
            ),
            kv_blocks_total: family!(
                "kv_blocks_total",
                "Memory units (of a text model KV cache blocks)",
                Family::default()
            ),
            kv_blocks_cached: family!(
                "kv_blocks_cached",
                "KV cache blocks that no row holds, kept for prompts that begin alike",
                Family::default()
            ),
            kv_blocks_evicted: family!(
                "kv_blocks_evicted",
                "Blocks that were kept so, and given up for lack of room",
                Family::default()
            ),
        }
    }
}

/// One model's metrics, looked up.
pub(super) struct ModelMetrics {
    pub(super) request_queue_seconds: Histogram,
    pub(super) time_to_first_token_seconds: Histogram,
    pub(super) inter_token_seconds: Histogram,
    pub(super) request_duration_seconds: Histogram,
    pub(super) requests: BTreeMap<&'static str, Counter>,
    pub(super) requests_rejected: BTreeMap<&'static str, Counter>,
    pub(super) requests_cancelled: BTreeMap<&'static str, Counter>,
    pub(super) prompt_tokens: Counter,
    pub(super) cached_tokens: Counter,
    pub(super) prefill_tokens: Counter,
    pub(super) generation_tokens: Counter,
    pub(super) denoising_steps: Counter,
    pub(super) images: Counter,
    pub(super) out_of_memory_steps: Counter,
    pub(super) requests_waiting: Gauge,
    /// In the order of [`Priority::ALL`].
    pub(super) requests_waiting_by_priority: [Gauge; Priority::ALL.len()],
    pub(super) rows_waiting: Gauge,
    pub(super) queued_tokens: Gauge,
    pub(super) queue_eta_seconds: Gauge<f64, AtomicU64>,
    /// By number.
    pub(super) devices: Vec<DeviceMetrics>,
}

/// Those of one of its devices.
pub(super) struct DeviceMetrics {
    pub(super) batch_fill_rows: Histogram,
    pub(super) batch_fill_units: Histogram,
    begin_step_seconds: Histogram,
    iterate_step_seconds: Histogram,
    finish_step_seconds: Histogram,
    mixed_step_seconds: Histogram,
    pub(super) rows_running: Gauge,
    pub(super) slots: Gauge,
    pub(super) kv_blocks_used: Gauge,
    pub(super) kv_blocks_total: Gauge,
    pub(super) kv_blocks_cached: Gauge,
    pub(super) kv_blocks_evicted: Counter,
}

/// Ends of a request, as the `end` label has them.
pub(super) const ENDS: [&str; 9] = [
    "stop",
    "length",
    "cancelled",
    "deadline_exceeded",
    "row_failed",
    "step_failed",
    "engine_dead",
    "shutdown",
    "abandoned",
];
/// Refusals, as the `reason` label has them.
const REFUSALS: [&str; 7] = [
    "queue_full_requests",
    "queue_full_tokens",
    "queue_full_source_bytes",
    "user_queue_full",
    "loading",
    "draining",
    "engine_dead",
];
/// Where a cancelled request stood, as the `phase` label has it.
const CANCEL_PHASES: [&str; 4] = ["waiting", "begin", "iterate", "finish"];

impl ModelMetrics {
    /// Looks up every metric of one model; that also makes them appear, at zero, from the start.
    fn new(families: &ModelFamilies, model: &str, devices: &[Arc<str>]) -> Self {
        let devices = devices
            .iter()
            .map(|device| DeviceMetrics::new(families, model, device))
            .collect();
        let model = || model.to_owned();
        let label = ModelLabel { model: model() };
        let end = |end| {
            let labels = EndLabels {
                model: model(),
                end,
            };
            (end, families.requests.get_or_create_owned(&labels))
        };
        let refusal = |reason| {
            let labels = ReasonLabels {
                model: model(),
                reason,
            };
            (
                reason,
                families.requests_rejected.get_or_create_owned(&labels),
            )
        };
        let cancelled = |phase| {
            let labels = PhaseLabels {
                model: model(),
                phase,
            };
            (
                phase,
                families.requests_cancelled.get_or_create_owned(&labels),
            )
        };
        ModelMetrics {
            request_queue_seconds: families.request_queue_seconds.get_or_create_owned(&label),
            time_to_first_token_seconds: families
                .time_to_first_token_seconds
                .get_or_create_owned(&label),
            inter_token_seconds: families.inter_token_seconds.get_or_create_owned(&label),
            request_duration_seconds: families
                .request_duration_seconds
                .get_or_create_owned(&label),
            requests: ENDS.into_iter().map(end).collect(),
            requests_rejected: REFUSALS.into_iter().map(refusal).collect(),
            requests_cancelled: CANCEL_PHASES.into_iter().map(cancelled).collect(),
            prompt_tokens: families.prompt_tokens.get_or_create_owned(&label),
            cached_tokens: families.cached_tokens.get_or_create_owned(&label),
            prefill_tokens: families.prefill_tokens.get_or_create_owned(&label),
            generation_tokens: families.generation_tokens.get_or_create_owned(&label),
            denoising_steps: families.denoising_steps.get_or_create_owned(&label),
            images: families.images.get_or_create_owned(&label),
            out_of_memory_steps: families.out_of_memory_steps.get_or_create_owned(&label),
            requests_waiting: families.requests_waiting.get_or_create_owned(&label),
            requests_waiting_by_priority: Priority::ALL.map(|priority| {
                let labels = PriorityLabels {
                    model: model(),
                    priority: priority.name(),
                };
                families
                    .requests_waiting_by_priority
                    .get_or_create_owned(&labels)
            }),
            rows_waiting: families.rows_waiting.get_or_create_owned(&label),
            queued_tokens: families.queued_tokens.get_or_create_owned(&label),
            queue_eta_seconds: families.queue_eta_seconds.get_or_create_owned(&label),
            devices,
        }
    }
}

impl DeviceMetrics {
    fn new(families: &ModelFamilies, model: &str, device: &str) -> Self {
        let label = DeviceLabels {
            model: model.to_owned(),
            device: device.to_owned(),
        };
        let step = |phase| {
            let labels = StepLabels {
                model: model.to_owned(),
                device: device.to_owned(),
                phase,
            };
            families.step_seconds.get_or_create_owned(&labels)
        };
        DeviceMetrics {
            batch_fill_rows: families.batch_fill_rows.get_or_create_owned(&label),
            batch_fill_units: families.batch_fill_units.get_or_create_owned(&label),
            begin_step_seconds: step("begin"),
            iterate_step_seconds: step("iterate"),
            finish_step_seconds: step("finish"),
            mixed_step_seconds: step("mixed"),
            rows_running: families.rows_running.get_or_create_owned(&label),
            slots: families.slots.get_or_create_owned(&label),
            kv_blocks_used: families.kv_blocks_used.get_or_create_owned(&label),
            kv_blocks_total: families.kv_blocks_total.get_or_create_owned(&label),
            kv_blocks_cached: families.kv_blocks_cached.get_or_create_owned(&label),
            kv_blocks_evicted: families.kv_blocks_evicted.get_or_create_owned(&label),
        }
    }

    /// The histogram of steps whose rows did the like.
    pub(super) fn step_seconds(&self, step: &StepReport) -> &Histogram {
        match (step.begin_rows, step.iterate_rows, step.finish_rows) {
            (_, 0, 0) => &self.begin_step_seconds,
            (0, _, 0) => &self.iterate_step_seconds,
            (0, 0, _) => &self.finish_step_seconds,
            (_, _, _) => &self.mixed_step_seconds,
        }
    }
}

impl Metrics {
    /// Metrics of a service with these models, each on these devices.
    pub fn new<'a>(models: impl IntoIterator<Item = (&'a str, &'a [Arc<str>])>) -> Self {
        let mut registry = Registry::with_prefix("girandole");
        registry.register(
            "build",
            "The program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let http_requests = Family::<HttpLabels, Counter>::default();
        registry.register(
            "http_requests",
            "HTTP requests answered; a stream counts when its head is sent",
            http_requests.clone(),
        );
        let wait: fn() -> Histogram = wait_histogram;
        let http_request_seconds = HistogramFamily::<RouteLabel>::new_with_constructor(wait);
        registry.register(
            "http_request_seconds",
            "Time to answer an HTTP request; to a stream's head",
            http_request_seconds.clone(),
        );
        let open_streams = Gauge::default();
        registry.register(
            "open_streams",
            "Event streams open now",
            open_streams.clone(),
        );
        let stream_frames = Family::<DialectLabel, Counter>::default();
        registry.register(
            "stream_frames",
            "Frames handed to the connections of event streams",
            stream_frames.clone(),
        );
        let families = ModelFamilies::register(&mut registry);
        let models = models
            .into_iter()
            .map(|(model, devices)| {
                let metrics = ModelMetrics::new(&families, model, devices);
                (model.to_owned(), metrics)
            })
            .collect();
        Metrics {
            registry,
            models,
            http_requests,
            http_request_seconds,
            open_streams,
            stream_frames,
            history: None,
        }
    }

    /// Keeps besides what these models do from now on, as far back as `length`, for the operator's plots.
    #[must_use]
    pub fn with_history<'a>(
        mut self,
        models: impl IntoIterator<Item = &'a str>,
        clock: Arc<dyn Clock>,
        length: Duration,
    ) -> Self {
        self.history = Some(History::new(models, clock, length));
        self
    }

    /// The metrics of one model; an unknown one has none, which only a mistake here could cause.
    pub(super) fn of(&self, model: &str) -> Option<&ModelMetrics> {
        let found = self.models.get(model);
        debug_assert!(found.is_some(), "no metrics for model {model}");
        found
    }
}
