//! The decoder: one pass over a flat list of tokens, whatever rows and positions they belong to.
//!
//! Prefill chunks and decode rows of unequal length mix without padding: the linear layers see one
//! `(tokens, width)` matrix, and only rotary embedding and attention look at slots and positions. On
//! the CPU a token's result is bit for bit the same in any company; the kernels see to that.

mod fused;

use candle_core::{DType, Device, Tensor};

use super::config::{Activation, DecoderConfig};
use super::kv_cache;
use super::names::{Matrix, Norm};
use super::profile::{Part, timed};
use super::room;
use super::rope::RopeTable;
use super::weights::WeightSource;
use super::work::LinearWork;
use crate::kernels::activation::{gelu_tanh_mul, silu_mul};
use crate::kernels::attention::{
    AttentionOptions, PagedKv, TokenLayout, paged_attention, takes_device_layout, write_kv,
};
use crate::kernels::embedding::Embedding;
use crate::kernels::linear::{Linear, forward_all};
use crate::kernels::norm::rms_norm;
use crate::kernels::rope::rope;
use crate::model::ModelError;
use crate::model::device::memory::MemoryShare;

/// How much room the decoder gets for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Positions that a row may reach.
    pub served_context: usize,
    /// Key-value blocks of all rows together.
    pub blocks: usize,
    /// f32 or f16 (bf16 where the device knows it).
    pub dtype: DType,
    /// On a card whose memory is to be filled: `blocks` is then not what there is, but what was reckoned with.
    pub card: Option<CardRoom>,
}

/// How far a card's memory is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardRoom {
    /// Up to this part of it.
    pub share: MemoryShare,
    /// Rows that a pass may have.
    pub rows: u32,
}

/// A loaded model.
pub struct Decoder {
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: NormWeight,
    head: Linear,
    ropes: Vec<RopeTable>,
    caches: Vec<PagedKv>,
    config: DecoderConfig,
    device: Device,
    /// Passes run as in [`fused`].
    fuses: bool,
}

struct Layer {
    attention_norm: NormWeight,
    attention: Attention,
    post_attention_norm: Option<NormWeight>,
    feed_forward_norm: NormWeight,
    feed_forward: FeedForward,
    post_feed_forward_norm: Option<NormWeight>,
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<NormWeight>,
    key_norm: Option<NormWeight>,
    options: AttentionOptions,
    rope: usize,
}

struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

struct NormWeight {
    weight: Tensor,
    eps: f32,
}

impl NormWeight {
    /// x: `(rows, width), f32` of any shape that ends in the norm's width.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        timed(Part::Norm, || rms_norm(x, &self.weight, self.eps))
    }

    /// x: `(tokens, heads, head_dim), f32`, each head by itself.
    fn forward_heads(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (tokens, heads, head_dim) = x.dims3()?;
        self.forward(&x.reshape((tokens * heads, head_dim))?)?
            .reshape((tokens, heads, head_dim))
    }
}

