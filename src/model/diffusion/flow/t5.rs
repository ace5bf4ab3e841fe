//! T5's text encoder (Raffel et al., arXiv 1910.10683; the gated form of version 1.1).
//!
//! Pre-norm blocks without biases; attention is not scaled, and a number for each head and distance is added to
//! its scores. Diffusion models read all positions of the padded prompt, and padding is attended to.
//!
//! Stock `t5` of candle-transformers is not used: it multiplies with Candle's own products, which on the CPU do not
//! keep half-precision weights (a T5-XXL would take 19 GB), and it has no remedy for f16, in which the large T5s
//! overflow behind the gate. Here the residual stream is f32 on every device, and the product that overflows too.

use candle_core::{DType, Device, Tensor, bail};
use serde_json::{Map, Value, json};

use crate::kernels::activation::gelu_tanh_mul;
use crate::kernels::embedding::Embedding;
use crate::kernels::image::{self, Mask};
use crate::kernels::linear::{self, Linear};
use crate::kernels::norm::rms_norm;
use crate::model::ModelError;
use crate::model::diffusion::config::fields::Fields;
use crate::model::diffusion::config::{MAX_LAYERS, MAX_WIDTH};
use crate::model::diffusion::layers::{linear_no_bias, linears};
use crate::model::diffusion::weights::{Scope, Weights};

/// The largest vocabulary that a configuration may claim.
const MAX_VOCABULARY: usize = 1 << 22;
/// The most attention heads that a configuration may claim: for each, and each pair of tokens, there is a number.
const MAX_HEADS: usize = 256;
/// The most buckets of distances that a configuration may claim.
const MAX_BUCKETS: usize = 1 << 10;
/// The largest distance that a configuration may tell from larger ones.
const MAX_DISTANCE: usize = 1 << 16;

/// A T5 encoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Classes of distances that attention tells apart; a multiple of 4.
    pub buckets: usize,
    /// From here on distances are alike.
    pub max_distance: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f64,
}

impl T5Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, hostile or not supported.
    pub fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(file, object);
        fields.refuse_unless("model_type", &[json!("t5")])?;
        match fields.text("feed_forward_proj")? {
            Some("gated-gelu") => {}
            other => {
                let what = format!("is {other:?}, which is not supported; supported: gated-gelu");
                return Err(fields.error("feed_forward_proj", &what));
            }
        }
        let config = T5Config {
            vocab_size: fields.count("vocab_size", 32_128, 1..=MAX_VOCABULARY)?,
            width: fields.count("d_model", 512, 1..=MAX_WIDTH)?,
            head_dim: fields.count("d_kv", 64, 1..=MAX_WIDTH)?,
            heads: fields.count("num_heads", 8, 1..=MAX_HEADS)?,
            inner: fields.count("d_ff", 2048, 1..=MAX_WIDTH)?,
            layers: fields.count("num_layers", 6, 1..=MAX_LAYERS)?,
            buckets: fields.count("relative_attention_num_buckets", 32, 4..=MAX_BUCKETS)?,
            max_distance: fields.count("relative_attention_max_distance", 128, 2..=MAX_DISTANCE)?,
            norm_eps: fields.positive("layer_norm_epsilon", 1e-6)?,
        };
        if !config.buckets.is_multiple_of(4) || config.max_distance <= config.buckets / 4 {
            let what = format!(
                "is {}; it must be a multiple of 4, and relative_attention_max_distance {} more than a quarter of it",
                config.buckets, config.max_distance
            );
            return Err(fields.error("relative_attention_num_buckets", &what));
        }
        if config.heads * config.head_dim > MAX_WIDTH {
            let what = format!("is {}, which makes attention too wide", config.heads);
            return Err(fields.error("num_heads", &what));
        }
        Ok(config)
    }

    /// The class of the distance from a query to a key: near ones each have their own, farther ones share them
    /// by the logarithm; keys behind the query have the second half.
    fn bucket(&self, query: usize, key: usize) -> usize {
        let half = self.buckets / 2;
        let side = if key > query { half } else { 0 };
        let distance = query.abs_diff(key);
        let exact = half / 2;
        if distance < exact {
            return side + distance;
        }
        // In f32, as the models were trained.
        let ratio =
            (distance as f32 / exact as f32).ln() / (self.max_distance as f32 / exact as f32).ln();
        let far = exact + (ratio * (half - exact) as f32) as usize;
        side + far.min(half - 1)
    }
}

struct Block {
    /// (width,) f32
    norm1: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// (width,) f32
    norm2: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn load(scope: &Scope<'_>, config: &T5Config) -> Result<Self, ModelError> {
        let (width, inner) = (config.width, config.heads * config.head_dim);
        let (first, second) = (scope.at("layer").at(0), scope.at("layer").at(1));
        let attention = first.at("SelfAttention");
        let feed_forward = second.at("DenseReluDense");
        let down = feed_forward
            .at("wo")
            .tensor("weight", &[width, config.inner])?;
        // The CPU multiplies in f32 whatever the weights are kept in.
        let down = match down.dtype() {
            DType::F16 if !down.device().is_cpu() => down.to_dtype(DType::F32)?,
            _ => down,
        };
        Ok(Block {
            norm1: first.at("layer_norm").tensor_f32("weight", &[width])?,
            q: linear_no_bias(&attention.at("q"), width, inner)?,
            k: linear_no_bias(&attention.at("k"), width, inner)?,
            v: linear_no_bias(&attention.at("v"), width, inner)?,
            out: linear_no_bias(&attention.at("o"), inner, width)?,
            norm2: second.at("layer_norm").tensor_f32("weight", &[width])?,
            gate: linear_no_bias(&feed_forward.at("wi_0"), width, config.inner)?,
            up: linear_no_bias(&feed_forward.at("wi_1"), width, config.inner)?,
            down: Linear::dense(down, None)?,
        })
    }

