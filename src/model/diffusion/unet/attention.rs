//! The transformer of a UNet's attention blocks: pixels attend to each other, then to the text.

use candle_core::{DType, Tensor};

use crate::kernels::image::{self, GroupNorm, LayerNorm};
use crate::kernels::linear::Linear;
use crate::model::ModelError;
use crate::model::diffusion::layers::{group_norm, layer_norm, linear, linear_no_bias, linears};
use crate::model::diffusion::weights::Scope;

/// Added to the variance in the norm before a transformer, whatever the residual blocks use.
const GROUP_NORM_EPS: f64 = 1e-6;
/// Added to the variance in the norms within.
const LAYER_NORM_EPS: f64 = 1e-5;
/// The feed-forward layer is this many times as wide as the stream.
const FEED_FORWARD_FACTOR: usize = 4;

/// What an attention block looks like.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransformerShape {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    pub(super) context: usize,
    pub(super) groups: usize,
    /// Half-precision queries, keys and values are widened first: some models' products leave the range of f16.
    pub(super) upcast: bool,
}

/// Group norm, projection, transformer layers, projection, and the input added.
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
}

impl Transformer {
    pub(super) fn load(scope: &Scope<'_>, shape: TransformerShape) -> Result<Self, ModelError> {
        let c = shape.channels;
        let layers = (0..shape.layers)
            .map(|index| Layer::load(&scope.at("transformer_blocks").at(index), shape))
            .collect::<Result<_, _>>()?;
        Ok(Transformer {
            norm: group_norm(&scope.at("norm"), c, shape.groups, GROUP_NORM_EPS)?,
            // Older files keep the projections as 1x1 convolutions: the same product per pixel.
            proj_in: linear(&scope.at("proj_in"), c, c)?,
            layers,
            proj_out: linear(&scope.at("proj_out"), c, c)?,
        })
    }

    /// x: (rows, h, w, c), context: (rows, tokens, d) -> the shape of `x`.
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, height, width, channels) = x.dims4()?;
        let tokens = |x: &Tensor| x.reshape((rows, height * width, channels));
        let mut inner = image::linear(&self.proj_in, &tokens(&self.norm.forward(x)?)?)?;
        for layer in &self.layers {
            inner = layer.forward(&inner, context)?;
        }
        image::linear_add(&self.proj_out, &inner, &tokens(x)?)?
            .reshape((rows, height, width, channels))
    }
}

/// Self-attention, cross-attention and a gated feed-forward layer, each behind a norm and added to the stream.
struct Layer {
    norm1: LayerNorm,
    to_itself: Attention,
    norm2: LayerNorm,
    to_text: Attention,
    norm3: LayerNorm,
    gate_and_value: Linear,
    feed_out: Linear,
}

impl Layer {
    fn load(scope: &Scope<'_>, shape: TransformerShape) -> Result<Self, ModelError> {
        let c = shape.channels;
        let inner = FEED_FORWARD_FACTOR * c;
        let feed = scope.at("ff").at("net");
        Ok(Layer {
            norm1: layer_norm(&scope.at("norm1"), c, LAYER_NORM_EPS)?,
            to_itself: Attention::load(&scope.at("attn1"), shape, c)?,
            norm2: layer_norm(&scope.at("norm2"), c, LAYER_NORM_EPS)?,
            to_text: Attention::load(&scope.at("attn2"), shape, shape.context)?,
            norm3: layer_norm(&scope.at("norm3"), c, LAYER_NORM_EPS)?,
            gate_and_value: linear(&feed.at("0.proj"), c, 2 * inner)?,
            feed_out: linear(&feed.at("2"), inner, c)?,
        })
    }

    /// x: (rows, tokens, c), context: (rows, tokens', d) -> the shape of `x`.
    fn forward(&self, x: &Tensor, context: &Tensor) -> candle_core::Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let to_itself = &self.to_itself;
        let [q, k, v] = linears([&to_itself.q, &to_itself.k, &to_itself.v], &normed)?;
        let x = to_itself.finish(&q, &k, &v, x)?;
        let to_text = &self.to_text;
        let q = image::linear(&to_text.q, &self.norm2.forward(&x)?)?;
        let [k, v] = linears([&to_text.k, &to_text.v], context)?;
        let x = to_text.finish(&q, &k, &v, &x)?;
        let inner = image::linear(&self.gate_and_value, &self.norm3.forward(&x)?)?;
        image::linear_add(&self.feed_out, &image::geglu(&inner)?, &x)
    }
}

/// Multi-head attention's four projections.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
    scale: f32,
    upcast: bool,
}

impl Attention {
    /// `context`: width of what is attended to.
    fn load(
        scope: &Scope<'_>,
        shape: TransformerShape,
        context: usize,
    ) -> Result<Self, ModelError> {
        let TransformerShape {
            channels, heads, ..
        } = shape;
        Ok(Attention {
            q: linear_no_bias(&scope.at("to_q"), channels, channels)?,
            k: linear_no_bias(&scope.at("to_k"), context, channels)?,
            v: linear_no_bias(&scope.at("to_v"), context, channels)?,
            out: linear(&scope.at("to_out.0"), channels, channels)?,
            heads,
            scale: ((channels / heads) as f32).powf(-0.5),
            upcast: shape.upcast,
        })
    }

    /// Attends, projects, and adds what came in.
    fn finish(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        residual: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
            image::attention(q, k, v, self.heads, self.scale, None)
        };
        let attended = match self.upcast {
            true => {
                let wide = |x: &Tensor| x.to_dtype(DType::F32);
                attend(&wide(q)?, &wide(k)?, &wide(v)?)?.to_dtype(q.dtype())?
            }
            false => attend(q, k, v)?,
        };
        image::linear_add(&self.out, &attended, residual)
    }
}
