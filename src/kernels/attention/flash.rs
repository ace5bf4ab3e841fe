//! Candle's flash attention over our pages: an option for passes with prompts, in builds with the feature `flash-attn`.
//!
//! What it wants of a pass is worked out here in every build, and tested; the call itself is compiled with the feature alone.

use super::TokenLayout;

/// A pass as flash attention takes it: sequences behind each other, each a run of one slot's positions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FlashPass {
    /// Where each sequence's queries begin, and where the last ends.
    pub(super) queries: Vec<u32>,
    /// The same of its keys, counted as if they lay behind each other.
    pub(super) keys: Vec<u32>,
    /// Blocks of each sequence, filled up to `stride`.
    pub(super) tables: Vec<u32>,
    /// Blocks of the longest sequence.
    pub(super) stride: usize,
    /// Queries of the longest run.
    pub(super) most_queries: usize,
    /// Keys of the longest sequence.
    pub(super) most_keys: usize,
}

impl FlashPass {
    /// The pass of this layout; `None` where the tokens of a slot are not neighbours at positions one after another,
    /// or where no slot has more than one: decode steps have a kernel of their own.
    pub(super) fn of(layout: &TokenLayout) -> Option<Self> {
        let (slots, positions) = (layout.slots(), layout.positions());
        let mut pass = FlashPass {
            queries: vec![0],
            keys: vec![0],
            tables: Vec::new(),
            stride: 0,
            most_queries: 0,
            most_keys: 0,
        };
        let mut seen = Vec::new();
        let mut first = 0;
        while first < slots.len() {
            let slot = slots[first];
            let is_next = |at: &usize| {
                slots[*at] == slot
                    && positions[*at] == positions[first].wrapping_add((*at - first) as u32)
            };
            let count = (first..slots.len()).take_while(is_next).count();
            if seen.contains(&slot) {
                return None;
            }
            seen.push(slot);
            let keys = positions[first] as usize + count;
            pass.queries.push((first + count) as u32);
            pass.keys.push(pass.keys.last()? + keys as u32);
            pass.most_queries = pass.most_queries.max(count);
            pass.most_keys = pass.most_keys.max(keys);
            first += count;
        }
        if pass.most_queries < 2 {
            return None;
        }
        pass.stride = pass.most_keys.div_ceil(super::BLOCK_TOKENS);
        for slot in seen {
            let table = layout.table(slot as usize);
            let blocks = table.len().min(pass.stride);
            pass.tables.extend(&table[..blocks]);
            // Never read: it lies past the sequence's keys.
            pass.tables
                .extend(std::iter::repeat_n(0, pass.stride - blocks));
        }
        Some(pass)
    }
}

/// Attends with flash attention if the build has it and the pass is one for it. q: (T, heads, head_dim) of the store's own
/// dtype, f16 or bf16 -> the same shape and dtype.
///
/// # Errors
/// What the device reports.
#[cfg(feature = "flash-attn")]
pub(super) fn paged_attention(
    q: &candle_core::Tensor,
    kv: &super::PagedKv,
    layout: &TokenLayout,
    options: &super::AttentionOptions,
) -> candle_core::Result<Option<candle_core::Tensor>> {
    use candle_core::{DType, Tensor};

    let is_half = matches!(q.dtype(), DType::F16 | DType::BF16);
    if !is_half || kv.k.dtype() != q.dtype() || layout.check_host().is_err() {
        return Ok(None);
    }
    let Some(pass) = FlashPass::of(layout) else {
        return Ok(None);
    };
    let device = q.device();
    let sequences = pass.queries.len() - 1;
    let tables = Tensor::from_vec(pass.tables, (sequences, pass.stride), device)?;
    // A token sees itself and what came before it, as far as the window reaches.
    let left = options.window.map(|window| window - 1);
    let attended = candle_flash_attn::flash_attn_varlen_paged_windowed(
        &q.contiguous()?,
        &kv.k,
        &kv.v,
        &Tensor::new(pass.queries, device)?,
        &Tensor::new(pass.keys, device)?,
        &tables,
        None,
        pass.most_queries,
        pass.most_keys,
        options.scale,
        left,
        Some(0),
        super::BLOCK_TOKENS,
        options.softcap,
    )?;
    Ok(Some(attended))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(tokens: &[(u32, u32)]) -> Option<FlashPass> {
        let (slots, positions) = tokens.iter().copied().unzip();
        let tables = vec![vec![7, 5, 9], vec![3], vec![1, 2]];
        let layout = TokenLayout::new(slots, positions, tables).expect("all have blocks");
        FlashPass::of(&layout)
    }

    #[test]
    fn sequences_follow_each_other() {
        let chunk = |slot: u32, first: u32, count: u32| {
            (first..first + count).map(move |position| (slot, position))
        };
        let tokens: Vec<_> = chunk(0, 30, 40)
            .chain(chunk(1, 4, 1))
            .chain(chunk(2, 0, 2))
            .collect();
        let expected = FlashPass {
            queries: vec![0, 40, 41, 43],
            keys: vec![0, 70, 75, 77],
            tables: vec![7, 5, 9, 3, 0, 0, 1, 2, 0],
            stride: 3,
            most_queries: 40,
            most_keys: 70,
        };
        assert_eq!(pass(&tokens), Some(expected));
    }

    #[test]
    fn other_passes_are_left_to_our_own_kernels() {
        for tokens in [
            // Decode rows alone.
            &[(0, 3), (1, 4)][..],
            // A slot that comes twice, and positions that do not follow each other.
            &[(0, 3), (1, 4), (0, 4)],
            &[(0, 3), (0, 5)],
            &[],
        ] {
            assert_eq!(pass(tokens), None, "{tokens:?}");
        }
    }
}
