//! A pass's layout in a device's memory: uploaded once a pass, not once a layer; or kept there and refilled in place, for
//! steps that are replayed.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{BLOCK_TOKENS, TokenLayout};

/// Tokens of one slot at rising positions, from which on they are attended to together: fewer are as quick one by one.
const SHORTEST_RUN: usize = 8;

/// Where each token of a pass lives, in a device's memory.
#[derive(Debug, Clone)]
pub struct DeviceLayout {
    slots: Tensor,
    positions: Tensor,
    tables: Tensor,
    max_context: usize,
    runs: Option<DeviceRuns>,
}

/// The tokens of a pass that are attended to in runs, and the others.
#[derive(Debug, Clone)]
pub(in crate::kernels) struct DeviceRuns {
    /// (runs, 4) u32: first token, tokens, slot, position of the first.
    pub(in crate::kernels) runs: Tensor,
    /// Tokens of each run.
    pub(in crate::kernels) lengths: Vec<usize>,
    /// (others,) u32: the tokens in no run.
    pub(in crate::kernels) others: Tensor,
}

impl DeviceLayout {
    /// For a step that is replayed: the tensors are refilled in place between replays.
    ///
    /// slots, positions: (T,) u32; tables: (rows, blocks) u32, contiguous. Token `t` is at position `positions[t]` of the
    /// sequence whose position `p` is row `p % 32` of block `tables[slots[t], p / 32]`. No token may ever stand at or past
    /// `max_context`, which sizes the launches.
    ///
    /// # Errors
    /// When shapes or dtypes differ from these, or the tables are too narrow for `max_context`.
    pub fn of_tensors(
        slots: Tensor,
        positions: Tensor,
        tables: Tensor,
        max_context: usize,
    ) -> Result<Self> {
        let (_, blocks) = tables.dims2()?;
        let is_word = |tensor: &Tensor| tensor.dtype() == DType::U32 && tensor.is_contiguous();
        if slots.dims1()? != positions.dims1()?
            || !is_word(&slots)
            || !is_word(&positions)
            || !is_word(&tables)
        {
            bail!(
                "slots {:?}, positions {:?} and tables {:?} should be u32, contiguous, and fit",
                slots.dims(),
                positions.dims(),
                tables.dims()
            );
        }
        if max_context > blocks * BLOCK_TOKENS {
            bail!("tables of {blocks} blocks do not reach a context of {max_context}");
        }
        Ok(Self {
            slots,
            positions,
            tables,
            max_context,
            runs: None,
        })
    }

    /// The layout of one pass; only the tables of its slots, and of them what its tokens see.
    pub(super) fn upload(layout: &TokenLayout, device: &Device) -> Result<Self> {
        let mut used: Vec<u32> = layout.slots().to_vec();
        used.sort_unstable();
        used.dedup();
        let max_context = layout
            .positions()
            .iter()
            .max()
            .map_or(0, |position| *position as usize + 1);
        let stride = max_context.div_ceil(BLOCK_TOKENS);
        let mut tables = vec![u32::MAX; used.len() * stride];
        for (slot, row) in used.iter().zip(tables.chunks_exact_mut(stride.max(1))) {
            let table = layout.table(*slot as usize);
            let blocks = table.len().min(stride);
            row[..blocks].copy_from_slice(&table[..blocks]);
        }
        let slots: Vec<u32> = layout
            .slots()
            .iter()
            .map(|slot| used.partition_point(|other| other < slot) as u32)
            .collect();
        let (runs, others) = split_runs(&slots, layout.positions());
        let runs = match runs.is_empty() {
            true => None,
            false => Some(DeviceRuns {
                lengths: runs.iter().map(|run| run[1] as usize).collect(),
                runs: Tensor::from_vec(runs.as_flattened().to_vec(), (runs.len(), 4), device)?,
                others: Tensor::new(others, device)?,
            }),
        };
        let tables = Tensor::from_vec(tables, (used.len(), stride), device)?;
        Ok(Self {
            slots: Tensor::new(slots, device)?,
            positions: Tensor::new(layout.positions(), device)?,
            tables,
            max_context,
            runs,
        })
    }