    /// x: (tokens, width) f32, bias: (heads, tokens, tokens) f32 -> the shape of `x`.
    fn forward(&self, x: &Tensor, bias: &Tensor, config: &T5Config) -> candle_core::Result<Tensor> {
        let eps = config.norm_eps as f32;
        let normed = rms_norm(x, &self.norm1, eps)?;
        let [q, k, v] = linears([&self.q, &self.k, &self.v], &normed.unsqueeze(0)?)?;
        let bias = Some(Mask::Bias(bias));
        let attended = image::attention(&q, &k, &v, config.heads, 1.0, bias)?.squeeze(0)?;
        let x = self.out.forward_add(&attended, x)?;
        let normed = rms_norm(&x, &self.norm2, eps)?;
        let [gate, up] = linear::forward_all([&self.gate, &self.up], &normed)?;
        self.down.forward_add(&gelu_tanh_mul(&gate, &up)?, &x)
    }
}

/// A T5 encoder.
pub struct T5Encoder {
    config: T5Config,
    tokens: Embedding,
    /// (buckets, heads) f32, on the CPU: the first block's, which all blocks add.
    bias: Vec<Vec<f32>>,
    blocks: Vec<Block>,
    /// (width,) f32
    final_norm: Tensor,
    device: Device,
}

impl T5Encoder {
    /// Builds the encoder from its weights, named as transformers names them.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn new(config: &T5Config, weights: &Weights) -> Result<Self, ModelError> {
        let root = weights.root();
        let table = root
            .at_first_known(&["shared", "encoder.embed_tokens"])
            .tensor("weight", &[config.vocab_size, config.width])?;
        let encoder = root.at("encoder");
        let blocks = encoder.at("block");
        let bias = blocks
            .at("0.layer.0.SelfAttention.relative_attention_bias")
            .tensor_f32("weight", &[config.buckets, config.heads])?;
        let encoder = T5Encoder {
            config: config.clone(),
            tokens: Embedding::dense(table)?,
            bias: bias.to_vec2()?,
            blocks: (0..config.layers)
                .map(|index| Block::load(&blocks.at(index), config))
                .collect::<Result<_, _>>()?,
            final_norm: encoder
                .at("final_layer_norm")
                .tensor_f32("weight", &[config.width])?,
            device: weights.device().clone(),
        };
        weights.log_unused();
        Ok(encoder)
    }

    /// Width of the states.
    pub fn width(&self) -> usize {
        self.config.width
    }

    /// ids: one prompt with its padding -> (1, tokens, width) f32.
    ///
    /// # Errors
    /// No token, an id outside the vocabulary, or the device fails.
    pub fn forward(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        if ids.is_empty() {
            bail!("a text encoder takes at least one token");
        }
        let bias = self.position_bias(ids.len())?;
        let ids = Tensor::from_slice(ids, ids.len(), &self.device)?;
        let mut x = self.tokens.forward(&ids)?.to_dtype(DType::F32)?;
        for block in &self.blocks {
            x = block.forward(&x, &bias, &self.config)?;
        }
        let eps = self.config.norm_eps as f32;
        rms_norm(&x, &self.final_norm, eps)?.unsqueeze(0)
    }

    /// (heads, tokens, tokens) f32: what is added to each score.
    fn position_bias(&self, tokens: usize) -> candle_core::Result<Tensor> {
        let heads = self.config.heads;
        let mut values = Vec::with_capacity(heads * tokens * tokens);
        for head in 0..heads {
            for query in 0..tokens {
                for key in 0..tokens {
                    values.push(self.bias[self.config.bucket(query, key)][head]);
                }
            }
        }
        Tensor::from_vec(values, (heads, tokens, tokens), &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Result<T5Config, ModelError> {
        let object = value.as_object().expect("an object").clone();
        T5Config::parse("text_encoder_2/config.json", &object)
    }

    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        let config = config(json!({"feed_forward_proj": "gated-gelu"})).expect("valid");
        // The first distance of each bucket in transformers' `_relative_position_bucket`, 32 buckets up to 128.
        let firsts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for distance in 0..600 {
            let expected = firsts.iter().rposition(|first| *first <= distance);
            let expected = expected.expect("0 is among them");
            assert_eq!(config.bucket(distance, 0), expected, "{distance} before");
            if distance > 0 {
                assert_eq!(
                    config.bucket(0, distance),
                    16 + expected,
                    "{distance} behind"
                );
            }
        }
    }

    #[test]
    fn hostile_fields_are_errors_that_name_them() {
        for (field, value) in [
            ("feed_forward_proj", json!("relu")),
            ("d_model", json!(0)),
            ("num_heads", json!(1_000_000)),
            ("num_heads", json!(257)),
            ("relative_attention_num_buckets", json!(6)),
            ("relative_attention_num_buckets", json!(1000)),
            ("vocab_size", json!(-1)),
        ] {
            let mut object = json!({"feed_forward_proj": "gated-gelu"});
            object[field] = value;
            let error = config(object).expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(
            config(json!({})).is_err(),
            "the first version's relu is the default"
        );
    }
}