impl Decoder {
    /// Takes a decoder's weights from a source and sets up its cache.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or unknown, with its name; or memory runs out.
    pub fn load(
        config: &DecoderConfig,
        source: &mut dyn WeightSource,
        kv: &KvShape,
    ) -> Result<Self, ModelError> {
        let device = source.device().clone();
        // First of all: fresh memory comes zeroed from the system and takes no room until it is
        // written. What loading has freed would be used again, and zeroed by hand. On a card it is the other way
        // round: what the weights leave is filled.
        // One more for padding: see `spare_block`.
        let allocate = |blocks| kv_cache::allocate(config, blocks + 1, kv.dtype, &device);
        let reserved = match kv.card {
            None => allocate(kv.blocks)?,
            Some(_) => Vec::new(),
        };
        let mut parts = Parts { config, source };
        let embedding = parts.embedding()?;
        let layers = (0..config.layers.len())
            .map(|layer| parts.layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let final_norm = parts.norm(Norm::Final, 0)?;
        let head = if config.tied_head {
            embedding.tied_head()?
        } else {
            parts.linear(Matrix::Head, 0, false)?
        };
        source.finish(config)?;
        let ropes = config
            .ropes
            .iter()
            .map(|rope| RopeTable::new(rope, kv.served_context, &device))
            .collect::<candle_core::Result<_>>()?;
        let caches = match kv.card {
            None => reserved,
            Some(room) => allocate(room::blocks_on_card(config, kv, room, &device)?)?,
        };
        Ok(Decoder {
            embedding,
            layers,
            final_norm,
            head,
            ropes,
            caches,
            config: config.clone(),
            fuses: device.is_cuda(),
            device,
        })
    }

    /// The same, which runs as on a card: for tests.
    #[must_use]
    pub fn fused(mut self) -> Self {
        self.fuses = true;
        self
    }

    /// Its shape and switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Blocks of keys and values for rows.
    pub fn kv_blocks(&self) -> usize {
        self.spare_block() as usize
    }

    /// One block more, which is no row's: for what is computed only to fill a pass up.
    pub fn spare_block(&self) -> u32 {
        let blocks = self.caches.first().map_or(0, PagedKv::blocks);
        (blocks as u32).saturating_sub(1)
    }

    /// Whether passes can take a layout that lies on the device and is filled in place.
    pub fn takes_device_layout(&self) -> bool {
        self.caches.iter().all(takes_device_layout)
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the layers ask for that every token passes, and those that only tokens pass whose logits are
    /// wanted.
    pub fn linear_work(&self) -> (LinearWork, LinearWork) {
        let (last, others) = self.layers.split_last().expect("a decoder has layers");
        let attentions = self.layers.iter().flat_map(Layer::attention_products);
        let feed_forwards = others.iter().flat_map(Layer::feed_forward_products);
        let ends = last.feed_forward_products().into_iter();
        (
            LinearWork::of(attentions.chain(feed_forwards)),
            LinearWork::of(ends.chain([&self.head])),
        )
    }

    /// Runs the tokens through all layers and stores their keys and values.
    ///
    /// `tokens: (T,)` belong to the slots and positions of `layout`. Returns the normed hidden state of
    /// the tokens at the indices `wanted`: `(wanted, hidden_size), f32`, on a card of the dtype that the head takes.
    ///
    /// # Errors
    /// What the device reports, memory above all.
    pub fn forward(
        &self,
        tokens: &[u32],
        layout: &TokenLayout,
        wanted: &[u32],
    ) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device)?;
        self.forward_some(&ids, layout, Some(wanted))
    }

    /// The same for all tokens, with their ids on the device: `ids: (T,) u32` -> `(T, hidden_size)`.
    ///
    /// # Errors
    /// What the device reports, memory above all.
    pub fn forward_all(&self, ids: &Tensor, layout: &TokenLayout) -> candle_core::Result<Tensor> {
        self.forward_some(ids, layout, None)
    }

    /// `wanted`: all of them for `None`.
    fn forward_some(
        &self,
        ids: &Tensor,
        layout: &TokenLayout,
        wanted: Option<&[u32]>,
    ) -> candle_core::Result<Tensor> {
        if self.fuses {
            return self.forward_fused(ids, layout, wanted);
        }
        let mut hidden = timed(Part::Embedding, || self.embed(ids))?;
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let rope = &self.ropes[layer.attention.rope];
            hidden = layer.attend(hidden, rope, &self.caches[index], layout)?;
            // After the last attention nothing reads the other tokens any more.
            if index == last
                && let Some(wanted) = wanted
            {
                if wanted.is_empty() {
                    return hidden.narrow(0, 0, 0);
                }
                let wanted = Tensor::new(wanted, &self.device)?;
                hidden = hidden.index_select(&wanted, 0)?;
            }
            hidden = layer.feed_forward(hidden)?;
        }
        self.final_norm.forward(&hidden)
    }

    /// ids: `(T,) u32` -> `(T, hidden_size), f32`.
    fn embed(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = self.embedding.forward(ids)?;
        match self.config.embedding_scale {
            None => Ok(hidden),
            Some(scale) => hidden * f64::from(scale),
        }
    }

    /// hidden: `(rows, hidden_size)`, as [`forward`](Self::forward) gives it -> logits `(rows, vocab_size)`, row after row.
    ///
    /// # Errors
    /// What the device reports, memory above all.
    pub fn logits(&self, hidden: &Tensor) -> candle_core::Result<Vec<f32>> {
        timed(Part::Head, || match self.config.logit_softcap {
            None if !self.fuses => self.head.forward_to_host(hidden),
            _ => {
                let logits = self.logits_on_device(hidden)?.flatten_all()?;
                logits.to_dtype(DType::F32)?.to_vec1()
            }
        })
    }

    /// The same, left where they are: `(rows, vocab_size)`, of the dtype of `hidden`.
    ///
    /// # Errors
    /// What the device reports, memory above all.
    pub fn logits_on_device(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.head.forward(hidden)?;
        match self.config.logit_softcap {
            None => Ok(logits),
            Some(cap) => (logits / f64::from(cap))?.tanh()? * f64::from(cap),
        }
    }
}

