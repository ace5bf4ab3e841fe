//! Flux.1's transformer (Black Forest Labs): blocks in which text and picture have weights of their own and attend to
//! each other, then blocks in which they are one sequence. Positions are rotations of queries and keys.

use candle_core::{DType, Device, Tensor};

use super::config::PATCH;
use super::layers::{
    ADDED, HeadShape, MLP_RATIO, Mlp, Modulation, OWN, OutputNorm, Qkv, Steering, add_gated,
    attend, feed_forward, gelu_tanh, join, modulate, part, plain_norm, stream_dtype,
};
use super::packing::{TokenOrder, pack, unpack};
use super::shapes::{AXES, FluxConfig};
use super::transformer::TransformerInputs;
use crate::kernels::image::{self, LayerNorm};
use crate::kernels::linear::Linear;
use crate::kernels::rope::rope;
use crate::model::ModelError;
use crate::model::diffusion::layers::linear;
use crate::model::diffusion::weights::{Scope, Weights};

/// The slowest rotation takes this many times as many tokens as the fastest.
const THETA: f64 = 10_000.0;

/// One side of a double block.
struct Side {
    modulation: Modulation,
    qkv: Qkv,
    out: Linear,
    mlp: Mlp,
}

/// The tensors of a side on their way through a double block.
struct Steered {
    gate: Tensor,
    mlp_shift: Tensor,
    mlp_scale: Tensor,
    mlp_gate: Tensor,
}

impl Side {
    /// x: (rows, tokens, width) -> queries, keys, values, and the rest of the modulation.
    fn begin(
        &self,
        x: &Tensor,
        steering: &Tensor,
        norm: &LayerNorm,
    ) -> candle_core::Result<([Tensor; 3], Steered)> {
        let [shift, scale, gate, mlp_shift, mlp_scale, mlp_gate] =
            self.modulation.forward(steering)?;
        let qkv = self
            .qkv
            .forward(&modulate(&norm.forward(x)?, &shift, &scale)?)?;
        let steered = Steered {
            gate,
            mlp_shift,
            mlp_scale,
            mlp_gate,
        };
        Ok((qkv, steered))
    }

    fn finish(
        &self,
        x: &Tensor,
        attended: &Tensor,
        steered: &Steered,
        norm: &LayerNorm,
    ) -> candle_core::Result<Tensor> {
        let x = add_gated(x, &steered.gate, &image::linear(&self.out, attended)?)?;
        let mlp = [&steered.mlp_shift, &steered.mlp_scale, &steered.mlp_gate];
        feed_forward(&x, mlp, &self.mlp, norm)
    }
}

/// Text and picture with weights of their own.
struct DoubleBlock {
    text: Side,
    picture: Side,
}

impl DoubleBlock {
    fn load(scope: &Scope<'_>, shape: HeadShape) -> Result<Self, ModelError> {
        let width = shape.heads * shape.head_dim;
        let attention = scope.at("attn");
        let side = |norm: &str, names, out: &str, mlp: &str| -> Result<Side, ModelError> {
            Ok(Side {
                modulation: Modulation::load(&scope.at(norm).at("linear"), width, 6, 0..6)?,
                qkv: Qkv::load(&attention, names, shape)?,
                out: linear(&attention.at(out), width, width)?,
                mlp: Mlp::load(&scope.at(mlp), width)?,
            })
        };
        Ok(DoubleBlock {
            text: side("norm1_context", &ADDED, "to_add_out", "ff_context")?,
            picture: side("norm1", &OWN, "to_out.0", "ff")?,
        })
    }

    fn forward(
        &self,
        text: &Tensor,
        picture: &Tensor,
        steering: &Tensor,
        attention: &Attention<'_>,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let norm = attention.norm;
        let ([q, k, v], text_steered) = self.text.begin(text, steering, norm)?;
        let ([more_q, more_k, more_v], steered) = self.picture.begin(picture, steering, norm)?;
        let [q, k, v] = [join(&q, &more_q)?, join(&k, &more_k)?, join(&v, &more_v)?];
        let attended = attention.forward(&q, &k, &v)?;
        let (of_text, of_picture) = part(&attended, text.dim(1)?)?;
        Ok((
            self.text.finish(text, &of_text, &text_steered, norm)?,
            self.picture.finish(picture, &of_picture, &steered, norm)?,
        ))
    }
}

