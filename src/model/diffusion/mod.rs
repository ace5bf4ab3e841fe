//! Latent diffusion: pictures from noise, step by step.
//!
//! A row begins by having its prompt read and its noise drawn, then takes one denoising step in each pass,
//! and finishes by having its latent decoded. Rows of one pass differ in timestep, number of steps, schedule
//! and guidance as they like; what they share is the shape of latent and prompt. What a row becomes depends
//! on its request alone: noise is drawn from its seed, sums are in f32, and on the CPU every kernel treats
//! rows apart, so that a picture drawn in company is the picture drawn alone, bit for bit.

pub mod advice;
pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod denoiser;
pub mod flow;
pub mod frontend;
mod layers;
pub mod loader;
pub mod preview;
pub mod profile;
pub mod prompt;
pub mod random;
mod read_prompts;
mod row;
pub mod schedule;
pub mod stable_diffusion;
pub mod time_embedding;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use candle_core::Tensor;

use crate::batch::{
    BatchKey, Capacity, Emission, FinishReason, Next, Phase, PlannedRow, RowCost, RowOutcome, Slot,
};
use crate::job::{ImageJob, Job, PromptTokens};
use crate::model::{Admitted, Model, ModelError};
use crate::picture::Picture;

use denoiser::{Conditioning, Denoiser, DenoiserRow, PromptSide};
use frontend::DiffusionFrontend;
use preview::Preview;
use read_prompts::ReadPrompts;
use row::{Advanced, Row};
use schedule::StepCoefficients;
use schedule::rows::RowState;
use vae::{Moments, Vae, pixels};

/// Latent places that make one unit of work and of memory: those of 64 pixels squared.
const UNIT_PLACES: u64 = 64;
/// A decoding costs about as much as so many rows in a denoising step (measured on Stable Diffusion 1.5:
/// 1.26 against 0.40 tera-multiplications at 512 pixels squared).
const DECODE_ROWS: u32 = 3;
/// Encoding the picture that a row begins from costs as much as so many halves of a row's denoising step (0.56
/// against 0.40 tera-multiplications).
const ENCODE_HALF_ROWS: u32 = 3;
/// Rows of a prediction where its bits must not depend on their number: few, so that little is wasted on a row alone.
const DETERMINISTIC_ROWS: usize = 4;

/// How a diffusion model is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffusionOptions {
    /// Pictures that are drawn at once.
    pub batch_size: u32,
    /// Type of the weights on a device that computes in it; the file's own for `None`.
    pub dtype: Option<crate::model::device::FloatType>,
    /// Bytes of activations that a decoding may take; larger pictures are decoded in tiles.
    pub decode_memory_bytes: usize,
    /// Pixels of the largest picture.
    pub max_image_pixels: u32,
    /// Bytes of what the text encoders made of prompts read lately.
    pub prompt_cache_bytes: usize,
    /// Rows of the model's own size that share a pass, guided pictures counting twice; measured for `None`.
    pub max_rows_per_pass: Option<u32>,
    /// On a card, predictions are recorded as CUDA graphs.
    pub cuda_graphs: bool,
    /// The folder of a small decoder for previews.
    pub preview_decoder: Option<PathBuf>,
    /// The same request gives the same bits whatever its company, on every device. On the CPU it always does.
    pub deterministic: bool,
}

impl Default for DiffusionOptions {
    fn default() -> Self {
        DiffusionOptions {
            batch_size: 16,
            dtype: None,
            decode_memory_bytes: vae::DEFAULT_MEMORY_LIMIT,
            max_image_pixels: 1 << 20,
            prompt_cache_bytes: 1 << 26,
            max_rows_per_pass: None,
            cuda_graphs: true,
            preview_decoder: None,
            deterministic: false,
        }
    }
}

