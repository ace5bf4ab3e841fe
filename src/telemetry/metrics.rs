//! The metrics, and the two traits by which the engine and the edge report to them.
//!
//! Everything an engine may record is looked up once, when the service starts: on the engine's
//! thread a record is a short lock or an atomic addition. All intervals are taken by the engine or
//! the edge on one clock; nothing here reads one.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::api::EdgeMetrics;
use crate::batch::{FinishReason, Phase};
use crate::engine::{Observer, Reject, RequestEnd, Snapshot, StepReport};
use crate::events::FailureKind;

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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
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
struct HttpLabels {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DialectLabel {
    dialect: &'static str,
}

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

fn step_histogram() -> Histogram {
    Histogram::new(STEP_BUCKETS.iter().copied())
}

fn wait_histogram() -> Histogram {
    Histogram::new(WAIT_BUCKETS.iter().copied())
}

fn row_histogram() -> Histogram {
    Histogram::new(ROW_BUCKETS.iter().copied())
}

/// All metrics of the service.
pub struct Metrics {
    registry: Registry,
    models: BTreeMap<String, ModelMetrics>,
    http_requests: Family<HttpLabels, Counter>,
    http_request_seconds: HistogramFamily<RouteLabel>,
    open_streams: Gauge,
    stream_frames: Family<DialectLabel, Counter>,
}

/// The list: every metric of an engine, with its labels.
struct ModelFamilies {
    request_queue_seconds: HistogramFamily<ModelLabel>,
    time_to_first_token_seconds: HistogramFamily<ModelLabel>,
    inter_token_seconds: HistogramFamily<ModelLabel>,
    request_duration_seconds: HistogramFamily<ModelLabel>,
    batch_fill_rows: HistogramFamily<ModelLabel>,
    step_seconds: HistogramFamily<PhaseLabels>,
    requests: Family<EndLabels, Counter>,
    requests_rejected: Family<ReasonLabels, Counter>,
    requests_cancelled: Family<PhaseLabels, Counter>,
    prompt_tokens: Family<ModelLabel, Counter>,
    cached_tokens: Family<ModelLabel, Counter>,
    prefill_tokens: Family<ModelLabel, Counter>,
    generation_tokens: Family<ModelLabel, Counter>,
    requests_waiting: Family<ModelLabel, Gauge>,
    rows_waiting: Family<ModelLabel, Gauge>,
    rows_running: Family<ModelLabel, Gauge>,
    slots: Family<ModelLabel, Gauge>,
    queued_tokens: Family<ModelLabel, Gauge>,
    queue_eta_seconds: Family<ModelLabel, Gauge<f64, AtomicU64>>,
    kv_blocks_used: Family<ModelLabel, Gauge>,
    kv_blocks_total: Family<ModelLabel, Gauge>,
    kv_blocks_cached: Family<ModelLabel, Gauge>,
    kv_blocks_evicted: Family<ModelLabel, Counter>,
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
                histogram(rows)
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
                "Prompt tokens computed, counted per row",
                Family::default()
            ),
            generation_tokens: family!(
                "generation_tokens",
                "New tokens of the requests that ended",
                Family::default()
            ),
            requests_waiting: family!(
                "requests_waiting",
                "Requests that wait for a slot",
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
                "Expected wait of a request that came now",
                Family::default()
            ),
            kv_blocks_used: family!(
                "kv_blocks_used",
                "KV cache blocks that running rows have reserved; a shared one counts once for each row",
                Family::default()
            ),
            kv_blocks_total: family!("kv_blocks_total", "KV cache blocks", Family::default()),
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
struct ModelMetrics {
    request_queue_seconds: Histogram,
    time_to_first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    request_duration_seconds: Histogram,
    batch_fill_rows: Histogram,
    begin_step_seconds: Histogram,
    iterate_step_seconds: Histogram,
    mixed_step_seconds: Histogram,
    requests: BTreeMap<&'static str, Counter>,
    requests_rejected: BTreeMap<&'static str, Counter>,
    requests_cancelled: BTreeMap<&'static str, Counter>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    prefill_tokens: Counter,
    generation_tokens: Counter,
    requests_waiting: Gauge,
    rows_waiting: Gauge,
    rows_running: Gauge,
    slots: Gauge,
    queued_tokens: Gauge,
    queue_eta_seconds: Gauge<f64, AtomicU64>,
    kv_blocks_used: Gauge,
    kv_blocks_total: Gauge,
    kv_blocks_cached: Gauge,
    kv_blocks_evicted: Counter,
}

/// Ends of a request, as the `end` label has them.
const ENDS: [&str; 9] = [
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
const REFUSALS: [&str; 5] = [
    "queue_full_requests",
    "queue_full_tokens",
    "loading",
    "draining",
    "engine_dead",
];
/// Where a cancelled request stood, as the `phase` label has it.
const CANCEL_PHASES: [&str; 4] = ["waiting", "begin", "iterate", "finish"];

impl ModelMetrics {
    /// Looks up every metric of one model; that also makes them appear, at zero, from the start.
    fn new(families: &ModelFamilies, model: &str) -> Self {
        let model = || model.to_owned();
        let label = ModelLabel { model: model() };
        let step = |phase| {
            let labels = PhaseLabels {
                model: model(),
                phase,
            };
            families.step_seconds.get_or_create_owned(&labels)
        };
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
            batch_fill_rows: families.batch_fill_rows.get_or_create_owned(&label),
            begin_step_seconds: step("begin"),
            iterate_step_seconds: step("iterate"),
            mixed_step_seconds: step("mixed"),
            requests: ENDS.into_iter().map(end).collect(),
            requests_rejected: REFUSALS.into_iter().map(refusal).collect(),
            requests_cancelled: CANCEL_PHASES.into_iter().map(cancelled).collect(),
            prompt_tokens: families.prompt_tokens.get_or_create_owned(&label),
            cached_tokens: families.cached_tokens.get_or_create_owned(&label),
            prefill_tokens: families.prefill_tokens.get_or_create_owned(&label),
            generation_tokens: families.generation_tokens.get_or_create_owned(&label),
            requests_waiting: families.requests_waiting.get_or_create_owned(&label),
            rows_waiting: families.rows_waiting.get_or_create_owned(&label),
            rows_running: families.rows_running.get_or_create_owned(&label),
            slots: families.slots.get_or_create_owned(&label),
            queued_tokens: families.queued_tokens.get_or_create_owned(&label),
            queue_eta_seconds: families.queue_eta_seconds.get_or_create_owned(&label),
            kv_blocks_used: families.kv_blocks_used.get_or_create_owned(&label),
            kv_blocks_total: families.kv_blocks_total.get_or_create_owned(&label),
            kv_blocks_cached: families.kv_blocks_cached.get_or_create_owned(&label),
            kv_blocks_evicted: families.kv_blocks_evicted.get_or_create_owned(&label),
        }
    }

    fn step_seconds(&self, step: &StepReport) -> &Histogram {
        match (step.begin_rows, step.iterate_rows) {
            (_, 0) => &self.begin_step_seconds,
            (0, _) => &self.iterate_step_seconds,
            (_, _) => &self.mixed_step_seconds,
        }
    }
}

impl Metrics {
    /// Metrics of a service with these models.
    pub fn new<'a>(models: impl IntoIterator<Item = &'a str>) -> Self {
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
            .map(|model| (model.to_owned(), ModelMetrics::new(&families, model)))
            .collect();
        Metrics {
            registry,
            models,
            http_requests,
            http_request_seconds,
            open_streams,
            stream_frames,
        }
    }

