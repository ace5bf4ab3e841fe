//! What a decoder looks like: one description for every family, whatever file it came from.
//!
//! [`hugging_face`] fills it in from a `config.json`, [`gguf`] from a GGUF file's metadata. The
//! decoder reads nothing else, so a family is a set of values here and a row in the tensor names.

pub mod gguf;
pub mod hugging_face;

use std::fmt;

use super::rope::RopeConfig;

/// The largest width, depth or vocabulary that a configuration may claim. Real models stay far
/// below; a damaged file should not make the loader reserve the machine's memory.
const MAX_DIMENSION: usize = 1 << 24;
/// The most elements that one of its matrices may have.
const MAX_ELEMENTS: usize = 1 << 40;

/// A configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The families that the decoder knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2 and 3, SmolLM2 and whatever calls itself `llama`.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases on query, key and value.
    Qwen2,
    /// Qwen3: Llama with a norm on each query and key head.
    Qwen3,
    /// Phi-3: Llama with fused projections.
    Phi3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, its text half.
    Gemma3,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 7] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Phi3,
        Family::Gemma2,
        Family::Gemma3,
    ];

    /// Its name in `config.json`'s `model_type` and in GGUF's `general.architecture`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 => "phi3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
        }
    }

    /// The family of that name.
    ///
    /// # Errors
    /// Names the architecture and those that are supported.
    pub fn from_name(name: &str) -> Result<Self, ConfigError> {
        let name_of_text_half = name.strip_suffix("_text").unwrap_or(name);
        Family::ALL
            .into_iter()
            .find(|family| family.name() == name_of_text_half)
            .ok_or_else(|| {
                let supported: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
                ConfigError(format!(
                    "architecture {name:?} is not supported; supported are {}",
                    supported.join(", ")
                ))
            })
    }

    /// Whether it is one of the Gemmas.
    pub const fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What gates the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up` (SwiGLU).
    Silu,
    /// `gelu_tanh(gate) * up` (GeGLU with the tanh approximation).
    GeluTanh,
}

/// How one layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// Positions that a token sees, itself included; all of them when `None`.
    pub window: Option<usize>,
    /// Which of [`DecoderConfig::ropes`] turns its queries and keys.
    pub rope: usize,
}

/// A decoder's shape and switches.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which tensor names apply.
    pub family: Family,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Positions that the model was made for.
    pub max_context: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// The norms' weights are stored as their distance from 1 (Gemma's safetensors).
    pub norm_offset: bool,
    /// The output head is the embedding.
    pub tied_head: bool,
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// The feed-forward projections have biases.
    pub feed_forward_bias: bool,
    /// Each query and key head is normed before it is turned.
    pub qk_norm: bool,
    /// Attention and feed-forward are normed once more before they join the residual stream.
    pub post_norms: bool,
    /// What gates the feed-forward layer.
    pub activation: Activation,
    /// Multiplies the embeddings.
    pub embedding_scale: Option<f32>,
    /// Multiplies query times key.
    pub attention_scale: f32,
    /// Attention scores are squashed into ± this.
    pub attention_softcap: Option<f32>,
    /// Logits are squashed into ± this.
    pub logit_softcap: Option<f32>,
    /// One entry per layer.
    pub layers: Vec<LayerAttention>,
    /// The rotary embeddings that the layers use.
    pub ropes: Vec<RopeConfig>,
}

impl DecoderConfig {
    /// Checks that the numbers fit together, so that nothing deeper has to.
    ///
    /// # Errors
    /// Names the first thing that does not fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("number of layers", self.layers.len()),
            ("number of attention heads", self.heads),
            ("number of key-value heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("context length", self.max_context),
        ];
        for (name, value) in sizes {
            if value == 0 || value > MAX_DIMENSION {
                return Err(ConfigError(format!(
                    "{name} is {value}; it must be 1 to {MAX_DIMENSION}"
                )));
            }
        }
        self.validate_products()?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.heads, self.kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError(format!(
                "head_dim is {}; it must be even",
                self.head_dim
            )));
        }
        if let Some(window) = self.layers.iter().find_map(|layer| layer.window)
            && window == 0
        {
            return Err(ConfigError(
                "the sliding window is 0; it must be at least 1".into(),
            ));
        }
        for rope in &self.ropes {
            rope.validate(self.head_dim)?;
        }
        Ok(())
    }

    /// No matrix, and no position's keys and values, may have more elements than could ever be held:
    /// deeper code multiplies these sizes without looking.
    fn validate_products(&self) -> Result<(), ConfigError> {
        let attention = self.heads.saturating_add(2 * self.kv_heads);
        let products = [
            ("the embedding", [self.vocab_size, self.hidden_size, 1]),
            (
                "the attention's projections",
                [attention, self.head_dim, self.hidden_size],
            ),
            (
                "the feed-forward projections",
                [2, self.intermediate_size, self.hidden_size],
            ),
            (
                "the keys and values of one position",
                [2 * self.layers.len(), self.kv_heads, self.head_dim],
            ),
        ];
        for (name, sizes) in products {
            let elements = sizes
                .iter()
                .try_fold(1usize, |n, &size| n.checked_mul(size));
            if elements.is_none_or(|elements| elements > MAX_ELEMENTS) {
                return Err(ConfigError(format!(
                    "{name} would have {} x {} x {} elements; at most {MAX_ELEMENTS} are served",
                    sizes[0], sizes[1], sizes[2]
                )));
            }
        }
        Ok(())
    }

    /// Width of all query heads.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of one layer's key (or value) cache per token, over all layers, times two.
    pub fn kv_elements_per_token(&self) -> usize {
        2 * self.kv_size() * self.layers.len()
    }
}

/// One layer description per layer: every layer alike.
fn uniform_layers(count: usize, window: Option<usize>) -> Vec<LayerAttention> {
    vec![LayerAttention { window, rope: 0 }; count]
}

/// Layers of which each `period`-th sees everything and the others a window. Full layers use rope 0,
/// sliding ones `sliding_rope`.
fn alternating_layers(
    count: usize,
    period: usize,
    window: Option<usize>,
    sliding_rope: usize,
) -> Vec<LayerAttention> {
    (0..count)
        .map(|layer| {
            if (layer + 1) % period.max(1) == 0 {
                LayerAttention {
                    window: None,
                    rope: 0,
                }
            } else {
                LayerAttention {
                    window,
                    rope: sliding_rope,
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_is_named_with_the_supported_ones() {
        let error = Family::from_name("mamba").expect_err("not a decoder we know");
        assert_eq!(
            error.to_string(),
            "architecture \"mamba\" is not supported; supported are llama, mistral, qwen2, qwen3, \
             phi3, gemma2, gemma3"
        );
        assert_eq!(Family::from_name("gemma3_text"), Ok(Family::Gemma3));
    }

    #[test]
    fn every_sixth_layer_of_gemma_3_sees_everything() {
        let layers = alternating_layers(12, 6, Some(512), 1);
        let full: Vec<_> = (0..12)
            .filter(|&layer| layers[layer].window.is_none())
            .collect();
        assert_eq!(full, [5, 11]);
        assert_eq!(layers[0].rope, 1);
        assert_eq!(layers[5].rope, 0);
    }
}
