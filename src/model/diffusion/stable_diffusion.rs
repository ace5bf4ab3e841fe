//! Stable Diffusion 1, 2 and XL: CLIP and a UNet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::checkpoint::Layout;
use super::clip::{ClipOutput, ClipText};
use super::config::{Generation, StableDiffusionConfig, TEXT_FOLDERS};
use super::denoiser::{Conditioning, Denoiser, DenoiserRow, PromptSide};
use super::frontend::DiffusionFrontend;
use super::time_embedding::AddedConditions;
use super::unet::recorded::RecordedUNet;
use super::unet::{UNet, UNetConditions};
use super::weights::Weights;
use crate::job::{ImageJob, PromptTokens};
use crate::model::ModelError;

/// The text encoders and the UNet.
pub struct StableDiffusion {
    config: StableDiffusionConfig,
    encoders: Vec<ClipText>,
    unet: RecordedUNet,
    frontend: Arc<DiffusionFrontend>,
}

/// Where a component's weights are.
#[derive(Clone, Copy, Debug)]
pub enum WeightsFrom<'a> {
    /// In a diffusers folder.
    Folder(&'a Path),
    /// Nowhere: random ones from a seed.
    Seed(u64),
    /// In a single-file checkpoint.
    Checkpoint(&'a CheckpointFile),
}

/// A single-file checkpoint, and where in it is what.
#[derive(Clone, Debug)]
pub struct CheckpointFile {
    pub(super) path: PathBuf,
    pub(super) layout: Layout,
}

impl WeightsFrom<'_> {
    /// The weights of a component, by the name of its folder.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn component(
        self,
        name: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Weights, ModelError> {
        match self {
            WeightsFrom::Folder(folder) => Weights::open(&folder.join(name), dtype, device),
            WeightsFrom::Seed(seed) => Ok(Weights::dummy(seed, name, dtype, device)),
            WeightsFrom::Checkpoint(file) => {
                Weights::of_checkpoint(&file.path, name, &file.layout, dtype, device)
            }
        }
    }
}

impl StableDiffusion {
    /// Loads the text encoders and the UNet. `record`: its passes as CUDA graphs, where the device can.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn load(
        config: &StableDiffusionConfig,
        weights: WeightsFrom<'_>,
        dtype: Option<DType>,
        device: &Device,
        frontend: Arc<DiffusionFrontend>,
        record: bool,
    ) -> Result<Self, ModelError> {
        let encoders = TEXT_FOLDERS
            .iter()
            .zip(&config.text_encoders)
            .map(|((name, _), shape)| {
                ClipText::new(shape, &weights.component(name, dtype, device)?)
            })
            .collect::<Result<_, ModelError>>()?;
        let unet = UNet::new(&config.unet, &weights.component("unet", dtype, device)?)?;
        Ok(StableDiffusion {
            config: config.clone(),
            encoders,
            unet: RecordedUNet::new(unet, device, record),
            frontend,
        })
    }

    /// SDXL's size conditioning: the size that the picture "had", where it was cropped, its size.
    fn size_ids(job: &ImageJob) -> [f64; 6] {
        let (height, width) = (f64::from(job.height), f64::from(job.width));
        [height, width, 0.0, 0.0, height, width]
    }
}

impl Denoiser for StableDiffusion {
    fn latent_channels(&self) -> usize {
        self.config.unet.out_channels
    }

