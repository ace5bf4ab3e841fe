//! `bench engine`: [`pictures`] of an image model; of a text model prompts and tokens a second of one model, straight from [`TextModel::step`] and so with
//! everything that a step does: the pass, sampling and detokenising.
//!
//! [`TextModel::step`]: crate::model::Model::step

use std::time::Duration;

use super::driver::Driver;
use super::limits::{Limits, Shares};
use super::machine::{Machine, Memory, processor_time};
use super::picture_report::LoadFigures;
use super::report::{
    DecodeFigures, DecodeLevel, Demand, EngineReport, Measured, PartShare, PrefillFigures,
    PrefillLevel, Report, SCHEMA, SCHEMA_VERSION, Setup, part_shares,
};
use super::statistics::Spread;
use super::{BenchError, EngineBench, pictures};
use crate::config::{Config, ModelConfig};
use crate::gpu_check::card::Card;
use crate::kernels::isa::Isa;
use crate::kernels::threads::compute_threads;
use crate::model::ModelError;
use crate::model::device::DeviceSpec;
use crate::model::diffusion::loader::ImageFiles;
use crate::model::loader::{self, TextAssets};
use crate::model::manifest::ModelFiles;
use crate::model::sources::{self, LoadFormat};
use crate::model::text::profile;
use crate::model::text::work::{DecoderWork, PassWork};
use crate::time::RealClock;

/// Decode steps after which the caches hold what they will hold.
const WARM_UP_STEPS: u32 = 3;
/// Below this a share of processor time says more about the kernel's clock than about us.
const MIN_PROCESSOR_TIME: Duration = Duration::from_millis(20);

/// Measures the configured model, with as many slots as the largest level has rows and without a prefix
/// cache: a pass is timed for what it computes, and nobody pays for digests.
///
/// # Errors
/// There is not exactly one model that computes, it cannot be had, built or run. Levels that do not fit are no
/// errors; the report says why they are missing.
pub fn run(options: &EngineBench, config: &Config) -> Result<Report, BenchError> {
    let [model] = &config.models[..] else {
        return Err(BenchError::SeveralModels(config.models.len()));
    };
    let files = match sources::fetch(&model.model, model.load_format, &config.sources)? {
        ModelFiles::Scripted(path) => {
            return Err(BenchError::Scripted(path.display().to_string()));
        }
        files => files,
    };
    match ImageFiles::of(&files) {
        Some(files) => {
            let report = pictures::run(options, model, &files)?;
            Ok(Report::Pictures(Box::new(report)))
        }
        None => Ok(Report::Text(Box::new(run_text(options, model, &files)?))),
    }
}

fn run_text(
    options: &EngineBench,
    model: &ModelConfig,
    files: &ModelFiles,
) -> Result<EngineReport, BenchError> {
    let machine = Machine::here();
    let assets = loader::load_assets(files)?;
    let mut settings = model.text.clone();
    settings.batch_size = options.rows.iter().copied().max().unwrap_or(1);
    settings.prefix_cache_tokens = Some(0);
    let served_context = assets.served_context(&settings, model.device())?;
    // Before the model takes the card's memory.
    let card_limits = match model.device() {
        DeviceSpec::Cpu => None,
        DeviceSpec::Cuda(_) | DeviceSpec::Metal(_) => {
            tracing::info!("measuring the card's limits");
            Some(Limits::of_device(model.device(), model.text.dtype)?)
        }
    };
    tracing::info!(model = model.name, "loading the model");
    let loading = RealClock::start();
    let mut text_model = loader::build_text(&assets, model.device(), &settings)?;
    let load_seconds = loading.elapsed().as_secs_f64();
    let memory = Memory::now();
    let work = text_model.work();

    let limits = match model.device() {
        DeviceSpec::Cpu => {
            tracing::info!("measuring the machine's limits");
            let caches = machine.last_level_cache_bytes;
            Some(Limits::measure(caches, work.weight_bytes())?)
        }
        DeviceSpec::Cuda(_) | DeviceSpec::Metal(_) => card_limits,
    };
    let vocabulary = u32::try_from(assets.config.vocab_size).unwrap_or(u32::MAX);
    let mut bench = Bench {
        driver: Driver::new(&mut text_model, vocabulary, served_context, options.seed),
        options,
        work: &work,
        limits: limits.as_ref(),
        times_parts: model.device() == DeviceSpec::Cpu,
        clock: RealClock::start(),
    };
    let prefill = bench.prefill_levels()?;
    let decode = bench.decode_levels()?;
    Ok(EngineReport {
        schema: SCHEMA,
        schema_version: SCHEMA_VERSION,
        girandole: env!("CARGO_PKG_VERSION"),
        machine,
        setup: setup(options, model, &assets, served_context, &prefill),
        demand: Demand {
            weight_bytes_per_pass: work.weight_bytes(),
            operations_per_token: 2 * work.products_per_token(),
            integer_operations_per_token: 2
                * (work.every_token.integer_products + work.wanted_tokens.integer_products),
        },
        limits,
        load: LoadFigures {
            seconds: load_seconds,
            memory,
        },
        prefill,
        decode,
        card: Card::of(model.device()),
    })
}

