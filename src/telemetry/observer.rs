//! What the engine and the edge report, and which metrics it goes into.
//!
//! All intervals are taken by the engine or the edge on one clock; nothing here reads one.

use std::time::Duration;

use prometheus_client::encoding::text;

use super::metrics::{DeviceMetrics, DialectLabel, HttpLabels, Metrics, RouteLabel};
use crate::api::EdgeMetrics;
use crate::api::history::HistoryPoint;
use crate::batch::{DeviceNumber, FinishReason, Phase, Usage};
use crate::engine::{DeviceSnapshot, Observer, Reject, RequestEnd, Snapshot, StepReport};
use crate::events::FailureKind;

impl Observer for Metrics {
    fn rejected(&self, model: &str, reject: &Reject) {
        if let Some(history) = &self.history {
            history.rejected(model);
        }
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.requests_rejected[refusal_label(reject)].inc();
    }

    fn started(&self, model: &str, queued: Duration, prompt_tokens: u32, cached_tokens: u32) {
        if let Some(history) = &self.history {
            history.started(model, queued);
        }
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.request_queue_seconds.observe(queued.as_secs_f64());
        metrics.prompt_tokens.inc_by(u64::from(prompt_tokens));
        metrics.cached_tokens.inc_by(u64::from(cached_tokens));
    }

    fn step(&self, model: &str, device: DeviceNumber, step: &StepReport) {
        if let Some(history) = &self.history {
            history.step(model, step);
        }
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.prefill_tokens.inc_by(u64::from(step.begin_work));
        let Some(metrics) = metrics.devices.get(device.index()) else {
            return;
        };
        let rows = step.begin_rows + step.iterate_rows + step.finish_rows;
        metrics.batch_fill_rows.observe(f64::from(rows));
        metrics
            .step_seconds(step)
            .observe(step.duration.as_secs_f64());
        if step.units > 0 {
            metrics.batch_fill_units.observe(f64::from(step.units));
        }
    }

    fn out_of_memory(&self, model: &str, failed_passes: u64) {
        if let Some(metrics) = self.of(model) {
            metrics.out_of_memory_steps.inc_by(failed_passes);
        }
    }

    fn first_token(&self, model: &str, since_submit: Duration) {
        if let Some(history) = &self.history {
            history.token(model);
        }
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics
            .time_to_first_token_seconds
            .observe(since_submit.as_secs_f64());
    }

    fn inter_token(&self, model: &str, gap: Duration) {
        if let Some(history) = &self.history {
            history.token(model);
        }
        let Some(metrics) = self.of(model) else {
            return;
        };
        metrics.inter_token_seconds.observe(gap.as_secs_f64());
    }

    fn ended(&self, model: &str, end: RequestEnd, since_submit: Duration, usage: Usage) {
        if let Some(history) = &self.history {
            history.ended(model, end, usage);
        }
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
            .inc_by(u64::from(usage.completion_tokens));
        metrics
            .denoising_steps
            .inc_by(u64::from(usage.denoising_steps));
        metrics.images.inc_by(u64::from(usage.images));
    }

    fn snapshot(&self, model: &str, snapshot: &Snapshot) {
        if let Some(history) = &self.history {
            history.snapshot(model, snapshot);
        }
        let Some(metrics) = self.of(model) else {
            return;
        };
        let tokens = i64::try_from(snapshot.queued_tokens).unwrap_or(i64::MAX);
        // What cannot be told is no number: 0 would say that there is no wait.
        let eta = snapshot.eta.map_or(f64::NAN, |eta| eta.as_secs_f64());
        metrics
            .requests_waiting
            .set(snapshot.waiting_requests.into());
        for (gauge, waiting) in metrics
            .requests_waiting_by_priority
            .iter()
            .zip(snapshot.waiting_by_priority)
        {
            gauge.set(waiting.into());
        }
        metrics.rows_waiting.set(snapshot.waiting_rows.into());
        metrics.queued_tokens.set(tokens);
        metrics.queue_eta_seconds.set(eta);
        for (metrics, device) in metrics.devices.iter().zip(&snapshot.devices) {
            metrics.set(device);
        }
    }
}

