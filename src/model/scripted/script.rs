//! The script itself: its keys, their defaults, and what is refused.

use std::path::Path;

use serde::Deserialize;

use super::BLOCK_TOKENS;
use crate::model::ModelError;

/// What the model does; see the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// What it holds.
    pub model: ModelScript,
    /// How long it takes.
    pub cost: CostScript,
    /// What it says.
    pub output: OutputScript,
    /// It draws pictures.
    pub image: Option<ImageScript>,
    /// How it fails.
    #[serde(rename = "fault")]
    pub faults: Vec<FaultScript>,
}

/// The script's `[model]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelScript {
    /// Rows at once.
    pub slots: u32,
    /// Prompt and new tokens of one request: the limit that the service should check.
    pub context_tokens: u32,
    /// Blocks of 32 tokens, for all rows together.
    pub memory_units: u32,
    /// So many prompt tokens are reported as found in a prefix cache.
    pub cached_prompt_tokens: u32,
    /// How many groups of rows there are that cannot share a pass. At least 1.
    pub keys: u64,
    /// A pass of texts with more rows than this runs out of memory.
    pub out_of_memory_above_rows: Option<u32>,
    /// So does one with more prompt tokens than this.
    pub out_of_memory_above_tokens: Option<u32>,
    /// Loading fails with this message.
    pub fail_load: Option<String>,
}

impl ModelScript {
    /// Tokens that a row may hold: what the model takes, as far as its memory goes.
    pub fn served_context(&self) -> u32 {
        self.context_tokens
            .min(self.memory_units.saturating_mul(BLOCK_TOKENS))
    }
}

impl Default for ModelScript {
    fn default() -> Self {
        ModelScript {
            slots: 256,
            context_tokens: 8192,
            memory_units: 65_536,
            cached_prompt_tokens: 0,
            keys: 1,
            out_of_memory_above_rows: None,
            out_of_memory_above_tokens: None,
            fail_load: None,
        }
    }
}

/// The script's `[image]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageScript {
    /// Units of a row without guidance in a denoising step.
    pub iterate_work: u32,
    /// Units of a picture's decoding.
    pub finish_work: u32,
    /// A denoising step with more pictures than this runs out of memory.
    pub out_of_memory_above: Option<u32>,
    /// Units of denoising steps in a pass, at most; any number if absent.
    pub pass_work: Option<u32>,
}

/// A row's work is counted in 32 bits; twice this, with guidance, fits well.
const MAX_WORK: u32 = 1 << 20;

impl Default for ImageScript {
    fn default() -> Self {
        ImageScript {
            iterate_work: 1,
            finish_work: 3,
            out_of_memory_above: None,
            pass_work: None,
        }
    }
}

/// The script's `[cost]`: microseconds, summed over a pass.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CostScript {
    /// Each pass.
    pub step_micros: u64,
    /// Each row that decodes.
    pub iterate_row_micros: u64,
    /// Each prompt token.
    pub begin_token_micros: u64,
    /// A pass that decodes lasts at least one over this, in seconds.
    pub tokens_per_second: Option<f64>,
}

/// What a row says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Letters that depend on prompt, seed and choice, so that no two requests say the same.
    #[default]
    Varied,
    /// The prompt.
    Echo,
    /// A given text.
    Text,
}

/// The script's `[output]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputScript {
    /// What a row says.
    pub kind: OutputKind,
    /// For [`OutputKind::Text`]: said again and again.
    pub text: Option<String>,
    /// A row ends by itself after so many tokens at least.
    pub at_least: Option<u32>,
    /// And so many at most; where in between depends on prompt, seed and choice.
    pub at_most: Option<u32>,
}

