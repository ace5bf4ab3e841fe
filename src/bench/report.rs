//! What `bench engine` found of a text model: the JSON object that it writes, field for field. Times are seconds
//! unless their name says otherwise.

use std::time::Duration;

use serde::Serialize;

use super::limits::{Limits, Shares};
use super::machine::Machine;
use super::picture_report::{LoadFigures, PictureReport};
use super::statistics::Spread;
use crate::gpu_check::card::Card;
use crate::model::text::profile::{Part, PartTimes};

/// What the object is called; its meaning changes with the version only.
pub const SCHEMA: &str = "girandole.bench.engine";
/// Counts changes of a field's meaning or name. New fields do not count.
pub const SCHEMA_VERSION: u32 = 1;

/// What was found, by the kind of model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// Of a text model.
    Text(Box<EngineReport>),
    /// Of an image model.
    Pictures(Box<PictureReport>),
}

impl Report {
    /// The report as tables.
    pub fn table(&self) -> String {
        match self {
            Report::Text(report) => report.table(),
            Report::Pictures(report) => report.table(),
        }
    }
}

/// The whole report of a text model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EngineReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The program's version.
    pub girandole: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub setup: Setup,
    /// What the model asks of any machine.
    pub demand: Demand,
    /// What this machine could give: the processor, or the card.
    pub limits: Option<Limits>,
    /// Until the model stood ready; memory of the process, not of a card.
    pub load: LoadFigures,
    /// One entry per prompt length.
    pub prefill: Vec<PrefillLevel>,
    /// One entry per number of rows.
    pub decode: Vec<DecodeLevel>,
    /// The card after all levels, as its driver tells; nothing for other devices.
    pub card: Option<Card>,
}

/// What was measured, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setup {
    /// The model's name, as in requests.
    pub model: String,
    /// Where it comes from, as after `--model`.
    pub source: String,
    /// The decoder's family.
    pub family: &'static str,
    /// `auto`, or `dummy` for random weights.
    pub load_format: &'static str,
    /// Where it runs.
    pub device: String,
    /// Type of weights that are not quantised, if it was chosen.
    pub dtype: Option<String>,
    /// Type of keys and values.
    pub kv_dtype: String,
    /// Positions that a row may reach.
    pub served_context: u32,
    /// Threads of the kernels.
    pub compute_threads: usize,
    /// Instructions of the kernels.
    pub instructions: String,
    /// Prompt lengths asked for.
    pub prefill: Vec<u32>,
    /// Numbers of rows asked for.
    pub rows: Vec<u32>,
    /// Tokens in each row's K/V before it decodes.
    pub context: u32,
    /// Decode steps before the timed ones.
    pub warm_up_steps: u32,
    /// Decode steps of a repeat.
    pub steps: u32,
    /// How often each level was measured.
    pub repeats: u32,
    /// Seed of the prompts.
    pub seed: u64,
    /// How long `serve` lets a step take, with this configuration.
    pub serve_step_budget_ms: f64,
    /// Prompt tokens that fit such a step when no row decodes, at the speed of the first prefill level.
    pub serve_chunk_tokens: Option<u32>,
}

/// What the model asks of any machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Demand {
    /// Weights that a pass reads: every linear layer and the head as they are packed, not the embedding.
    pub weight_bytes_per_pass: u64,
    /// Operations of the linear layers for a token whose logits are wanted, two per multiply-add.
    pub operations_per_token: u64,
    /// Of these, operations on 8-bit integers.
    pub integer_operations_per_token: u64,
}

/// Figures, or why there are none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Measured<F> {
    /// What was measured.
    Figures(Box<F>),
    /// The level does not fit.
    Skipped {
        /// What does not fit, with the limit.
        skipped: String,
    },
}

/// A prompt length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefillLevel {
    /// Tokens of the prompt, all in one pass.
    pub tokens: u32,
    /// What it took.
    #[serde(flatten)]
    pub measured: Measured<PrefillFigures>,
}

/// What a prompt took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefillFigures {
    /// Tokens a second.
    pub tokens_per_second: Spread,
    /// Tokens per second of processor time, over all threads, if the system tells and long enough.
    pub tokens_per_cpu_second: Option<Spread>,
    /// The pass.
    pub pass_ms: Spread,
    /// What the median pass uses of the machine.
    pub shares: Option<Shares>,
    /// Where the time goes, from a pass of its own; only known for the processor.
    pub parts: Option<Vec<PartShare>>,
}

/// A number of rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeLevel {
    /// Rows that decode together.
    pub rows: u32,
    /// What they took.
    #[serde(flatten)]
    pub measured: Measured<DecodeFigures>,
}

/// What decoding took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeFigures {
    /// Tokens a second, all rows together.
    pub tokens_per_second: Spread,
    /// Tokens per second of processor time, over all threads, if the system tells and long enough.
    pub tokens_per_cpu_second: Option<Spread>,
    /// A step: the mean of each repeat.
    pub step_ms: Spread,
    /// Positions that each row saw in the first timed step.
    pub first_context: u32,
    /// Positions that each row saw in the last timed step.
    pub last_context: u32,
    /// Keys and values that a step reads, halfway between these.
    pub kv_bytes_per_step: u64,
    /// What the median step uses of the machine, halfway between these.
    pub shares: Option<Shares>,
    /// Where the time goes, from a repeat of its own; only known for the processor.
    pub parts: Option<Vec<PartShare>>,
}

/// A part of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartShare {
    /// Its name.
    pub part: &'static str,
    /// Its time in a step.
    pub ms: f64,
    /// Its share of the step.
    pub share: f64,
}

/// What no part claims.
const REST: &str = "everything else";

/// The parts of `steps` steps that took `took` together, and what is left.
pub fn part_shares(times: &PartTimes, took: Duration, steps: u32) -> Vec<PartShare> {
    let rest = took.saturating_sub(times.total());
    let named = Part::ALL.map(|part| (part.name(), times.get(part)));
    named
        .into_iter()
        .chain([(REST, rest)])
        .map(|(part, time)| PartShare {
            part,
            ms: time.as_secs_f64() * 1e3 / f64::from(steps.max(1)),
            share: time.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::text::profile::{record, timed};
    use crate::time::RealClock;

    #[test]
    fn parts_and_the_rest_make_the_step() {
        let clock = RealClock::start();
        let wait = || {
            let start = clock.elapsed();
            while clock.elapsed() == start {
                std::hint::spin_loop();
            }
        };
        let ((), times) = record(|| timed(Part::Head, wait));
        let took = times.total() * 4;
        let parts = part_shares(&times, took, 2);
        assert_eq!(parts.len(), Part::ALL.len() + 1);
        let share = |name: &str| {
            let found = parts.iter().find(|part| part.part == name);
            found.expect("every part is there").share
        };
        assert!((share("head") - 0.25).abs() < 1e-9, "{parts:?}");
        assert!((share(REST) - 0.75).abs() < 1e-9, "{parts:?}");
        let ms: f64 = parts.iter().map(|part| part.ms).sum();
        assert!((ms - took.as_secs_f64() * 1e3 / 2.0).abs() < 1e-9);
    }
}
