//! `bench engine` of an image model: denoising steps, decodings, encodings and prompts, straight from
//! [`Model::step`] and so with everything that a step does.
//!
//! [`Model::step`]: crate::model::Model::step

use std::sync::Arc;
use std::time::Duration;

use super::limits::{self, Limits};
use super::machine::{Machine, Memory};
use super::picture_driver::PictureDriver;
use super::picture_report::{
    LoadFigures, PictureReport, PictureSetup, SCHEMA, SCHEMA_VERSION, SizeLevel, StepFigures,
    StepLevel, Timed, pictures_per_minute,
};
use super::picture_work::PictureWork;
use super::report::Measured;
use super::statistics::Spread;
use super::{BenchError, EngineBench};
use crate::config::ModelConfig;
use crate::gpu_check::card::Card;
use crate::job::Job;
use crate::kernels::isa::Isa;
use crate::kernels::threads::compute_threads;
use crate::model::ModelError;
use crate::model::device::DeviceSpec;
use crate::model::diffusion::config::StableDiffusionConfig;
use crate::model::diffusion::loader::{self, DiffusionAssets, ImageFiles};
use crate::model::image_frontend::{Guidance, ImageFrontend};
use crate::model::sources::LoadFormat;
use crate::time::RealClock;

/// Steps of the pictures that are reckoned with.
const STEPS: u32 = 20;
/// So many rows are measured however long they take; more only if they fit a point's time.
const ROWS_ANYWAY: u32 = 8;
/// Samples of a point that are expected to fit its time, or else it is left out: one to warm up, one that counts.
const LEAST_SAMPLES: f64 = 2.0;

/// Measures the model, with as many slots as the largest level has rows.
///
/// # Errors
/// The model cannot be built or run, or a size is none of its own. Levels that do not fit are no errors; the
/// report says why they are missing.
pub(super) fn run(
    options: &EngineBench,
    model: &ModelConfig,
    files: &ImageFiles,
) -> Result<PictureReport, BenchError> {
    let machine = Machine::here();
    // Before the model takes the card's memory.
    let card_operations = match model.device() {
        DeviceSpec::Cpu => None,
        DeviceSpec::Cuda(_) | DeviceSpec::Metal(_) => {
            Some(Limits::of_device(model.device(), model.diffusion.dtype)?)
        }
    };
    let clock = RealClock::start();
    let assets = loader::load_files(files)?;
    let sizes = sizes(options, &assets)?;
    let pixels = |(width, height): &(u32, u32)| width.saturating_mul(*height);
    let mut settings = model.diffusion.clone();
    settings.batch_size = options.rows.iter().copied().max().unwrap_or(1);
    settings.max_image_pixels = sizes.iter().map(pixels).max().unwrap_or(1);
    tracing::info!(model = model.name, "loading the model");
    let diffusion_model = loader::build(&assets, model.device(), &settings)?;
    diffusion_model.synchronize()?;
    let load = LoadFigures {
        seconds: clock.elapsed().as_secs_f64(),
        memory: Memory::now(),
    };
    let float_operations_per_second = match card_operations {
        None => limits::float_operations_per_second(),
        Some(limits) => limits.float_operations_per_second,
    };
    let frontend = Arc::clone(&assets.frontend);
    let mut bench = PictureBench {
        driver: PictureDriver::new(diffusion_model, frontend, options.seed, STEPS),
        options,
        // Other families' shapes are not counted.
        shape: StableDiffusionConfig::read(&files.folder).ok(),
        float_operations_per_second: Some(float_operations_per_second),
        rows_per_picture: 1 + u32::from(assets.frontend.guidance() == Guidance::Classifier),
        clock,
    };
    let text = bench.text(sizes[0])?;
    let reading = median(&text);
    let sizes = sizes
        .iter()
        .map(|&size| bench.size(size, reading))
        .collect::<Result<_, _>>()?;
    Ok(PictureReport {
        schema: SCHEMA,
        schema_version: SCHEMA_VERSION,
        girandole: env!("CARGO_PKG_VERSION"),
        machine,
        setup: setup(options, model),
        load,
        float_operations_per_second: Some(float_operations_per_second),
        text,
        sizes,
        memory: Memory::now(),
        card: Card::of(model.device()),
    })
}