fn setup(
    options: &EngineBench,
    model: &ModelConfig,
    assets: &TextAssets,
    served_context: u32,
    prefill: &[PrefillLevel],
) -> Setup {
    let kv_dtype = model
        .text
        .kv_dtype
        .unwrap_or(model.device().default_kv_dtype());
    let step_budget = model.engine.scheduler.step_budget;
    let speed = prefill.iter().find_map(|level| match &level.measured {
        Measured::Figures(figures) => Some(figures.tokens_per_second.median),
        Measured::Skipped { .. } => None,
    });
    Setup {
        model: model.name.clone(),
        source: model.model.to_string(),
        family: assets.config.family.name(),
        load_format: match model.load_format {
            LoadFormat::Auto => "auto",
            LoadFormat::Dummy { .. } => "dummy",
        },
        device: model.device().to_string(),
        dtype: model.text.dtype.map(|dtype| dtype.to_string()),
        kv_dtype: kv_dtype.to_string(),
        served_context,
        compute_threads: compute_threads(),
        instructions: Isa::detected().to_string(),
        prefill: options.prefill.clone(),
        rows: options.rows.clone(),
        context: options.context,
        warm_up_steps: WARM_UP_STEPS,
        steps: options.steps,
        repeats: options.repeats,
        seed: options.seed,
        serve_step_budget_ms: step_budget.as_secs_f64() * 1e3,
        serve_chunk_tokens: speed.map(|speed| ((speed * step_budget.as_secs_f64()) as u32).max(1)),
    }
}

/// A model under measurement.
struct Bench<'a> {
    driver: Driver<'a>,
    options: &'a EngineBench,
    work: &'a DecoderWork,
    limits: Option<&'a Limits>,
    /// Elsewhere work goes on when its part has ended.
    times_parts: bool,
    clock: RealClock,
}

/// What something took.
#[derive(Clone, Copy)]
struct Sample {
    wall: Duration,
    /// Processor time of all threads.
    processor: Option<Duration>,
}

