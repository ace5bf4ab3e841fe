//! Drives a decoder without scheduler, tokenizer or sampler.

use girandole::batch::Slot;
use girandole::kernels::attention::TokenLayout;
use girandole::model::text::decoder::{Decoder, KvShape};
use girandole::model::text::kv_cache::BlockPool;

/// A decoder with rows in slots.
pub(crate) struct Decoding {
    pub(crate) decoder: Decoder,
    pub(crate) pool: BlockPool,
}

/// Tokens of one slot in a pass.
pub(crate) struct Part<'a> {
    pub(crate) slot: u32,
    pub(crate) first_position: usize,
    pub(crate) tokens: &'a [u32],
}

impl Decoding {
    pub(crate) fn new(decoder: Decoder, kv: &KvShape, slots: usize) -> Self {
        Decoding {
            decoder,
            pool: BlockPool::new(kv.blocks as u32, slots, 0),
        }
    }

    /// One pass; logits of every token, in order.
    pub(crate) fn pass(&self, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
        let (mut tokens, mut slots, mut positions) = (vec![], vec![], vec![]);
        for part in parts {
            for (offset, &token) in part.tokens.iter().enumerate() {
                tokens.push(token);
                slots.push(part.slot);
                positions.push((part.first_position + offset) as u32);
            }
        }
        let wanted: Vec<u32> = (0..tokens.len() as u32).collect();
        let layout = TokenLayout::new(slots, positions, self.pool.tables().to_vec())
            .expect("every token has a block");
        let hidden = self
            .decoder
            .forward(&tokens, &layout, &wanted)
            .expect("a pass");
        let logits = self.decoder.logits(&hidden).expect("logits");
        logits
            .chunks(logits.len() / tokens.len())
            .map(<[f32]>::to_vec)
            .collect()
    }

    /// The `count` most probable tokens after `prompt`, one by one, in slot 0.
    pub(crate) fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        self.pool
            .reserve(Slot(0), prompt.len() + count)
            .expect("enough blocks");
        let mut next = prompt.to_vec();
        let mut position = 0;
        let mut chosen = vec![];
        while chosen.len() < count {
            let logits = self.pass(&[Part {
                slot: 0,
                first_position: position,
                tokens: &next,
            }]);
            position += next.len();
            let best = argmax(logits.last().expect("one row per token"));
            chosen.push(best);
            next = vec![best];
        }
        self.pool.release(Slot(0));
        chosen
    }
}

/// Index of the largest value; the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = index;
        }
    }
    best as u32
}
