//! A model's `scheduler_config.json`, as diffusers writes it.

use serde_json::{Map, Value};

use super::names::ScheduleChoice;
use super::{ScheduleError, ScheduleOptions};
use crate::job::ScheduleName;

/// Training steps that a configuration may claim; published models have 1000.
const MAX_TRAIN_STEPS: usize = 10_000;

/// What Python writes for the number.
const MINUS_INFINITY: &str = "-Infinity";

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
        let fields = Fields(
            json.as_object()
                .ok_or_else(|| wrong("(all of it)", "is not an object"))?,
        );
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
        let train_steps = fields.count("num_train_timesteps", 1, MAX_TRAIN_STEPS, 1000)?;
        let (stochastic_solver, solver) = fields.solver()?;
        let config = ScheduleConfig {
            class: ScheduleChoice {
                name: class,
                karras: karras && class.takes_karras(),
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
            shift: fields.number("shift", 1e-6, 1e6)?.unwrap_or(1.0),
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
    /// timesteps and means the same by the rest of the file.
    pub fn default_choice(&self) -> ScheduleChoice {
        self.class
    }

    /// What the model predicts.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// Whether the model was trained for flow matching, so that it goes with flow schedules only.
    pub fn is_flow(&self) -> bool {
        self.prediction == Prediction::Flow
    }

    /// Training steps: the most that a request can ask for.
    pub fn train_steps(&self) -> usize {
        self.train_steps
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

/// Python writes a minus infinity, the usual `lambda_min_clipped`, as no JSON has it: puts quotes around.
fn without_infinity(text: &str) -> String {
    let mut quoted = false;
    let mut escaped = false;
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        if !quoted && rest.starts_with(MINUS_INFINITY) {
            clean.push('"');
            clean.push_str(MINUS_INFINITY);
            clean.push('"');
            rest = &rest[MINUS_INFINITY.len()..];
            continue;
        }
        if letter == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && letter == '\\' && !escaped;
        clean.push(letter);
        rest = &rest[letter.len_utf8()..];
    }
    clean
}

fn wrong(field: &str, reason: impl Into<String>) -> ScheduleError {
    ScheduleError::Config {
        field: field.to_owned(),
        reason: reason.into(),
    }
}

/// The file's fields, with errors that name them. `null` is the same as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn class(&self) -> Result<ScheduleName, ScheduleError> {
        let class = self
            .get("_class_name")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("_class_name", "is missing"))?;
        if class == "PNDMScheduler" {
            return Ok(ScheduleName::Ddim);
        }
        ScheduleName::ALL
            .into_iter()
            .find(|name| name.class() == class)
            .ok_or_else(|| {
                let known = ScheduleName::ALL.map(ScheduleName::class).join(", ");
                wrong(
                    "_class_name",
                    format!("{class} is not among PNDMScheduler, {known}"),
                )
            })
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool, ScheduleError> {
        self.get(field).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| wrong(field, format!("{value} is not true or false")))
        })
    }

    /// What changes the arithmetic and is not there.
    fn refuse_flags(&self) -> Result<(), ScheduleError> {
        for field in [
            "thresholding",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "invert_sigmas",
        ] {
            if self.flag(field, false)? {
                return Err(wrong(field, "is not supported"));
            }
        }
        if !self.flag("predict_x0", true)? {
            return Err(wrong("predict_x0", "false is not supported"));
        }
        self.word("timestep_type", &[("discrete", ())])?;
        if self.get("solver_p").is_some() {
            return Err(wrong("solver_p", "is not supported"));
        }
        Ok(())
    }

    fn prediction(&self, class: ScheduleName) -> Result<Prediction, ScheduleError> {
        let said = self.word(
            "prediction_type",
            &[
                ("epsilon", Prediction::Epsilon),
                ("v_prediction", Prediction::Velocity),
                ("sample", Prediction::Sample),
                ("original_sample", Prediction::Sample),
                ("flow_prediction", Prediction::Flow),
            ],
        )?;
        if class == ScheduleName::FlowMatchEuler {
            return match said {
                None | Some(Prediction::Flow) => Ok(Prediction::Flow),
                Some(_) => Err(wrong("prediction_type", "does not go with a flow schedule")),
            };
        }
        let flow_sigmas = self.flag("use_flow_sigmas", false)?;
        if flow_sigmas != (said == Some(Prediction::Flow)) {
            return Err(wrong(
                "use_flow_sigmas",
                "goes with the prediction_type flow_prediction, and with no other",
            ));
        }
        Ok(said.unwrap_or(Prediction::Epsilon))
    }

    fn word<T: Copy>(&self, field: &str, known: &[(&str, T)]) -> Result<Option<T>, ScheduleError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let found = known
            .iter()
            .find(|(word, _)| value.as_str() == Some(*word))
            .map(|(_, meaning)| *meaning);
        found.map(Some).ok_or_else(|| {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            wrong(field, format!("{value} is not among {}", words.join(", ")))
        })
    }

    fn number(&self, field: &str, min: f64, max: f64) -> Result<Option<f64>, ScheduleError> {
        self.get(field)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|number| (min..=max).contains(number))
                    .ok_or_else(|| {
                        wrong(
                            field,
                            format!("{value} is not a number from {min} to {max}"),
                        )
                    })
            })
            .transpose()
    }

    fn count(
        &self,
        field: &str,
        min: usize,
        max: usize,
        default: usize,
    ) -> Result<usize, ScheduleError> {
        self.get(field).map_or(Ok(default), |value| {
            value
                .as_u64()
                .and_then(|count| usize::try_from(count).ok())
                .filter(|count| (min..=max).contains(count))
                .ok_or_else(|| {
                    wrong(
                        field,
                        format!("{value} is not a whole number from {min} to {max}"),
                    )
                })
        })
    }

    fn betas(&self, train_steps: usize) -> Result<Option<Vec<f64>>, ScheduleError> {
        let field = "trained_betas";
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let betas: Option<Vec<f64>> = value.as_array().and_then(|list| {
            list.iter()
                .map(|beta| beta.as_f64().filter(|beta| *beta > 0.0 && *beta < 1.0))
                .collect()
        });
        betas
            .filter(|betas| betas.len() == train_steps)
            .map(Some)
            .ok_or_else(|| {
                wrong(
                    field,
                    format!("is not a list of {train_steps} numbers between 0 and 1"),
                )
            })
    }

    /// Left out, it is off, though diffusers' DDIM and DDPM then clip: latents know no such bounds, and
    /// the Stable Diffusion pipelines switch it off as well.
    fn clip(&self) -> Result<Option<f64>, ScheduleError> {
        let range = self.number("clip_sample_range", 1e-6, 1e6)?.unwrap_or(1.0);
        Ok(self.flag("clip_sample", false)?.then_some(range))
    }

    /// A number, or minus infinity between quotes.
    fn lambda_min(&self) -> Result<f64, ScheduleError> {
        let field = "lambda_min_clipped";
        if self.get(field).and_then(Value::as_str) == Some(MINUS_INFINITY) {
            return Ok(f64::NEG_INFINITY);
        }
        Ok(self
            .number(field, -100.0, 100.0)?
            .unwrap_or(f64::NEG_INFINITY))
    }

    fn solver(&self) -> Result<(bool, Option<Solver>), ScheduleError> {
        let stochastic = self.word(
            "algorithm_type",
            &[
                ("dpmsolver++", false),
                ("deis", false),
                ("sde-dpmsolver++", true),
            ],
        )?;
        let solver = self.word(
            "solver_type",
            &[
                ("midpoint", Some(Solver::Midpoint)),
                ("heun", Some(Solver::Heun)),
                ("bh1", Some(Solver::Bh1)),
                ("bh2", Some(Solver::Bh2)),
                ("logrho", None),
            ],
        )?;
        Ok((stochastic.unwrap_or(false), solver.flatten()))
    }

    fn indices(&self, field: &str) -> Result<Vec<usize>, ScheduleError> {
        let Some(value) = self.get(field) else {
            return Ok(Vec::new());
        };
        let list = value
            .as_array()
            .filter(|list| list.len() <= MAX_TRAIN_STEPS)
            .and_then(|list| {
                list.iter()
                    .map(|index| index.as_u64().and_then(|index| usize::try_from(index).ok()))
                    .collect()
            });
        list.ok_or_else(|| wrong(field, "is not a list of step numbers"))
    }
}