    /// The metrics of one model; an unknown one has none, which only a mistake here could cause.
    fn of(&self, model: &str) -> Option<&ModelMetrics> {
        let found = self.models.get(model);
        debug_assert!(found.is_some(), "no metrics for model {model}");
        found
    }
}

impl Observer for Metrics {
    fn rejected(&self, model: &str, reject: &Reject) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.requests_rejected[refusal_label(reject)].inc();
    }

    fn started(&self, model: &str, queued: Duration, prompt_tokens: u32, cached_tokens: u32) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.request_queue_seconds.observe(queued.as_secs_f64());
        metrics.prompt_tokens.inc_by(u64::from(prompt_tokens));
        metrics.cached_tokens.inc_by(u64::from(cached_tokens));
    }

    fn step(&self, model: &str, step: &StepReport) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        let rows = step.begin_rows + step.iterate_rows;
        metrics.batch_fill_rows.observe(f64::from(rows));
        metrics
            .step_seconds(step)
            .observe(step.duration.as_secs_f64());
        metrics.prefill_tokens.inc_by(u64::from(step.begin_work));
    }

    fn first_token(&self, model: &str, since_submit: Duration) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics
            .time_to_first_token_seconds
            .observe(since_submit.as_secs_f64());
    }

    fn inter_token(&self, model: &str, gap: Duration) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.inter_token_seconds.observe(gap.as_secs_f64());
    }

    fn ended(&self, model: &str, end: RequestEnd, since_submit: Duration, completion_tokens: u32) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.requests[end_label(end)].inc();
        if let RequestEnd::Cancelled(phase) = end {
            metrics.requests_cancelled[cancel_label(phase)].inc();
        }
        metrics
            .request_duration_seconds
            .observe(since_submit.as_secs_f64());
        metrics
            .generation_tokens
            .inc_by(u64::from(completion_tokens));
    }

    fn snapshot(&self, model: &str, snapshot: &Snapshot) {
        let Some(metrics) = self.of(model) else {
            return;
        };
        let tokens = i64::try_from(snapshot.queued_tokens).unwrap_or(i64::MAX);
        let eta = snapshot.eta.unwrap_or_default();
        metrics
            .requests_waiting
            .set(snapshot.waiting_requests.into());
        metrics.rows_waiting.set(snapshot.waiting_rows.into());
        metrics.rows_running.set(snapshot.running_rows.into());
        metrics.slots.set(snapshot.slots.into());
        metrics.queued_tokens.set(tokens);
        metrics.queue_eta_seconds.set(eta.as_secs_f64());
        metrics
            .kv_blocks_used
            .set(snapshot.memory_units_used.into());
        metrics
            .kv_blocks_total
            .set(snapshot.memory_units_total.into());
        metrics
            .kv_blocks_cached
            .set(snapshot.cache.memory_units.into());
        // The model counts for itself; its count never falls.
        let counted = metrics.kv_blocks_evicted.get();
        let evicted = snapshot.cache.evicted.saturating_sub(counted);
        metrics.kv_blocks_evicted.inc_by(evicted);
    }
}

