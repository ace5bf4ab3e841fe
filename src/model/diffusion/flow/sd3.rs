//! Stable Diffusion 3's transformer, MMDiT (Esser et al., arXiv 2403.03206), with the additions of 3.5: norms of queries
//! and keys, and in the medium size blocks with a second attention of the picture alone. Positions are a table.

use candle_core::{DType, Tensor, bail};

use super::config::PATCH;
use super::layers::{
    ADDED, HeadShape, Mlp, Modulation, OWN, OutputNorm, Qkv, Steering, add_gated, attend,
    feed_forward, join, modulate, part, plain_norm, stream_dtype,
};
use super::packing::{TokenOrder, pack, unpack};
use super::shapes::Sd3Config;
use super::transformer::TransformerInputs;
use crate::kernels::image::{self, LayerNorm};
use crate::kernels::linear::Linear;
use crate::model::ModelError;
use crate::model::diffusion::layers::linear;
use crate::model::diffusion::weights::{Scope, Weights};

/// What follows attention: back into the stream, and the feed-forward layer.
struct Tail {
    out: Linear,
    mlp: Mlp,
}

/// How the text's stream goes through a block.
enum TextSide {
    /// On to the next one.
    Whole { modulation: Modulation, tail: Tail },
    /// It ends here: only its keys and values count.
    Last(OutputNorm),
}

/// The picture's second attention.
struct Dual {
    modulation: Modulation,
    qkv: Qkv,
    out: Linear,
}

struct Block {
    text: TextSide,
    text_qkv: Qkv,
    modulation: Modulation,
    qkv: Qkv,
    tail: Tail,
    dual: Option<Dual>,
    shape: HeadShape,
}

impl Block {
    fn load(scope: &Scope<'_>, config: &Sd3Config, index: usize) -> Result<Self, ModelError> {
        let width = config.width();
        let shape = HeadShape {
            heads: config.heads,
            head_dim: config.head_dim,
            qk_norm: config.qk_norm,
            rotated: false,
        };
        let attention = scope.at("attn");
        let tail = |out: &str, mlp: &str| -> Result<Tail, ModelError> {
            Ok(Tail {
                out: linear(&attention.at(out), width, width)?,
                mlp: Mlp::load(&scope.at(mlp), width)?,
            })
        };
        let text_norm = scope.at("norm1_context");
        let text = match index + 1 == config.layers {
            true => TextSide::Last(OutputNorm::load(&text_norm, width)?),
            false => TextSide::Whole {
                modulation: Modulation::load(&text_norm.at("linear"), width, 6, 0..6)?,
                tail: tail("to_add_out", "ff_context")?,
            },
        };
        let own_norm = scope.at("norm1").at("linear");
        let dual = match config.dual_layers.contains(&index) {
            true => {
                let attention = scope.at("attn2");
                Some(Dual {
                    modulation: Modulation::load(&own_norm, width, 9, 6..9)?,
                    qkv: Qkv::load(&attention, &OWN, shape)?,
                    out: linear(&attention.at("to_out.0"), width, width)?,
                })
            }
            false => None,
        };
        let parts = if dual.is_some() { 9 } else { 6 };
        Ok(Block {
            text,
            text_qkv: Qkv::load(&attention, &ADDED, shape)?,
            modulation: Modulation::load(&own_norm, width, parts, 0..6)?,
            qkv: Qkv::load(&attention, &OWN, shape)?,
            tail: tail("to_out.0", "ff")?,
            dual,
            shape,
        })
    }

    /// text, picture: (rows, tokens, width) -> the same shapes; no text from the last block.
    fn forward(
        &self,
        text: &Tensor,
        picture: &Tensor,
        steering: &Tensor,
        norm: &LayerNorm,
    ) -> candle_core::Result<(Option<Tensor>, Tensor)> {
        let normed = norm.forward(picture)?;
        let [shift, scale, gate, mlp_shift, mlp_scale, mlp_gate] =
            self.modulation.forward(steering)?;
        let [q, k, v] = self.qkv.forward(&modulate(&normed, &shift, &scale)?)?;
        let (text_normed, text_rest) = match &self.text {
            TextSide::Last(norm) => (norm.forward(text, steering)?, None),
            TextSide::Whole { modulation, tail } => {
                let [shift, scale, rest @ ..] = modulation.forward::<6>(steering)?;
                let normed = modulate(&norm.forward(text)?, &shift, &scale)?;
                (normed, Some((rest, tail)))
            }
        };
        let [text_q, text_k, text_v] = self.text_qkv.forward(&text_normed)?;
        let [q, k, v] = [join(&q, &text_q)?, join(&k, &text_k)?, join(&v, &text_v)?];
        let attended = attend(&q, &k, &v, self.shape)?;
        let (of_picture, of_text) = part(&attended, picture.dim(1)?)?;

        let branch = image::linear(&self.tail.out, &of_picture)?;
        let mut picture = add_gated(picture, &gate, &branch)?;
        if let Some(dual) = &self.dual {
            let [shift, scale, gate] = dual.modulation.forward(steering)?;
            let [q, k, v] = dual.qkv.forward(&modulate(&normed, &shift, &scale)?)?;
            let branch = image::linear(&dual.out, &attend(&q, &k, &v, self.shape)?)?;
            picture = add_gated(&picture, &gate, &branch)?;
        }
        let mlp = [&mlp_shift, &mlp_scale, &mlp_gate];
        let picture = feed_forward(&picture, mlp, &self.tail.mlp, norm)?;
        let text = match text_rest {
            None => None,
            Some(([gate, shift, scale, mlp_gate], tail)) => {
                let text = add_gated(text, &gate, &image::linear(&tail.out, &of_text)?)?;
                let mlp = [&shift, &scale, &mlp_gate];
                Some(feed_forward(&text, mlp, &tail.mlp, norm)?)
            }
        };
        Ok((text, picture))
    }
}

