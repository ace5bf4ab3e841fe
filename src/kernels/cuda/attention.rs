//! Launches of `decode.cu` and `prefill.cu`.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{
    DECODE, Grid, PREFILL, address, expect, launch, number_type, pack_numbers, parameters, suffix,
    undefined, word,
};
use crate::kernels::attention::{AttentionOptions, DeviceLayout, PagedKv};

parameters! {
    struct DecodeParameters {
        q: u64,
        k_pages: u64,
        v_pages: u64,
        slots: u64,
        positions: u64,
        tables: u64,
        listed: u64,
        output: u64,
        pieces: u64,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        table_stride: u32,
        blocks: u32,
        window: u32,
        splits: u32,
        number_type: u32,
        first_listed: u32,
        padding: u32,
        scale: f32,
        softcap: f32,
    }

    struct PrefillParameters {
        q: u64,
        k_pages: u64,
        v_pages: u64,
        runs: u64,
        tables: u64,
        output: u64,
        run_count: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        table_stride: u32,
        blocks: u32,
        window: u32,
        number_type: u32,
        scale: f32,
        softcap: f32,
    }
}

/// As in decode.cu: positions that a block takes.
const SPLIT_TOKENS: usize = 256;
/// As in decode.cu.
const DECODE_WARPS: usize = 4;
/// Tokens of a launch: the pieces of so many are held at a time.
const TOKENS_AT_ONCE: usize = 512;
/// As in prefill.cu: rows of a tile.
const PREFILL_ROWS: usize = 64;
const PREFILL_WARPS: usize = 4;
/// The widest head that the kernels take.
const MOST_COLUMNS: usize = 256;

/// Whether K/V of this type and width of head have a kernel.
pub(in crate::kernels) fn supports(kv: &PagedKv) -> bool {
    let head_dim = kv.head_dim();
    matches!(kv.k.dtype(), DType::F32 | DType::F16 | DType::BF16)
        && (1..=MOST_COLUMNS).contains(&head_dim)
        && head_dim.is_multiple_of(pack_numbers(kv.k.dtype()))
}

/// A pass: what both kernels read and write.
struct Pass<'a> {
    q: &'a Tensor,
    kv: &'a PagedKv,
    layout: &'a DeviceLayout,
    options: &'a AttentionOptions,
    output: Tensor,
    heads: usize,
    table_stride: usize,
}

/// See [`crate::kernels::attention::paged_attention`]; q: f32, f16 or bf16, and so is the output.
pub(in crate::kernels) fn paged_attention(
    q: &Tensor,
    kv: &PagedKv,
    layout: &DeviceLayout,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = q.dims3()?;
    let q = q.contiguous()?;
    expect("q", &q, q.dtype(), &[layout.tokens(), heads, kv.head_dim()])?;
    if !supports(kv) || kv.kv_heads() == 0 || heads % kv.kv_heads() != 0 {
        bail!(
            "no kernel attends with {heads} heads of {head_dim} to {} heads of {:?}",
            kv.kv_heads(),
            kv.k.dtype()
        );
    }
    let pass = Pass {
        kv,
        layout,
        options,
        output: undefined((tokens, heads, head_dim), q.dtype(), q.device())?,
        heads,
        table_stride: layout.tables().dim(1)?,
        q: &q,
    };
    match layout.runs() {
        // The tensor cores take 16-bit numbers.
        Some(runs) if kv.k.dtype() != DType::F32 => {
            pass.attend_runs(&runs.runs, &runs.lengths)?;
            pass.attend_singly(Some(&runs.others), runs.others.elem_count())?;
        }
        _ => pass.attend_singly(None, tokens)?,
    }
    Ok(pass.output)
}

