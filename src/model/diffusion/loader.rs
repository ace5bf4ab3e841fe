//! From a diffusers folder to a model: first the small things that requests need, then, on the engine's
//! thread, the weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use super::config::{MODEL_INDEX, StableDiffusionConfig};
use super::frontend::{ClipPrompts, DiffusionFrontend, FlowShape};
use super::preview::PreviewMap;
use super::schedule::ScheduleConfig;
use super::stable_diffusion::{StableDiffusion, WeightsFrom};
use super::vae::Vae;
use super::{DiffusionModel, DiffusionOptions};
use crate::model::ModelError;
use crate::model::device::DeviceSpec;

/// What a request needs to know of an image model. Cheap to load beside the weights.
pub struct DiffusionAssets {
    folder: PathBuf,
    dummy_seed: Option<u64>,
    config: StableDiffusionConfig,
    /// Tokenizers and schedules.
    pub frontend: Arc<DiffusionFrontend>,
    /// Width and height are multiples of this, in pixels.
    pub size_factor: u32,
    /// Width and height that the model was made for, in pixels.
    pub size: (u32, u32),
    /// Steps that its makers advise, where its kind is known for few.
    pub steps: Option<u32>,
    /// It was distilled with its guidance inside, or needs none.
    pub guidance: Guidance,
}

/// What a model makes of `guidance_scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guidance {
    /// It predicts twice, with and without the prompt.
    Classifier,
    /// It takes the scale as an input and predicts once.
    Embedded,
}

/// Whether a folder holds an image model in diffusers' layout.
pub fn is_diffusers_folder(folder: &Path) -> bool {
    folder.join(MODEL_INDEX).is_file()
}

/// Reads what requests need to know of a model. With a seed, weights are random and need not be there.
///
/// # Errors
/// Names the file and what is missing or wrong in it.
pub fn load_assets(folder: &Path, dummy_seed: Option<u64>) -> Result<DiffusionAssets, ModelError> {
    let config = StableDiffusionConfig::read(folder)?;
    let file = folder.join("scheduler").join("scheduler_config.json");
    let text = std::fs::read_to_string(&file)
        .map_err(|error| ModelError::Load(format!("cannot read {}: {error}", file.display())))?;
    let schedule =
        ScheduleConfig::from_text(&text).map_err(|error| ModelError::Load(error.to_string()))?;
    let prompts = ClipPrompts::read(folder, &config)?;
    let factor = config.vae.factor();
    let (high, wide) = config.unet.sample_size.unwrap_or((64, 64));
    let pixels = |places: usize| u32::try_from(places * factor).unwrap_or(u32::MAX);
    Ok(DiffusionAssets {
        frontend: Arc::new(DiffusionFrontend::new(
            Box::new(prompts),
            schedule,
            FlowShape::default(),
        )),
        // The UNet meets odd sizes; only the VAE needs whole squares.
        size_factor: u32::try_from(factor).unwrap_or(u32::MAX),
        size: (pixels(wide), pixels(high)),
        steps: None,
        guidance: match config.unet.time_cond_proj_dim {
            Some(_) => Guidance::Embedded,
            None => Guidance::Classifier,
        },
        folder: folder.to_owned(),
        dummy_seed,
        config,
    })
}

/// Builds the model on the device. To be called on the thread that will own it.
///
/// # Errors
/// The device is not there, a setting cannot be used, or the weights are not what the configuration says;
/// with the name of what is wrong.
pub fn build(
    assets: &DiffusionAssets,
    device: DeviceSpec,
    options: &DiffusionOptions,
) -> Result<DiffusionModel, ModelError> {
    let device = device.open()?;
    let dtype = options.dtype.map(DType::from);
    let weights = match assets.dummy_seed {
        None => WeightsFrom::Folder(&assets.folder),
        Some(seed) => WeightsFrom::Seed(seed),
    };
    let vae_dtype = match assets.config.vae.force_upcast {
        true => Some(DType::F32),
        false => dtype,
    };
    let vae_weights = weights.component("vae", vae_dtype, &device)?;
    let vae = Vae::new(
        &assets.config.vae,
        &vae_weights,
        options.decode_memory_bytes,
    )?;
    let denoiser = StableDiffusion::load(
        &assets.config,
        weights,
        dtype,
        &device,
        Arc::clone(&assets.frontend),
    )?;
    let preview = PreviewMap::of(Some(&assets.folder), &vae)?;
    Ok(DiffusionModel::new(
        Box::new(denoiser),
        vae,
        preview,
        Arc::clone(&assets.frontend),
        options,
    ))
}
