//! A model's `scheduler_config.json`, as diffusers writes it.

use serde_json::Value;

use super::fields::{Fields, without_infinity, wrong};
use super::names::ScheduleChoice;
use super::{ScheduleError, ScheduleOptions};
use crate::job::ScheduleName;

/// Training steps that a configuration may claim; published models have 1000.
pub(super) const MAX_TRAIN_STEPS: usize = 10_000;

/// What a model's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity of arXiv 2202.00512.
    Velocity,
    /// The clean latent.
    Sample,
    /// The direction from the clean latent to the noise: a flow-matching model.
    Flow,
}

/// How the variances of training go from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    Cosine,
}

/// Which training steps are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// How noise levels are spaced that do not follow from the timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interpolation {
    Linear,
    LogLinear,
}

/// The variance of DDPM's noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variance {
    Small,
    Large,
}

/// The second and third order of the multistep solvers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Solver {
    Midpoint,
    Heun,
    Bh1,
    Bh2,
}

/// How flow levels are shifted for a picture's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeShift {
    Exponential,
    Linear,
}

/// What a model says about its noise. Fields that it leaves out stand for the default of the schedule that
/// is chosen, as when diffusers makes one scheduler from another's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleConfig {
    pub(super) class: ScheduleChoice,
    pub(super) train_steps: usize,
    pub(super) beta_start: Option<f64>,
    pub(super) beta_end: Option<f64>,
    pub(super) beta_schedule: Option<BetaSchedule>,
    pub(super) trained_betas: Option<Vec<f64>>,
    pub(super) zero_snr: bool,
    pub(super) prediction: Prediction,
    pub(super) spacing: Option<Spacing>,
    pub(super) steps_offset: usize,
    pub(super) set_alpha_to_one: bool,
    pub(super) clip: Option<f64>,
    pub(super) variance: Variance,
    pub(super) final_sigma_zero: bool,
    pub(super) interpolation: Interpolation,
    pub(super) exponential: bool,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) lambda_min: f64,
    pub(super) solver_order: usize,
    pub(super) solver: Option<Solver>,
    pub(super) stochastic_solver: bool,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) disable_corrector: Vec<usize>,
    pub(super) original_steps: usize,
    pub(super) timestep_scaling: f64,
    pub(super) shift: f64,
    pub(super) shift_terminal: Option<f64>,
    pub(super) dynamic: bool,
    pub(super) time_shift: TimeShift,
    pub(super) base_shift: f64,
    pub(super) max_shift: f64,
    pub(super) base_tokens: f64,
    pub(super) max_tokens: f64,
    pub(super) stochastic_flow: bool,
}

impl ScheduleConfig {
    /// Reads the file's text.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), or it is not JSON.
    pub fn from_text(text: &str) -> Result<Self, ScheduleError> {
        let json = serde_json::from_str(&without_infinity(text))
            .map_err(|error| wrong("(all of it)", error.to_string()))?;
        Self::from_json(&json)
    }