/// A diffusion model.
pub struct DiffusionModel {
    denoiser: Box<dyn Denoiser>,
    vae: Vae,
    preview: Preview,
    frontend: Arc<DiffusionFrontend>,
    capacity: Capacity,
    /// See [`Model::pass_work`].
    pass_work: u32,
    /// Predictions are made for so many rows at a time, neither more nor fewer.
    fixed_rows: Option<usize>,
    rows: Vec<Option<Row>>,
    prompts: ReadPrompts,
    /// The source encoded last: the pictures of a request share it.
    encoded: Option<(Weak<Picture>, Moments)>,
    noise: NoiseSource,
}

/// Where noise comes from: [`random::fill`], or in tests a reference's own.
pub type NoiseSource = Box<dyn Fn(u64, random::NoiseUse, &mut [f32])>;

struct ReadPrompt {
    prompt: Arc<[PromptTokens]>,
    side: PromptSide,
    chunks: usize,
    given: bool,
    clip_skip: u32,
    conditioning: Arc<Conditioning>,
}

impl DiffusionModel {
    /// A model of these parts.
    pub fn new(
        denoiser: Box<dyn Denoiser>,
        vae: Vae,
        preview: Preview,
        frontend: Arc<DiffusionFrontend>,
        options: &DiffusionOptions,
    ) -> Self {
        // Each row may be of the largest size and guided: slots are what is scarce.
        let places = u64::from(options.max_image_pixels) / (vae.config().factor() as u64).pow(2);
        let largest = 2 * places.div_ceil(UNIT_PLACES);
        let units = largest.saturating_mul(u64::from(options.batch_size));
        // The CPU's kernels treat rows apart whatever their number.
        let fixed = options.deterministic && !vae.device().is_cpu();
        DiffusionModel {
            pass_work: u32::MAX,
            fixed_rows: fixed.then_some(DETERMINISTIC_ROWS),
            denoiser,
            vae,
            preview,
            frontend,
            capacity: Capacity {
                slots: options.batch_size,
                memory_units: u32::try_from(units).unwrap_or(u32::MAX),
            },
            rows: (0..options.batch_size).map(|_| None).collect(),
            prompts: ReadPrompts::new(options.prompt_cache_bytes),
            encoded: None,
            noise: Box::new(random::fill),
        }
    }

    /// Waits until the device has done what it was told: for who measures.
    ///
    /// # Errors
    /// The device failed.
    pub fn synchronize(&self) -> Result<(), ModelError> {
        Ok(self.vae.device().synchronize()?)
    }

    /// The same model with noise from elsewhere.
    #[must_use]
    pub fn with_noise(mut self, noise: NoiseSource) -> Self {
        self.noise = noise;
        self
    }

    /// The same model, which predicts for so many rows at a time, as `deterministic` has it on a GPU.
    #[must_use]
    pub fn with_fixed_rows(mut self, rows: usize) -> Self {
        self.fixed_rows = Some(rows.max(1));
        self
    }

    /// Height and width of a job's latent.
    fn latent_size(&self, job: &ImageJob) -> (usize, usize) {
        let factor = self.vae.config().factor();
        (job.height as usize / factor, job.width as usize / factor)
    }

    /// Units of one row without guidance.
    fn units(&self, job: &ImageJob) -> u32 {
        let (height, width) = self.latent_size(job);
        let places = (height * width) as u64;
        u32::try_from(places.div_ceil(UNIT_PLACES)).unwrap_or(u32::MAX)
    }

    fn row(&self, slot: Slot) -> Result<&Row, ModelError> {
        self.rows[slot.index()]
            .as_ref()
            .ok_or_else(|| ModelError::Device(format!("{slot:?} is empty")))
    }

    /// Reads the row's prompts and puts its latent where it begins.
    fn begin(&mut self, slot: Slot) -> Result<(), ModelError> {
        let job = Arc::clone(&self.row(slot)?.job);
        let image = job.image();
        let positive = self.read(image, &image.prompt, PromptSide::Positive)?;
        let negative = match &image.negative {
            Some(negative) => Some(self.read(image, negative, PromptSide::Negative)?),
            None => None,
        };
        let source = match &image.source {
            Some(source) => Some(self.encode(&source.picture)?),
            None => None,
        };
        let size = self.latent_size(image);
        let channels = self.denoiser.latent_channels();
        let (vae, noise) = (&self.vae, &self.noise);
        let row = self.rows[slot.index()].as_mut();
        let row = row.expect("the slot was looked at above");
        let size = (size.0, size.1, channels);
        row.begin(vae, noise, size, positive, negative, source)
    }