    fn read(
        &self,
        job: &ImageJob,
        prompt: &[PromptTokens],
        side: PromptSide,
    ) -> Result<Conditioning, ModelError> {
        let chunks = job.prompt_chunks();
        let mut states = Vec::new();
        let mut pooled = None;
        for (index, (encoder, prompt)) in self.encoders.iter().zip(prompt).enumerate() {
            let mut prompt = prompt.clone();
            self.frontend.pad(index, &mut prompt, chunks);
            let ids: Vec<Vec<u32>> = prompt
                .chunks
                .iter()
                .map(|chunk| chunk.tokens.clone())
                .collect();
            let output: ClipOutput = encoder.forward(&ids, job.clip_skip as usize)?;
            let state = match self.config.generation {
                Generation::Classic => output.last,
                Generation::Xl => output.penultimate,
            };
            states.push(side_by_side(&weighted(&state, &prompt)?)?);
            pooled = Some(output.pooled.narrow(0, 0, 1)?);
        }
        let context = Tensor::cat(&states, 2)?;
        let pooled = pooled.filter(|_| self.config.generation == Generation::Xl);
        let zero = side == PromptSide::Negative
            && self.config.force_zeros_for_empty_prompt
            && !job.negative_given;
        if zero {
            return Ok(Conditioning {
                context: context.zeros_like()?,
                pooled: pooled.map(|pooled| pooled.zeros_like()).transpose()?,
            });
        }
        Ok(Conditioning { context, pooled })
    }

    fn predict(&self, x: &Tensor, rows: &[DenoiserRow<'_>]) -> Result<Tensor, ModelError> {
        let timesteps: Vec<f64> = rows.iter().map(|row| row.timestep).collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.conditioning.context).collect();
        let context = Tensor::cat(&contexts, 0)?;
        let pooled: Vec<&Tensor> = rows
            .iter()
            .filter_map(|row| row.conditioning.pooled.as_ref())
            .collect();
        let pooled = match pooled.is_empty() {
            true => None,
            false => Some(Tensor::cat(&pooled, 0)?),
        };
        let size_ids: Vec<[f64; 6]> = rows.iter().map(|row| Self::size_ids(row.job)).collect();
        let guidance: Vec<f64> = rows
            .iter()
            .map(|row| f64::from(row.job.guidance_scale) - 1.0)
            .collect();
        let output = self.unet.forward(
            x,
            UNetConditions {
                timesteps: &timesteps,
                context: &context,
                added: pooled.as_ref().map(|pooled| AddedConditions {
                    pooled,
                    size_ids: &size_ids,
                }),
                guidance: self
                    .config
                    .unet
                    .time_cond_proj_dim
                    .map(|_| guidance.as_slice()),
            },
        )?;
        Ok(output)
    }
}

/// (n, tokens, c) -> (1, n * tokens, c)
fn side_by_side(states: &Tensor) -> candle_core::Result<Tensor> {
    let (n, tokens, c) = states.dims3()?;
    states.reshape((1, n * tokens, c))
}

/// Multiplies each token's state by its weight, then brings the chunk's mean back to what it was, as the
/// Stable Diffusion web UI does. states: (chunks, tokens, c) f32.
fn weighted(states: &Tensor, prompt: &PromptTokens) -> candle_core::Result<Tensor> {
    let neutral = |weights: &[f32]| weights.iter().all(|weight| *weight == 1.0);
    if prompt.chunks.iter().all(|chunk| neutral(&chunk.weights)) {
        return Ok(states.clone());
    }
    let (_, tokens, c) = states.dims3()?;
    let chunks = prompt
        .chunks
        .iter()
        .enumerate()
        .map(|(index, chunk)| {
            let values = states.get(index)?.flatten_all()?.to_vec1::<f32>()?;
            if neutral(&chunk.weights) {
                return Ok(values);
            }
            let mean = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
            let scaled: Vec<f32> = values
                .chunks(c)
                .zip(&chunk.weights)
                .flat_map(|(state, weight)| state.iter().map(move |value| value * weight))
                .collect();
            let back = mean(&values) / mean(&scaled);
            // Weights that cancel each other out leave no mean to bring back.
            let back = if back.is_finite() { back as f32 } else { 1.0 };
            Ok(scaled.into_iter().map(|value| value * back).collect())
        })
        .collect::<candle_core::Result<Vec<Vec<f32>>>>()?;
    let shape = (prompt.chunks.len(), tokens, c);
    Tensor::from_vec(chunks.concat(), shape, states.device())
}