impl Layer {
    fn attention_products(&self) -> [&Linear; 4] {
        let attention = &self.attention;
        [
            &attention.query,
            &attention.key,
            &attention.value,
            &attention.output,
        ]
    }

    fn feed_forward_products(&self) -> [&Linear; 3] {
        let feed_forward = &self.feed_forward;
        [&feed_forward.gate, &feed_forward.up, &feed_forward.down]
    }

    /// hidden: `(tokens, hidden_size), f32` -> itself plus what attention says.
    fn attend(
        &self,
        hidden: Tensor,
        rope: &RopeTable,
        cache: &PagedKv,
        layout: &TokenLayout,
    ) -> candle_core::Result<Tensor> {
        let normed = self.attention_norm.forward(&hidden)?;
        let attended = self.attention.forward(&normed, rope, cache, layout)?;
        let norm = self.post_attention_norm.as_ref();
        project_and_add(
            Part::AttentionOutput,
            &self.attention.output,
            &attended,
            norm,
            hidden,
        )
    }

    /// hidden: `(tokens, hidden_size), f32` -> itself plus what the feed-forward layers say.
    fn feed_forward(&self, hidden: Tensor) -> candle_core::Result<Tensor> {
        let normed = self.feed_forward_norm.forward(&hidden)?;
        let gated = self.feed_forward.forward(&normed)?;
        let norm = self.post_feed_forward_norm.as_ref();
        project_and_add(Part::Down, &self.feed_forward.down, &gated, norm, hidden)
    }
}

/// `hidden + norm(layer(x))`, with the norm of models that have one there.
fn project_and_add(
    part: Part,
    layer: &Linear,
    x: &Tensor,
    norm: Option<&NormWeight>,
    hidden: Tensor,
) -> candle_core::Result<Tensor> {
    match norm {
        None => timed(part, || layer.forward_add(x, &hidden)),
        Some(norm) => {
            let normed = norm.forward(&timed(part, || layer.forward(x))?)?;
            timed(Part::Residual, || hidden + normed)
        }
    }
}

impl Attention {
    /// x: `(tokens, hidden_size), f32` -> `(tokens, heads * head_dim), f32`, before the output projection.
    fn forward(
        &self,
        x: &Tensor,
        table: &RopeTable,
        cache: &PagedKv,
        layout: &TokenLayout,
    ) -> candle_core::Result<Tensor> {
        let (tokens, _) = x.dims2()?;
        let (kv_heads, head_dim) = (cache.kv_heads(), cache.head_dim());
        let heads = self.query.out_features() / head_dim;
        let positions = layout.positions();

        let products = [&self.query, &self.key, &self.value];
        let [query, key, value] = timed(Part::QueryKeyValue, || forward_all(products, x))?;
        let query = norm_heads(
            self.query_norm.as_ref(),
            query.reshape((tokens, heads, head_dim))?,
        )?;
        let query = timed(Part::Rope, || {
            rope(&query, &table.cos, &table.sin, positions)
        })?;
        let key = norm_heads(
            self.key_norm.as_ref(),
            key.reshape((tokens, kv_heads, head_dim))?,
        )?;
        let key = timed(Part::Rope, || rope(&key, &table.cos, &table.sin, positions))?;
        let value = value.reshape((tokens, kv_heads, head_dim))?;

        timed(Part::KvWrite, || write_kv(cache, &key, &value, layout))?;
        let attend = || paged_attention(&query, cache, layout, &self.options);
        let attended = timed(Part::Attention, attend)?;
        attended.reshape((tokens, heads * head_dim))
    }
}