    /// The distribution of a picture's latents.
    fn encode(&mut self, picture: &Arc<Picture>) -> Result<Moments, ModelError> {
        let known = Arc::downgrade(picture);
        if let Some((picture, moments)) = &self.encoded
            && picture.ptr_eq(&known)
        {
            return Ok(moments.clone());
        }
        let (height, width) = (picture.height() as usize, picture.width() as usize);
        let pixels = pixels::from_bytes(picture.rgb(), height, width, self.vae.device())?;
        let moments = self.vae.encode(&pixels)?;
        self.encoded = Some((known, moments.clone()));
        Ok(moments)
    }

    fn read(
        &mut self,
        job: &ImageJob,
        prompt: &Arc<[PromptTokens]>,
        side: PromptSide,
    ) -> Result<Arc<Conditioning>, ModelError> {
        let chunks = job.prompt_chunks();
        let is_same = |read: &ReadPrompt| {
            (read.side, read.chunks, read.given) == (side, chunks, job.negative_given)
                && read.clip_skip == job.clip_skip
                && read.prompt == *prompt
        };
        if let Some(conditioning) = self.prompts.find(is_same) {
            return Ok(conditioning);
        }
        let conditioning = Arc::new(self.denoiser.read(job, prompt, side)?);
        self.prompts.keep(ReadPrompt {
            prompt: Arc::clone(prompt),
            side,
            chunks,
            given: job.negative_given,
            clip_skip: job.clip_skip,
            conditioning: Arc::clone(&conditioning),
        });
        Ok(conditioning)
    }

