//! The result of `vllm bench serve --save-result`, so that dashboards made for it read our runs: field
//! names as of its `benchmarks/serve.py` (version 0.23).
//!
//! Two things differ and are said in the object's `metadata` fields: our latencies count from the intended
//! start, theirs from the sending; and a percentile that the samples do not hold is `null`, not a guess.

use serde_json::{Map, Value, json};

use crate::bench::results::{Api, Arrivals, BenchReport, Distribution, Metric, Offered, Point};
use crate::model::text::chat_template::format_utc;

/// Their names of four of our latencies. `itl` is the gap between two frames, not between two steps.
const METRICS: [(&str, Metric); 4] = [
    ("ttft", Metric::TimeToFirstToken),
    ("tpot", Metric::TimePerOutputToken),
    ("itl", Metric::FrameGap),
    ("e2el", Metric::EndToEnd),
];

/// One object a line and point, as `--append-result` writes them.
pub fn vllm_json_lines(report: &BenchReport) -> String {
    let lines = report.points.iter().map(|point| {
        let object = Value::Object(object(report, point));
        object.to_string() + "\n"
    });
    lines.collect()
}

fn object(report: &BenchReport, point: &Point) -> Map<String, Value> {
    let load = &report.client.load;
    let backend = match load.api {
        Api::OpenaiChat => "openai-chat",
        Api::OpenaiCompletions => "openai",
        Api::OpenaiImages | Api::Native => "girandole",
    };
    let started = report.started_unix_seconds + point.started_seconds as u64;
    let date = format_utc("%Y%m%d-%H%M%S", started).expect("the format knows its directives");
    // They write an unlimited rate as this word; JSON has no infinity.
    let infinite = || json!("inf");
    let (rate, users) = match point.offered {
        Offered::Rate {
            requests_per_second,
        } => (json!(requests_per_second), Value::Null),
        Offered::Users { users } => (infinite(), json!(users)),
    };
    let burstiness = match load.arrivals {
        Arrivals::Constant => infinite(),
        Arrivals::Gamma { burstiness } => json!(burstiness),
        Arrivals::Poisson | Arrivals::Trace { .. } | Arrivals::Users { .. } => json!(1.0),
    };
    let counts = &point.counts;
    let has_objectives = !report.client.objectives.limits.is_empty();
    let throughput = &point.throughput;
    let rate_of =
        |estimate: Option<crate::bench::results::Estimate>| estimate.map(|rate| rate.value);
    let (prompt, output) = (
        rate_of(throughput.prompt_tokens_per_second),
        rate_of(throughput.output_tokens_per_second),
    );
    let timeline = &point.timeline;
    let measured = || {
        let window = timeline.measured_from_seconds..=timeline.measured_to_seconds;
        let seconds = timeline.seconds.iter();
        seconds.filter(move |second| window.contains(&second.at_seconds))
    };
    let fields = json!({
        "date": date,
        "endpoint_type": backend,
        "backend": backend,
        "label": report.label,
        "model_id": report.server.model,
        "tokenizer_id": report.server.model,
        "num_prompts": counts.due,
        "metadata_tool": format!("girandole {}", report.client.girandole),
        "metadata_latencies_from": "intended start",
        "request_rate": rate,
        "burstiness": burstiness,
        "max_concurrency": users,
        "duration": point.windows.measured_seconds,
        "completed": counts.completed,
        "failed": counts.bad(),
        "total_input_tokens": counts.prompt_tokens,
        "total_output_tokens": counts.output_tokens,
        "request_throughput": throughput.requests_per_second.value,
        "request_goodput": has_objectives.then_some(point.goodput.requests_per_second.value),
        "output_throughput": output,
        "total_token_throughput": prompt.zip(output).map(|(prompt, output)| prompt + output),
        "max_output_tokens_per_s": measured().map(|second| second.output_tokens).max(),
        "max_concurrent_requests": measured().map(|second| second.open_streams).max(),
    });
    let Value::Object(mut object) = fields else {
        unreachable!("it was written as an object");
    };
    for (name, metric) in METRICS {
        latencies(&mut object, name, point.latencies.get(metric));
    }
    object
}

fn latencies(object: &mut Map<String, Value>, name: &str, found: Option<&Distribution>) {
    let mut set = |statistic: &str, value: Option<f64>| {
        object.insert(format!("{statistic}_{name}_ms"), json!(value));
    };
    set("mean", found.and_then(|found| found.mean));
    let percentiles = found.map(Distribution::percentiles);
    let percentile = |wanted: &str| {
        let (_, value) = percentiles?.into_iter().find(|(name, _)| *name == wanted)?;
        value.map(|value| value.value)
    };
    set("median", percentile("p50"));
    set("std", found.and_then(|found| found.deviation));
    for wanted in ["p50", "p90", "p95", "p99"] {
        set(wanted, percentile(wanted));
    }
}
