//! The arithmetic of attention: one block of keys and values at a time, with a running maximum.
//!
//! Each query keeps the largest score so far, the sum of its weights and the weighted sum of values, all relative
//! to that maximum; a block with a larger score rescales them. Blocks come in order of position, and what a
//! query computes depends on its position alone: not on the other queries, nor on how a prompt was cut up.

use half::f16;

use super::AttentionOptions;
use crate::kernels::isa::per_isa;
use crate::kernels::math::{exp, largest_lane, sum_lanes, tanh};
use crate::kernels::simd::Vector;

/// Lanes of a vector: half the keys of a block.
const LANES: usize = 16;

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
    pub(super) fn attend(query: &[f32], index: usize, block: &KvBlock<'_>, span: Span, options: &AttentionOptions, state: &mut RunningSoftmax) = attend_body<Vector>;
}

#[inline(always)]
fn attend_body<V: Vector>(
    query: &[f32],
    index: usize,
    block: &KvBlock<'_>,
    span: Span,
    options: &AttentionOptions,
    state: &mut RunningSoftmax,
) {
    let mut weights = scores::<V>(query, block.keys, options);
    let largest = mask(&mut weights, span, state.largest[index]);
    for weight in weights.as_flattened_mut() {
        // What is masked is minus infinity, whose power is almost, but must be, zero.
        let power = exp(*weight - largest);
        *weight = if *weight == f32::NEG_INFINITY {
            0.0
        } else {
            power
        };
    }
    let keep = exp(state.largest[index] - largest);
    state.largest[index] = largest;
    let total = sum_lanes(std::array::from_fn(|lane| {
        weights[0][lane] + weights[1][lane]
    }));
    state.total[index] = state.total[index].mul_add(keep, total);
    let width = query.len();
    let sums = &mut state.values[index * width..(index + 1) * width];
    add_values::<V>(sums, keep, weights.as_flattened(), block.values, span);
}

/// The scores of all keys of a block, seen or not.
#[inline(always)]
fn scores<V: Vector>(query: &[f32], keys: &[f32], options: &AttentionOptions) -> [[f32; LANES]; 2] {
    // Sums over even and odd inputs, so that more are in flight.
    let mut partial = [[V::splat(0.0); 2]; 2];
    let (keys, _) = keys.as_chunks::<LANES>();
    let (keys, _) = keys.as_chunks::<2>();
    let (pairs, last) = query.as_chunks::<2>();
    let (key_pairs, last_keys) = keys.as_chunks::<2>();
    for (pair, keys) in pairs.iter().zip(key_pairs) {
        for parity in 0..2 {
            add_input(&mut partial[parity], pair[parity], &keys[parity]);
        }
    }
    for (input, keys) in last.iter().zip(last_keys) {
        add_input(&mut partial[0], *input, keys);
    }
    let mut scores = [[0f32; LANES]; 2];
    let scale = V::splat(options.scale);
    for (half, scores) in scores.iter_mut().enumerate() {
        partial[0][half]
            .add(partial[1][half])
            .mul(scale)
            .store(scores);
    }
    if let Some(cap) = options.softcap {
        scores
            .as_flattened_mut()
            .iter_mut()
            .for_each(|score| *score = cap * tanh(*score / cap));
    }
    scores
}

#[inline(always)]
fn add_input<V: Vector>(sums: &mut [V; 2], input: f32, keys: &[[f32; LANES]; 2]) {
    let input = V::splat(input);
    for half in 0..2 {
        sums[half] = input.mul_add(V::load(&keys[half]), sums[half]);
    }
}

/// Turns the scores outside the span into minus infinity: they are another sequence's, or were, and nothing of them may
/// be seen, not even a NaN. Returns the largest of the others and `largest`.
#[inline(always)]
fn mask(scores: &mut [[f32; LANES]; 2], span: Span, largest: f32) -> f32 {
    let mut lanes = [largest; LANES];
    for (half, scores) in scores.iter_mut().enumerate() {
        for lane in 0..LANES {
            let key = half * LANES + lane;
            let visible = (key >= span.first) & (key < span.end);
            let score = if visible {
                scores[lane]
            } else {
                f32::NEG_INFINITY
            };
            scores[lane] = score;
            lanes[lane] = if score > lanes[lane] {
                score
            } else {
                lanes[lane]
            };
        }
    }
    largest_lane(lanes)
}

/// `sums = sums * keep + Σ weight * value` over the keys seen.
#[inline(always)]
fn add_values<V: Vector>(sums: &mut [f32], keep: f32, weights: &[f32], values: &[f32], span: Span) {
    let width = sums.len();
    let weights = &weights[span.first..span.end];
    let values = &values[span.first * width..span.end * width];
    let (vectors, rest) = sums.as_chunks_mut::<LANES>();
    let done = vectors.len() * LANES;
    let (fours, singles) = vectors.as_chunks_mut::<4>();
    let singles_from = fours.len() * 4 * LANES;
    for (index, sums) in fours.iter_mut().enumerate() {
        add_columns::<V, 4>(sums, keep, weights, values, index * 4 * LANES, width);
    }
    for (index, sums) in singles.iter_mut().enumerate() {
        add_columns::<V, 1>(
            std::array::from_mut(sums),
            keep,
            weights,
            values,
            singles_from + index * LANES,
            width,
        );
    }
    for (column, sum) in rest.iter_mut().enumerate() {
        let mut total = *sum * keep;
        for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
            total = weight.mul_add(values[done + column], total);
        }
        *sum = total;
    }
}

/// `VECTORS` times sixteen columns, which stay in registers while the keys pass by.
#[inline(always)]
fn add_columns<V: Vector, const VECTORS: usize>(
    sums: &mut [[f32; LANES]; VECTORS],
    keep: f32,
    weights: &[f32],
    values: &[f32],
    first: usize,
    width: usize,
) {
    // Loops of constant length over indices: they unroll, and the totals stay in registers.
    let mut totals = [V::splat(0.0); VECTORS];
    for vector in 0..VECTORS {
        totals[vector] = V::load(&sums[vector]).mul(V::splat(keep));
    }
    for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
        let (values, _) = values[first..].as_chunks::<LANES>();
        let values: &[[f32; LANES]; VECTORS] =
            values.first_chunk().expect("as many columns as sums");
        let weight = V::splat(*weight);
        for vector in 0..VECTORS {
            totals[vector] = weight.mul_add(V::load(&values[vector]), totals[vector]);
        }
    }
    for vector in 0..VECTORS {
        totals[vector].store(&mut sums[vector]);
    }
}

per_isa! {
    /// f16 -> f32, of equal length.
    pub(super) fn widen(from: &[f16], to: &mut [f32]) = widen_body<Vector>;
}

#[inline(always)]
fn widen_body<V: Vector>(from: &[f16], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        V::load_f16(from).store(to);
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = from.to_f32();
    }
}

per_isa! {
    /// f32 -> f16, of equal length, to the nearest.
    pub(super) fn narrow(from: &[f32], to: &mut [f16]) = narrow_body<Vector>;
}

#[inline(always)]
fn narrow_body<V: Vector>(from: &[f32], to: &mut [f16]) {
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        V::load(from).store_f16(to);
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = f16::from_f32(*from);
    }
}
