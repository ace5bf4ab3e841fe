//! The fields of a `scheduler_config.json`, read with errors that name them.

use serde_json::{Map, Value};

use super::ScheduleError;
use super::config::{MAX_TRAIN_STEPS, Prediction, Solver};
use crate::job::ScheduleName;

/// What Python writes for the number.
const MINUS_INFINITY: &str = "-Infinity";

/// Python writes a minus infinity, the usual `lambda_min_clipped`, as no JSON has it: puts quotes around.
pub(super) fn without_infinity(text: &str) -> String {
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

pub(super) fn wrong(field: &str, reason: impl Into<String>) -> ScheduleError {
    ScheduleError::Config {
        field: field.to_owned(),
        reason: reason.into(),
    }
}

/// The file's fields, with errors that name them. `null` is the same as absent.
pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn new(json: &'a Value) -> Result<Self, ScheduleError> {
        let map = json.as_object();
        map.map(Fields)
            .ok_or_else(|| wrong("(all of it)", "is not an object"))
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn class(&self) -> Result<ScheduleName, ScheduleError> {
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

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool, ScheduleError> {
        self.get(field).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| wrong(field, format!("{value} is not true or false")))
        })
    }

    /// What changes the arithmetic and is not there.
    pub(super) fn refuse_flags(&self) -> Result<(), ScheduleError> {
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

    pub(super) fn prediction(&self, class: ScheduleName) -> Result<Prediction, ScheduleError> {
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

    pub(super) fn word<T: Copy>(
        &self,
        field: &str,
        known: &[(&str, T)],
    ) -> Result<Option<T>, ScheduleError> {
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

    pub(super) fn number(
        &self,
        field: &str,
        min: f64,
        max: f64,
    ) -> Result<Option<f64>, ScheduleError> {
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

    pub(super) fn count(
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

    pub(super) fn betas(&self, train_steps: usize) -> Result<Option<Vec<f64>>, ScheduleError> {
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
    pub(super) fn clip(&self) -> Result<Option<f64>, ScheduleError> {
        let range = self.number("clip_sample_range", 1e-6, 1e6)?.unwrap_or(1.0);
        Ok(self.flag("clip_sample", false)?.then_some(range))
    }

    /// A number, or minus infinity between quotes.
    pub(super) fn lambda_min(&self) -> Result<f64, ScheduleError> {
        let field = "lambda_min_clipped";
        if self.get(field).and_then(Value::as_str) == Some(MINUS_INFINITY) {
            return Ok(f64::NEG_INFINITY);
        }
        Ok(self
            .number(field, -100.0, 100.0)?
            .unwrap_or(f64::NEG_INFINITY))
    }

    pub(super) fn solver(&self) -> Result<(bool, Option<Solver>), ScheduleError> {
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

    pub(super) fn indices(&self, field: &str) -> Result<Vec<usize>, ScheduleError> {
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
