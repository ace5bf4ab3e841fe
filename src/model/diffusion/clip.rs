//! CLIP's text encoder, for any batch and any shape.
//!
//! A pre-norm transformer over token and position embeddings with a causal mask (Radford et al., arXiv
//! 2103.00020). Stable Diffusion reads its token states: of the last layer, or of one before it; SDXL reads
//! the pooled state of the end token as well.

use candle_core::{DType, Device, Tensor, bail};

use super::config::clip::{ClipActivation, ClipConfig};
use super::layers::{compute_dtype, layer_norm, linear, linear_no_bias, linears};
use super::weights::{Scope, Weights};
use crate::kernels::embedding::Embedding;
use crate::kernels::image::{self, LayerNorm, Mask};
use crate::kernels::linear::Linear;
use crate::model::ModelError;

/// The end token of configurations from before transformers 4.30, which does not occur: the pooled state is
/// then that of the largest id.
const LEGACY_EOS: u32 = 2;

/// A CLIP text encoder.
pub struct ClipText {
    config: ClipConfig,
    tokens: Embedding,
    /// (positions, c) f32
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
    device: Device,
    dtype: DType,
}

/// What a text encoder gives for n chunks.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// (n, tokens, c) f32: the last layer's states, or those `clip_skip` layers before, after the final norm.
    pub last: Tensor,
    /// (n, tokens, c) f32: the states one layer before `last`'s, without the final norm (SDXL).
    pub penultimate: Tensor,
    /// (n, p) f32: the last layer's state of the first end token after the final norm; projected where the
    /// model has a projection, and p = c otherwise.
    pub pooled: Tensor,
}

struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &ClipConfig) -> Result<Self, ModelError> {
        let (c, inner) = (config.hidden_size, config.intermediate_size);
        let attention = scope.at("self_attn");
        let mlp = scope.at("mlp");
        Ok(Layer {
            norm1: layer_norm(&scope.at("layer_norm1"), c, config.norm_eps)?,
            q: linear(&attention.at("q_proj"), c, c)?,
            k: linear(&attention.at("k_proj"), c, c)?,
            v: linear(&attention.at("v_proj"), c, c)?,
            out: linear(&attention.at("out_proj"), c, c)?,
            norm2: layer_norm(&scope.at("layer_norm2"), c, config.norm_eps)?,
            fc1: linear(&mlp.at("fc1"), c, inner)?,
            fc2: linear(&mlp.at("fc2"), inner, c)?,
        })
    }

    /// x: (n, tokens, c) -> the same shape.
    fn forward(&self, x: &Tensor, config: &ClipConfig) -> candle_core::Result<Tensor> {
        let scale = ((config.hidden_size / config.heads) as f32).powf(-0.5);
        let [q, k, v] = linears([&self.q, &self.k, &self.v], &self.norm1.forward(x)?)?;
        let attended = image::attention(&q, &k, &v, config.heads, scale, Some(Mask::Causal))?;
        let x = image::linear_add(&self.out, &attended, x)?;
        let inner = image::linear(&self.fc1, &self.norm2.forward(&x)?)?;
        let inner = match config.activation {
            ClipActivation::QuickGelu => image::quick_gelu(&inner)?,
            ClipActivation::Gelu => image::gelu_erf(&inner)?,
        };
        image::linear_add(&self.fc2, &inner, &x)
    }
}