/// The sizes asked for, or else the model's own.
fn sizes(options: &EngineBench, assets: &DiffusionAssets) -> Result<Vec<(u32, u32)>, BenchError> {
    let factor = assets.size_factor;
    let is_whole = |edge: u32| edge > 0 && edge.is_multiple_of(factor);
    let mut sizes = options.sizes.clone();
    if sizes.is_empty() {
        sizes.push(assets.size);
    }
    match sizes
        .iter()
        .find(|(width, height)| !is_whole(*width) || !is_whole(*height))
    {
        None => Ok(sizes),
        Some(&(width, height)) => Err(BenchError::Size {
            width,
            height,
            factor,
        }),
    }
}

fn setup(options: &EngineBench, model: &ModelConfig) -> PictureSetup {
    PictureSetup {
        model: model.name.clone(),
        source: model.model.to_string(),
        load_format: match model.load_format {
            LoadFormat::Auto => "auto",
            LoadFormat::Dummy { .. } => "dummy",
        },
        device: model.device().to_string(),
        dtype: model.diffusion.dtype.map(|dtype| dtype.to_string()),
        compute_threads: compute_threads(),
        instructions: Isa::detected().to_string(),
        rows: options.rows.clone(),
        most_samples: options.steps,
        point_seconds: options.point_seconds,
        steps: STEPS,
        seed: options.seed,
    }
}

/// An image model under measurement.
struct PictureBench<'a> {
    driver: PictureDriver,
    options: &'a EngineBench,
    shape: Option<StableDiffusionConfig>,
    float_operations_per_second: Option<f64>,
    /// 2 where guidance takes a second row, 1 where it is part of the network.
    rows_per_picture: u32,
    clock: RealClock,
}

