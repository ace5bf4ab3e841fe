use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::job::CacheSalt;

#[test]
fn a_refused_reservation_takes_nothing() {
    let mut pool = BlockPool::new(4, 2, 0);
    pool.reserve(Slot(0), 65).expect("3 of 4 blocks");
    let refused = pool.reserve(Slot(1), 64).expect_err("1 is left");
    assert_eq!((refused.needed, refused.free, refused.total), (2, 1, 4));
    assert_eq!(pool.free(), 1);
    pool.reserve(Slot(1), 32).expect("the last block");
}

#[test]
fn a_refused_reservation_leaves_what_it_found_in_the_cache() {
    let mut pool = Played::new(4, 2, 4);
    pool.admit(0, 0, &[7; 65], 65).expect("3 of 4 blocks");
    pool.store(0, 65);
    pool.retire(0);
    pool.admit(1, 0, &[9; 40], 40).expect("2 blocks");
    // It finds two and needs three more; two are held by the other.
    let refused = pool.admit(0, 0, &[7; 65], 160).expect_err("too long");
    assert_eq!((refused.needed, refused.free), (3, 0));
    pool.check();
    pool.retire(1);
    assert_eq!(pool.admit(0, 0, &[7; 65], 128), Ok(64));
}

#[test]
fn rows_that_fill_equal_blocks_side_by_side_end_up_with_one_copy() {
    let mut pool = Played::new(12, 2, 12);
    let prompt: Vec<u32> = (0..100).collect();
    for slot in 0..2 {
        assert_eq!(pool.admit(slot, 0, &prompt, 100), Ok(0));
    }
    for slot in 0..2 {
        pool.store(slot, 100);
        pool.check();
    }
    let [first, second] = pool.pool.tables() else {
        unreachable!("two slots");
    };
    assert_eq!(first[..3], second[..3]);
    assert_ne!(first[3], second[3], "what is not full is each row's own");
    assert_eq!(pool.pool.free(), 12 - 5);
}

/// A row as its writes are played: what it is and how far it has come.
struct PlayedRow {
    salt: u8,
    /// Its prompt, and what it says after it.
    tokens: Vec<u32>,
    chain: DigestChain,
}

/// What a block's places hold: the salt and all tokens up to there. Real keys and values depend on just
/// that.
type Content = Vec<Option<(u8, Vec<u32>)>>;

/// A pool with a model of the store behind it.
struct Played {
    pool: BlockPool,
    max_kept: usize,
    store: Vec<Content>,
    rows: BTreeMap<u32, PlayedRow>,
}

impl Played {
    fn new(blocks: u32, slots: usize, max_kept: usize) -> Self {
        Played {
            pool: BlockPool::new(blocks, slots, max_kept),
            max_kept,
            store: vec![vec![None; BLOCK_TOKENS]; blocks as usize],
            rows: BTreeMap::new(),
        }
    }

    /// How many tokens were found.
    fn admit(
        &mut self,
        slot: u32,
        salt: u8,
        tokens: &[u32],
        budget: usize,
    ) -> Result<usize, OutOfBlocks> {
        let mut chain = DigestChain::new(&CacheSalt([salt; 32]));
        self.pool
            .reserve_after_prefix(Slot(slot), budget, tokens, &mut chain)?;
        let found = chain.tokens();
        let mut all = tokens.to_vec();
        // What it will say depends on its prompt, as with a greedy model.
        all.extend((0..budget - tokens.len()).map(|i| tokens[i % tokens.len()] ^ 1));
        let row = PlayedRow {
            salt,
            tokens: all,
            chain,
        };
        self.rows.insert(slot, row);
        Ok(found)
    }

    /// A pass that stores up to `count` more tokens of the row.
    fn store(&mut self, slot: u32, count: usize) {
        let Some(row) = self.rows.get_mut(&slot) else {
            return;
        };
        for _ in 0..count {
            let position = row.chain.tokens();
            let Some(&token) = row.tokens.get(position) else {
                return;
            };
            let table = &self.pool.tables()[slot as usize];
            let block = table[position / BLOCK_TOKENS];
            assert_eq!(self.pool.holders[block as usize], 1, "it has one writer");
            let holds = row.tokens[..=position].to_vec();
            self.store[block as usize][position % BLOCK_TOKENS] = Some((row.salt, holds));
            if let Some((index, digest)) = row.chain.push(token) {
                self.pool.enter(Slot(slot), index, digest);
            }
        }
    }

    fn retire(&mut self, slot: u32) {
        self.rows.remove(&slot);
        self.pool.release(Slot(slot));
    }