impl ClipText {
    /// Builds the encoder from its weights.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn new(config: &ClipConfig, weights: &Weights) -> Result<Self, ModelError> {
        let scope = weights.text_root();
        let c = config.hidden_size;
        let embeddings = scope.at("embeddings");
        let table = embeddings
            .at("token_embedding")
            .tensor("weight", &[config.vocab_size, c])?;
        let dtype = compute_dtype(weights.device(), table.dtype());
        let encoder = scope.at("encoder").at("layers");
        let layers = (0..config.layers)
            .map(|index| Layer::load(&encoder.at(index), config))
            .collect::<Result<_, _>>()?;
        let projection = match config.projection_dim {
            Some(width) => {
                let scope = weights.root().at("text_projection");
                Some(linear_no_bias(&scope, c, width)?)
            }
            None => None,
        };
        let text = ClipText {
            config: config.clone(),
            tokens: Embedding::dense(table)?,
            positions: embeddings
                .at("position_embedding")
                .tensor_f32("weight", &[config.positions, c])?,
            layers,
            final_norm: layer_norm(&scope.at("final_layer_norm"), c, config.norm_eps)?,
            projection,
            device: weights.device().clone(),
            dtype,
        };
        weights.log_unused();
        Ok(text)
    }

    /// Its shape.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// ids: n chunks of as many tokens each, up to the model's positions. `clip_skip` leaves out so many of the
    /// last layers in the token states, 0 being the model's own way; the pooled state is always the last layer's.
    ///
    /// # Errors
    /// No chunk, chunks of different lengths or too long, an id outside the vocabulary, or more layers left out
    /// than there are.
    pub fn forward(&self, ids: &[Vec<u32>], clip_skip: usize) -> candle_core::Result<ClipOutput> {
        let tokens = self.check(ids, clip_skip)?;
        let c = self.config.hidden_size;
        let flat: Vec<u32> = ids.concat();
        let mut x = self
            .tokens
            .forward(&Tensor::from_vec(flat, ids.len() * tokens, &self.device)?)?
            .reshape((ids.len(), tokens, c))?
            .broadcast_add(&self.positions.narrow(0, 0, tokens)?)?
            .to_dtype(self.dtype)?;
        // Number of layers run -> their states.
        let penultimate_at = self.layers.len() - 1 - clip_skip;
        let mut penultimate = (penultimate_at == 0).then(|| x.clone());
        let mut skipped_to = None;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &self.config)?;
            if index + 1 == penultimate_at {
                penultimate = Some(x.clone());
            }
            if index == penultimate_at {
                skipped_to = Some(x.clone());
            }
        }
        let normed = self.final_norm.forward(&x)?;
        let last = match skipped_to {
            Some(state) if clip_skip > 0 => self.final_norm.forward(&state)?,
            _ => normed.clone(),
        };
        Ok(ClipOutput {
            last: last.to_dtype(DType::F32)?,
            penultimate: penultimate.unwrap_or(x).to_dtype(DType::F32)?,
            pooled: self.pool(&normed, ids)?,
        })
    }

    /// The common length of the chunks.
    fn check(&self, ids: &[Vec<u32>], clip_skip: usize) -> candle_core::Result<usize> {
        let tokens = ids.first().map_or(0, Vec::len);
        if tokens == 0 || tokens > self.config.positions {
            bail!(
                "a text encoder takes chunks of 1 to {} tokens, not {tokens}",
                self.config.positions
            );
        }
        if ids.iter().any(|chunk| chunk.len() != tokens) {
            bail!("the chunks of a text encoder's pass must be equally long");
        }
        if clip_skip >= self.layers.len() {
            bail!(
                "clip_skip is {clip_skip}; the text encoder has {} layers, so it must be below that",
                self.layers.len()
            );
        }
        Ok(tokens)
    }

    /// normed: (n, tokens, c) -> (n, p) f32
    fn pool(&self, normed: &Tensor, ids: &[Vec<u32>]) -> candle_core::Result<Tensor> {
        let states = ids
            .iter()
            .enumerate()
            .map(|(row, chunk)| {
                let end = pooled_position(chunk, self.config.eos_token_id);
                normed.narrow(0, row, 1)?.narrow(1, end, 1)?.squeeze(1)
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        let states = Tensor::cat(&states, 0)?.contiguous()?;
        let pooled = match &self.projection {
            Some(projection) => image::linear(projection, &states)?,
            None => states,
        };
        pooled.to_dtype(DType::F32)
    }
}

/// Where the pooled state is taken: at the first end token, or, by the legacy rule, at the first of the
/// largest id. At the beginning, if there is no end token.
fn pooled_position(chunk: &[u32], eos: u32) -> usize {
    let wanted = match eos {
        LEGACY_EOS => chunk.iter().copied().max(),
        eos => Some(eos),
    };
    chunk.iter().position(|id| Some(*id) == wanted).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pooled_state_is_the_first_end_tokens() {
        assert_eq!(pooled_position(&[6, 1, 7, 7, 7], 7), 2);
        assert_eq!(pooled_position(&[6, 1, 7, 0, 0], 7), 2);
        assert_eq!(pooled_position(&[6, 2, 9, 9, 0], LEGACY_EOS), 2);
        assert_eq!(pooled_position(&[6, 1, 3], 7), 0);
    }
}