/// SD3's transformer.
pub(super) struct Sd3Transformer {
    config: Sd3Config,
    dtype: DType,
    picture_in: Linear,
    text_in: Linear,
    /// (edge, edge, width) f32
    positions: Tensor,
    steering: Steering,
    norm: LayerNorm,
    blocks: Vec<Block>,
    norm_out: OutputNorm,
    out: Linear,
}

impl Sd3Transformer {
    /// Builds the network from its weights, named as diffusers names them.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub(super) fn new(config: &Sd3Config, weights: &Weights) -> Result<Self, ModelError> {
        let root = weights.root();
        let (width, device) = (config.width(), weights.device());
        let channels = config.latent_channels;
        let token = PATCH * PATCH * channels;
        let edge = config.position_edge;
        let embedding = root.at("pos_embed");
        // A convolution whose squares do not overlap is a linear layer of packed latents.
        let projection = embedding.at("proj");
        let kernel = projection.tensor("weight", &[width, channels, PATCH, PATCH])?;
        let dtype = kernel.dtype();
        let picture_in = Linear::dense(
            kernel.reshape((width, token))?,
            Some(projection.tensor("bias", &[width])?),
        )?;
        let blocks = root.at("transformer_blocks");
        let transformer = Sd3Transformer {
            config: config.clone(),
            dtype: stream_dtype(device, dtype),
            picture_in,
            text_in: linear(&root.at("context_embedder"), config.context_dim, width)?,
            positions: embedding
                .tensor_f32("pos_embed", &[1, edge * edge, width])?
                .reshape((edge, edge, width))?,
            steering: Steering::load(&root.at("time_text_embed"), config.pooled_dim, width, false)?,
            norm: plain_norm(width, device)?,
            blocks: (0..config.layers)
                .map(|index| Block::load(&blocks.at(index), config, index))
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
    /// Odd h or w, a picture larger than the table of positions, inputs that do not fit, or the device fails.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        inputs: &TransformerInputs<'_>,
    ) -> candle_core::Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let tokens = pack(x, self.config.latent_channels)?;
        let positions = self.positions(height / PATCH, width / PATCH)?;
        let steering = self
            .steering
            .forward(inputs.timesteps, inputs.guidance, inputs.pooled)?;
        let picture = image::linear(&self.picture_in, &tokens)?;
        let mut picture = picture.broadcast_add(&positions)?.to_dtype(self.dtype)?;
        let context = inputs.context.to_dtype(self.dtype)?;
        let mut text = image::linear(&self.text_in, &context)?;
        for block in &self.blocks {
            let (next_text, next_picture) =
                block.forward(&text, &picture, &steering, &self.norm)?;
            picture = next_picture;
            text = next_text.unwrap_or(text);
        }
        let output = image::linear(&self.out, &self.norm_out.forward(&picture, &steering)?)?;
        unpack(&output, height, width, TokenOrder::ChannelsLast)
    }

    /// The middle of the table: (1, down * across, width) f32.
    fn positions(&self, down: usize, across: usize) -> candle_core::Result<Tensor> {
        let edge = self.config.position_edge;
        if down > edge || across > edge {
            bail!(
                "a latent of {}x{} is larger than the network's {most}x{most}",
                down * PATCH,
                across * PATCH,
                most = edge * PATCH
            );
        }
        self.positions
            .narrow(0, (edge - down) / 2, down)?
            .narrow(1, (edge - across) / 2, across)?
            .contiguous()?
            .reshape((1, down * across, ()))
    }
}