impl Bench<'_> {
    fn prefill_levels(&mut self) -> Result<Vec<PrefillLevel>, BenchError> {
        let mut levels = Vec::new();
        for &tokens in &self.options.prefill {
            tracing::info!(tokens, "measuring prefill");
            let measured = match self.driver.refusal(1, tokens, 1) {
                Some(skipped) => Measured::Skipped { skipped },
                None => self.unless_out_of_memory(1, |bench| bench.prefill(tokens))?,
            };
            levels.push(PrefillLevel { tokens, measured });
        }
        Ok(levels)
    }

    fn decode_levels(&mut self) -> Result<Vec<DecodeLevel>, BenchError> {
        let mut levels = Vec::new();
        for &rows in &self.options.rows {
            tracing::info!(rows, "measuring decode");
            let new_tokens = self.new_tokens();
            let measured = match self.driver.refusal(rows, self.options.context, new_tokens) {
                Some(skipped) => Measured::Skipped { skipped },
                None => self.unless_out_of_memory(rows, |bench| bench.decode(rows))?,
            };
            levels.push(DecodeLevel { rows, measured });
        }
        Ok(levels)
    }

    /// Measures a level and empties its slots.
    fn unless_out_of_memory<F>(
        &mut self,
        rows: u32,
        measure: impl FnOnce(&mut Self) -> Result<F, BenchError>,
    ) -> Result<Measured<F>, BenchError> {
        let figures = measure(self);
        self.driver.retire(rows);
        match figures {
            Ok(figures) => Ok(Measured::Figures(Box::new(figures))),
            Err(BenchError::Model(error @ ModelError::OutOfMemory(_))) => Ok(Measured::Skipped {
                skipped: error.to_string(),
            }),
            Err(error) => Err(error),
        }
    }

    /// New tokens of a row that decodes: the first ends its prefill, the last repeat is the profiler's.
    /// One is left over, so that no step is the row's last.
    fn new_tokens(&self) -> u32 {
        let options = self.options;
        2 + WARM_UP_STEPS + options.steps * (options.repeats + 1)
    }

    fn prefill(&mut self, tokens: u32) -> Result<PrefillFigures, BenchError> {
        // Once without a clock: threads are up, and memory for prompts of this length has been touched.
        let row = self.driver.admit(0, tokens, 1)?;
        self.driver.prefill(&row)?;
        self.driver.retire(1);
        let mut samples = Vec::new();
        for _ in 0..self.options.repeats {
            let row = self.driver.admit(0, tokens, 1)?;
            samples.push(self.sample(|driver| driver.prefill(&row))?);
            self.driver.retire(1);
        }
        let row = self.driver.admit(0, tokens, 1)?;
        let parts = self.parts(1, |driver| driver.prefill(&row))?;
        let pass_ms = milliseconds(&samples, 1);
        Ok(PrefillFigures {
            tokens_per_second: rate(&samples, tokens),
            tokens_per_cpu_second: processor_rate(&samples, tokens),
            shares: self.shares(&self.work.prefill(tokens), &pass_ms),
            pass_ms,
            parts,
        })
    }

    fn decode(&mut self, rows: u32) -> Result<DecodeFigures, BenchError> {
        let EngineBench {
            context,
            steps,
            repeats,
            ..
        } = *self.options;
        self.driver.fill(rows, context, self.new_tokens())?;
        self.driver.decode(rows, WARM_UP_STEPS)?;
        let mut samples = Vec::new();
        for _ in 0..repeats {
            samples.push(self.sample(|driver| driver.decode(rows, steps))?);
        }
        let parts = self.parts(steps, |driver| driver.decode(rows, steps))?;
        // The token of the first step stands after the prompt, and sees itself.
        let first_context = context + WARM_UP_STEPS + 1;
        let last_context = first_context + steps * repeats - 1;
        let middle = self
            .work
            .decode(rows, (first_context + last_context) as usize / 2 - 1);
        let step_ms = milliseconds(&samples, steps);
        Ok(DecodeFigures {
            tokens_per_second: rate(&samples, rows * steps),
            tokens_per_cpu_second: processor_rate(&samples, rows * steps),
            first_context,
            last_context,
            kv_bytes_per_step: middle.kv_bytes,
            shares: self.shares(&middle, &step_ms),
            step_ms,
            parts,
        })
    }

    fn sample(
        &mut self,
        run: impl FnOnce(&mut Driver<'_>) -> Result<(), BenchError>,
    ) -> Result<Sample, BenchError> {
        let processor = processor_time();
        let start = self.clock.elapsed();
        run(&mut self.driver)?;
        let wall = self.clock.elapsed().saturating_sub(start);
        let used = processor.zip(processor_time());
        Ok(Sample {
            wall,
            processor: used
                .map(|(before, after)| after.saturating_sub(before))
                .filter(|used| *used >= MIN_PROCESSOR_TIME),
        })
    }

    /// Where the time of `steps` steps goes.
    fn parts(
        &mut self,
        steps: u32,
        run: impl FnOnce(&mut Driver<'_>) -> Result<(), BenchError>,
    ) -> Result<Option<Vec<PartShare>>, BenchError> {
        let (sample, times) = profile::record(|| self.sample(run));
        let took = sample?.wall;
        Ok(self.times_parts.then(|| part_shares(&times, took, steps)))
    }

    fn shares(&self, pass: &PassWork, took_ms: &Spread) -> Option<Shares> {
        let limits = self.limits?;
        Some(limits.shares(pass, took_ms.median / 1e3))
    }
}

fn milliseconds(samples: &[Sample], steps: u32) -> Spread {
    spread(samples, |sample| {
        sample.wall.as_secs_f64() * 1e3 / f64::from(steps)
    })
}

fn rate(samples: &[Sample], tokens: u32) -> Spread {
    spread(samples, |sample| per_second(tokens, sample.wall))
}

/// Of the samples all or none count, so that the figures stand for the same thing.
fn processor_rate(samples: &[Sample], tokens: u32) -> Option<Spread> {
    let times: Option<Vec<Duration>> = samples.iter().map(|sample| sample.processor).collect();
    Spread::of(times?.into_iter().map(|time| per_second(tokens, time)))
}

fn per_second(tokens: u32, time: Duration) -> f64 {
    f64::from(tokens) / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn spread(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> Spread {
    Spread::of(samples.iter().map(value)).expect("a level is measured at least once")
}
