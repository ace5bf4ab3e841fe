//! What the transformers of Flux and SD3 share.
//!
//! Each row is steered by a vector made of its timestep and of the prompt as a whole: it gives every norm its scale
//! and shift, and every branch a gate. Steering is f32 on every device; the residual streams are f32 on the CPU, and
//! elsewhere bf16 for weights in bf16 and f32 for others, since f16 overflows in these networks.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, bail};

use crate::kernels::activation::gelu_tanh_mul;
use crate::kernels::image::{self, LayerNorm};
use crate::kernels::linear::Linear;
use crate::kernels::norm::rms_norm;
use crate::model::ModelError;
use crate::model::diffusion::layers::{Embedder, linear, linears};
use crate::model::diffusion::time_embedding::Sinusoids;
use crate::model::diffusion::weights::Scope;

/// Added to the variance in the norms of these networks.
const EPS: f64 = 1e-6;
/// How much wider the feed-forward layer is.
pub(super) const MLP_RATIO: usize = 4;
/// How timesteps and guidance scales, up to 1000 times what users know, become waves.
const WAVES: Sinusoids = Sinusoids {
    width: 256,
    flip_sin_to_cos: true,
    freq_shift: 0.0,
};

/// In which numbers the residual streams of a network with weights of this dtype are kept.
pub(super) fn stream_dtype(device: &Device, weights: DType) -> DType {
    match weights {
        DType::BF16 if !device.is_cpu() => DType::BF16,
        _ => DType::F32,
    }
}

/// A layer norm without weights of its own.
pub(super) fn plain_norm(width: usize, device: &Device) -> candle_core::Result<LayerNorm> {
    LayerNorm::new(Tensor::ones(width, DType::F32, device)?, None, EPS)
}

/// What steers a row: its timestep, for some models its guidance scale, and the prompt as a whole.
pub(super) struct Steering {
    timestep: Embedder,
    guidance: Option<Embedder>,
    pooled: Embedder,
    device: Device,
}

impl Steering {
    pub(super) fn load(
        scope: &Scope<'_>,
        pooled_dim: usize,
        width: usize,
        has_guidance: bool,
    ) -> Result<Self, ModelError> {
        let guidance = match has_guidance {
            true => Some(Embedder::load(
                &scope.at("guidance_embedder"),
                WAVES.width,
                width,
            )?),
            false => None,
        };
        Ok(Steering {
            timestep: Embedder::load(&scope.at("timestep_embedder"), WAVES.width, width)?,
            guidance,
            pooled: Embedder::load(&scope.at("text_embedder"), pooled_dim, width)?,
            device: scope.device().clone(),
        })
    }

    /// timesteps: of 1000. guidance: the scales, read by models that were trained with them. pooled: (rows, p) f32.
    /// -> (rows, width) f32, behind the SiLU that every use of it begins with.
    pub(super) fn forward(
        &self,
        timesteps: &[f64],
        guidance: &[f64],
        pooled: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let waves = WAVES.embed(timesteps, &self.device)?;
        let mut steering = self.timestep.forward(&waves)?;
        if let Some(embedder) = &self.guidance {
            let scaled: Vec<f64> = guidance.iter().map(|scale| scale * 1000.0).collect();
            let waves = WAVES.embed(&scaled, &self.device)?;
            steering = image::add(&steering, &embedder.forward(&waves)?)?;
        }
        image::silu(&image::add(&steering, &self.pooled.forward(pooled)?)?)
    }
}

/// Scales, shifts and gates made of the steering.
pub(super) struct Modulation {
    linear: Linear,
    width: usize,
}

impl Modulation {
    /// The parts in this range, of `parts` that the layer has.
    pub(super) fn load(
        scope: &Scope<'_>,
        width: usize,
        parts: usize,
        range: Range<usize>,
    ) -> Result<Self, ModelError> {
        let (start, len) = (range.start * width, range.len() * width);
        let weight = scope.tensor("weight", &[parts * width, width])?;
        let bias = scope.tensor("bias", &[parts * width])?;
        let weight = weight.narrow(0, start, len)?.contiguous()?;
        let bias = bias.narrow(0, start, len)?.contiguous()?;
        Ok(Modulation {
            linear: Linear::dense(weight, Some(bias))?,
            width,
        })
    }