    /// Takes the rows in these slots through one denoising step, side by side: all or, where memory runs out
    /// on the way, none. Returns what is to be shown of each.
    fn denoise(&mut self, slots: &[Slot]) -> Result<Vec<Option<Arc<Picture>>>, ModelError> {
        let rows: Vec<&Row> = slots
            .iter()
            .map(|slot| self.row(*slot))
            .collect::<Result<_, _>>()?;
        let steps: Vec<StepCoefficients> = rows.iter().map(|row| row.coefficients()).collect();
        let states: Vec<RowState> = rows
            .iter()
            .map(|row| row.state().cloned())
            .collect::<Result<_, _>>()?;
        let state = RowState::cat(&states)?;
        let output = self.predict(&rows, &steps, &state.x)?;
        let noise = self.step_noise(&rows, &steps, &state.x)?;
        let next = state.update(&steps, &output, noise.as_ref())?;
        let advanced: Vec<Advanced> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| row.advanced(&next, index))
            .collect::<Result<_, _>>()?;
        let shown = advanced
            .iter()
            .map(|advanced| match advanced.is_shown {
                true => Ok(Some(Arc::new(self.preview.picture(&advanced.denoised()?)?))),
                false => Ok(None),
            })
            .collect::<Result<_, ModelError>>()?;
        // From here on nothing can fail.
        for (slot, advanced) in slots.iter().zip(advanced) {
            let row = self.rows[slot.index()].as_mut();
            row.expect("the slot was looked at above").take(advanced);
        }
        Ok(shown)
    }

    /// The guided prediction: (rows, h, w, c) f32. Rows with guidance are predicted twice in the same pass.
    fn predict(
        &self,
        rows: &[&Row],
        steps: &[StepCoefficients],
        x: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let mut inputs = Vec::new();
        let mut asked = Vec::new();
        for side in [PromptSide::Positive, PromptSide::Negative] {
            for (index, (row, step)) in rows.iter().zip(steps).enumerate() {
                let Some(conditioning) = row.conditioning(side)? else {
                    continue;
                };
                let latent = x.narrow(0, index, 1)?;
                inputs.push(match step.input_scale == 1.0 {
                    true => latent,
                    false => latent.affine(step.input_scale, 0.0)?,
                });
                asked.push(DenoiserRow {
                    job: row.job.image(),
                    timestep: step.timestep,
                    conditioning,
                });
            }
        }
        let output = match self.fixed_rows {
            None => self.denoiser.predict(&Tensor::cat(&inputs, 0)?, &asked)?,
            Some(rows) => self.predict_by(rows, inputs, asked)?,
        };
        let mut second = rows.len();
        let guided = rows
            .iter()
            .enumerate()
            .map(|(index, row)| {
                let positive = output.narrow(0, index, 1)?;
                if row.conditioning(PromptSide::Negative)?.is_none() {
                    return Ok(positive);
                }
                let negative = output.narrow(0, second, 1)?;
                second += 1;
                let scale = f64::from(row.job.image().guidance_scale);
                Ok((&negative + (positive - &negative)?.affine(scale, 0.0)?)?)
            })
            .collect::<Result<Vec<Tensor>, ModelError>>()?;
        Ok(Tensor::cat(&guided, 0)?)
    }

    /// Predictions for so many rows at a time, the last of them again and again where some are missing: libraries choose
    /// their algorithms, and so the order of their sums, by the shapes that they are given.
    fn predict_by(
        &self,
        rows: usize,
        mut inputs: Vec<Tensor>,
        mut asked: Vec<DenoiserRow<'_>>,
    ) -> Result<Tensor, ModelError> {
        let wanted = inputs.len();
        let whole = wanted.next_multiple_of(rows);
        if let (Some(last), Some(row)) = (inputs.last().cloned(), asked.last().copied()) {
            inputs.resize(whole, last);
            asked.resize(whole, row);
        }
        let outputs = inputs
            .chunks(rows)
            .zip(asked.chunks(rows))
            .map(|(inputs, asked)| self.denoiser.predict(&Tensor::cat(inputs, 0)?, asked))
            .collect::<Result<Vec<Tensor>, ModelError>>()?;
        Ok(Tensor::cat(&outputs, 0)?.narrow(0, 0, wanted)?)
    }

    /// Fresh noise for the rows whose step draws some, zeros for the others; nothing if none does.
    fn step_noise(
        &self,
        rows: &[&Row],
        steps: &[StepCoefficients],
        x: &Tensor,
    ) -> Result<Option<Tensor>, ModelError> {
        if !steps.iter().any(StepCoefficients::needs_noise) {
            return Ok(None);
        }
        let len = x.elem_count() / rows.len();
        let mut noise = vec![0f32; len * rows.len()];
        for ((row, step), noise) in rows.iter().zip(steps).zip(noise.chunks_mut(len)) {
            if step.needs_noise() {
                let (seed, purpose) = row.step_noise();
                (self.noise)(seed, purpose, noise);
            }
        }
        Ok(Some(Tensor::from_vec(noise, x.shape(), x.device())?))
    }

    /// The picture of a row whose steps are done.
    fn decode(&self, slot: Slot) -> Result<Arc<Picture>, ModelError> {
        let row = self.row(slot)?;
        let latent = self.vae.unscale(&row.state()?.x)?;
        let decoded = self.vae.decode(&latent)?.squeeze(0)?;
        let image = row.job.image();
        let rgb = pixels::to_bytes(&decoded)?;
        Ok(Arc::new(Picture::new(image.width, image.height, rgb)))
    }

    fn outcome(
        &self,
        planned: &PlannedRow,
        shown: Option<Arc<Picture>>,
    ) -> Result<RowOutcome, ModelError> {
        let row = self.row(planned.slot)?;
        let mut emitted = Vec::new();
        if planned.phase == Phase::Iterate {
            emitted.push(Emission::Progress {
                step: row.step(),
                steps: row.steps(),
            });
            if let Some(picture) = shown {
                let step = row.step();
                emitted.push(Emission::Preview { step, picture });
            }
        }
        Ok(RowOutcome {
            slot: planned.slot,
            emitted,
            next: Next::Continue(row.key()),
        })
    }

    /// Ends a row with its picture. What is wrong with it alone ends it alone.
    fn finish(&self, slot: Slot) -> Result<RowOutcome, ModelError> {
        let row = self.row(slot)?;
        let (emitted, next) = match self.decode(slot) {
            Ok(picture) => {
                let seed = row.job.image().seed_of(row.choice);
                let image = Emission::Image { picture, seed };
                (vec![image], Next::Finish(FinishReason::Stop))
            }
            Err(error @ ModelError::OutOfMemory(_)) => return Err(error),
            Err(error) => (Vec::new(), Next::Fail(error.to_string())),
        };
        Ok(RowOutcome {
            slot,
            emitted,
            next,
        })
    }
}

