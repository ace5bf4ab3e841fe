//! Attention over paged K/V, for token-flat passes that mix prefill chunks and decode rows.

mod cpu;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use half::f16;
use half::vec::HalfBitsVecExt;

use super::reference;
use super::tensor_data::{is_on_cpu, with_slice};

/// Tokens in one K/V block.
pub const BLOCK_TOKENS: usize = 32;

/// One layer's K/V store: blocks of [`BLOCK_TOKENS`] tokens, f32 or f16.
///
/// On CUDA and Metal `k` and `v` are (blocks, 32, kv_heads, head_dim), as paged flash attention wants them; on the
/// CPU they are laid out for our own kernel (see `cpu`). A block is contiguous in both, and both start with it.
#[derive(Debug, Clone)]
pub struct PagedKv {
    /// Keys, after rotary embedding.
    pub(super) k: Tensor,
    /// Values.
    pub(super) v: Tensor,
    blocks: usize,
    kv_heads: usize,
    head_dim: usize,
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
        if !device.is_cpu() {
            return Self::token_major_zeros(blocks, kv_heads, head_dim, dtype, device);
        }
        if !matches!(dtype, DType::F32 | DType::F16) {
            bail!("K/V on the cpu is f32 or f16, not {dtype:?}");
        }
        let k = untouched_zeros((blocks, kv_heads, head_dim, BLOCK_TOKENS), dtype)?;
        let v = untouched_zeros((blocks, kv_heads, BLOCK_TOKENS, head_dim), dtype)?;
        Ok(Self {
            k,
            v,
            blocks,
            kv_heads,
            head_dim,
        })
    }

    /// The layout of the stock path.
    pub(super) fn token_major_zeros(
        blocks: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros((blocks, BLOCK_TOKENS, kv_heads, head_dim), dtype, device);
        Ok(Self {
            k: zeros()?,
            v: zeros()?,
            blocks,
            kv_heads,
            head_dim,
        })
    }

    /// Blocks in the store.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// K/V heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Columns of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

/// Zeros on the CPU that take no room until they are written: the system's fresh memory is zero already. Candle
/// writes the zeros of f16.
fn untouched_zeros(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let shape = shape.into();
    match dtype {
        DType::F16 => {
            let zeros = vec![0u16; shape.elem_count()].reinterpret_into::<f16>();
            Tensor::from_vec(zeros, shape, &Device::Cpu)
        }
        dtype => Tensor::zeros(shape, dtype, &Device::Cpu),
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

    /// The store's block that holds block `index` of a slot.
    fn block(&self, slot: usize, index: usize) -> usize {
        self.block_tables[slot][index] as usize
    }

    /// The row of (blocks * 32) rows that holds a slot's position.
    pub(super) fn row(&self, slot: usize, position: usize) -> usize {
        self.block(slot, position / BLOCK_TOKENS) * BLOCK_TOKENS + position % BLOCK_TOKENS
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
    let expected = [layout.tokens(), kv.kv_heads, kv.head_dim];
    if k.dims() != expected || v.dims() != expected {
        bail!(
            "new K {:?} and V {:?} should both be {expected:?}",
            k.dims(),
            v.dims()
        );
    }
    layout.check_blocks(kv.blocks)?;
    if !is_on_cpu(k) {
        return reference::write_kv(kv, k, v, layout);
    }
    cpu::write_kv(kv, k, v, layout)
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
    let kv_heads = kv.kv_heads;
    if tokens != layout.tokens()
        || head_dim != kv.head_dim
        || kv_heads == 0
        || heads % kv_heads != 0
    {
        bail!(
            "q {:?} does not fit K/V {:?} and {} tokens",
            q.dims(),
            kv.k.dims(),
            layout.tokens()
        );
    }
    layout.check_blocks(kv.blocks)?;
    if !is_on_cpu(q) {
        return reference::paged_attention(q, kv, layout, options);
    }
    let mut output = vec![0f32; tokens * heads * head_dim];
    with_slice::<f32, _>(q, |q| {
        cpu::Pass {
            q,
            heads,
            kv_heads,
            head_dim,
            layout,
            options,
        }
        .run(kv, &mut output)
    })?;
    Tensor::from_vec(output, (tokens, heads, head_dim), &Device::Cpu)
}
