//! From a diffusers folder to a model: first the small things that requests need, then, on the engine's
//! thread, the weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use super::config::vae::VaeConfig;
use super::config::{MODEL_INDEX, ModelIndex, StableDiffusionConfig};
use super::denoiser::Denoiser;
use super::flow::{FlowConfig, FlowDenoiser, FlowPrompts, is_flow_pipeline};
use super::frontend::{ClipPrompts, DiffusionFrontend, FlowShape, PromptReader};
use super::preview::PreviewMap;
use super::schedule::ScheduleConfig;
use super::stable_diffusion::{StableDiffusion, WeightsFrom};
use super::vae::Vae;
use super::{DiffusionModel, DiffusionOptions};
use crate::model::ModelError;
use crate::model::device::DeviceSpec;

/// The shape of a model, by its family.
enum FamilyConfig {
    StableDiffusion(Box<StableDiffusionConfig>),
    Flow(Box<FlowConfig>),
}

impl FamilyConfig {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        Ok(
            match is_flow_pipeline(ModelIndex::read(folder)?.class_name()?) {
                true => FamilyConfig::Flow(Box::new(FlowConfig::read(folder)?)),
                false => {
                    FamilyConfig::StableDiffusion(Box::new(StableDiffusionConfig::read(folder)?))
                }
            },
        )
    }

    /// Whether it was trained for flow matching.
    fn is_flow(&self) -> bool {
        matches!(self, FamilyConfig::Flow(_))
    }

    fn vae(&self) -> &VaeConfig {
        match self {
            FamilyConfig::StableDiffusion(config) => &config.vae,
            FamilyConfig::Flow(config) => &config.vae,
        }
    }

    fn prompts(&self, folder: &Path) -> Result<Box<dyn PromptReader>, ModelError> {
        Ok(match self {
            FamilyConfig::StableDiffusion(config) => Box::new(ClipPrompts::read(folder, config)?),
            FamilyConfig::Flow(config) => Box::new(FlowPrompts::read(folder, config)?),
        })
    }

    /// What its schedule depends on.
    fn flow_shape(&self) -> FlowShape {
        match self {
            FamilyConfig::StableDiffusion(_) => FlowShape::default(),
            FamilyConfig::Flow(config) => config.shape(),
        }
    }

    /// Of which width and height are multiples, in pixels.
    fn size_factor(&self) -> usize {
        match self {
            // The UNet meets odd sizes; only the VAE needs whole squares.
            FamilyConfig::StableDiffusion(config) => config.vae.factor(),
            FamilyConfig::Flow(config) => config.token_pixels(),
        }
    }

    /// Width and height that the model was made for, in pixels.
    fn size(&self) -> (usize, usize) {
        match self {
            FamilyConfig::StableDiffusion(config) => {
                let (high, wide) = config.unet.sample_size.unwrap_or((64, 64));
                (wide * config.vae.factor(), high * config.vae.factor())
            }
            FamilyConfig::Flow(config) => (config.sample_pixels(), config.sample_pixels()),
        }
    }

    fn steps(&self) -> Option<u32> {
        match self {
            FamilyConfig::StableDiffusion(_) => None,
            FamilyConfig::Flow(config) => config.steps(),
        }
    }

    fn guidance(&self) -> Guidance {
        let embedded = match self {
            FamilyConfig::StableDiffusion(config) => config.unet.time_cond_proj_dim.is_some(),
            FamilyConfig::Flow(config) => config.is_distilled(),
        };
        match embedded {
            true => Guidance::Embedded,
            false => Guidance::Classifier,
        }
    }
}

/// What a request needs to know of an image model. Cheap to load beside the weights.
pub struct DiffusionAssets {
    folder: PathBuf,
    dummy_seed: Option<u64>,
    config: FamilyConfig,
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
    let config = FamilyConfig::read(folder)?;
    let file = folder.join("scheduler").join("scheduler_config.json");
    let text = std::fs::read_to_string(&file)
        .map_err(|error| ModelError::Load(format!("cannot read {}: {error}", file.display())))?;
    let schedule =
        ScheduleConfig::from_text(&text).map_err(|error| ModelError::Load(error.to_string()))?;
    if schedule.is_flow() != config.is_flow() {
        let (given, needed) = match schedule.is_flow() {
            true => ("a flow", "none"),
            false => ("no flow", "one"),
        };
        return Err(ModelError::Load(format!(
            "{}: prediction_type is that of {given}, the model is {needed}",
            file.display()
        )));
    }
    let prompts = config.prompts(folder)?;
    let pixels = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (width, height) = config.size();
    Ok(DiffusionAssets {
        frontend: Arc::new(DiffusionFrontend::new(
            prompts,
            schedule,
            config.flow_shape(),
        )),
        size_factor: pixels(config.size_factor()),
        size: (pixels(width), pixels(height)),
        steps: config.steps(),
        guidance: config.guidance(),
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
    let vae_dtype = match assets.config.vae().force_upcast {
        true => Some(DType::F32),
        false => dtype,
    };
    let vae_weights = weights.component("vae", vae_dtype, &device)?;
    let vae = Vae::new(
        assets.config.vae(),
        &vae_weights,
        options.decode_memory_bytes,
    )?;
    let frontend = Arc::clone(&assets.frontend);
    let denoiser: Box<dyn Denoiser> = match &assets.config {
        FamilyConfig::StableDiffusion(config) => Box::new(StableDiffusion::load(
            config, weights, dtype, &device, frontend,
        )?),
        FamilyConfig::Flow(config) => Box::new(FlowDenoiser::load(
            config, weights, dtype, &device, frontend,
        )?),
    };
    let preview = PreviewMap::of(Some(&assets.folder), &vae)?;
    Ok(DiffusionModel::new(
        denoiser,
        vae,
        preview,
        Arc::clone(&assets.frontend),
        options,
    ))
}
