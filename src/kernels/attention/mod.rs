//! Attention over paged K/V, for token-flat passes that mix prefill chunks and decode rows.

mod cpu;
mod device_layout;
#[cfg(any(test, feature = "flash-attn"))]
mod flash;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use half::f16;
use half::vec::HalfBitsVecExt;

use super::norm::rms_norm;
use super::rope::rope;
use super::tensor_data::{is_on_cpu, with_slice};
use super::{cuda, device_kernels, reference};

pub use device_layout::DeviceLayout;

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
    /// The last of the blocks that a token sees.
    last_block: Option<u32>,
    /// The same in the memory of a device, from the first kernel there on.
    device: OnceLock<DeviceLayout>,
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
        // By slot: how many of its blocks its tokens see.
        let mut seen = vec![0; block_tables.len()];
        for (&slot, &position) in slots.iter().zip(&positions) {
            let blocks = block_tables.get(slot as usize).map_or(0, Vec::len);
            if position as usize >= blocks * BLOCK_TOKENS {
                bail!("position {position} of slot {slot} has no block: its table holds {blocks}");
            }
            let seen = &mut seen[slot as usize];
            *seen = (*seen).max(position as usize / BLOCK_TOKENS + 1);
        }
        let visible = block_tables.iter().zip(&seen);
        let last_block = visible.flat_map(|(table, &seen)| &table[..seen]).max();
        Ok(Self {
            last_block: last_block.copied(),
            slots,
            positions,
            block_tables,
            device: OnceLock::new(),
        })
    }

    /// The layout of a step that is replayed on a CUDA card, which the host need not know. Only
    /// [`rotate_and_store`], [`write_kv`] and [`paged_attention`] take it, where they have kernels of our own.
    pub fn on_device(layout: DeviceLayout) -> Self {
        Self {
            slots: Vec::new(),
            positions: Vec::new(),
            block_tables: Vec::new(),
            last_block: None,
            device: OnceLock::from(layout),
        }
    }

    /// The layout in a device's memory: uploaded once, by the first to ask. A pass runs on one device.
    ///
    /// # Errors
    /// When the device's memory runs out.
    pub(super) fn on(&self, device: &Device) -> Result<&DeviceLayout> {
        if let Some(layout) = self.device.get() {
            return Ok(layout);
        }
        let layout = DeviceLayout::upload(self, device)?;
        Ok(self.device.get_or_init(|| layout))
    }

    /// Tokens in the pass.
    pub fn tokens(&self) -> usize {
        match self.device.get() {
            Some(layout) if self.slots.is_empty() => layout.tokens(),
            _ => self.slots.len(),
        }
    }

    /// The position of each token in its own sequence; nothing for one that only the device knows.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The slot of each token; nothing for one that only the device knows.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// The blocks of a slot.
    fn table(&self, slot: usize) -> &[u32] {
        &self.block_tables[slot]
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
        match self.last_block {
            Some(block) if block as usize >= blocks => {
                bail!("block {block} is outside the store of {blocks} blocks")
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When the host does not know the layout.
    fn check_host(&self) -> Result<()> {
        if self.slots.is_empty() && self.device.get().is_some_and(|layout| layout.tokens() > 0) {
            bail!("a layout that only the device knows has no stock operations");
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

/// Whether passes over this store can take a layout that the host does not know: [`TokenLayout::on_device`].
pub fn takes_device_layout(kv: &PagedKv) -> bool {
    device_kernels::are_own(&kv.k) && cuda::attention::supports(kv)
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
    if device_kernels::are_own(k) {
        return cuda::rope::write_kv(kv, k, v, layout.on(k.device())?);
    }
    layout.check_host()?;
    if !is_on_cpu(k) {
        return reference::write_kv(kv, k, v, layout);
    }
    cpu::write_kv(kv, k, v, layout)
}

/// The norms of single heads, in models that have them.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// (head_dim,) f32, of query heads.
    pub query: Option<&'a Tensor>,
    /// (head_dim,) f32, of key heads.
    pub key: Option<&'a Tensor>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// What stands between the products and attention: norms per head, rotary embedding, and K and V into the store.
///
/// q: (T, heads, head_dim), k, v: (T, kv_heads, head_dim), f32 (on other devices also f16 or bf16, all alike); cos, sin:
/// (max_positions, r / 2) f32, as [`rope`] takes them -> q, normed and rotated, of its dtype. On a card one launch.
///
/// # Errors
/// When the shapes do not fit, or a position or block is outside the tables or the store.
#[expect(
    clippy::too_many_arguments,
    reason = "all that stands between the products and attention"
)]
pub fn rotate_and_store(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    norms: &HeadNorms<'_>,
    cos: &Tensor,
    sin: &Tensor,
    kv: &PagedKv,
    layout: &TokenLayout,
) -> Result<Tensor> {
    let expected = [layout.tokens(), kv.kv_heads, kv.head_dim];
    if k.dims() != expected || v.dims() != expected || q.dim(0)? != expected[0] {
        bail!(
            "q {:?}, K {:?} and V {:?} do not fit {expected:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    layout.check_blocks(kv.blocks)?;
    if device_kernels::are_own(q) {
        let device = layout.on(q.device())?;
        if device.max_context() > cos.dim(0)? {
            bail!(
                "a context of {} is outside the rotary tables of {} positions",
                device.max_context(),
                cos.dim(0)?
            );
        }
        return cuda::rope::rotate_and_store(q, k, v, norms, cos, sin, kv, device);
    }
    layout.check_host()?;
    let turn = |x: &Tensor, norm: Option<&Tensor>| {
        let (tokens, heads, head_dim) = x.dims3()?;
        let mut x = widened(x)?;
        if let Some(norm) = norm {
            let flat = x.reshape((tokens * heads, head_dim))?;
            x = rms_norm(&flat, norm, norms.eps)?.reshape((tokens, heads, head_dim))?;
        }
        rope(&x, cos, sin, layout.positions())
    };
    let k = turn(k, norms.key)?;
    write_kv(kv, &k, &widened(v)?, layout)?;
    turn(q, norms.query)?.to_dtype(q.dtype())
}

/// As f32.
fn widened(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// q: (T, heads, head_dim) f32 (on other devices also f16 or bf16) -> (T, heads, head_dim) of the same dtype: each token attends to its slot's positions up to its
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
    #[cfg(feature = "flash-attn")]
    if device_kernels::are_own(q)
        && let Some(attended) = flash::paged_attention(q, kv, layout, options)?
    {
        return Ok(attended);
    }
    if device_kernels::are_own(q) && cuda::attention::supports(kv) {
        return cuda::attention::paged_attention(q, kv, layout.on(q.device())?, options);
    }
    layout.check_host()?;
    if !is_on_cpu(q) {
        let attended = reference::paged_attention(&widened(q)?, kv, layout, options)?;
        return attended.to_dtype(q.dtype());
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