/// Text and picture as one sequence; attention and feed-forward layer side by side.
struct SingleBlock {
    modulation: Modulation,
    qkv: Qkv,
    mlp: Linear,
    out: Linear,
}

impl SingleBlock {
    fn load(scope: &Scope<'_>, shape: HeadShape) -> Result<Self, ModelError> {
        let width = shape.heads * shape.head_dim;
        let inner = MLP_RATIO * width;
        Ok(SingleBlock {
            modulation: Modulation::load(&scope.at("norm").at("linear"), width, 3, 0..3)?,
            qkv: Qkv::load(&scope.at("attn"), &OWN, shape)?,
            mlp: linear(&scope.at("proj_mlp"), width, inner)?,
            out: linear(&scope.at("proj_out"), width + inner, width)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        steering: &Tensor,
        attention: &Attention<'_>,
    ) -> candle_core::Result<Tensor> {
        let [shift, scale, gate] = self.modulation.forward(steering)?;
        let normed = modulate(&attention.norm.forward(x)?, &shift, &scale)?;
        let [q, k, v] = self.qkv.forward(&normed)?;
        let attended = attention.forward(&q, &k, &v)?;
        let inner = gelu_tanh(&image::linear(&self.mlp, &normed)?)?;
        let both = Tensor::cat(&[&attended, &inner], 2)?.contiguous()?;
        add_gated(x, &gate, &image::linear(&self.out, &both)?)
    }
}

/// What all blocks of a pass do alike.
struct Attention<'a> {
    shape: HeadShape,
    norm: &'a LayerNorm,
    /// (tokens, head_dim / 2) f32
    cos: Tensor,
    /// (tokens, head_dim / 2) f32
    sin: Tensor,
    /// Of each row's tokens in turn: rows of the tables.
    positions: Vec<u32>,
}

impl Attention<'_> {
    /// q, k, v: (rows, tokens, width) -> the same shape.
    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
        attend(&self.rotate(q)?, &self.rotate(k)?, v, self.shape)
    }

    /// In f32 also where the network is not: a rotation by many turns has no meaning in bf16.
    fn rotate(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let shape = x.dims3()?;
        let heads = x.to_dtype(DType::F32)?;
        let heads = heads.reshape(((), self.shape.heads, self.shape.head_dim))?;
        rope(&heads, &self.cos, &self.sin, &self.positions)?.reshape(shape)
    }
}

/// The cosines and sines of every token's rotations: first the text, which stands at the origin, then the picture's
/// rows. (tokens, head_dim / 2) f32 each.
fn rotations(
    dims: [usize; AXES],
    text: usize,
    down: usize,
    across: usize,
    device: &Device,
) -> candle_core::Result<(Tensor, Tensor)> {
    let half = dims.iter().sum::<usize>() / 2;
    let tokens = text + down * across;
    // (position, pair) -> cosine and sine, for an axis.
    let table = |dim: usize, len: usize| -> Vec<(f32, f32)> {
        (0..len)
            .flat_map(|position| {
                (0..dim / 2).map(move |pair| {
                    let angle = position as f64 * THETA.powf(-2.0 * pair as f64 / dim as f64);
                    (angle.cos() as f32, angle.sin() as f32)
                })
            })
            .collect()
    };
    let tables = [
        table(dims[0], 1),
        table(dims[1], down),
        table(dims[2], across),
    ];
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    cos.reserve_exact(tokens * half);
    sin.reserve_exact(tokens * half);
    cos.resize(text * half, 1.0);
    sin.resize(text * half, 0.0);
    for y in 0..down {
        for x in 0..across {
            for ((table, dim), position) in tables.iter().zip(dims).zip([0, y, x]) {
                let pairs = &table[position * dim / 2..(position + 1) * dim / 2];
                cos.extend(pairs.iter().map(|(cos, _)| cos));
                sin.extend(pairs.iter().map(|(_, sin)| sin));
            }
        }
    }
    Ok((
        Tensor::from_vec(cos, (tokens, half), device)?,
        Tensor::from_vec(sin, (tokens, half), device)?,
    ))
}

