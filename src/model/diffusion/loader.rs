//! From a diffusers folder to a model: first the small things that requests need, then, on the engine's
//! thread, the weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use super::advice::Advice;
use super::checkpoint::{Checkpoint, Layout};
use super::config::vae::VaeConfig;
use super::config::{MODEL_INDEX, ModelIndex, StableDiffusionConfig};
use super::denoiser::Denoiser;
use super::flow::{FlowConfig, FlowDenoiser, FlowPrompts, is_flow_pipeline};
use super::frontend::{ClipPrompts, DiffusionFrontend, FlowShape, PromptReader};
use super::preview::Preview;
use super::schedule::ScheduleConfig;
use super::stable_diffusion::{CheckpointFile, StableDiffusion, WeightsFrom};
use super::vae::Vae;
use super::{DiffusionModel, DiffusionOptions};
use crate::model::ModelError;
use crate::model::device::{self, DeviceSpec};
use crate::model::manifest::ModelFiles;

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

    fn advice(&self, schedule: &ScheduleConfig, name: &str) -> Advice {
        match self {
            FamilyConfig::StableDiffusion(config) => Advice::for_unet(config, schedule, name),
            FamilyConfig::Flow(config) => Advice::for_flow(config, name),
        }
    }
}

/// What a request needs to know of an image model. Cheap to load beside the weights.
pub struct DiffusionAssets {
    files: ImageFiles,
    config: FamilyConfig,
    /// Tokenizers and schedules.
    pub frontend: Arc<DiffusionFrontend>,
    /// Width and height are multiples of this, in pixels.
    pub size_factor: u32,
    /// Width and height that the model was made for, in pixels.
    pub size: (u32, u32),
    /// What its makers advise.
    pub advice: Advice,
}

impl DiffusionAssets {
    /// The single file that the weights are in, if they are.
    fn checkpoint(&self) -> Result<Option<CheckpointFile>, ModelError> {
        let WeightsAt::Checkpoint(path) = &self.files.weights else {
            return Ok(None);
        };
        let FamilyConfig::StableDiffusion(config) = &self.config else {
            return Err(ModelError::Load(format!(
                "{}: single files are read of Stable Diffusion 1, 2 and XL only",
                path.display()
            )));
        };
        Ok(Some(CheckpointFile {
            layout: Layout::new(Checkpoint::open(path)?.family(), config),
            path: path.clone(),
        }))
    }
}

/// Where an image model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    /// A folder in diffusers' layout.
    pub folder: PathBuf,
    /// Its weights.
    pub weights: WeightsAt,
}

/// Where an image model's weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsAt {
    /// In the folder.
    Folder,
    /// Nowhere: they are random, from this seed.
    Seed(u64),
    /// In this checkpoint.
    Checkpoint(PathBuf),
}

impl ImageFiles {
    /// Those of an image model; `None` for other models' files.
    pub fn of(files: &ModelFiles) -> Option<Self> {
        let (folder, weights) = match files {
            ModelFiles::Folder(folder) => (folder.as_path(), WeightsAt::Folder),
            ModelFiles::Dummy { config, seed } => (config.parent()?, WeightsAt::Seed(*seed)),
            ModelFiles::Checkpoint { file, folder } => {
                (folder.as_path(), WeightsAt::Checkpoint(file.clone()))
            }
            ModelFiles::Gguf(_) | ModelFiles::Scripted(_) => return None,
        };
        folder.join(MODEL_INDEX).is_file().then(|| ImageFiles {
            folder: folder.to_owned(),
            weights,
        })
    }
}

/// Reads what requests need to know of a model. With a seed, weights are random and need not be there.
///
/// # Errors
/// Names the file and what is missing or wrong in it.
pub fn load_assets(folder: &Path, dummy_seed: Option<u64>) -> Result<DiffusionAssets, ModelError> {
    load_files(&ImageFiles {
        folder: folder.to_owned(),
        weights: dummy_seed.map_or(WeightsAt::Folder, WeightsAt::Seed),
    })
}

/// The same, wherever the weights are.
///
/// # Errors
/// As [`load_assets`].
pub fn load_files(files: &ImageFiles) -> Result<DiffusionAssets, ModelError> {
    let folder = files.folder.as_path();
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
    let advice = config.advice(&schedule, ModelIndex::read(folder)?.origin());
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
        advice,
        files: files.clone(),
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
    spec: DeviceSpec,
    options: &DiffusionOptions,
) -> Result<DiffusionModel, ModelError> {
    let device = spec.open()?;
    let dtype = options.dtype.map(DType::from);
    let checkpoint = assets.checkpoint()?;
    let weights = match (&assets.files.weights, &checkpoint) {
        (_, Some(file)) => WeightsFrom::Checkpoint(file),
        (WeightsAt::Seed(seed), None) => WeightsFrom::Seed(*seed),
        (_, None) => WeightsFrom::Folder(&assets.files.folder),
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
    tell_decode_memory(&vae, options);
    let frontend = Arc::clone(&assets.frontend);
    let denoiser: Box<dyn Denoiser> = match &assets.config {
        FamilyConfig::StableDiffusion(config) => Box::new(StableDiffusion::load(
            config,
            weights,
            dtype,
            &device,
            frontend,
            options.cuda_graphs,
        )?),
        FamilyConfig::Flow(config) => Box::new(FlowDenoiser::load(
            config, weights, dtype, &device, frontend,
        )?),
    };
    let decoder = options.preview_decoder.as_deref();
    let preview = Preview::of(decoder, Some(&assets.files.folder), &vae)?;
    device::loaded(&device);
    Ok(DiffusionModel::new(
        denoiser,
        vae,
        preview,
        Arc::clone(&assets.frontend),
        options,
    ))
}

/// Says how much the decoding of the largest square picture is expected to take.
fn tell_decode_memory(vae: &Vae, options: &DiffusionOptions) {
    let factor = vae.config().factor();
    let edge = (options.max_image_pixels as usize).isqrt() / factor;
    tracing::info!(
        edge = edge * factor,
        decode_bytes = vae.decode_bytes(edge, edge),
        limit = options.decode_memory_bytes,
        "memory of a decoding"
    );
}
