//! The paged key-value cache: blocks of 32 tokens, handed out when a row is admitted and taken back
//! when it retires.
//!
//! A row's whole budget is reserved at once, so a running row never waits for memory and is never
//! evicted. One block number names the same block in every layer.

use candle_core::{DType, Device};

use super::config::DecoderConfig;
use crate::batch::Slot;
use crate::kernels::attention::{BLOCK_TOKENS, PagedKv};

/// Blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// More blocks were asked for than are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} key-value blocks are needed and {free} of {total} are free")]
pub struct OutOfBlocks {
    /// Blocks asked for.
    pub needed: usize,
    /// Blocks free.
    pub free: usize,
    /// Blocks in all.
    pub total: usize,
}

/// Which blocks are free, and which belong to which slot.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    tables: Vec<Vec<u32>>,
    total: usize,
}

impl BlockPool {
    /// `blocks` free blocks for `slots` slots.
    pub fn new(blocks: u32, slots: usize) -> Self {
        BlockPool {
            free: (0..blocks).rev().collect(),
            tables: vec![Vec::new(); slots],
            total: blocks as usize,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Each slot's blocks, in the order of the positions that they hold.
    pub fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    /// Gives `slot` blocks for `tokens` tokens. What it held before is released first.
    ///
    /// # Errors
    /// Too few are free; the slot then holds none.
    pub fn reserve(&mut self, slot: Slot, tokens: usize) -> Result<(), OutOfBlocks> {
        self.release(slot);
        let needed = blocks_for(tokens);
        let Some(rest) = self.free.len().checked_sub(needed) else {
            return Err(OutOfBlocks {
                needed,
                free: self.free.len(),
                total: self.total,
            });
        };
        self.tables[slot.index()] = self.free.split_off(rest);
        Ok(())
    }

    /// Takes the blocks of `slot` back. A slot that holds none is left alone.
    pub fn release(&mut self, slot: Slot) {
        if let Some(table) = self.tables.get_mut(slot.index()) {
            self.free.append(table);
        }
    }
}

/// Every layer's keys and values.
///
/// # Errors
/// The device is out of memory.
pub fn allocate(
    config: &DecoderConfig,
    blocks: usize,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Vec<PagedKv>> {
    (0..config.layers.len())
        .map(|_| PagedKv::zeros(blocks, config.kv_heads, config.head_dim, dtype, device))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refused_reservation_takes_nothing() {
        let mut pool = BlockPool::new(4, 2);
        pool.reserve(Slot(0), 65).expect("3 of 4 blocks");
        let refused = pool.reserve(Slot(1), 64).expect_err("1 is left");
        assert_eq!((refused.needed, refused.free, refused.total), (2, 1, 4));
        assert_eq!(pool.free(), 1);
        pool.reserve(Slot(1), 32).expect("the last block");
    }

    proptest! {
        /// Whatever comes and goes, in whatever order, every block has exactly one owner.
        #[test]
        fn blocks_are_neither_lost_nor_shared(
            steps in prop::collection::vec((0u32..8, 0usize..400, any::<bool>()), 1..200)
        ) {
            let mut pool = BlockPool::new(40, 8);
            for (slot, tokens, reserve) in steps {
                if reserve {
                    let _ = pool.reserve(Slot(slot), tokens);
                } else {
                    pool.release(Slot(slot));
                }
                let held: Vec<u32> = pool.tables().iter().flatten().copied().collect();
                prop_assert_eq!(held.len() + pool.free(), 40);
                let distinct: HashSet<u32> =
                    held.iter().chain(&pool.free).copied().collect();
                prop_assert_eq!(distinct.len(), 40);
            }
        }
    }
}
