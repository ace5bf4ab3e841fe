//! The arithmetic of attention: one block of keys and values at a time, with a running maximum.
//!
//! Each query keeps the largest score so far, the sum of its weights and the weighted sum of values, all relative
//! to that maximum; a block with a larger score rescales them. Blocks come in order of position, and what a
//! query computes depends on its position alone: not on the other queries, nor on how a prompt was cut up.

use super::{AttentionOptions, BLOCK_TOKENS};
use crate::kernels::isa::per_isa;
use crate::kernels::math::{exp, sum_lanes, tanh};

/// The running state of some queries of one width.
pub(super) struct RunningSoftmax {
    /// Largest score so far.
    largest: Vec<f32>,
    /// Sum of e^(score - largest).
    total: Vec<f32>,
    /// Sum of e^(score - largest) * value, (queries, width).
    values: Vec<f32>,
}

impl RunningSoftmax {
    pub(super) fn new(queries: usize, width: usize) -> Self {
        Self {
            largest: vec![f32::NEG_INFINITY; queries],
            total: vec![0.0; queries],
            values: vec![0.0; queries * width],
        }
    }

    /// The result of one query.
    pub(super) fn finish(&mut self, query: usize, width: usize) -> &[f32] {
        let inverse = 1.0 / self.total[query];
        let values = &mut self.values[query * width..(query + 1) * width];
        values.iter_mut().for_each(|value| *value *= inverse);
        values
    }
}

/// A block of one K/V head, in f32.
pub(super) struct KvBlock<'a> {
    /// (width, 32): each input's keys side by side.
    pub keys: &'a [f32],
    /// (32, width)
    pub values: &'a [f32],
}

/// The positions of a block that a query sees: `first..end`, both in 0..=32.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub first: usize,
    pub end: usize,
}

per_isa! {
    /// Lets one query see one block. `query`: (width,), `index`: its place in `state`; `span` is not empty.
    pub(super) fn attend(query: &[f32], index: usize, block: &KvBlock<'_>, span: Span, options: &AttentionOptions, state: &mut RunningSoftmax) = attend_body;
}

#[inline(always)]
fn attend_body(
    query: &[f32],
    index: usize,
    block: &KvBlock<'_>,
    span: Span,
    options: &AttentionOptions,
    state: &mut RunningSoftmax,
) {
    let mut weights = scores(query, block.keys, options);
    let mut largest = state.largest[index];
    for (key, score) in weights.iter_mut().enumerate() {
        // What lies outside the span is another sequence's, or was: nothing of it may be seen, not even a NaN.
        let visible = key >= span.first && key < span.end;
        *score = if visible { *score } else { f32::NEG_INFINITY };
        largest = if *score > largest { *score } else { largest };
    }
    for (key, weight) in weights.iter_mut().enumerate() {
        let visible = key >= span.first && key < span.end;
        let value = exp(*weight - largest);
        *weight = if visible { value } else { 0.0 };
    }
    let keep = exp(state.largest[index] - largest);
    state.largest[index] = largest;
    state.total[index] = state.total[index].mul_add(keep, sum_of(&weights));
    let width = query.len();
    let sums = &mut state.values[index * width..(index + 1) * width];
    add_values(sums, keep, &weights, block.values, span);
}

/// The scores of all keys of a block, seen or not.
#[inline(always)]
fn scores(query: &[f32], keys: &[f32], options: &AttentionOptions) -> [f32; BLOCK_TOKENS] {
    // Sums over even and odd inputs: more chains in flight.
    let mut partial = [[0f32; BLOCK_TOKENS]; 2];
    let (pairs, rest) = query.as_chunks::<2>();
    let (keys, _) = keys.as_chunks::<BLOCK_TOKENS>();
    for (pair, keys) in pairs.iter().zip(keys.chunks_exact(2)) {
        for parity in 0..2 {
            for lane in 0..BLOCK_TOKENS {
                partial[parity][lane] =
                    pair[parity].mul_add(keys[parity][lane], partial[parity][lane]);
            }
        }
    }
    if let ([last], Some(keys)) = (rest, keys.last()) {
        for lane in 0..BLOCK_TOKENS {
            partial[0][lane] = last.mul_add(keys[lane], partial[0][lane]);
        }
    }
    let mut scores = [0f32; BLOCK_TOKENS];
    for lane in 0..BLOCK_TOKENS {
        scores[lane] = options.scale * (partial[0][lane] + partial[1][lane]);
    }
    if let Some(cap) = options.softcap {
        scores
            .iter_mut()
            .for_each(|score| *score = cap * tanh(*score / cap));
    }
    scores
}

#[inline(always)]
fn sum_of(weights: &[f32; BLOCK_TOKENS]) -> f32 {
    let mut lanes = [0f32; 16];
    for lane in 0..16 {
        lanes[lane] = weights[lane] + weights[lane + 16];
    }
    sum_lanes(lanes)
}

/// `sums = sums * keep + Σ weight * value` over the keys seen.
#[inline(always)]
fn add_values(
    sums: &mut [f32],
    keep: f32,
    weights: &[f32; BLOCK_TOKENS],
    values: &[f32],
    span: Span,
) {
    let width = sums.len();
    let mut done = 0;
    while done + 64 <= width {
        add_columns::<64>(
            &mut sums[done..],
            keep,
            weights,
            &values[done..],
            width,
            span,
        );
        done += 64;
    }
    while done + 16 <= width {
        add_columns::<16>(
            &mut sums[done..],
            keep,
            weights,
            &values[done..],
            width,
            span,
        );
        done += 16;
    }
    while done < width {
        add_columns::<1>(
            &mut sums[done..],
            keep,
            weights,
            &values[done..],
            width,
            span,
        );
        done += 1;
    }
}

#[inline(always)]
fn add_columns<const COLUMNS: usize>(
    sums: &mut [f32],
    keep: f32,
    weights: &[f32; BLOCK_TOKENS],
    values: &[f32],
    width: usize,
    span: Span,
) {
    let mut total = [0f32; COLUMNS];
    for column in 0..COLUMNS {
        total[column] = sums[column] * keep;
    }
    for key in span.first..span.end {
        let weight = weights[key];
        let values = &values[key * width..key * width + COLUMNS];
        for column in 0..COLUMNS {
            total[column] = weight.mul_add(values[column], total[column]);
        }
    }
    sums[..COLUMNS].copy_from_slice(&total);
}
