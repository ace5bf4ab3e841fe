//! From a prompt's tokens to what the UNet is conditioned on.
//!
//! Each encoder's chunks run in one pass and their states are put one behind the other. Weighted tokens'
//! states are multiplied, and the chunk is then brought back to the mean it had, as the Stable Diffusion web UI
//! does: otherwise emphasis would change the picture's contrast.

use candle_core::{Tensor, bail};

use super::clip::ClipText;
use super::config::{Generation, StableDiffusionConfig};
use super::weights::Weights;
use crate::job::{PromptChunk, PromptTokens};
use crate::model::ModelError;

/// A model's text encoders.
pub struct TextConditioner {
    generation: Generation,
    encoders: Vec<ClipText>,
}

/// What one prompt conditions a UNet on.
#[derive(Clone, Debug)]
pub struct TextStates {
    /// (1, tokens, c) f32: tokens are those of all chunks.
    pub context: Tensor,
    /// (1, p) f32, for SDXL.
    pub pooled: Option<Tensor>,
}

impl TextConditioner {
    /// Builds the encoders from the weights of each, in the order of the configuration.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn new(config: &StableDiffusionConfig, weights: &[Weights]) -> Result<Self, ModelError> {
        if weights.len() != config.text_encoders.len() {
            return Err(ModelError::Load(format!(
                "{} text encoders' weights for {} encoders",
                weights.len(),
                config.text_encoders.len()
            )));
        }
        let encoders = config
            .text_encoders
            .iter()
            .zip(weights)
            .map(|(config, weights)| ClipText::new(config, weights))
            .collect::<Result<_, _>>()?;
        Ok(TextConditioner {
            generation: config.generation,
            encoders,
        })
    }

    /// The encoders.
    pub fn encoders(&self) -> &[ClipText] {
        &self.encoders
    }

    /// prompt: the tokens for each encoder, equally many chunks of equal length. `clip_skip` leaves out so many
    /// of the last layers, beyond what the model leaves out by itself.
    ///
    /// # Errors
    /// Tokens that do not fit the encoders.
    pub fn encode(
        &self,
        prompt: &[PromptTokens],
        clip_skip: usize,
    ) -> candle_core::Result<TextStates> {
        if prompt.len() != self.encoders.len() {
            bail!(
                "{} prompts for {} text encoders",
                prompt.len(),
                self.encoders.len()
            );
        }
        let mut contexts = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for (encoder, prompt) in self.encoders.iter().zip(prompt) {
            let ids: Vec<Vec<u32>> = prompt.chunks.iter().map(|c| c.tokens.clone()).collect();
            let output = encoder.forward(&ids, clip_skip)?;
            let states = match self.generation {
                Generation::Classic => output.last,
                Generation::Xl => {
                    // The last encoder's: that of the beginning of the prompt.
                    pooled = Some(output.pooled.narrow(0, 0, 1)?.contiguous()?);
                    output.penultimate
                }
            };
            let (chunks, tokens, width) = states.dims3()?;
            contexts.push(weigh(states, &prompt.chunks)?.reshape((1, chunks * tokens, width))?);
        }
        let context = match contexts.len() {
            1 => contexts.swap_remove(0),
            _ => Tensor::cat(&contexts, 2)?.contiguous()?,
        };
        Ok(TextStates { context, pooled })
    }

    /// States of the shape of `like` that are all zero: SDXL's for no negative prompt, where its index says so.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn zeros(&self, like: &TextStates) -> candle_core::Result<TextStates> {
        Ok(TextStates {
            context: like.context.zeros_like()?,
            pooled: like.pooled.as_ref().map(Tensor::zeros_like).transpose()?,
        })
    }
}

/// states: (chunks, tokens, c) f32 -> the same shape, each token's times its weight, each chunk with its mean.
fn weigh(states: Tensor, chunks: &[PromptChunk]) -> candle_core::Result<Tensor> {
    let is_neutral = |chunk: &PromptChunk| chunk.weights.iter().all(|weight| *weight == 1.0);
    if chunks.iter().all(is_neutral) {
        return Ok(states);
    }
    let (count, tokens, width) = states.dims3()?;
    let mut values: Vec<f32> = states.flatten_all()?.to_vec1()?;
    for (values, chunk) in values.chunks_exact_mut(tokens * width).zip(chunks) {
        if is_neutral(chunk) {
            continue;
        }
        if chunk.weights.len() != tokens {
            bail!("{} weights for {tokens} tokens", chunk.weights.len());
        }
        let before = sum(values);
        for (state, weight) in values.chunks_exact_mut(width).zip(&chunk.weights) {
            for value in state {
                *value *= weight;
            }
        }
        let restore = (before / sum(values)) as f32;
        // Weights can cancel the mean, which then cannot be brought back.
        if restore.is_finite() {
            for value in values {
                *value *= restore;
            }
        }
    }
    Tensor::from_vec(values, (count, tokens, width), states.device())
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn chunk(weights: &[f32]) -> PromptChunk {
        PromptChunk {
            tokens: vec![0; weights.len()],
            weights: weights.to_vec(),
        }
    }

    #[test]
    fn weights_multiply_and_the_mean_stays() {
        let states = Tensor::new(
            &[[[1f32, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]],
            &Device::Cpu,
        )
        .unwrap();
        let weighed = weigh(states.clone(), &[chunk(&[1.0, 1.0]), chunk(&[1.0, 2.0])]).unwrap();
        // The second chunk's sum is 26, with weights 41.
        let factor = 26.0 / 41.0;
        let expected = [5.0, 6.0, 14.0, 16.0].map(|value: f32| value * factor);
        let found: Vec<f32> = weighed.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(
            found[..4],
            [1.0, 2.0, 3.0, 4.0],
            "neutral chunks are left alone"
        );
        for (found, expected) in found[4..].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        let zero = weigh(states, &[chunk(&[0.0, 0.0]), chunk(&[1.0, 1.0])]).unwrap();
        let zero: Vec<f32> = zero.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(zero[..4], [0.0; 4], "no mean to bring back");
    }
}
