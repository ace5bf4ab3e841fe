//! A flow's network with its text encoders, as the steps drive it.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::config::{FlowConfig, TransformerConfig};
use super::flux::FluxTransformer;
use super::sd3::Sd3Transformer;
use super::text::FlowText;
use crate::job::{ImageJob, PromptTokens};
use crate::model::ModelError;
use crate::model::diffusion::denoiser::{Conditioning, Denoiser, DenoiserRow, PromptSide};
use crate::model::diffusion::frontend::DiffusionFrontend;
use crate::model::diffusion::stable_diffusion::WeightsFrom;

/// What a pass is given beside the latents.
pub(super) struct TransformerInputs<'a> {
    /// One for each row, of 1000.
    pub(super) timesteps: &'a [f64],
    /// One guidance scale for each row. Read by networks that take it.
    pub(super) guidance: &'a [f64],
    /// (rows, tokens, c) f32
    pub(super) context: &'a Tensor,
    /// (rows, p) f32
    pub(super) pooled: &'a Tensor,
}

enum Transformer {
    Flux(Box<FluxTransformer>),
    Sd3(Box<Sd3Transformer>),
}

/// Flux or Stable Diffusion 3, with its text encoders.
pub struct FlowDenoiser {
    config: FlowConfig,
    transformer: Transformer,
    text: FlowText,
    frontend: Arc<DiffusionFrontend>,
}

impl FlowDenoiser {
    /// Loads the text encoders and the network. Weights are converted to `dtype` if one is given. `frontend` reads
    /// its prompts with [`FlowPrompts`](super::FlowPrompts).
    ///
    /// # Errors
    /// A file or a tensor is missing or misshapen; named.
    pub fn load(
        config: &FlowConfig,
        weights: WeightsFrom<'_>,
        dtype: Option<DType>,
        device: &Device,
        frontend: Arc<DiffusionFrontend>,
    ) -> Result<Self, ModelError> {
        let text = FlowText::load(config, weights, dtype, device)?;
        let weights = weights.component("transformer", dtype, device)?;
        let transformer = match &config.transformer {
            TransformerConfig::Flux(flux) => {
                Transformer::Flux(Box::new(FluxTransformer::new(flux, &weights)?))
            }
            TransformerConfig::Sd3(sd3) => {
                Transformer::Sd3(Box::new(Sd3Transformer::new(sd3, &weights)?))
            }
        };
        Ok(FlowDenoiser {
            config: config.clone(),
            transformer,
            text,
            frontend,
        })
    }
}

impl Denoiser for FlowDenoiser {
    fn latent_channels(&self) -> usize {
        self.config.transformer.latent_channels()
    }

    fn read(
        &self,
        job: &ImageJob,
        prompt: &[PromptTokens],
        _side: PromptSide,
    ) -> Result<Conditioning, ModelError> {
        let chunks = job.prompt_chunks();
        let mut prompt = prompt.to_vec();
        for (encoder, entry) in prompt.iter_mut().enumerate() {
            self.frontend.pad(encoder, entry, chunks);
        }
        self.text.read(&prompt)
    }

    fn predict(&self, x: &Tensor, rows: &[DenoiserRow<'_>]) -> Result<Tensor, ModelError> {
        if rows.len() != x.dim(0)? {
            return Err(ModelError::Device(format!(
                "a pass of {} rows was given latents of shape {:?}",
                rows.len(),
                x.dims()
            )));
        }
        let timesteps: Vec<f64> = rows.iter().map(|row| row.timestep).collect();
        let guidance = rows.iter().map(|row| f64::from(row.job.guidance_scale));
        let guidance: Vec<f64> = guidance.collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|row| &row.conditioning.context).collect();
        let pooled = rows
            .iter()
            .map(|row| row.conditioning.pooled.as_ref())
            .collect::<Option<Vec<&Tensor>>>();
        let Some(pooled) = pooled else {
            let what = "a row of a flow has no pooled state of its prompt";
            return Err(ModelError::Device(what.into()));
        };
        let inputs = TransformerInputs {
            timesteps: &timesteps,
            guidance: &guidance,
            context: &Tensor::cat(&contexts, 0)?.contiguous()?,
            pooled: &Tensor::cat(&pooled, 0)?.contiguous()?,
        };
        Ok(match &self.transformer {
            Transformer::Flux(flux) => flux.forward(x, &inputs)?,
            Transformer::Sd3(sd3) => sd3.forward(x, &inputs)?,
        })
    }
}
