//! Noise schedules as tables of numbers: which noise levels a picture goes through, and how it gets from
//! one to the next.
//!
//! A [`NoiseSchedule`] is made once for a request, in f64, from the model's [`ScheduleConfig`] and the
//! request's [`ScheduleOptions`]. It holds no tensor and never changes, so rows at different steps of
//! different schedules are updated side by side, each by its own numbers.
//!
//! # The form of a step
//!
//! With the latent `x`, the model's output `out` for `input_scale * x` at `timestep`, the denoised latents
//! `d1`, `d2`, `d3` of the steps before (the latest first), the anchor `s` and fresh normal noise `n`:
//!
//! ```text
//! d  = clip(denoised_x * x + denoised_output * out)
//! x' = a x + b out + c d + e1 d1 + e2 d2 + e3 d3 + f s + g n      (the weights `next`)
//! s' = the same with other weights                                (the weights `anchor`)
//! (d1, d2, d3) becomes (d, d1, d2)
//! ```
//!
//! `c` is not 0 only if the configuration clips denoised latents; otherwise `d` is spelled out, which also
//! keeps the difference of large numbers out of f32. This covers all the updates:
//!
//! * DDPM (arXiv 2006.11239, eq. 7), DDIM with its eta (arXiv 2010.02502, eq. 12 and 16) and latent
//!   consistency models (arXiv 2310.04378) use `a`, `b`, `g`, and `c` when clipping.
//! * Euler (arXiv 2206.00364, algorithm 2 without churn), its ancestral variant and Euler for flows
//!   (arXiv 2210.02747) use `a`, `b`, `g`.
//! * DPM-Solver++ (arXiv 2211.01095) of order 1 to 3 uses `d1` and `d2`, its stochastic variant also `g`.
//! * UniPC (arXiv 2302.04867) first corrects the latent with the model's newest output and then predicts
//!   from the corrected one. The corrected latent is the anchor: a sum of the anchor before, `d1` to `d3`
//!   and `d`. The prediction is a sum of it and those; put in, that is one sum for `s'` and one for `x'`.
//!
//! The tables agree with diffusers' schedulers evaluated in f64 to 11 digits (`tests/model/schedules`); three
//! of its habits are not followed. With "trailing" spacing and some step counts (61 is the least) it takes a step
//! too many, at timestep -1: here there are as many steps as asked for. And where two steps share a noise
//! level the multistep solvers divide by zero: here such a step uses fewer earlier ones. And DPM++ with "trailing"
//! spacing and a finite `lambda_min_clipped` has the distance between timesteps from all training steps there, here from
//! those that the bound leaves.
//!
//! # Rounding
//!
//! [`NoiseSchedule::step`] rounds each weight once to f32, multiplies and adds term by term in the order
//! above, never fused. [`rows::RowState::update`] does the same with tensors for many rows, and yields the
//! same bits (tested on the CPU).

mod coefficients;
mod config;
mod discrete;
mod euler;
mod fields;
mod flow;
mod levels;
mod multistep;
mod names;
pub mod rows;
mod training;
mod unipc;

pub use coefficients::{Blend, History, KEPT, Real, StepCoefficients};
pub use config::{Prediction, ScheduleConfig};
pub use names::{ScheduleChoice, UnknownSchedule};

use crate::job::ScheduleName;