    /// (T,) u32: the row of the tables that each token's sequence has.
    pub fn slots(&self) -> &Tensor {
        &self.slots
    }

    /// (T,) u32: each token's position in its own sequence.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// (rows, blocks) u32: the blocks of each sequence.
    pub fn tables(&self) -> &Tensor {
        &self.tables
    }

    /// Positions that tokens stand below.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// Tokens in the pass.
    pub fn tokens(&self) -> usize {
        self.slots.elem_count()
    }

    /// The runs, where the pass has any.
    pub(in crate::kernels) fn runs(&self) -> Option<&DeviceRuns> {
        self.runs.as_ref()
    }
}

/// Runs of neighbouring tokens of one slot at rising positions (first token, tokens, slot, position of the first), and the
/// tokens in none.
fn split_runs(slots: &[u32], positions: &[u32]) -> (Vec<[u32; 4]>, Vec<u32>) {
    let (mut runs, mut others) = (Vec::new(), Vec::new());
    let mut first = 0;
    while first < slots.len() {
        let mut end = first + 1;
        while end < slots.len()
            && slots[end] == slots[first]
            && positions[end] == positions[end - 1] + 1
        {
            end += 1;
        }
        if end - first >= SHORTEST_RUN {
            runs.push([
                first as u32,
                (end - first) as u32,
                slots[first],
                positions[first],
            ]);
        } else {
            others.extend(first as u32..end as u32);
        }
        first = end;
    }
    (runs, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[(u32, u32)], runs: &[[u32; 4]], others: &[u32]) {
        let (slots, positions): (Vec<u32>, Vec<u32>) = tokens.iter().copied().unzip();
        assert_eq!(
            split_runs(&slots, &positions),
            (runs.to_vec(), others.to_vec())
        );
    }

    #[test]
    fn runs_are_neighbours_of_one_slot_at_rising_positions() {
        let chunk =
            |slot: u32, from: u32, count: u32| (from..from + count).map(move |at| (slot, at));
        check(&[], &[], &[]);
        check(&[(2, 5)], &[], &[0]);
        check(
            &chunk(1, 3, 7).collect::<Vec<_>>(),
            &[],
            &[0, 1, 2, 3, 4, 5, 6],
        );
        check(&chunk(1, 3, 8).collect::<Vec<_>>(), &[[0, 8, 1, 3]], &[]);
        // Another slot at the next position, and a gap, end a run.
        let mixed: Vec<_> = [(0, 9)]
            .into_iter()
            .chain(chunk(1, 3, 8))
            .chain(chunk(2, 11, 9))
            .chain(chunk(2, 21, 2))
            .collect();
        check(&mixed, &[[1, 8, 1, 3], [9, 9, 2, 11]], &[0, 18, 19]);
    }

    #[test]
    fn an_upload_holds_what_the_pass_sees() {
        let tables = vec![vec![], vec![7, 8, 9], vec![], vec![3, 4]];
        let layout = TokenLayout::new(vec![3, 1, 3], vec![31, 32, 5], tables).unwrap();
        let device = DeviceLayout::upload(&layout, &Device::Cpu).unwrap();
        assert_eq!(device.max_context(), 33);
        assert_eq!(device.slots().to_vec1::<u32>().unwrap(), [1, 0, 1]);
        assert_eq!(device.positions().to_vec1::<u32>().unwrap(), [31, 32, 5]);
        let tables = device.tables().to_vec2::<u32>().unwrap();
        assert_eq!(tables, [[7, 8], [3, 4]]);
        assert!(device.runs().is_none());
        let words = |count: usize| Tensor::zeros(count, DType::U32, &Device::Cpu).unwrap();
        let narrow = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
        assert!(DeviceLayout::of_tensors(words(4), words(4), narrow.clone(), 96).is_ok());
        assert!(DeviceLayout::of_tensors(words(4), words(4), narrow.clone(), 97).is_err());
        assert!(DeviceLayout::of_tensors(words(4), words(3), narrow, 96).is_err());
    }
}
