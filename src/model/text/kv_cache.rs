//! The paged key-value cache: blocks of 32 tokens, handed out when a row is admitted and taken back
//! when it retires.
//!
//! A row's whole budget is reserved at once, so a running row never waits for memory and is never
//! evicted. One block number names the same block in every layer. Rows whose prompts begin alike share
//! their first blocks by way of the prefix cache; each still counts with its whole budget, so that
//! what it reserved is there whatever the others do.

use candle_core::{DType, Device};

use super::config::DecoderConfig;
use super::prefix_cache::{BlockDigest, DigestChain, PrefixCache};
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
    /// Blocks asked for, beside those found in the prefix cache.
    pub needed: usize,
    /// Blocks free.
    pub free: usize,
    /// Blocks in all.
    pub total: usize,
}

/// Which blocks are free, and which belong to which slot.
///
/// Several slots may hold one block, if it is full and known to the prefix cache; then none of them
/// writes to it. The cache keeps known blocks that nobody holds, and gives them up where a reservation
/// needs them: it never costs anybody a place.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    tables: Vec<Vec<u32>>,
    /// By block: how many slots hold it.
    holders: Vec<u32>,
    prefixes: PrefixCache,
}

impl BlockPool {
    /// `blocks` free blocks for `slots` slots, of which the prefix cache may keep `max_kept`.
    pub fn new(blocks: u32, slots: usize, max_kept: usize) -> Self {
        BlockPool {
            free: (0..blocks).rev().collect(),
            tables: vec![Vec::new(); slots],
            holders: vec![0; blocks as usize],
            prefixes: PrefixCache::new(blocks as usize, max_kept),
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds, those in the prefix cache among them.
    pub fn free(&self) -> usize {
        self.free.len() + self.prefixes.unheld()
    }

    /// Each slot's blocks, in the order of the positions that they hold.
    pub fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    /// What is known of the blocks.
    pub fn prefixes(&self) -> &PrefixCache {
        &self.prefixes
    }

    /// Gives `slot` blocks for `tokens` tokens. What it held before is released first.
    ///
    /// # Errors
    /// Too few are free; the slot then holds none.
    pub fn reserve(&mut self, slot: Slot, tokens: usize) -> Result<(), OutOfBlocks> {
        self.release(slot);
        self.take(slot, tokens, Vec::new())
    }

    /// The same for a row that begins with `prompt`, no longer than `tokens`: the first blocks are those
    /// that the prefix cache knows. `chain`, which has stored nothing yet, moves past them.
    ///
    /// # Errors
    /// Too few are free; the slot then holds none.
    pub fn reserve_after_prefix(
        &mut self,
        slot: Slot,
        tokens: usize,
        prompt: &[u32],
        chain: &mut DigestChain,
    ) -> Result<(), OutOfBlocks> {
        self.release(slot);
        let found = self.prefixes.find(prompt, chain);
        self.take(slot, tokens, found)
    }

    /// Lets an empty slot hold the blocks in `found`, and free ones behind them.
    fn take(&mut self, slot: Slot, tokens: usize, found: Vec<u32>) -> Result<(), OutOfBlocks> {
        let is_kept = |block: &&u32| self.prefixes.is_unheld(**block);
        let needed = blocks_for(tokens) - found.len();
        let free = self.free() - found.iter().filter(is_kept).count();
        if needed > free {
            return Err(OutOfBlocks {
                needed,
                free,
                total: self.total(),
            });
        }
        for &block in &found {
            self.hold(block);
        }
        let mut table = found;
        for _ in 0..needed {
            let block = self.free.pop().or_else(|| self.prefixes.evict_oldest());
            let block = block.expect("counted as free");
            self.hold(block);
            table.push(block);
        }
        self.tables[slot.index()] = table;
        Ok(())
    }

    /// Block `index` of `slot` is full now, with what `digest` says. If another block is known by that
    /// digest, the slot holds that one from now on.
    pub fn enter(&mut self, slot: Slot, index: usize, digest: BlockDigest) {
        let own = self.tables[slot.index()][index];
        let known = self.prefixes.enter(digest, own);
        if known != own {
            // Whoever holds a block also holds those that are known before it, so that a chain's
            // end is never held longer than its beginning.
            self.hold(known);
            self.tables[slot.index()][index] = known;
            self.let_go(own);
        }
    }

    /// What the blocks of `slot` contain is not to be found any more.
    pub fn forget(&mut self, slot: Slot) {
        for &block in &self.tables[slot.index()] {
            self.prefixes.forget(block);
        }
    }

    /// Takes the blocks of `slot` back. A slot that holds none is left alone.
    pub fn release(&mut self, slot: Slot) {
        let Some(table) = self.tables.get_mut(slot.index()) else {
            return;
        };
        for block in std::mem::take(table).into_iter().rev() {
            self.let_go(block);
        }
    }

    fn hold(&mut self, block: u32) {
        self.prefixes.hold(block);
        self.holders[block as usize] += 1;
    }

    fn let_go(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.extend(self.prefixes.let_go(block));
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
mod tests;