impl Pass<'_> {
    fn window(&self) -> Result<u32> {
        match self.options.window {
            None => Ok(0),
            Some(0) => bail!("a window of no positions"),
            Some(window) => word(window),
        }
    }

    /// The listed tokens, or the first `count`.
    fn attend_singly(&self, listed: Option<&Tensor>, count: usize) -> Result<()> {
        let (kv, head_dim) = (self.kv, self.kv.head_dim());
        let device = self.q.device();
        let splits = self.layout.max_context().div_ceil(SPLIT_TOKENS).max(1);
        let group = self.heads / kv.kv_heads();
        let numbers = pack_numbers(kv.k.dtype());
        let (lanes, chunks) = match head_dim.div_ceil(numbers) {
            0..=8 => (8, 1),
            9..=16 => (16, 1),
            17..=32 => (32, 1),
            _ => (32, 2),
        };
        let group_step = match (kv.k.dtype(), group) {
            (DType::F32, _) | (_, 2..=4) => 4,
            (_, 1) => 1,
            _ => 8,
        };
        let kernel = format!(
            "attend_{}_{lanes}x{chunks}_{group_step}",
            suffix(kv.k.dtype())?
        );
        for first in (0..count).step_by(TOKENS_AT_ONCE) {
            let tokens = TOKENS_AT_ONCE.min(count - first);
            let pieces = match splits {
                1 => None,
                _ => Some(undefined(
                    (tokens, self.heads, splits, head_dim + 2),
                    DType::F32,
                    device,
                )?),
            };
            let parameters = DecodeParameters {
                q: address(self.q)?,
                k_pages: address(&kv.k)?,
                v_pages: address(&kv.v)?,
                slots: address(self.layout.slots())?,
                positions: address(self.layout.positions())?,
                tables: address(self.layout.tables())?,
                listed: listed.map_or(Ok(0), address)?,
                output: address(&self.output)?,
                pieces: pieces.as_ref().map_or(Ok(0), address)?,
                heads: word(self.heads)?,
                kv_heads: word(kv.kv_heads())?,
                head_dim: word(head_dim)?,
                table_stride: word(self.table_stride)?,
                blocks: word(kv.blocks())?,
                window: self.window()?,
                splits: word(splits)?,
                number_type: number_type(self.q.dtype())?,
                first_listed: word(first)?,
                padding: 0,
                scale: self.options.scale,
                softcap: self.options.softcap.unwrap_or(0.0),
            };
            let grid = Grid {
                blocks: [tokens, kv.kv_heads() * group.div_ceil(group_step), splits],
                threads: 32 * DECODE_WARPS,
            };
            launch(device, DECODE, &kernel, grid, &parameters)?;
            if pieces.is_some() {
                let grid = Grid {
                    blocks: [tokens, self.heads, 1],
                    threads: head_dim.next_multiple_of(32),
                };
                launch(device, DECODE, "merge_pieces", grid, &parameters)?;
            }
        }
        Ok(())
    }

    /// runs: (runs, 4) u32, of these lengths.
    fn attend_runs(&self, runs: &Tensor, lengths: &[usize]) -> Result<()> {
        let kv = self.kv;
        let group = self.heads / kv.kv_heads();
        let parameters = PrefillParameters {
            q: address(self.q)?,
            k_pages: address(&kv.k)?,
            v_pages: address(&kv.v)?,
            runs: address(runs)?,
            tables: address(self.layout.tables())?,
            output: address(&self.output)?,
            run_count: word(lengths.len())?,
            heads: word(self.heads)?,
            kv_heads: word(kv.kv_heads())?,
            head_dim: word(kv.head_dim())?,
            table_stride: word(self.table_stride)?,
            blocks: word(kv.blocks())?,
            window: self.window()?,
            number_type: number_type(self.q.dtype())?,
            scale: self.options.scale,
            softcap: self.options.softcap.unwrap_or(0.0),
        };
        let width = match kv.head_dim() {
            0..=64 => 64,
            65..=96 => 96,
            97..=128 => 128,
            _ => 256,
        };
        let kernel = format!("attend_runs_{}_{width}", suffix(kv.k.dtype())?);
        let tiles = lengths
            .iter()
            .map(|tokens| (tokens * group).div_ceil(PREFILL_ROWS));
        let grid = Grid {
            blocks: [tiles.sum(), kv.kv_heads(), 1],
            threads: 32 * PREFILL_WARPS,
        };
        launch(self.q.device(), PREFILL, &kernel, grid, &parameters)
    }
}

#[cfg(test)]
mod tests;
