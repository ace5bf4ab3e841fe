//! Attention over paged K/V, for token-flat passes that mix prefill chunks and decode rows.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Storage, Tensor, bail};
use half::f16;

use super::tensor_data::{is_on_cpu, with_slice};
use super::{reference, threads};

/// Tokens in one K/V block.
pub const BLOCK_TOKENS: usize = 32;

/// One layer's K/V store: `k` and `v` are (blocks, [`BLOCK_TOKENS`], kv_heads, head_dim), f32 or f16.
#[derive(Debug, Clone)]
pub struct PagedKv {
    /// Keys, after rotary embedding.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl PagedKv {
    /// An empty store of `blocks` blocks.
    ///
    /// # Errors
    /// When the memory cannot be had, or the dtype is neither f32 nor f16 (on the CPU).
    pub fn zeros(
        blocks: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if device.is_cpu() && !matches!(dtype, DType::F32 | DType::F16) {
            bail!("K/V on the cpu is f32 or f16, not {dtype:?}");
        }
        let shape = (blocks, BLOCK_TOKENS, kv_heads, head_dim);
        Ok(Self {
            k: Tensor::zeros(shape, dtype, device)?,
            v: Tensor::zeros(shape, dtype, device)?,
        })
    }
}

/// Where each token of a pass lives: its slot and position, and the blocks of each slot.
#[derive(Debug, Clone)]
pub struct TokenLayout {
    slots: Vec<u32>,
    positions: Vec<u32>,
    block_tables: Vec<Vec<u32>>,
}

impl TokenLayout {
    /// Token `t` belongs to `slots[t]` at `positions[t]`; position `p` of slot `s` is row `p % 32` of block
    /// `block_tables[s][p / 32]`. Tables of slots without tokens may be empty.
    ///
    /// # Errors
    /// When the lengths differ, or a token's slot or position has no block.
    pub fn new(slots: Vec<u32>, positions: Vec<u32>, block_tables: Vec<Vec<u32>>) -> Result<Self> {
        if slots.len() != positions.len() {
            bail!("{} slots for {} positions", slots.len(), positions.len());
        }
        for (&slot, &position) in slots.iter().zip(&positions) {
            let blocks = block_tables.get(slot as usize).map_or(0, Vec::len);
            if position as usize >= blocks * BLOCK_TOKENS {
                bail!("position {position} of slot {slot} has no block: its table holds {blocks}");
            }
        }
        Ok(Self {
            slots,
            positions,
            block_tables,
        })
    }

    /// Tokens in the pass.
    pub fn tokens(&self) -> usize {
        self.slots.len()
    }

    /// The position of each token in its own sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The slot of each token.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// The row of (blocks * 32) rows that holds a slot's position.
    pub(super) fn row(&self, slot: usize, position: usize) -> usize {
        self.block_tables[slot][position / BLOCK_TOKENS] as usize * BLOCK_TOKENS
            + position % BLOCK_TOKENS
    }

    /// The row that holds token `token`.
    pub(super) fn row_of_token(&self, token: usize) -> usize {
        self.row(self.slots[token] as usize, self.positions[token] as usize)
    }

    /// The tokens of each slot in the pass.
    pub(super) fn tokens_by_slot(&self) -> BTreeMap<usize, Vec<u32>> {
        let mut by_slot = BTreeMap::<usize, Vec<u32>>::new();
        for (token, &slot) in self.slots.iter().enumerate() {
            by_slot.entry(slot as usize).or_default().push(token as u32);
        }
        by_slot
    }

    /// # Errors
    /// When a block that a token can see lies outside a store of `blocks` blocks.
    fn check_blocks(&self, blocks: usize) -> Result<()> {
        for (&slot, &position) in self.slots.iter().zip(&self.positions) {
            let visible = &self.block_tables[slot as usize][..=position as usize / BLOCK_TOKENS];
            if let Some(block) = visible.iter().find(|&&block| block as usize >= blocks) {
                bail!("block {block} of slot {slot} is outside the store of {blocks} blocks");
            }
        }
        Ok(())
    }
}

/// What differs between models' attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    /// Factor on q · k, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// How many positions a token sees, itself included; all when `None`.
    pub window: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

