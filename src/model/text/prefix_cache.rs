//! Prefix caching: which blocks of the key-value cache hold which tokens, so that a row whose prompt
//! begins like an earlier row's takes those blocks over instead of computing them again.
//!
//! A full block is known by a SHA-256 digest of its tokens and of all tokens before them: a chain that
//! begins with the job's salt, so tenants with different salts never meet. The model is no part of
//! it, because each model has a cache of its own. Only full blocks are shared, and nobody writes to a
//! full block again.
//!
//! Nothing here knows rows or tables; [`BlockPool`](super::kv_cache::BlockPool) counts who holds what.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::batch::Prefix;
use crate::job::CacheSalt;
use crate::kernels::attention::BLOCK_TOKENS;

/// What a full block holds: its tokens, all tokens before them, and the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockDigest([u8; 32]);

impl BlockDigest {
    fn after(parent: &BlockDigest, tokens: &[u32]) -> Self {
        let mut digest = Sha256::new_with_prefix(parent.0);
        for token in tokens {
            digest.update(token.to_le_bytes());
        }
        BlockDigest(digest.finalize().into())
    }
}

/// The digests of the full blocks of a prompt that [`PrefixCache::find`] could find, the first eight bytes of each.
pub fn prompt_digests(salt: &CacheSalt, prompt: &[u32]) -> Prefix {
    let Some((_, before_last)) = prompt.split_last() else {
        return Prefix::default();
    };
    let mut last = BlockDigest(salt.0);
    let blocks = before_last.chunks_exact(BLOCK_TOKENS).map(|tokens| {
        last = BlockDigest::after(&last, tokens);
        let [a, b, c, d, e, f, g, h, ..] = last.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    });
    Prefix(blocks.collect())
}

/// The digests of one row's blocks, token by token as their keys and values are stored.
#[derive(Clone, Debug)]
pub struct DigestChain {
    /// Of the last full block; the salt before there is one.
    last: BlockDigest,
    full_blocks: usize,
    /// What the block under way holds.
    rest: Vec<u32>,
}

impl DigestChain {
    /// The chain of a row that has stored nothing.
    pub fn new(salt: &CacheSalt) -> Self {
        DigestChain {
            last: BlockDigest(salt.0),
            full_blocks: 0,
            rest: Vec::with_capacity(BLOCK_TOKENS),
        }
    }

    /// Tokens stored.
    pub fn tokens(&self) -> usize {
        self.full_blocks * BLOCK_TOKENS + self.rest.len()
    }

    /// Takes the next token. If it fills a block: the block's place in the row's table, and its digest.
    pub fn push(&mut self, token: u32) -> Option<(usize, BlockDigest)> {
        self.rest.push(token);
        if self.rest.len() < BLOCK_TOKENS {
            return None;
        }
        let digest = BlockDigest::after(&self.last, &self.rest);
        self.rest.clear();
        let index = self.full_blocks;
        self.move_past(digest);
        Some((index, digest))
    }

    fn move_past(&mut self, block: BlockDigest) {
        self.last = block;
        self.full_blocks += 1;
    }
}

/// Known blocks by what they hold, and those that no row holds by how long nobody has.
#[derive(Debug)]
pub struct PrefixCache {
    /// How many blocks may be kept that no row holds; 0 switches the cache off.
    limit: usize,
    blocks: HashMap<BlockDigest, u32>,
    /// By block; the reverse of `blocks`.
    digests: Vec<Option<BlockDigest>>,
    /// Known blocks that no row holds, by when they were let go. The first is the oldest.
    unheld: BTreeMap<u64, u32>,
    /// By block: its key in `unheld`, if it is there.
    let_go_at: Vec<Option<u64>>,
    next_moment: u64,
    evicted: u64,
}

impl PrefixCache {
    /// A cache that knows nothing of `blocks` blocks, and may keep `limit` of them that no row holds. With
    /// 0 it is off and stays empty.
    pub fn new(blocks: usize, limit: usize) -> Self {
        PrefixCache {
            limit,
            blocks: HashMap::new(),
            digests: vec![None; blocks],
            unheld: BTreeMap::new(),
            let_go_at: vec![None; blocks],
            next_moment: 0,
            evicted: 0,
        }
    }

    /// Whether anything is ever kept.
    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Known blocks that no row holds.
    pub fn unheld(&self) -> usize {
        self.unheld.len()
    }

    /// Whether `block` is one of them.
    pub fn is_unheld(&self, block: u32) -> bool {
        self.let_go_at[block as usize].is_some()
    }