    /// Everything that must hold at any time.
    fn check(&self) {
        let pool = &self.pool;
        // Every block is held, kept or free: one of the three. The holders are counted.
        let mut holders = vec![0; pool.total()];
        for block in pool.tables().iter().flatten() {
            holders[*block as usize] += 1;
        }
        assert_eq!(pool.holders, holders);
        let held = holders.iter().filter(|&&count| count > 0).count();
        assert_eq!(held + pool.free(), pool.total(), "none is lost");
        let distinct: HashSet<u32> = pool.free.iter().copied().collect();
        assert_eq!(distinct.len(), pool.free.len(), "none is free twice");
        assert!(distinct.iter().all(|&block| holders[block as usize] == 0));
        for block in 0..pool.total() as u32 {
            let is_kept = pool.prefixes.is_unheld(block);
            assert!(!is_kept || holders[block as usize] == 0 && !distinct.contains(&block));
        }
        assert!(pool.prefixes.unheld() <= self.max_kept);
        // Each row reads what is its own, whoever stored it.
        for (slot, row) in &self.rows {
            let table = &pool.tables()[*slot as usize];
            for position in 0..row.chain.tokens() {
                let block = table[position / BLOCK_TOKENS] as usize;
                let expected = (row.salt, row.tokens[..=position].to_vec());
                let found = &self.store[block][position % BLOCK_TOKENS];
                assert_eq!(found.as_ref(), Some(&expected), "slot {slot} at {position}");
            }
        }
    }
}

proptest! {
    /// Whatever comes and goes, in whatever order, every block has exactly one owner.
    #[test]
    fn without_a_prefix_cache_blocks_are_neither_lost_nor_shared(
        steps in prop::collection::vec((0u32..8, 0usize..400, any::<bool>()), 1..200)
    ) {
        let mut pool = BlockPool::new(40, 8, 0);
        for (slot, tokens, reserve) in steps {
            if reserve {
                let _ = pool.reserve(Slot(slot), tokens);
            } else {
                pool.release(Slot(slot));
            }
            let held: Vec<u32> = pool.tables().iter().flatten().copied().collect();
            prop_assert_eq!(held.len() + pool.free(), 40);
            let distinct: HashSet<u32> = held.iter().chain(&pool.free).copied().collect();
            prop_assert_eq!(distinct.len(), 40);
        }
    }

    /// Rows of few kinds, so that many begin alike, come, run, fail and go.
    #[test]
    fn with_a_prefix_cache_every_row_reads_its_own_tokens(
        max_kept in 0usize..30,
        steps in prop::collection::vec(
            (0u32..6, 0u8..8, 0u8..2, 1usize..200, 0usize..150, 0u32..3), 1..120)
    ) {
        let mut played = Played::new(24, 6, max_kept);
        for (slot, action, salt, length, more, kind) in steps {
            match action {
                0..=2 => {
                    played.retire(slot);
                    // Alike up to token 70, then by kind.
                    let prompt: Vec<u32> =
                        (0..length as u32).map(|i| if i < 70 { i } else { i + 1_000 * kind }).collect();
                    let budget = length + more;
                    // A ledger that counts whole budgets is the scheduler's; what fits it must fit here.
                    let reserved: usize = played.pool.tables().iter().map(Vec::len).sum();
                    let fits = reserved + blocks_for(budget) <= 24;
                    let admitted = played.admit(slot, salt, &prompt, budget);
                    prop_assert!(admitted.is_ok() || !fits);
                    if let Ok(found) = admitted {
                        prop_assert!(found < length);
                        prop_assert!(max_kept > 0 || found == 0);
                    }
                }
                3..=5 => played.store(slot, length),
                6 => played.retire(slot),
                _ => {
                    played.pool.forget(Slot(slot));
                    played.retire(slot);
                }
            }
            played.check();
        }
        for slot in 0..6 {
            played.retire(slot);
        }
        played.check();
        prop_assert_eq!(played.pool.free(), 24);
    }

    /// Without failures the cache holds no block whose beginning is gone: each of them is found by
    /// the row that would need it.
    #[test]
    fn what_is_kept_can_be_found(
        max_kept in 1usize..30,
        steps in prop::collection::vec((0u32..6, 0u8..4, 33usize..130, 0u32..3), 1..120)
    ) {
        let mut played = Played::new(24, 6, max_kept);
        let prompt_of = |kind: u32, length: usize| -> Vec<u32> {
            (0..length as u32).map(|i| if i < 70 { i } else { i + 1_000 * kind }).collect()
        };
        for (slot, action, length, kind) in steps {
            match action {
                _ if !played.rows.contains_key(&slot) => {
                    let _ = played.admit(slot, 0, &prompt_of(kind, length), length);
                }
                0..=2 => played.store(slot, length),
                _ => played.retire(slot),
            }
            let mut found = HashSet::new();
            for kind in 0..3 {
                let mut chain = DigestChain::new(&CacheSalt([0; 32]));
                found.extend(played.pool.prefixes.find(&prompt_of(kind, 250), &mut chain));
            }
            for block in 0..24 {
                prop_assert!(!played.pool.prefixes.is_unheld(block) || found.contains(&block));
            }
        }
    }
}