impl AttentionOptions {
    /// The first position that a token at `position` sees.
    pub(super) fn first_visible(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Stores the keys and values of a pass: k, v are (T, kv_heads, head_dim) f32; `kv` changes in place.
///
/// # Errors
/// When the shapes do not fit or a block is outside the store.
pub fn write_kv(kv: &PagedKv, k: &Tensor, v: &Tensor, layout: &TokenLayout) -> Result<()> {
    let (blocks, _, kv_heads, head_dim) = kv.k.dims4()?;
    let expected = [layout.tokens(), kv_heads, head_dim];
    if k.dims() != expected || v.dims() != expected {
        bail!(
            "new K {:?} and V {:?} should both be {expected:?}",
            k.dims(),
            v.dims()
        );
    }
    layout.check_blocks(blocks)?;
    if !is_on_cpu(k) {
        return reference::write_kv(kv, k, v, layout);
    }
    let op = WriteRows {
        layout,
        width: kv_heads * head_dim,
    };
    kv.k.inplace_op2(&k.contiguous()?, &op)?;
    kv.v.inplace_op2(&v.contiguous()?, &op)
}

struct WriteRows<'a> {
    layout: &'a TokenLayout,
    width: usize,
}

impl InplaceOp2 for WriteRows<'_> {
    fn name(&self) -> &'static str {
        "write-kv"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_at: &Layout,
        new: &CpuStorage,
        new_at: &Layout,
    ) -> Result<()> {
        if !cache_at.is_contiguous() || cache_at.start_offset() != 0 {
            bail!("the K/V store must be contiguous");
        }
        let new = &new.as_slice::<f32>()?[new_at.start_offset()..];
        let new_rows = new
            .chunks_exact(self.width)
            .take(self.layout.tokens())
            .enumerate();
        match cache {
            CpuStorage::F32(cache) => {
                for (token, new) in new_rows {
                    let start = self.layout.row_of_token(token) * self.width;
                    cache[start..start + self.width].copy_from_slice(new);
                }
            }
            CpuStorage::F16(cache) => {
                for (token, new) in new_rows {
                    let start = self.layout.row_of_token(token) * self.width;
                    for (out, new) in cache[start..start + self.width].iter_mut().zip(new) {
                        *out = f16::from_f32(*new);
                    }
                }
            }
            other => bail!(
                "K/V on the cpu is f32 or f16, not {:?}",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
        Ok(())
    }
}

/// q: (T, heads, head_dim) f32 -> (T, heads, head_dim) f32: each token attends to its slot's positions up to its
/// own. `heads` is a multiple of the store's kv_heads; consecutive heads share one.
///
/// # Errors
/// When the shapes do not fit or a block is outside the store.
pub fn paged_attention(
    q: &Tensor,
    kv: &PagedKv,
    layout: &TokenLayout,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = q.dims3()?;
    let (blocks, _, kv_heads, kv_dim) = kv.k.dims4()?;
    if tokens != layout.tokens() || head_dim != kv_dim || kv_heads == 0 || heads % kv_heads != 0 {
        bail!(
            "q {:?} does not fit K/V {:?} and {} tokens",
            q.dims(),
            kv.k.dims(),
            layout.tokens()
        );
    }
    layout.check_blocks(blocks)?;
    if !is_on_cpu(q) {
        return reference::paged_attention(q, kv, layout, options);
    }
    let mut output = vec![0f32; tokens * heads * head_dim];
    with_slice::<f32, _>(q, |q| {
        with_kv(&kv.k, &kv.v, |k, v| {
            threads::for_each_chunk(&mut output, heads * head_dim, |token, output| {
                let q = &q[token * heads * head_dim..(token + 1) * heads * head_dim];
                for (head, (q, output)) in q
                    .chunks_exact(head_dim)
                    .zip(output.chunks_exact_mut(head_dim))
                    .enumerate()
                {
                    let head = head / (heads / kv_heads);
                    attend(q, k, v, layout, options, token, head, kv_heads, output);
                }
            });
        })
    })?;
    Tensor::from_vec(output, (tokens, heads, head_dim), &Device::Cpu)
}

fn with_kv(k: &Tensor, v: &Tensor, body: impl FnOnce(Rows<'_>, Rows<'_>)) -> Result<()> {
    let ((k, _), (v, _)) = (k.storage_and_layout(), v.storage_and_layout());
    match (&*k, &*v) {
        (Storage::Cpu(CpuStorage::F32(k)), Storage::Cpu(CpuStorage::F32(v))) => {
            body(Rows::F32(k), Rows::F32(v))
        }
        (Storage::Cpu(CpuStorage::F16(k)), Storage::Cpu(CpuStorage::F16(v))) => {
            body(Rows::F16(k), Rows::F16(v))
        }
        _ => bail!("K and V on the cpu are both f32 or both f16"),
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Rows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl Rows<'_> {
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(rows) => rows[index],
            Self::F16(rows) => rows[index].to_f32(),
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "replaced below by the vectorised kernel"
)]
fn attend(
    q: &[f32],
    k: Rows<'_>,
    v: Rows<'_>,
    layout: &TokenLayout,
    options: &AttentionOptions,
    token: usize,
    head: usize,
    kv_heads: usize,
    output: &mut [f32],
) {
    let (slot, position) = (
        layout.slots[token] as usize,
        layout.positions[token] as usize,
    );
    let width = q.len();
    let start = |key: usize| (layout.row(slot, key) * kv_heads + head) * width;
    let keys = options.first_visible(position)..position + 1;
    let mut scores: Vec<f32> = keys
        .clone()
        .map(|key| {
            let start = start(key);
            let score = options.scale
                * q.iter()
                    .enumerate()
                    .map(|(i, q)| q * k.get(start + i))
                    .sum::<f32>();
            options
                .softcap
                .map_or(score, |cap| cap * (score / cap).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    for score in &mut scores {
        *score = (*score - max).exp();
        total += *score;
    }
    for (key, weight) in keys.zip(scores) {
        let start = start(key);
        for (i, out) in output.iter_mut().enumerate() {
            *out += weight / total * v.get(start + i);
        }
    }
}