    /// steering: (rows, width) f32 -> `PARTS` of (rows, 1, width) f32.
    pub(super) fn forward<const PARTS: usize>(
        &self,
        steering: &Tensor,
    ) -> candle_core::Result<[Tensor; PARTS]> {
        let parts = image::linear(&self.linear, steering)?.unsqueeze(1)?;
        let parts = (0..PARTS)
            .map(|part| parts.narrow(2, part * self.width, self.width)?.contiguous())
            .collect::<candle_core::Result<Vec<_>>>()?;
        match parts.try_into() {
            Ok(parts) => Ok(parts),
            Err(_) => bail!("a modulation has {PARTS} parts"),
        }
    }
}

/// normed: (rows, tokens, width); shift, scale: (rows, 1, width) f32 -> `normed * (1 + scale) + shift`.
pub(super) fn modulate(
    normed: &Tensor,
    shift: &Tensor,
    scale: &Tensor,
) -> candle_core::Result<Tensor> {
    let scale = (scale + 1.0)?.to_dtype(normed.dtype())?;
    normed
        .broadcast_mul(&scale)?
        .broadcast_add(&shift.to_dtype(normed.dtype())?)
}

/// x, branch: (rows, tokens, width); gate: (rows, 1, width) f32 -> `x + gate * branch`.
pub(super) fn add_gated(x: &Tensor, gate: &Tensor, branch: &Tensor) -> candle_core::Result<Tensor> {
    image::add(x, &branch.broadcast_mul(&gate.to_dtype(x.dtype())?)?)
}

/// The last layer's norm. diffusers keeps the scale before the shift here, unlike everywhere else and unlike the
/// original authors.
pub(super) struct OutputNorm {
    modulation: Modulation,
    norm: LayerNorm,
}

impl OutputNorm {
    /// scope: of the `AdaLayerNormContinuous`.
    pub(super) fn load(scope: &Scope<'_>, width: usize) -> Result<Self, ModelError> {
        Ok(OutputNorm {
            modulation: Modulation::load(&scope.at("linear"), width, 2, 0..2)?,
            norm: plain_norm(width, scope.device())?,
        })
    }

    /// x: (rows, tokens, width) -> the same shape.
    pub(super) fn forward(&self, x: &Tensor, steering: &Tensor) -> candle_core::Result<Tensor> {
        let [scale, shift] = self.modulation.forward(steering)?;
        modulate(&self.norm.forward(x)?, &shift, &scale)
    }
}

/// Names of the weights that turn a stream into queries, keys and values.
pub(super) struct QkvNames {
    /// Of the three layers.
    pub(super) layers: [&'static str; 3],
    /// Of the norms of queries and keys.
    pub(super) norms: [&'static str; 2],
}

/// The picture's stream, or the only one.
pub(super) const OWN: QkvNames = QkvNames {
    layers: ["to_q", "to_k", "to_v"],
    norms: ["norm_q", "norm_k"],
};
/// The text's stream, where it has weights of its own.
pub(super) const ADDED: QkvNames = QkvNames {
    layers: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
};

/// The shape of an attention.
#[derive(Clone, Copy)]
pub(super) struct HeadShape {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// Queries and keys are normalised per head.
    pub(super) qk_norm: bool,
    /// Queries and keys will be rotated by [`rope`](crate::kernels::rope::rope), which pairs column `i` with
    /// `i + d / 2` where the weights pair `2 i` with `2 i + 1`. Their columns are put in that order once; products
    /// of queries and keys do not change.
    pub(super) rotated: bool,
}

/// Queries, keys and values of one stream.
pub(super) struct Qkv {
    q: Linear,
    k: Linear,
    v: Linear,
    /// Weights of the norms of queries and keys: (head_dim,) f32
    norms: Option<[Tensor; 2]>,
    shape: HeadShape,
}

impl Qkv {
    pub(super) fn load(
        scope: &Scope<'_>,
        names: &QkvNames,
        shape: HeadShape,
    ) -> Result<Self, ModelError> {
        let width = shape.heads * shape.head_dim;
        let rotated = |name: &str| -> Result<Linear, ModelError> {
            let scope = scope.at(name);
            let weight = scope.tensor("weight", &[width, width])?;
            let bias = scope.tensor("bias", &[width])?;
            let weight = in_order_of_rotation(&weight, shape)?;
            let bias = in_order_of_rotation(&bias, shape)?;
            Ok(Linear::dense(weight, Some(bias))?)
        };
        let norm = |name: &str| -> Result<Tensor, ModelError> {
            let weight = scope.at(name).tensor_f32("weight", &[shape.head_dim])?;
            Ok(in_order_of_rotation(&weight, shape)?)
        };
        let [q, k, v] = names.layers;
        Ok(Qkv {
            q: rotated(q)?,
            k: rotated(k)?,
            v: linear(&scope.at(v), width, width)?,
            norms: match shape.qk_norm {
                true => Some([norm(names.norms[0])?, norm(names.norms[1])?]),
                false => None,
            },
            shape,
        })
    }

    /// x: (rows, tokens, width) -> queries and keys in f32 if they are normalised, and values, of the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<[Tensor; 3]> {
        let [mut q, mut k, v] = linears([&self.q, &self.k, &self.v], x)?;
        if let Some(norms) = &self.norms {
            for (x, weight) in [&mut q, &mut k].into_iter().zip(norms) {
                let shape = x.dims3()?;
                let heads = x.to_dtype(DType::F32)?.reshape(((), self.shape.head_dim))?;
                *x = rms_norm(&heads, weight, EPS as f32)?.reshape(shape)?;
            }
        }
        Ok([q, k, v])
    }
}

/// weight: (heads * d, ..), or (d,) for a norm -> each head's rows `2 i` first, then its rows `2 i + 1`.
fn in_order_of_rotation(weight: &Tensor, shape: HeadShape) -> candle_core::Result<Tensor> {
    if !shape.rotated {
        return Ok(weight.clone());
    }
    let columns = weight.elem_count() / weight.dim(0)?;
    weight
        .reshape(((), shape.head_dim / 2, 2, columns))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape(weight.shape())
}

/// q, k, v: (rows, tokens, width) -> the shape and dtype of `v`.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: HeadShape,
) -> candle_core::Result<Tensor> {
    let scale = (shape.head_dim as f32).powf(-0.5);
    let (q, k) = (q.to_dtype(v.dtype())?, k.to_dtype(v.dtype())?);
    image::attention(&q, &k, v, shape.heads, scale, None)
}

