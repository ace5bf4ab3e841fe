//! What flows read of a prompt: CLIP's view of it as a whole, and T5's of its words.

use candle_core::{DType, Device, Tensor};

use super::config::{FlowConfig, TransformerConfig};
use super::t5::T5Encoder;
use crate::job::{PromptChunk, PromptTokens};
use crate::model::ModelError;
use crate::model::diffusion::clip::ClipText;
use crate::model::diffusion::denoiser::Conditioning;
use crate::model::diffusion::stable_diffusion::WeightsFrom;

/// The text encoders of a flow.
pub(super) struct FlowText {
    clips: Vec<ClipText>,
    t5: Option<T5Encoder>,
    t5_tokens: usize,
    /// SD3: CLIP's states are part of the context.
    clip_context: bool,
    context_dim: usize,
    device: Device,
}

impl FlowText {
    /// Loads the encoders.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub(super) fn load(
        config: &FlowConfig,
        weights: WeightsFrom<'_>,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (clip_folders, (t5_folder, _)) = config.transformer.text_folders();
        let clips = clip_folders
            .iter()
            .zip(&config.clips)
            .map(|((name, _), clip)| ClipText::new(clip, &weights.component(name, dtype, device)?))
            .collect::<Result<_, _>>()?;
        let t5 = match &config.t5 {
            Some(t5) => {
                let weights = weights.component(t5_folder, dtype, device)?;
                Some(T5Encoder::new(t5, &weights)?)
            }
            None => None,
        };
        let (clip_context, context_dim) = match &config.transformer {
            TransformerConfig::Flux(flux) => (false, flux.context_dim),
            TransformerConfig::Sd3(sd3) => (true, sd3.context_dim),
        };
        Ok(FlowText {
            clips,
            t5,
            t5_tokens: config.t5_tokens,
            clip_context,
            context_dim,
            device: device.clone(),
        })
    }

    /// Reads a prompt as [`FlowPrompts`](super::FlowPrompts) cuts it: an entry for each CLIP, and one for T5.
    ///
    /// # Errors
    /// Another number of entries, CLIPs with different numbers of chunks, an unknown token, or the device fails.
    pub(super) fn read(&self, prompt: &[PromptTokens]) -> Result<Conditioning, ModelError> {
        let entries = self.clips.len() + usize::from(self.t5.is_some());
        if prompt.len() != entries || prompt.iter().any(|entry| entry.chunks.is_empty()) {
            return Err(ModelError::Device(format!(
                "a prompt for {entries} text encoders was given as {} entries, or one without tokens",
                prompt.len()
            )));
        }
        let (for_clips, for_t5) = prompt.split_at(self.clips.len());
        let (clip_context, pooled) = self.read_with_clips(for_clips)?;
        let words = match (&self.t5, for_t5) {
            (Some(t5), [entry]) => t5.forward(&ids(&entry.chunks))?,
            // As diffusers has it: a model without T5 sees zeros in its place.
            _ => {
                let shape = (1, self.t5_tokens, self.context_dim);
                Tensor::zeros(shape, DType::F32, &self.device)?
            }
        };
        let context = match clip_context {
            Some(clip) => Tensor::cat(&[&clip, &words], 1)?.contiguous()?,
            None => words,
        };
        Ok(Conditioning {
            context,
            pooled: Some(pooled),
        })
    }

    /// (1, chunks * tokens, context_dim) f32 if the context has it, and (1, p) f32.
    fn read_with_clips(
        &self,
        prompt: &[PromptTokens],
    ) -> Result<(Option<Tensor>, Tensor), ModelError> {
        let (mut states, mut pooled) = (Vec::new(), Vec::new());
        for (clip, entry) in self.clips.iter().zip(prompt) {
            let chunks: Vec<Vec<u32>> = entry
                .chunks
                .iter()
                .map(|chunk| chunk.tokens.clone())
                .collect();
            let output = clip.forward(&chunks, 0)?;
            // What a prompt is about stands at its beginning.
            pooled.push(output.pooled.narrow(0, 0, 1)?);
            if self.clip_context {
                let (count, tokens, width) = output.penultimate.dims3()?;
                states.push(output.penultimate.reshape((1, count * tokens, width))?);
            }
        }
        let pooled = Tensor::cat(&pooled, 1)?.contiguous()?;
        if states.is_empty() {
            return Ok((None, pooled));
        }
        let states = Tensor::cat(&states, 2)?;
        let missing = self.context_dim - states.dim(2)?;
        let states = states.pad_with_zeros(2, 0, missing)?.contiguous()?;
        Ok((Some(states), pooled))
    }
}

fn ids(chunks: &[PromptChunk]) -> Vec<u32> {
    let tokens = chunks.iter().map(|chunk| chunk.tokens.as_slice());
    tokens.collect::<Vec<_>>().concat()
}