    /// Blocks that were forgotten for lack of room since the beginning.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The known blocks that `prompt` begins with, in order; `chain`, which has stored nothing yet, moves
    /// past them. The prompt's last token is never among them, because its logits are wanted.
    pub fn find(&self, prompt: &[u32], chain: &mut DigestChain) -> Vec<u32> {
        debug_assert_eq!(chain.tokens(), 0);
        let Some((_, before_last)) = prompt.split_last() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for tokens in before_last.chunks_exact(BLOCK_TOKENS) {
            let digest = BlockDigest::after(&chain.last, tokens);
            let Some(&block) = self.blocks.get(&digest) else {
                break;
            };
            chain.move_past(digest);
            found.push(block);
        }
        found
    }

    /// `block`, which a row holds, was filled with what `digest` says. Returns the block that is known by
    /// that digest: `block` itself, or the one of another row that came first.
    pub fn enter(&mut self, digest: BlockDigest, block: u32) -> u32 {
        if !self.is_on() {
            return block;
        }
        let known = *self.blocks.entry(digest).or_insert(block);
        if known == block {
            self.digests[block as usize] = Some(digest);
        }
        known
    }

    /// A row holds `block` that none held before.
    pub fn hold(&mut self, block: u32) {
        if let Some(moment) = self.let_go_at[block as usize].take() {
            self.unheld.remove(&moment);
        }
    }

    /// No row holds `block` any more: it is kept if it is known. Returns a block that is free now, if
    /// any: this one, or the oldest where the limit is reached.
    ///
    /// A row lets its last block go first. A block is thus always older here than the one before it
    /// in its chain, and evicted before it: what is left can still be found from the beginning. Only
    /// [`forget`](Self::forget) may leave a chain without its beginning; its end is kept until it is
    /// the oldest, or is found again once somebody has computed the beginning.
    pub fn let_go(&mut self, block: u32) -> Option<u32> {
        if self.digests[block as usize].is_none() {
            return Some(block);
        }
        let moment = self.next_moment;
        self.next_moment += 1;
        self.unheld.insert(moment, block);
        self.let_go_at[block as usize] = Some(moment);
        if self.unheld.len() > self.limit {
            return self.evict_oldest();
        }
        None
    }

    /// Forgets the block that nobody has held for longest; it is free then.
    pub fn evict_oldest(&mut self) -> Option<u32> {
        let (_, block) = self.unheld.pop_first()?;
        self.let_go_at[block as usize] = None;
        self.forget(block);
        self.evicted += 1;
        Some(block)
    }