/// A schedule cannot be made, or not be used like that.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// The model's configuration.
    #[error("scheduler_config.json: {field}: {reason}")]
    Config {
        /// The field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The number of steps.
    #[error("steps: {given} is not from 1 to {limit}, {why}")]
    Steps {
        /// As asked for.
        given: usize,
        /// The most.
        limit: usize,
        /// Where the limit is from.
        why: &'static str,
    },
    /// How much of the schedule to run.
    #[error("strength: {0} is not above 0 and at most 1")]
    Strength(f64),
    /// So little of the schedule that no step is left.
    #[error("strength: {strength} of {steps} steps is less than one step")]
    NothingToDo {
        /// As asked for.
        strength: f64,
        /// Of the whole schedule.
        steps: usize,
    },
    /// The share of noise.
    #[error("eta: {0} is not from 0 to 1")]
    Eta(f64),
    /// This schedule does not go with this model or these options.
    #[error("schedule {name}: {reason}")]
    Unsuitable {
        /// The schedule.
        name: ScheduleName,
        /// Why not.
        reason: String,
    },
    /// The configuration leads to a number that is none.
    #[error(
        "schedule {name}: step {index} of the model's noise levels has no finite coefficients (a model without signal \
         at its last timestep must predict v or the sample)"
    )]
    NotFinite {
        /// The schedule.
        name: ScheduleName,
        /// From 0.
        index: usize,
    },
    /// A step that is not there.
    #[error("step {index} of a schedule of {len}")]
    Index {
        /// From 0.
        index: usize,
        /// Steps there are.
        len: usize,
    },
    /// A slice of the wrong length.
    #[error("{what} of {given} elements for a latent of {expected}")]
    Length {
        /// What the slice holds.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The latent's.
        expected: usize,
    },
    /// The step draws noise, and was given none.
    #[error("a step that draws noise was given none")]
    NoiseMissing,
}

/// What a request asks of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleOptions {
    /// Which update.
    pub name: ScheduleName,
    /// Space the noise levels as in Karras et al. (arXiv 2206.00364).
    pub karras: bool,
    /// Steps of the whole schedule.
    pub steps: usize,
    /// With an input picture, how much of the schedule is run: above 0, up to 1. In f64, as the request
    /// has it: 10 steps at 0.7 are 7, but at the f32 nearest to 0.7 they are 6.
    pub strength: Option<f64>,
    /// Share of fresh noise in DDIM's steps, from 0 to 1. Others do not read it.
    pub eta: f64,
    /// Where a flow's levels begin and end before they are shifted. Others do not read it.
    pub flow_levels: FlowLevels,
    /// For flow models whose shift depends on the picture's size:
    /// [`ScheduleConfig::dynamic_shift`]. Others do not read it.
    pub dynamic_shift: Option<f64>,
}

impl ScheduleOptions {
    /// From noise alone, with the neutral value of everything else.
    pub fn new(name: ScheduleName, steps: usize) -> Self {
        ScheduleOptions {
            name,
            karras: false,
            steps,
            strength: None,
            eta: 0.0,
            flow_levels: FlowLevels::default(),
            dynamic_shift: None,
        }
    }
}

/// Where a flow's noise levels lie before they are shifted: a property of the pipeline, not of the
/// scheduler's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlowLevels {
    /// From 1 to the least level of training, as Stable Diffusion 3's pipeline has it.
    #[default]
    Trained,
    /// From 1 to 1/steps, as the pipelines of Flux and Z-Image have it.
    Even,
}

/// How much signal and how much noise go into a noised latent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    /// Weight of the clean latent.
    pub signal: f64,
    /// Weight of normal noise.
    pub noise: f64,
}

/// What a family of schedules makes of the options.
struct Table {
    /// The steps that are run.
    steps: Vec<StepCoefficients>,
    /// The latent that the first step begins with.
    begin: Mixture,
    /// A clean latent at the noise level before each of the steps.
    noised: Vec<Mixture>,
    /// Denoised latents that later steps read.
    kept: usize,
    anchored: bool,
}

/// The steps of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    options: ScheduleOptions,
    first: usize,
    steps: Vec<StepCoefficients>,
    begin: Mixture,
    noised: Vec<Mixture>,
    kept: usize,
    anchored: bool,
}

