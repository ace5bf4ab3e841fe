//! What `bench engine` found of an image model: the JSON object that it writes, field for field. Times are
//! seconds.

use serde::Serialize;

use super::machine::{Machine, Memory};
use super::picture_work::PictureWork;
use super::report::Measured;
use super::statistics::Spread;
use crate::gpu_check::card::Card;

/// What the object is called; its meaning changes with the version only.
pub const SCHEMA: &str = "girandole.bench.engine.images";
/// Counts changes of a field's meaning or name. New fields do not count.
pub const SCHEMA_VERSION: u32 = 1;

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PictureReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The program's version.
    pub girandole: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub setup: PictureSetup,
    /// Making the model ready.
    pub load: LoadFigures,
    /// Operations a second, two for each multiply-add: of f32 that the processor could do; or in products in the
    /// weights' format (f16 where none was chosen) that the card could.
    pub float_operations_per_second: Option<f64>,
    /// Reading one prompt of one window with every text encoder.
    pub text: Measured<Timed>,
    /// One entry per size.
    pub sizes: Vec<SizeLevel>,
    /// The process when all was done, if the system tells.
    pub memory: Option<Memory>,
    /// The card when all was done, as its driver tells; nothing for other devices.
    pub card: Option<Card>,
}

/// What was measured, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PictureSetup {
    /// The model's name, as in requests.
    pub model: String,
    /// Where it comes from, as after `--model`.
    pub source: String,
    /// `auto`, or `dummy` for random weights.
    pub load_format: &'static str,
    /// Where it runs.
    pub device: String,
    /// Type of the weights, if it was chosen.
    pub dtype: Option<String>,
    /// Threads of the kernels.
    pub compute_threads: usize,
    /// Instructions of the kernels.
    pub instructions: String,
    /// Numbers of rows asked for.
    pub rows: Vec<u32>,
    /// The most samples of a point.
    pub most_samples: u32,
    /// How long a point may take, unless a single sample takes longer.
    pub point_seconds: u32,
    /// Steps of the pictures that `pictures_per_minute` counts.
    pub steps: u32,
    /// Seed of the pictures.
    pub seed: u64,
}

/// Making a model ready.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadFigures {
    /// From the files (or from random numbers) to the model on its device.
    pub seconds: f64,
    /// The process afterwards, if the system tells.
    pub memory: Option<Memory>,
}

/// How long something took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timed {
    /// Each sample.
    pub seconds: Spread,
    /// How many samples there are.
    pub samples: usize,
    /// Whether there was time for one before them that does not count.
    pub warmed_up: bool,
    /// Share of `float_operations_per_second` that the median reaches, where both are known.
    pub arithmetic: Option<f64>,
}

/// A picture's size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SizeLevel {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// What the model asks of any machine, for models whose shape is counted.
    pub multiply_adds: Option<PictureWork>,
    /// One entry per number of rows.
    pub steps: Vec<StepLevel>,
    /// Decoding one picture.
    pub decode: Measured<Timed>,
    /// Encoding one picture.
    pub encode: Measured<Timed>,
}

/// A number of rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepLevel {
    /// Rows of the forward pass.
    pub rows: u32,
    /// What it took.
    #[serde(flatten)]
    pub measured: Measured<StepFigures>,
}

/// What a denoising step took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepFigures {
    /// The step of all rows, without guidance.
    #[serde(flatten)]
    pub step: Timed,
    /// Rows times steps a second, of the median.
    pub row_steps_per_second: f64,
    /// Reckoned, not measured: guided pictures of [`PictureSetup::steps`] steps side by side, half as many as
    /// rows (or as many, where guidance is part of the network), with one decoding and one prompt each. None for
    /// an odd number of rows, and where decoding or reading the prompt could not be measured.
    pub pictures_per_minute: Option<f64>,
}

/// Pictures a minute: `pictures` run side by side in steps of `step` seconds, and each takes `own` seconds more.
pub fn pictures_per_minute(pictures: u32, steps: u32, step: f64, own: f64) -> f64 {
    let together = f64::from(steps) * step;
    let each = together / f64::from(pictures.max(1)) + own;
    60.0 / each.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_share_their_steps_and_not_their_decoding() {
        // 20 steps of half a second for 4 pictures, and half a second each: 12 seconds for 4.
        assert_eq!(pictures_per_minute(4, 20, 0.5, 0.5), 20.0);
        assert_eq!(pictures_per_minute(1, 20, 0.5, 2.0), 5.0);
    }
}