/// Flux.1's transformer.
pub(super) struct FluxTransformer {
    config: FluxConfig,
    shape: HeadShape,
    dtype: DType,
    device: Device,
    picture_in: Linear,
    text_in: Linear,
    steering: Steering,
    norm: LayerNorm,
    double_blocks: Vec<DoubleBlock>,
    single_blocks: Vec<SingleBlock>,
    norm_out: OutputNorm,
    out: Linear,
}

impl FluxTransformer {
    /// Builds the network from its weights, named as diffusers names them.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub(super) fn new(config: &FluxConfig, weights: &Weights) -> Result<Self, ModelError> {
        let root = weights.root();
        let (width, device) = (config.width(), weights.device());
        let token = PATCH * PATCH * config.latent_channels;
        let shape = HeadShape {
            heads: config.heads,
            head_dim: config.head_dim,
            qk_norm: true,
            rotated: true,
        };
        let dtype = root.at("proj_out").tensor("bias", &[token])?.dtype();
        let (double, single) = (
            root.at("transformer_blocks"),
            root.at("single_transformer_blocks"),
        );
        let transformer = FluxTransformer {
            config: config.clone(),
            shape,
            dtype: stream_dtype(device, dtype),
            device: device.clone(),
            picture_in: linear(&root.at("x_embedder"), token, width)?,
            text_in: linear(&root.at("context_embedder"), config.context_dim, width)?,
            steering: Steering::load(
                &root.at("time_text_embed"),
                config.pooled_dim,
                width,
                config.guidance,
            )?,
            norm: plain_norm(width, device)?,
            double_blocks: (0..config.double_layers)
                .map(|index| DoubleBlock::load(&double.at(index), shape))
                .collect::<Result<_, _>>()?,
            single_blocks: (0..config.single_layers)
                .map(|index| SingleBlock::load(&single.at(index), shape))
                .collect::<Result<_, _>>()?,
            norm_out: OutputNorm::load(&root.at("norm_out"), width)?,
            out: linear(&root.at("proj_out"), width, token)?,
        };
        weights.log_unused();
        Ok(transformer)
    }

    /// x: (rows, h, w, c) f32 -> the same shape: the flow from the picture to the noise.
    ///
    /// # Errors
    /// Odd h or w, inputs that do not fit, or the device fails.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        inputs: &TransformerInputs<'_>,
    ) -> candle_core::Result<Tensor> {
        let (rows, height, width, _) = x.dims4()?;
        let tokens = pack(x, self.config.latent_channels)?;
        let (down, across) = (height / PATCH, width / PATCH);
        let text_tokens = inputs.context.dim(1)?;
        let steering = self
            .steering
            .forward(inputs.timesteps, inputs.guidance, inputs.pooled)?;
        let (cos, sin) = rotations(
            self.config.rope_dims,
            text_tokens,
            down,
            across,
            &self.device,
        )?;
        let positions = (text_tokens + down * across) as u32;
        let attention = Attention {
            shape: self.shape,
            norm: &self.norm,
            cos,
            sin,
            positions: (0..rows).flat_map(|_| 0..positions).collect(),
        };
        let mut picture = image::linear(&self.picture_in, &tokens.to_dtype(self.dtype)?)?;
        let mut text = image::linear(&self.text_in, &inputs.context.to_dtype(self.dtype)?)?;
        for block in &self.double_blocks {
            (text, picture) = block.forward(&text, &picture, &steering, &attention)?;
        }
        let mut both = join(&text, &picture)?;
        for block in &self.single_blocks {
            both = block.forward(&both, &steering, &attention)?;
        }
        let (_, picture) = part(&both, text_tokens)?;
        let output = image::linear(&self.out, &self.norm_out.forward(&picture, &steering)?)?;
        unpack(&output, height, width, TokenOrder::ChannelsFirst)
    }
}