fn end_label(end: RequestEnd) -> &'static str {
    match end {
        RequestEnd::Finished(FinishReason::Stop) => "stop",
        RequestEnd::Finished(FinishReason::Length) => "length",
        RequestEnd::Finished(FinishReason::Cancelled) | RequestEnd::Cancelled(_) => "cancelled",
        RequestEnd::Failed(FailureKind::DeadlineExceeded) => "deadline_exceeded",
        RequestEnd::Failed(FailureKind::Row) => "row_failed",
        RequestEnd::Failed(FailureKind::Step) => "step_failed",
        RequestEnd::Failed(FailureKind::EngineDead) => "engine_dead",
        RequestEnd::Failed(FailureKind::Shutdown) => "shutdown",
        RequestEnd::Failed(FailureKind::Abandoned) => "abandoned",
    }
}

fn cancel_label(phase: Option<Phase>) -> &'static str {
    match phase {
        None => "waiting",
        Some(Phase::Begin) => "begin",
        Some(Phase::Iterate) => "iterate",
        Some(Phase::Finish) => "finish",
    }
}

fn refusal_label(reject: &Reject) -> &'static str {
    match reject {
        Reject::QueueFull { what, .. } if *what == "max_queued_tokens" => "queue_full_tokens",
        Reject::QueueFull { .. } => "queue_full_requests",
        Reject::Loading => "loading",
        Reject::Draining => "draining",
        Reject::Dead(_) => "engine_dead",
    }
}

impl EdgeMetrics for Metrics {
    fn render(&self) -> String {
        let mut page = String::with_capacity(32 << 10);
        text::encode(&mut page, &self.registry).expect("writing to a string does not fail");
        page
    }

    fn http_request(&self, route: &str, method: &str, status: u16, seconds: f64) {
        let labels = HttpLabels {
            route: route.to_owned(),
            method: method.to_owned(),
            status,
        };
        self.http_requests.get_or_create_owned(&labels).inc();
        let labels = RouteLabel {
            route: route.to_owned(),
        };
        let histogram = self.http_request_seconds.get_or_create_owned(&labels);
        histogram.observe(seconds);
    }

    fn open_streams(&self, delta: i64) {
        self.open_streams.inc_by(delta);
    }