/// One `[[fault]]` of the script: one of the optional numbers is there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultScript {
    /// Only for rows whose prompt contains this.
    pub prompt_contains: Option<String>,
    /// The row fails instead of saying this token, counted from 1.
    pub nan_at_token: Option<u32>,
    /// The pass panics.
    pub panic_at_step: Option<u64>,
    /// The pass reports a device error.
    pub fail_step_at: Option<u64>,
    /// This pass and all after it report a device error.
    pub fail_steps_from: Option<u64>,
    /// The pass reports that memory ran out.
    pub out_of_memory_at_step: Option<u64>,
    /// This pass and all that follow report that memory ran out.
    pub out_of_memory_from_step: Option<u64>,
    /// The pass takes longer.
    pub stall_at_step: Option<Stall>,
    /// Only on this of several devices.
    pub device: Option<u32>,
}

/// A pass that takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// Which pass, from 1.
    pub step: u64,
    /// By how much.
    pub millis: u64,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// Syntax errors, unknown keys, and values that contradict each other.
    pub fn parse(toml: &str) -> Result<Self, ModelError> {
        let script: Script =
            toml::from_str(toml).map_err(|error| load_error(error.to_string().trim_end()))?;
        script.check()?;
        Ok(script)
    }

    /// Reads a script's file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); or the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| load_error(&format!("cannot read the script {name}: {error}")))?;
        Script::parse(&text).map_err(|error| load_error(&format!("script {name}: {error}")))
    }

    fn check(&self) -> Result<(), ModelError> {
        let model = &self.model;
        if model.slots == 0 || model.memory_units == 0 || model.keys == 0 {
            return Err(load_error(
                "model.slots, model.memory_units and model.keys must be at least 1",
            ));
        }
        let limits = [
            model.out_of_memory_above_rows,
            model.out_of_memory_above_tokens,
        ];
        if limits.contains(&Some(0)) {
            return Err(load_error(
                "model.out_of_memory_above_rows and _tokens must be at least 1",
            ));
        }
        if self.image.is_some() && limits.iter().any(Option::is_some) {
            return Err(load_error(
                "with [image], image.out_of_memory_above says what memory holds",
            ));
        }
        if let Some(rate) = self.cost.tokens_per_second
            && !(rate.is_finite() && rate >= 0.001)
        {
            return Err(load_error("cost.tokens_per_second must be at least 0.001"));
        }
        let output = &self.output;
        let has_text = output.text.as_ref().is_some_and(|text| !text.is_empty());
        if (output.kind == OutputKind::Text) != has_text {
            return Err(load_error(
                "output.text goes with output.kind = \"text\", and must not be empty",
            ));
        }
        match (output.at_least, output.at_most) {
            (None, None) => {}
            (at_least, Some(at_most)) if at_least.unwrap_or(1).max(1) <= at_most => {}
            _ => {
                return Err(load_error(
                    "output.at_least must not be above output.at_most",
                ));
            }
        }
        if self.image.is_some() && !self.faults.is_empty() {
            return Err(load_error(
                "faults are planted in texts only, not with [image]",
            ));
        }
        let works = self
            .image
            .iter()
            .flat_map(|image| [image.iterate_work, image.finish_work]);
        if works
            .into_iter()
            .any(|work| !(1..=MAX_WORK).contains(&work))
        {
            return Err(load_error(&format!(
                "image.iterate_work and image.finish_work must be 1 to {MAX_WORK}"
            )));
        }
        for fault in &self.faults {
            let kinds = [
                fault.nan_at_token.is_some(),
                fault.panic_at_step.is_some(),
                fault.fail_step_at.is_some(),
                fault.fail_steps_from.is_some(),
                fault.out_of_memory_at_step.is_some(),
                fault.out_of_memory_from_step.is_some(),
                fault.stall_at_step.is_some(),
            ];
            if kinds.iter().filter(|&&there| there).count() != 1 {
                return Err(load_error(
                    "each fault has one of nan_at_token, panic_at_step, fail_step_at, fail_steps_from, \
                     out_of_memory_at_step, out_of_memory_from_step, stall_at_step",
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn load_error(message: &str) -> ModelError {
    ModelError::Load(message.to_owned())
}