impl PictureBench<'_> {
    /// Reading prompts that nobody has read yet.
    fn text(&mut self, (width, height): (u32, u32)) -> Result<Measured<Timed>, BenchError> {
        tracing::info!("measuring prompts");
        self.point(1, None, |bench| {
            let job = bench.driver.fresh_job(width, height)?;
            bench.driver.admit(1, &Arc::new(Job::Image(job)))?;
            bench.time(|driver| driver.begin(1))
        })
    }

    /// `reading`: seconds that a prompt takes, if that could be measured.
    fn size(
        &mut self,
        (width, height): (u32, u32),
        reading: Option<f64>,
    ) -> Result<SizeLevel, BenchError> {
        let work = self
            .shape
            .as_ref()
            .map(|shape| PictureWork::of(shape, width, height));
        let job = Arc::new(Job::Image(self.driver.job(width, height)?));
        tracing::info!(width, height, "measuring decoding");
        let mut has_begun = false;
        let decode = self.point(1, work.map(|work| work.decode), |bench| {
            if !has_begun {
                bench.begin(1, &job)?;
                has_begun = true;
            }
            bench.time(PictureDriver::decode)
        })?;
        tracing::info!(width, height, "measuring encoding");
        let from_picture = self.driver.job_from_picture(width, height)?;
        let from_picture = Arc::new(Job::Image(from_picture));
        let encode = self.point(1, work.map(|work| work.encode), |bench| {
            bench.driver.admit(1, &from_picture)?;
            bench.time(|driver| driver.begin(1))
        })?;
        let own = reading
            .zip(median(&decode))
            .map(|(reading, decode)| reading + decode);
        let mut steps = Vec::new();
        let mut seconds_a_row = None;
        for &rows in &self.options.rows {
            tracing::info!(width, height, rows, "measuring denoising");
            let measured = match self.refusal(rows, seconds_a_row) {
                Some(skipped) => Measured::Skipped { skipped },
                None => self.steps(rows, &job, work.map(|work| work.step), own)?,
            };
            if let Measured::Figures(figures) = &measured {
                seconds_a_row = Some(figures.step.seconds.median / f64::from(rows));
            }
            steps.push(StepLevel { rows, measured });
        }
        Ok(SizeLevel {
            width,
            height,
            multiply_adds: work,
            steps,
            decode,
            encode,
        })
    }

    /// Why so many rows are not worth the wait; `seconds_a_row` as the level before had it.
    fn refusal(&self, rows: u32, seconds_a_row: Option<f64>) -> Option<String> {
        let expected = f64::from(rows) * seconds_a_row?;
        let limit = f64::from(self.options.point_seconds);
        (rows > ROWS_ANYWAY && LEAST_SAMPLES * expected > limit).then(|| {
            format!(
                "a step is expected to take {expected:.1} s, and there are {limit} s for a warm-up and a \
                 sample (--point-seconds)"
            )
        })
    }

    fn begin(&mut self, rows: u32, job: &Arc<Job>) -> Result<(), BenchError> {
        self.driver.admit(rows, job)?;
        self.driver.begin(rows)
    }

    fn steps(
        &mut self,
        rows: u32,
        job: &Arc<Job>,
        work: Option<u64>,
        own: Option<f64>,
    ) -> Result<Measured<StepFigures>, BenchError> {
        let mut left = 0;
        let rows_per_picture = self.rows_per_picture;
        let work = work.map(|work| work * u64::from(rows));
        let measured = self.point(rows, work, |bench| {
            if left == 0 {
                bench.begin(rows, job)?;
                left = STEPS;
            }
            left -= 1;
            bench.time(|driver| driver.denoise(rows))
        })?;
        Ok(match measured {
            Measured::Skipped { skipped } => Measured::Skipped { skipped },
            Measured::Figures(step) => {
                let seconds = step.seconds.median;
                Measured::Figures(Box::new(StepFigures {
                    row_steps_per_second: f64::from(rows) / seconds.max(f64::MIN_POSITIVE),
                    pictures_per_minute: own.filter(|_| rows.is_multiple_of(rows_per_picture)).map(
                        |own| pictures_per_minute(rows / rows_per_picture, STEPS, seconds, own),
                    ),
                    step: *step,
                }))
            }
        })
    }

    /// How long a pass takes. What goes before it is not counted.
    fn time(
        &mut self,
        pass: impl FnOnce(&mut PictureDriver) -> Result<(), BenchError>,
    ) -> Result<Duration, BenchError> {
        let start = self.clock.elapsed();
        pass(&mut self.driver)?;
        Ok(self.clock.elapsed().saturating_sub(start))
    }

    /// Samples until there are enough or the point's time is used up, and empties the slots. The first counts
    /// only if it is the last. `work`: multiply-adds of a sample.
    fn point(
        &mut self,
        rows: u32,
        work: Option<u64>,
        mut sample: impl FnMut(&mut Self) -> Result<Duration, BenchError>,
    ) -> Result<Measured<Timed>, BenchError> {
        let budget = Duration::from_secs(u64::from(self.options.point_seconds));
        let start = self.clock.elapsed();
        let mut samples: Vec<Duration> = Vec::new();
        let outcome = loop {
            match sample(self) {
                Ok(took) => samples.push(took),
                Err(error) => break Err(error),
            }
            let used = self.clock.elapsed().saturating_sub(start);
            // The next one is expected to take as long as those so far.
            let next = used / samples.len() as u32;
            if samples.len() > self.options.steps as usize || used + next > budget {
                break Ok(());
            }
        };
        self.driver.retire(rows);
        match outcome {
            Ok(()) => Ok(Measured::Figures(Box::new(self.timed(&samples, work)))),
            Err(BenchError::Model(error @ ModelError::OutOfMemory(_))) => Ok(Measured::Skipped {
                skipped: error.to_string(),
            }),
            Err(error) => Err(error),
        }
    }

    fn timed(&self, samples: &[Duration], work: Option<u64>) -> Timed {
        let (warm_up, counted) = match samples {
            [warm_up, counted @ ..] if !counted.is_empty() => (Some(warm_up), counted),
            all => (None, all),
        };
        let seconds = Spread::of(counted.iter().map(Duration::as_secs_f64))
            .expect("a point is measured at least once");
        let arithmetic = work
            .zip(self.float_operations_per_second)
            .map(|(work, limit)| 2.0 * work as f64 / limit / seconds.median);
        Timed {
            seconds,
            samples: counted.len(),
            warmed_up: warm_up.is_some(),
            arithmetic,
        }
    }
}

fn median(measured: &Measured<Timed>) -> Option<f64> {
    match measured {
        Measured::Figures(timed) => Some(timed.seconds.median),
        Measured::Skipped { .. } => None,
    }
}