impl NoiseSchedule {
    /// Works out the table.
    ///
    /// # Errors
    /// The options are out of range, do not go with each other, or do not go with the model.
    pub fn new(config: &ScheduleConfig, options: ScheduleOptions) -> Result<Self, ScheduleError> {
        let name = options.name;
        config.check(&options)?;
        let first = match options.strength {
            None => 0,
            Some(strength) => options.steps - iterations(options.steps, strength, name)?,
        };
        let table = match name {
            ScheduleName::Ddim => discrete::ddim(config, &options, first)?,
            ScheduleName::Ddpm => discrete::ddpm(config, &options, first)?,
            ScheduleName::Lcm => discrete::lcm(config, &options, first)?,
            ScheduleName::Euler => euler::euler(config, &options, first)?,
            ScheduleName::EulerAncestral => euler::ancestral(config, &options, first)?,
            ScheduleName::DpmPlusPlus2m => multistep::table(config, &options, first)?,
            ScheduleName::UniPc => unipc::table(config, &options, first)?,
            ScheduleName::FlowMatchEuler => flow::table(config, &options, first)?,
        };
        let mixtures = table.noised.iter().chain([&table.begin]);
        let begins = mixtures
            .into_iter()
            .all(|mixture| mixture.signal.is_finite() && mixture.noise.is_finite());
        let wrong = table.steps.iter().position(|step| !step.is_finite());
        if let Some(index) = wrong.or((!begins).then_some(0)) {
            return Err(ScheduleError::NotFinite { name, index });
        }
        Ok(NoiseSchedule {
            options,
            first,
            steps: table.steps,
            begin: table.begin,
            noised: table.noised,
            kept: table.kept,
            anchored: table.anchored,
        })
    }

    /// What it was made for.
    pub fn options(&self) -> &ScheduleOptions {
        &self.options
    }

    /// Steps to run, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Steps of the whole schedule that are left out at its beginning. Step `index` of this table is step
    /// `first() + index` of the whole.
    pub fn first(&self) -> usize {
        self.first
    }

    /// The latent to begin with: of an input picture's latent and noise, or of noise alone.
    pub fn begin(&self) -> Mixture {
        self.begin
    }

    /// How a clean latent is mixed with noise to look like the latent before step `index`, counted as
    /// [`step`](Self::step) does; behind the last step it is clean. For inpainting, where what is kept of
    /// the picture is put back after each step.
    pub fn noised(&self, index: usize) -> Mixture {
        self.noised.get(index).copied().unwrap_or(Mixture {
            signal: 1.0,
            noise: 0.0,
        })
    }

    /// The numbers of step `index`, from 0 to below [`len`](Self::len).
    pub fn coefficients(&self, index: usize) -> Option<&StepCoefficients> {
        self.steps.get(index)
    }

    /// The numbers of all steps.
    pub fn steps(&self) -> &[StepCoefficients] {
        &self.steps
    }

    /// How many denoised latents, at most [`KEPT`], a row carries from step to step.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Whether a row carries an anchor from step to step.
    pub fn anchored(&self) -> bool {
        self.anchored
    }

    /// What a row of `len` elements carries before its first step.
    pub fn history<T: Real>(&self, len: usize) -> History<T> {
        History::new(self.kept, self.anchored, len)
    }

    /// Takes one row through step `index`: `x` becomes the next latent. `noise` is read only by steps that
    /// [need it](StepCoefficients::needs_noise).
    ///
    /// # Errors
    /// There is no such step, a slice has another length than `x`, or noise is needed and missing.
    pub fn step<T: Real>(
        &self,
        index: usize,
        x: &mut [T],
        output: &[T],
        history: &mut History<T>,
        noise: Option<&[T]>,
    ) -> Result<(), ScheduleError> {
        let step = self.steps.get(index).ok_or(ScheduleError::Index {
            index,
            len: self.steps.len(),
        })?;
        coefficients::update(step, x, output, history, noise)
    }
}

/// Steps that are run of `steps` when a picture is given; see [`ScheduleName::iterations`].
///
/// # Errors
/// `strength` is not above 0 and at most 1, or nothing is left to run.
fn iterations(steps: usize, strength: f64, name: ScheduleName) -> Result<usize, ScheduleError> {
    if !(strength > 0.0 && strength <= 1.0) {
        return Err(ScheduleError::Strength(strength));
    }
    let whole = u32::try_from(steps).unwrap_or(u32::MAX);
    match name.iterations(whole, strength) as usize {
        0 => Err(ScheduleError::NothingToDo { strength, steps }),
        run => Ok(run),
    }
}