impl DeviceMetrics {
    fn set(&self, device: &DeviceSnapshot) {
        self.rows_running.set(device.running_rows.into());
        self.slots.set(device.slots.into());
        self.kv_blocks_used.set(device.memory_units_used.into());
        self.kv_blocks_total.set(device.memory_units_total.into());
        self.kv_blocks_cached.set(device.cache.memory_units.into());
        // The model counts for itself; its count never falls.
        let counted = self.kv_blocks_evicted.get();
        let evicted = device.cache.evicted.saturating_sub(counted);
        self.kv_blocks_evicted.inc_by(evicted);
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
        Reject::QueueFull { what, .. } if *what == "max_queued_source_bytes" => {
            "queue_full_source_bytes"
        }
        Reject::QueueFull { .. } => "queue_full_requests",
        Reject::UserQueueFull { .. } => "user_queue_full",
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

    fn history(&self, model: &str) -> Vec<HistoryPoint> {
        let history = self.history.as_ref();
        history.map_or_else(Vec::new, |history| history.points(model))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::metrics::ENDS;
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

    /// Of one model on two devices.
    fn metrics() -> Metrics {
        let devices = ["cuda:0", "cuda:1"].map(Arc::from);
        Metrics::new([("m", &devices[..])])
    }

    #[test]
    fn what_is_reported_is_rendered() {
        let metrics = metrics();
        let second = Duration::from_secs(1);
        metrics.started("m", second, 10, 4);
        metrics.first_token("m", second);
        metrics.inter_token("m", second);
        let step = |begin_rows, iterate_rows, finish_rows| StepReport {
            duration: second,
            begin_rows,
            iterate_rows,
            finish_rows,
            begin_work: 6 * begin_rows,
            units: 4 * iterate_rows + 9 * finish_rows,
        };
        let (first, second_device) = (DeviceNumber(0), DeviceNumber(1));
        metrics.step("m", first, &step(1, 0, 0));
        metrics.step("m", second_device, &step(1, 3, 0));
        metrics.step("m", first, &step(0, 0, 1));
        metrics.out_of_memory("m", 3);
        let usage = Usage {
            completion_tokens: 7,
            denoising_steps: 30,
            images: 2,
            ..Usage::default()
        };
        metrics.ended("m", RequestEnd::Finished(FinishReason::Stop), second, usage);
        metrics.ended("m", RequestEnd::Cancelled(None), second, Usage::default());
        metrics.rejected("m", &Reject::Draining);
        for evicted in [0, 7, 7, 9] {
            metrics.snapshot(
                "m",
                &Snapshot {
                    waiting_by_priority: [0, 1, 4],
                    eta: Some(second),
                    devices: vec![
                        DeviceSnapshot {
                            running_rows: 3,
                            memory_units_used: 5,
                            cache: CacheReport {
                                memory_units: 6,
                                evicted,
                            },
                            ..DeviceSnapshot::default()
                        },
                        DeviceSnapshot {
                            running_rows: 1,
                            ..DeviceSnapshot::default()
                        },
                    ],
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
            (
                "girandole_batch_fill_rows_sum{model=\"m\",device=\"cuda:0\"}",
                2.0,
            ),
            (
                "girandole_batch_fill_rows_sum{model=\"m\",device=\"cuda:1\"}",
                4.0,
            ),
            (
                "girandole_batch_fill_units_sum{model=\"m\",device=\"cuda:1\"}",
                12.0,
            ),
            (
                "girandole_batch_fill_units_count{model=\"m\",device=\"cuda:0\"}",
                1.0,
            ),
            (
                "girandole_step_seconds_count{model=\"m\",device=\"cuda:0\",phase=\"finish\"}",
                1.0,
            ),
            (
                "girandole_step_seconds_sum{model=\"m\",device=\"cuda:1\",phase=\"mixed\"}",
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
            ("girandole_denoising_steps_total{model=\"m\"}", 30.0),
            ("girandole_images_total{model=\"m\"}", 2.0),
            ("girandole_out_of_memory_steps_total{model=\"m\"}", 3.0),
            ("girandole_rows_running{model=\"m\",device=\"cuda:0\"}", 3.0),
            ("girandole_rows_running{model=\"m\",device=\"cuda:1\"}", 1.0),
            (
                "girandole_requests_waiting_by_priority{model=\"m\",priority=\"batch\"}",
                4.0,
            ),
            (
                "girandole_kv_blocks_used{model=\"m\",device=\"cuda:0\"}",
                5.0,
            ),
            (
                "girandole_kv_blocks_cached{model=\"m\",device=\"cuda:0\"}",
                6.0,
            ),
            (
                "girandole_kv_blocks_evicted_total{model=\"m\",device=\"cuda:0\"}",
                9.0,
            ),
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
    fn an_unknown_wait_is_no_number() {
        let metrics = metrics();
        metrics.snapshot("m", &Snapshot::default());
        let eta = value(
            &metrics.render(),
            "girandole_queue_eta_seconds{model=\"m\"}",
        );
        assert!(eta.is_nan(), "{eta}");
    }

    #[test]
    fn every_label_is_prepared() {
        let metrics = metrics();
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
            Reject::QueueFull {
                what: "max_queued_source_bytes",
                limit: 1,
                retry_after: Duration::ZERO,
            },
            Reject::UserQueueFull {
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
            metrics.ended("m", end, Duration::ZERO, Usage::default());
        }
        let page = metrics.render();
        for end in ENDS {
            let series = format!("girandole_requests_total{{model=\"m\",end=\"{end}\"}}");
            assert!(value(&page, &series) >= 1.0, "{series}");
        }
    }
}