impl Model for DiffusionModel {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn pass_work(&self) -> u32 {
        self.pass_work
    }

    /// Latents of one shape whose prompts are equally long share a pass.
    fn key(&self, job: &Job) -> BatchKey {
        let image = job.image();
        let mut hasher = DefaultHasher::new();
        (image.width, image.height, image.prompt_chunks()).hash(&mut hasher);
        BatchKey(hasher.finish() & !row::FINISHING)
    }

    fn cost(&self, job: &Job) -> RowCost {
        let image = job.image();
        let units = self.units(image);
        RowCost {
            // A prompt's states cost about as much as a unit of a step.
            begin_work: match &image.source {
                None => image.forward_rows(),
                Some(_) => image
                    .forward_rows()
                    .saturating_add(units.saturating_mul(ENCODE_HALF_ROWS) / 2),
            },
            max_iterations: image.iterations(),
            iterate_work: units.saturating_mul(image.forward_rows()),
            finish_work: units.saturating_mul(DECODE_ROWS),
            memory_units: units.saturating_mul(image.forward_rows()),
        }
    }

    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        if self.rows[slot.index()].is_some() {
            return Err(ModelError::Device(format!("{slot:?} is taken")));
        }
        // Made once more than in intake, where it was only looked at: a table of some hundred numbers.
        let schedule = self
            .frontend
            .noise_schedule(job.image())
            .map_err(ModelError::Device)?;
        let key = self.key(job);
        self.rows[slot.index()] = Some(Row::new(Arc::clone(job), choice, schedule, key));
        Ok(Admitted::default())
    }

    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        let of_phase = |phase: Phase| {
            rows.iter()
                .filter(move |planned| planned.phase == phase)
                .map(|planned| planned.slot)
        };
        // What is wrong with one row's beginning ends it alone, also that memory runs out: of the others none
        // has asked for more than it had.
        let mut failed: Vec<(Slot, String)> = Vec::new();
        for slot in of_phase(Phase::Begin) {
            if let Err(error) = self.begin(slot) {
                failed.push((slot, error.to_string()));
            }
        }
        let iterating: Vec<Slot> = of_phase(Phase::Iterate).collect();
        let mut shown = match iterating.is_empty() {
            true => Vec::new(),
            false => self.denoise(&iterating)?,
        }
        .into_iter();
        rows.iter()
            .map(|planned| {
                if let Some((slot, message)) = failed.iter().find(|(slot, _)| *slot == planned.slot)
                {
                    return Ok(RowOutcome {
                        slot: *slot,
                        emitted: Vec::new(),
                        next: Next::Fail(message.clone()),
                    });
                }
                match planned.phase {
                    Phase::Begin => self.outcome(planned, None),
                    Phase::Iterate => self.outcome(planned, shown.next().flatten()),
                    Phase::Finish => self.finish(planned.slot),
                }
            })
            .collect()
    }

    fn retire(&mut self, slot: Slot) {
        self.rows[slot.index()] = None;
    }
}