    /// What `block`, which a row holds or nobody keeps, contains is not to be found any more.
    pub fn forget(&mut self, block: u32) {
        debug_assert!(!self.is_unheld(block));
        if let Some(digest) = self.digests[block as usize].take() {
            self.blocks.remove(&digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: CacheSalt = CacheSalt([1; 32]);

    /// Fills `blocks` with `tokens` and enters them.
    fn fill(cache: &mut PrefixCache, salt: &CacheSalt, tokens: &[u32], blocks: &[u32]) {
        let mut chain = DigestChain::new(salt);
        for &token in tokens {
            if let Some((index, digest)) = chain.push(token) {
                assert_eq!(cache.enter(digest, blocks[index]), blocks[index]);
            }
        }
    }

    fn let_go_from_the_end(cache: &mut PrefixCache, blocks: &[u32]) -> Vec<u32> {
        let reversed = blocks.iter().rev();
        reversed.filter_map(|block| cache.let_go(*block)).collect()
    }

    fn find(cache: &PrefixCache, salt: &CacheSalt, prompt: &[u32]) -> Vec<u32> {
        let mut chain = DigestChain::new(salt);
        let found = cache.find(prompt, &mut chain);
        assert_eq!(chain.tokens(), found.len() * BLOCK_TOKENS);
        found
    }

    fn tokens(first: u32, count: usize) -> Vec<u32> {
        (first..).take(count).collect()
    }

    #[test]
    fn whole_blocks_before_the_last_token_are_found() {
        let mut cache = PrefixCache::new(8, 8);
        fill(&mut cache, &SALT, &tokens(0, 96), &[5, 3, 7]);
        let found = |prompt: &[u32]| find(&cache, &SALT, prompt);
        assert_eq!(found(&tokens(0, 97)), [5, 3, 7]);
        assert_eq!(found(&tokens(0, 96)), [5, 3], "the last token is computed");
        assert_eq!(found(&tokens(0, 33)), [5]);
        assert!(found(&tokens(0, 32)).is_empty());
        assert!(found(&tokens(0, 1)).is_empty());
        assert!(found(&[]).is_empty());
        // One token makes the difference, from its block on.
        let mut other = tokens(0, 97);
        other[40] = 1_000;
        assert_eq!(found(&other), [5]);
        assert!(found(&tokens(1, 97)).is_empty());
        // The second block's tokens at the beginning are something else.
        assert!(found(&tokens(32, 65)).is_empty());
    }

    #[test]
    fn prompts_have_the_digests_that_they_have_in_common() {
        let digests = |salt: u8, prompt: &[u32]| prompt_digests(&CacheSalt([salt; 32]), prompt).0;
        let whole = digests(1, &tokens(0, 97));
        assert_eq!(whole.len(), 3);
        assert_eq!(
            digests(1, &tokens(0, 96))[..],
            whole[..2],
            "its last token is computed"
        );
        assert!(digests(1, &tokens(0, 32)).is_empty() && digests(1, &[]).is_empty());
        let mut other = tokens(0, 97);
        other[40] = 1_000;
        let other = digests(1, &other);
        assert_eq!(other[0], whole[0]);
        assert!(other[1] != whole[1] && other[2] != whole[2]);
        assert!(
            digests(2, &tokens(0, 97))
                .iter()
                .all(|digest| !whole.contains(digest))
        );
    }

    #[test]
    fn another_salt_finds_nothing() {
        let mut cache = PrefixCache::new(8, 8);
        fill(&mut cache, &SALT, &tokens(0, 64), &[0, 1]);
        assert!(find(&cache, &CacheSalt([2; 32]), &tokens(0, 65)).is_empty());
        assert!(find(&cache, &CacheSalt::default(), &tokens(0, 65)).is_empty());
    }

    #[test]
    fn a_chain_that_found_blocks_goes_on_as_if_it_had_filled_them() {
        let mut cache = PrefixCache::new(8, 8);
        fill(&mut cache, &SALT, &tokens(0, 64), &[0, 1]);
        let mut from_start = DigestChain::new(&SALT);
        let mut from_cache = DigestChain::new(&SALT);
        assert_eq!(cache.find(&tokens(0, 65), &mut from_cache), [0, 1]);
        for token in 0..64 {
            from_start.push(token);
        }
        for token in 64..200 {
            assert_eq!(from_start.push(token), from_cache.push(token));
        }
    }

    #[test]
    fn the_first_of_equal_blocks_is_the_known_one() {
        let mut cache = PrefixCache::new(8, 8);
        fill(&mut cache, &SALT, &tokens(0, 32), &[4]);
        let (_, digest) = tokens(0, 32)
            .into_iter()
            .scan(DigestChain::new(&SALT), |chain, token| {
                Some(chain.push(token))
            })
            .flatten()
            .next()
            .expect("a whole block");
        assert_eq!(cache.enter(digest, 6), 4);
        assert_eq!(cache.let_go(6), Some(6), "the other is free when let go");
        assert_eq!(find(&cache, &SALT, &tokens(0, 33)), [4]);
    }

    #[test]
    fn the_oldest_goes_first_and_a_chain_from_its_end() {
        let mut cache = PrefixCache::new(8, 4);
        fill(&mut cache, &SALT, &tokens(0, 64), &[0, 1]);
        fill(&mut cache, &SALT, &tokens(500, 64), &[2, 3]);
        assert!(let_go_from_the_end(&mut cache, &[0, 1]).is_empty());
        assert!(let_go_from_the_end(&mut cache, &[2, 3]).is_empty());
        // Somebody comes back for the first: now the second is the older one.
        cache.hold(0);
        cache.hold(1);
        assert_eq!(cache.unheld(), 2);
        assert!(let_go_from_the_end(&mut cache, &[0, 1]).is_empty());
        assert_eq!(cache.unheld(), 4);
        assert_eq!(cache.evict_oldest(), Some(3));
        assert_eq!(find(&cache, &SALT, &tokens(500, 65)), [2]);
        // Two more than fit.
        fill(&mut cache, &SALT, &tokens(900, 96), &[5, 6, 7]);
        assert_eq!(let_go_from_the_end(&mut cache, &[5, 6, 7]), [2, 1]);
        assert_eq!(find(&cache, &SALT, &tokens(0, 65)), [0]);
        assert_eq!((cache.unheld(), cache.evicted()), (4, 3));
    }

    #[test]
    fn a_forgotten_block_is_not_found_and_not_kept() {
        let mut cache = PrefixCache::new(8, 4);
        fill(&mut cache, &SALT, &tokens(0, 64), &[0, 1]);
        cache.forget(1);
        assert_eq!(find(&cache, &SALT, &tokens(0, 65)), [0]);
        assert_eq!(cache.let_go(1), Some(1));
        assert_eq!(cache.let_go(0), None);
    }

    #[test]
    fn switched_off_it_knows_nothing() {
        let mut cache = PrefixCache::new(8, 0);
        fill(&mut cache, &SALT, &tokens(0, 64), &[0, 1]);
        assert!(find(&cache, &SALT, &tokens(0, 65)).is_empty());
        assert_eq!(cache.let_go(0), Some(0));
        assert_eq!(cache.evict_oldest(), None);
    }
}