    /// Reads the file's content. Keys that it does not know are none of its business.
    ///
    /// # Errors
    /// A field is of the wrong type, out of range, or asks for what is not supported; named in the error.
    pub fn from_json(json: &Value) -> Result<Self, ScheduleError> {
        let fields = Fields::new(json)?;
        let class = fields.class()?;
        let karras = fields.flag("use_karras_sigmas", false)?;
        let exponential = fields.flag("use_exponential_sigmas", false)?;
        if karras && exponential {
            return Err(wrong(
                "use_exponential_sigmas",
                "excludes use_karras_sigmas",
            ));
        }
        fields.refuse_flags()?;
        let prediction = fields.prediction(class)?;
        // The solvers that know flows call the shift by another name.
        let (name, shift) = match class == ScheduleName::FlowMatchEuler {
            false if prediction == Prediction::Flow => (ScheduleName::FlowMatchEuler, "flow_shift"),
            _ => (class, "shift"),
        };
        let train_steps = fields.count("num_train_timesteps", 1, MAX_TRAIN_STEPS, 1000)?;
        let (stochastic_solver, solver) = fields.solver()?;
        let config = ScheduleConfig {
            class: ScheduleChoice {
                name,
                karras: karras && name.takes_karras(),
            },
            train_steps,
            beta_start: fields.number("beta_start", 1e-12, 0.999_999)?,
            beta_end: fields.number("beta_end", 1e-12, 0.999_999)?,
            beta_schedule: fields.word(
                "beta_schedule",
                &[
                    ("linear", BetaSchedule::Linear),
                    ("scaled_linear", BetaSchedule::ScaledLinear),
                    ("squaredcos_cap_v2", BetaSchedule::Cosine),
                ],
            )?,
            trained_betas: fields.betas(train_steps)?,
            zero_snr: fields.flag("rescale_betas_zero_snr", false)?,
            prediction,
            spacing: fields.word(
                "timestep_spacing",
                &[
                    ("leading", Spacing::Leading),
                    ("trailing", Spacing::Trailing),
                    ("linspace", Spacing::Linspace),
                ],
            )?,
            steps_offset: fields.count("steps_offset", 0, train_steps, 0)?,
            set_alpha_to_one: fields.flag("set_alpha_to_one", true)?,
            clip: fields.clip()?,
            variance: fields
                .word(
                    "variance_type",
                    // The logarithm of the small one is only another way to compute it.
                    &[
                        ("fixed_small", Variance::Small),
                        ("fixed_small_log", Variance::Small),
                        ("fixed_large", Variance::Large),
                    ],
                )?
                .unwrap_or(Variance::Small),
            final_sigma_zero: fields
                .word("final_sigmas_type", &[("zero", true), ("sigma_min", false)])?
                .unwrap_or(true),
            interpolation: fields
                .word(
                    "interpolation_type",
                    &[
                        ("linear", Interpolation::Linear),
                        ("log_linear", Interpolation::LogLinear),
                    ],
                )?
                .unwrap_or(Interpolation::Linear),
            exponential,
            sigma_min: fields.number("sigma_min", 0.0, 1e6)?,
            sigma_max: fields.number("sigma_max", 0.0, 1e6)?,
            lambda_min: fields.lambda_min()?,
            solver_order: fields.count("solver_order", 1, 3, 2)?,
            solver,
            stochastic_solver,
            lower_order_final: fields.flag("lower_order_final", true)?,
            euler_at_final: fields.flag("euler_at_final", false)?,
            disable_corrector: fields.indices("disable_corrector")?,
            original_steps: fields.count("original_inference_steps", 1, train_steps, 50)?,
            timestep_scaling: fields
                .number("timestep_scaling", 1e-3, 1e6)?
                .unwrap_or(10.0),
            shift: fields.number(shift, 1e-6, 1e6)?.unwrap_or(1.0),
            shift_terminal: fields
                .number("shift_terminal", 0.0, 0.999)?
                .filter(|&terminal| terminal != 0.0),
            dynamic: fields.flag("use_dynamic_shifting", false)?,
            time_shift: fields
                .word(
                    "time_shift_type",
                    &[
                        ("exponential", TimeShift::Exponential),
                        ("linear", TimeShift::Linear),
                    ],
                )?
                .unwrap_or(TimeShift::Exponential),
            base_shift: fields.number("base_shift", -50.0, 50.0)?.unwrap_or(0.5),
            max_shift: fields.number("max_shift", -50.0, 50.0)?.unwrap_or(1.15),
            base_tokens: fields
                .number("base_image_seq_len", 1.0, 1e9)?
                .unwrap_or(256.0),
            max_tokens: fields
                .number("max_image_seq_len", 1.0, 1e9)?
                .unwrap_or(4096.0),
            stochastic_flow: fields.flag("stochastic_sampling", false)?,
        };
        if config.dynamic && config.max_tokens == config.base_tokens {
            return Err(wrong("max_image_seq_len", "equals base_image_seq_len"));
        }
        Ok(config)
    }

    /// The model's own schedule. For PNDM, which is not among ours, it is DDIM: it takes the same
    /// timesteps and means the same by the rest of the file. For a flow's multistep solver it is Euler's method for flows,
    /// which takes the same shift.
    pub fn default_choice(&self) -> ScheduleChoice {
        self.class
    }

    /// Whether the model was trained for flow matching, so that it goes with flow schedules only.
    pub fn is_flow(&self) -> bool {
        self.prediction == Prediction::Flow
    }

    /// Made for the schedule of latent consistency models.
    pub fn is_consistency(&self) -> bool {
        self.class.name == ScheduleName::Lcm
    }

    /// Sampled as the Turbo models are: Euler from the very last training step, with noise predicted. Models
    /// whose last step was mended (zero terminal SNR) also begin there, but predict the velocity.
    pub fn is_turbo(&self) -> bool {
        matches!(
            self.class.name,
            ScheduleName::Euler | ScheduleName::EulerAncestral
        ) && self.spacing == Some(Spacing::Trailing)
            && self.prediction == Prediction::Epsilon
            && !self.zero_snr
    }

    /// For flow models whose shift depends on the picture's size in tokens: the mean of the logarithm of
    /// the shift, straight between two sizes of training (arXiv 2403.03206, 5.3.2). `None` for others.
    pub fn dynamic_shift(&self, image_tokens: usize) -> Option<f64> {
        self.dynamic.then(|| {
            let slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens);
            self.base_shift + slope * (image_tokens as f64 - self.base_tokens)
        })
    }

    /// What does not depend on how a schedule works.
    pub(super) fn check(&self, options: &ScheduleOptions) -> Result<(), ScheduleError> {
        let name = options.name;
        let flow_schedule = name == ScheduleName::FlowMatchEuler;
        let unsuitable = |reason: &str| {
            Err(ScheduleError::Unsuitable {
                name,
                reason: reason.to_owned(),
            })
        };
        if options.steps == 0 || options.steps > self.train_steps {
            return Err(ScheduleError::Steps {
                given: options.steps,
                limit: self.train_steps,
                why: "the model's training steps",
            });
        }
        if !(0.0..=1.0).contains(&options.eta) {
            return Err(ScheduleError::Eta(options.eta));
        }
        if self.is_flow() && !flow_schedule {
            return unsuitable("the model was trained for flow matching; flow-euler goes with it");
        }
        if flow_schedule && !self.is_flow() {
            return unsuitable("the model was not trained for flow matching");
        }
        if options.karras && !name.takes_karras() {
            return unsuitable("its noise levels have no Karras spacing");
        }
        Ok(())
    }
}