    fn frames(&self, dialect: &'static str, count: u64) {
        let counter = self
            .stream_frames
            .get_or_create_owned(&DialectLabel { dialect });
        counter.inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CacheReport;

    /// The value of the one line that begins with `series`.
    fn value(page: &str, series: &str) -> f64 {
        let mut lines = page
            .lines()
            .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = lines
            .next()
            .unwrap_or_else(|| panic!("no {series} in\n{page}"));
        assert_eq!(lines.next(), None, "{series} is there twice");
        value.parse().unwrap()
    }

    #[test]
    fn what_is_reported_is_rendered() {
        let metrics = Metrics::new(["m"]);
        let second = Duration::from_secs(1);
        metrics.started("m", second, 10, 4);
        metrics.first_token("m", second);
        metrics.inter_token("m", second);
        let step = |begin_rows, iterate_rows| StepReport {
            duration: second,
            begin_rows,
            iterate_rows,
            begin_work: 6,
        };
        metrics.step("m", &step(1, 0));
        metrics.step("m", &step(1, 3));
        metrics.ended("m", RequestEnd::Finished(FinishReason::Stop), second, 7);
        metrics.ended("m", RequestEnd::Cancelled(None), second, 0);
        metrics.rejected("m", &Reject::Draining);
        for evicted in [0, 7, 7, 9] {
            metrics.snapshot(
                "m",
                &Snapshot {
                    running_rows: 3,
                    memory_units_used: 5,
                    cache: CacheReport {
                        memory_units: 6,
                        evicted,
                    },
                    eta: Some(second),
                    ..Snapshot::default()
                },
            );
        }
        metrics.http_request("/v1/models", "GET", 200, 0.5);
        metrics.open_streams(1);
        metrics.frames("native", 2);
        let page = metrics.render();
        for (series, expected) in [
            ("girandole_request_queue_seconds_sum{model=\"m\"}", 1.0),
            (
                "girandole_time_to_first_token_seconds_count{model=\"m\"}",
                1.0,
            ),
            ("girandole_inter_token_seconds_sum{model=\"m\"}", 1.0),
            ("girandole_request_duration_seconds_count{model=\"m\"}", 2.0),
            ("girandole_batch_fill_rows_sum{model=\"m\"}", 5.0),
            ("girandole_batch_fill_rows_count{model=\"m\"}", 2.0),
            (
                "girandole_step_seconds_sum{model=\"m\",phase=\"mixed\"}",
                1.0,
            ),
            ("girandole_requests_total{model=\"m\",end=\"stop\"}", 1.0),
            (
                "girandole_requests_total{model=\"m\",end=\"abandoned\"}",
                0.0,
            ),
            (
                "girandole_requests_rejected_total{model=\"m\",reason=\"draining\"}",
                1.0,
            ),
            (
                "girandole_requests_cancelled_total{model=\"m\",phase=\"waiting\"}",
                1.0,
            ),
            ("girandole_prompt_tokens_total{model=\"m\"}", 10.0),
            ("girandole_cached_tokens_total{model=\"m\"}", 4.0),
            ("girandole_prefill_tokens_total{model=\"m\"}", 12.0),
            ("girandole_generation_tokens_total{model=\"m\"}", 7.0),
            ("girandole_rows_running{model=\"m\"}", 3.0),
            ("girandole_kv_blocks_used{model=\"m\"}", 5.0),
            ("girandole_kv_blocks_cached{model=\"m\"}", 6.0),
            ("girandole_kv_blocks_evicted_total{model=\"m\"}", 9.0),
            ("girandole_queue_eta_seconds{model=\"m\"}", 1.0),
            ("girandole_open_streams", 1.0),
            ("girandole_stream_frames_total{dialect=\"native\"}", 2.0),
            (
                "girandole_http_request_seconds_sum{route=\"/v1/models\"}",
                0.5,
            ),
        ] {
            assert_eq!(value(&page, series), expected, "{series}");
        }
    }

    #[test]
    fn every_label_is_prepared() {
        let metrics = Metrics::new(["m"]);
        for reject in [
            Reject::QueueFull {
                what: "max_queued_requests",
                limit: 1,
                retry_after: Duration::ZERO,
            },
            Reject::QueueFull {
                what: "max_queued_tokens",
                limit: 1,
                retry_after: Duration::ZERO,
            },
            Reject::Loading,
            Reject::Draining,
            Reject::Dead(String::new()),
        ] {
            metrics.rejected("m", &reject);
        }
        let failures = [
            FailureKind::DeadlineExceeded,
            FailureKind::Row,
            FailureKind::Step,
            FailureKind::EngineDead,
            FailureKind::Shutdown,
            FailureKind::Abandoned,
        ];
        let reasons = [
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::Cancelled,
        ];
        let phases = [
            None,
            Some(Phase::Begin),
            Some(Phase::Iterate),
            Some(Phase::Finish),
        ];
        let ends = failures.map(RequestEnd::Failed).into_iter();
        let ends = ends.chain(reasons.map(RequestEnd::Finished));
        for end in ends.chain(phases.map(RequestEnd::Cancelled)) {
            metrics.ended("m", end, Duration::ZERO, 0);
        }
        let page = metrics.render();
        for end in ENDS {
            let series = format!("girandole_requests_total{{model=\"m\",end=\"{end}\"}}");
            assert!(value(&page, &series) >= 1.0, "{series}");
        }
    }
}
