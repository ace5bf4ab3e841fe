//! The same pass with fewer and larger kernels, for cards: numbers stay in the format that the products take.
//!
//! A layer of a decoder without norms behind its projections is twelve launches: a norm that first adds what came before
//! (2, before attention and before the feed-forward part), seven products, one for rotary embedding and K/V, attention
//! (2 for contexts that are cut), and the gate. Between them the residual alone is f32, read and written twice a
//! layer; everything else is in the weights' format (f32 for quantised weights). Said with single operations, as on the
//! CPU, the same is about sixty launches on a card, each of which reads and writes the activations once. Of the
//! bytes that a decoding step moves, weights and K/V are more than 95 % up to 64 rows of an 8B model.

use candle_core::{DType, Tensor};

use super::{Activation, Attention, Decoder, FeedForward, Layer, NormWeight, RopeTable};
use crate::kernels::activation::{gelu_tanh_mul, silu_mul};
use crate::kernels::attention::{
    HeadNorms, PagedKv, TokenLayout, paged_attention, rotate_and_store,
};
use crate::kernels::gather::gather_rows;
use crate::kernels::linear::forward_all;
use crate::kernels::norm::{add_normed, add_rms_norm, rms_norm_to};

/// The residual stream with what was computed last and is still to be added to it.
struct Stream {
    /// (tokens, hidden_size) f32
    hidden: Tensor,
    /// (tokens, hidden_size), of any float dtype
    delta: Option<Tensor>,
}

impl Stream {
    /// Adds what is due, and norms: -> (tokens, hidden_size) of `dtype`.
    fn normed(&mut self, norm: &NormWeight, dtype: DType) -> candle_core::Result<Tensor> {
        match self.delta.take() {
            None => rms_norm_to(&self.hidden, &norm.weight, norm.eps, dtype),
            Some(delta) => {
                let (hidden, normed) =
                    add_rms_norm(&self.hidden, &delta, &norm.weight, norm.eps, dtype)?;
                self.hidden = hidden;
                Ok(normed)
            }
        }
    }

    /// Takes a layer's part, by way of its norm in models that have one there.
    fn add(&mut self, part: Tensor, norm: Option<&NormWeight>) -> candle_core::Result<()> {
        match norm {
            None => self.delta = Some(part),
            Some(norm) => {
                self.hidden = add_normed(&self.hidden, &part, &norm.weight, norm.eps)?;
            }
        }
        Ok(())
    }

    /// The rows at the indices `wanted`.
    fn gather(&mut self, wanted: &Tensor) -> candle_core::Result<()> {
        self.hidden = gather_rows(&self.hidden, wanted)?;
        if let Some(delta) = &self.delta {
            self.delta = Some(gather_rows(delta, wanted)?);
        }
        Ok(())
    }
}

impl Decoder {
    /// As [`Decoder::forward_some`], but for the dtype of what it returns: that which the head takes.
    pub(super) fn forward_fused(
        &self,
        ids: &Tensor,
        layout: &TokenLayout,
        wanted: Option<&[u32]>,
    ) -> candle_core::Result<Tensor> {
        let mut stream = Stream {
            hidden: self.embed(ids)?,
            delta: None,
        };
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let rope = &self.ropes[layer.attention.rope];
            layer.attend_fused(&mut stream, rope, &self.caches[index], layout)?;
            if index == last
                && let Some(wanted) = wanted
            {
                if wanted.is_empty() {
                    return stream.hidden.narrow(0, 0, 0);
                }
                stream.gather(&Tensor::new(wanted, &self.device)?)?;
            }
            layer.feed_forward_fused(&mut stream)?;
        }
        stream.normed(&self.final_norm, self.head.activation_dtype())
    }
}

impl Layer {
    fn attend_fused(
        &self,
        stream: &mut Stream,
        rope: &RopeTable,
        cache: &PagedKv,
        layout: &TokenLayout,
    ) -> candle_core::Result<()> {
        let dtype = self.attention.query.activation_dtype();
        let normed = stream.normed(&self.attention_norm, dtype)?;
        let attended = self.attention.forward_fused(&normed, rope, cache, layout)?;
        let dtype = self.attention.output.activation_dtype();
        let part = self.attention.output.forward(&attended.to_dtype(dtype)?)?;
        stream.add(part, self.post_attention_norm.as_ref())
    }

    fn feed_forward_fused(&self, stream: &mut Stream) -> candle_core::Result<()> {
        let dtype = self.feed_forward.gate.activation_dtype();
        let normed = stream.normed(&self.feed_forward_norm, dtype)?;
        let part = self.feed_forward.forward_fused(&normed)?;
        stream.add(part, self.post_feed_forward_norm.as_ref())
    }
}

impl Attention {
    /// x: (tokens, hidden_size) -> (tokens, heads * head_dim) of the same dtype, before the output projection.
    fn forward_fused(
        &self,
        x: &Tensor,
        table: &RopeTable,
        cache: &PagedKv,
        layout: &TokenLayout,
    ) -> candle_core::Result<Tensor> {
        let (tokens, _) = x.dims2()?;
        let (kv_heads, head_dim) = (cache.kv_heads(), cache.head_dim());
        let heads = self.query.out_features() / head_dim;
        let [query, key, value] = forward_all([&self.query, &self.key, &self.value], x)?;
        let norms = [self.query_norm.as_ref(), self.key_norm.as_ref()];
        let eps = norms.into_iter().flatten().map(|norm| norm.eps).next();
        let query = rotate_and_store(
            &query.reshape((tokens, heads, head_dim))?,
            &key.reshape((tokens, kv_heads, head_dim))?,
            &value.reshape((tokens, kv_heads, head_dim))?,
            &HeadNorms {
                query: self.query_norm.as_ref().map(|norm| &norm.weight),
                key: self.key_norm.as_ref().map(|norm| &norm.weight),
                eps: eps.unwrap_or_default(),
            },
            &table.cos,
            &table.sin,
            cache,
            layout,
        )?;
        paged_attention(&query, cache, layout, &self.options)?.reshape((tokens, heads * head_dim))
    }
}

impl FeedForward {
    /// x: (tokens, hidden_size) -> (tokens, hidden_size), the layer's part.
    fn forward_fused(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let [gate, up] = forward_all([&self.gate, &self.up], x)?;
        let gated = match self.activation {
            Activation::Silu => silu_mul(&gate, &up)?,
            Activation::GeluTanh => gelu_tanh_mul(&gate, &up)?,
        };
        self.down
            .forward(&gated.to_dtype(self.down.activation_dtype())?)
    }
}