/// Two streams' tokens, (rows, tokens, width) each, one behind the other.
pub(super) fn join(first: &Tensor, second: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::cat(&[first, second], 1)?.contiguous()
}

/// The first `tokens` of joined streams, and the rest.
pub(super) fn part(x: &Tensor, tokens: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let rest = x.dim(1)?.saturating_sub(tokens);
    Ok((
        x.narrow(1, 0, tokens)?.contiguous()?,
        x.narrow(1, tokens, rest)?.contiguous()?,
    ))
}

/// `x * Φ(x)` in the tanh form, of any shape and dtype.
pub(super) fn gelu_tanh(x: &Tensor) -> candle_core::Result<Tensor> {
    match x.device().is_cpu() {
        true => gelu_tanh_mul(x, &x.ones_like()?),
        false => x.gelu(),
    }
}

/// Linear, GELU, linear.
pub(super) struct Mlp {
    first: Linear,
    second: Linear,
}

impl Mlp {
    pub(super) fn load(scope: &Scope<'_>, width: usize) -> Result<Self, ModelError> {
        let net = scope.at("net");
        Ok(Mlp {
            first: linear(&net.at("0.proj"), width, MLP_RATIO * width)?,
            second: linear(&net.at("2"), MLP_RATIO * width, width)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        image::linear(&self.second, &gelu_tanh(&image::linear(&self.first, x)?)?)
    }
}

/// The feed-forward layer of a block, steered. x: (rows, tokens, width) -> the same shape.
pub(super) fn feed_forward(
    x: &Tensor,
    [shift, scale, gate]: [&Tensor; 3],
    mlp: &Mlp,
    norm: &LayerNorm,
) -> candle_core::Result<Tensor> {
    let normed = modulate(&norm.forward(x)?, shift, scale)?;
    add_gated(x, gate, &mlp.forward(&normed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_rotation_puts_even_columns_first() {
        let weight = Tensor::from_vec((0..16u32).collect(), (8, 2), &Device::Cpu).expect("small");
        let shape = HeadShape {
            heads: 2,
            head_dim: 4,
            qk_norm: true,
            rotated: true,
        };
        let ordered = in_order_of_rotation(&weight, shape).expect("fits");
        let first: Vec<u32> = ordered.to_vec2().expect("small").concat();
        assert_eq!(
            first,
            [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
        );
    }
}