impl FeedForward {
    /// x: `(tokens, hidden_size), f32` -> `(tokens, intermediate_size), f32`, before the down projection.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let [gate, up] = timed(Part::GateUp, || forward_all([&self.gate, &self.up], x))?;
        timed(Part::Activation, || match self.activation {
            Activation::Silu => silu_mul(&gate, &up),
            Activation::GeluTanh => gelu_tanh_mul(&gate, &up),
        })
    }
}

fn norm_heads(norm: Option<&NormWeight>, heads: Tensor) -> candle_core::Result<Tensor> {
    match norm {
        None => Ok(heads),
        Some(norm) => norm.forward_heads(&heads),
    }
}

/// Takes a decoder's parts from a source.
struct Parts<'a> {
    config: &'a DecoderConfig,
    source: &'a mut dyn WeightSource,
}

impl Parts<'_> {
    fn embedding(&mut self) -> Result<Embedding, ModelError> {
        let place = self
            .source
            .naming()
            .matrix(self.config, Matrix::Embedding, 0);
        self.source.matrix(&place)?.into_embedding()
    }

    fn linear(
        &mut self,
        matrix: Matrix,
        layer: usize,
        has_bias: bool,
    ) -> Result<Linear, ModelError> {
        let place = self.source.naming().matrix(self.config, matrix, layer);
        let bias = has_bias.then(|| self.source.bias(&place)).transpose()?;
        self.source.matrix(&place)?.into_linear(bias)
    }

    fn norm(&mut self, norm: Norm, layer: usize) -> Result<NormWeight, ModelError> {
        let len = match norm {
            Norm::Query | Norm::Key => self.config.head_dim,
            _ => self.config.hidden_size,
        };
        let name = self.source.naming().norm(self.config.family, norm, layer);
        let mut weight = self.source.vector(&name, len)?;
        if self.config.norm_offset {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(NormWeight {
            weight: Tensor::from_vec(weight, len, self.source.device())?,
            eps: self.config.norm_eps,
        })
    }

    fn norm_if(
        &mut self,
        there: bool,
        norm: Norm,
        layer: usize,
    ) -> Result<Option<NormWeight>, ModelError> {
        there.then(|| self.norm(norm, layer)).transpose()
    }

    fn layer(&mut self, layer: usize) -> Result<Layer, ModelError> {
        let config = self.config;
        Ok(Layer {
            attention_norm: self.norm(Norm::Attention, layer)?,
            attention: self.attention(layer)?,
            post_attention_norm: self.norm_if(config.post_norms, Norm::PostAttention, layer)?,
            feed_forward_norm: self.norm(Norm::FeedForward, layer)?,
            feed_forward: FeedForward {
                gate: self.linear(Matrix::Gate, layer, config.feed_forward_bias)?,
                up: self.linear(Matrix::Up, layer, config.feed_forward_bias)?,
                down: self.linear(Matrix::Down, layer, config.feed_forward_bias)?,
                activation: config.activation,
            },
            post_feed_forward_norm: self.norm_if(
                config.post_norms,
                Norm::PostFeedForward,
                layer,
            )?,
        })
    }

    fn attention(&mut self, layer: usize) -> Result<Attention, ModelError> {
        let config = self.config;
        Ok(Attention {
            query: self.linear(Matrix::Query, layer, config.qkv_bias)?,
            key: self.linear(Matrix::Key, layer, config.qkv_bias)?,
            value: self.linear(Matrix::Value, layer, config.qkv_bias)?,
            output: self.linear(Matrix::AttentionOutput, layer, config.attention_output_bias)?,
            query_norm: self.norm_if(config.qk_norm, Norm::Query, layer)?,
            key_norm: self.norm_if(config.qk_norm, Norm::Key, layer)?,
            options: AttentionOptions {
                scale: config.attention_scale,
                window: config.layers[layer].window,
                softcap: config.attention_softcap,
            },
            rope: config.layers[layer].rope,
        })
    }
}
