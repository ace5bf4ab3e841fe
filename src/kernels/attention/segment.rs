//! The arithmetic of attention: a panel of queries against one segment of a sequence.
//!
//! A sequence is cut into segments of [`SEGMENT_TOKENS`] positions. Of each segment a query gets the largest score, the
//! sum of its weights and the weighted sum of values, relative to that score; segments are merged in order. So what a
//! query computes depends on its position alone: not on the other queries of the pass, on how a prompt was cut up, or on
//! which thread took which segment.

use candle_core::WithDType;
use half::f16;

use super::{AttentionOptions, BLOCK_TOKENS};
use crate::kernels::isa::{Isa, per_isa};
use crate::kernels::math::{exp, largest_lane, sum_lanes, tanh};
use crate::kernels::simd::{Vector, prefetch};

/// Positions in a segment: few enough that the scores of a panel stay in the first-level cache.
pub(super) const SEGMENT_TOKENS: usize = 512;
/// The most queries in a panel.
pub(super) const MAX_PANEL: usize = 4;
/// Lanes of a vector: half the keys of a block.
const LANES: usize = 16;

/// A number type that the store may have.
pub(super) trait KvElement: WithDType {
    /// `values` in this type, themselves or narrowed into `scratch`.
    fn narrow<'a>(values: &'a [f32], scratch: &'a mut Vec<Self>) -> &'a [Self];
    /// Sixteen elements as f32.
    fn load<V: Vector>(from: &[Self; LANES]) -> V;
    /// One element as f32.
    fn widen(self) -> f32;
}

impl KvElement for f32 {
    fn narrow<'a>(values: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        values
    }
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load(from)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl KvElement for f16 {
    fn narrow<'a>(values: &'a [f32], scratch: &'a mut Vec<Self>) -> &'a [Self] {
        scratch.resize(values.len(), f16::ZERO);
        narrow(values, scratch);
        scratch
    }
    #[inline(always)]
    fn load<V: Vector>(from: &[Self; LANES]) -> V {
        V::load_f16(from)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// A block of one K/V head.
pub(super) struct KvBlock<'a, E> {
    /// (width, 32): each input's keys side by side.
    pub keys: &'a [E],
    /// (32, width)
    pub values: &'a [E],
}

/// One head of one token.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    /// (width,)
    pub q: &'a [f32],
    /// Keys that it sees, `first..end`, counted from the start of the blocks given with it; not empty.
    pub first: usize,
    /// See `first`.
    pub end: usize,
}

/// What queries have seen so far: relative to the largest score, so that no exponential overflows.
pub(super) struct Seen {
    /// Largest score.
    pub largest: f32,
    /// Sum of e^(score - largest).
    pub total: f32,
    /// Sum of e^(score - largest) * value, (width,).
    pub values: Vec<f32>,
}

impl Seen {
    /// Nothing.
    pub(super) fn nothing(width: usize) -> Self {
        Self {
            largest: f32::NEG_INFINITY,
            total: 0.0,
            values: vec![0.0; width],
        }
    }

    /// Adds what comes after it in the sequence.
    pub(super) fn merge(&mut self, largest: f32, total: f32, values: &[f32]) {
        // A total that is not a number must not pass for nothing.
        if self.total == 0.0 {
            self.largest = largest;
            self.total = total;
            self.values.copy_from_slice(values);
            return;
        }
        let larger = if largest > self.largest {
            largest
        } else {
            self.largest
        };
        let (keep, add) = (exp(self.largest - larger), exp(largest - larger));
        self.largest = larger;
        self.total = self.total * keep + total * add;
        for (sum, value) in self.values.iter_mut().zip(values) {
            *sum = *sum * keep + value * add;
        }
    }

    /// The weighted mean of the values.
    pub(super) fn finish(&mut self) -> &[f32] {
        let inverse = 1.0 / self.total;
        self.values.iter_mut().for_each(|value| *value *= inverse);
        &self.values
    }
}

/// Working memory of [`attend_f32`] and [`attend_f16`], and their results.
pub(super) struct Scratch {
    /// A panel's scores, then weights.
    scores: [[f32; SEGMENT_TOKENS]; MAX_PANEL],
    /// A panel's queries side by side: (width, queries).
    queries: Vec<f32>,
    /// Largest score of each query.
    largest: [f32; MAX_PANEL],
    /// Sum of weights of each query.
    total: [f32; MAX_PANEL],
    /// Weighted sums of values, (queries, width).
    values: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(width: usize) -> Self {
        Self {
            scores: [[0.0; SEGMENT_TOKENS]; MAX_PANEL],
            queries: vec![0.0; MAX_PANEL * width],
            largest: [0.0; MAX_PANEL],
            total: [0.0; MAX_PANEL],
            values: vec![0.0; MAX_PANEL * width],
        }
    }

    /// What query `index` of the panel saw of the segment: largest score, total and values for [`Seen::merge`].
    pub(super) fn result(&self, index: usize, width: usize) -> (f32, f32, &[f32]) {
        let values = &self.values[index * width..(index + 1) * width];
        (self.largest[index], self.total[index], values)
    }
}

/// So many queries that their sums stay in registers.
pub(super) fn panel_queries() -> usize {
    match Isa::detected() {
        Isa::Avx512 => MAX_PANEL,
        _ => MAX_PANEL / 2,
    }
}

per_isa! {
    /// Lets up to [`panel_queries`] queries see the blocks of one segment, or the last of them.
    pub(super) fn attend_f32(blocks: &[KvBlock<'_, f32>], queries: &[Query<'_>], options: &AttentionOptions, scratch: &mut Scratch) = attend_f32_body<Vector>;
}

per_isa! {
    /// See [`attend_f32`].
    pub(super) fn attend_f16(blocks: &[KvBlock<'_, f16>], queries: &[Query<'_>], options: &AttentionOptions, scratch: &mut Scratch) = attend_f16_body<Vector>;
}

#[inline(always)]
fn attend_f32_body<V: Vector>(
    blocks: &[KvBlock<'_, f32>],
    queries: &[Query<'_>],
    options: &AttentionOptions,
    scratch: &mut Scratch,
) {
    attend_body::<V, f32>(blocks, queries, options, scratch);
}

#[inline(always)]
fn attend_f16_body<V: Vector>(
    blocks: &[KvBlock<'_, f16>],
    queries: &[Query<'_>],
    options: &AttentionOptions,
    scratch: &mut Scratch,
) {
    attend_body::<V, f16>(blocks, queries, options, scratch);
}

#[inline(always)]
fn attend_body<V: Vector, E: KvElement>(
    blocks: &[KvBlock<'_, E>],
    queries: &[Query<'_>],
    options: &AttentionOptions,
    scratch: &mut Scratch,
) {
    match *queries {
        [a] => attend_panel::<V, E, 1>(blocks, &[a], options, scratch),
        [a, b] => attend_panel::<V, E, 2>(blocks, &[a, b], options, scratch),
        [a, b, c] => attend_panel::<V, E, 3>(blocks, &[a, b, c], options, scratch),
        [a, b, c, d] => attend_panel::<V, E, 4>(blocks, &[a, b, c, d], options, scratch),
        _ => unreachable!("panels of 1 to 4 queries"),
    }
}

#[inline(always)]
fn attend_panel<V: Vector, E: KvElement, const Q: usize>(
    blocks: &[KvBlock<'_, E>],
    queries: &[Query<'_>; Q],
    options: &AttentionOptions,
    scratch: &mut Scratch,
) {
    let width = queries[0].q.len();
    let interleaved = &mut scratch.queries[..Q * width];
    for (index, query) in queries.iter().enumerate() {
        for (out, q) in interleaved[index..].iter_mut().step_by(Q).zip(query.q) {
            *out = *q;
        }
    }
    let (interleaved, _) = interleaved.as_chunks::<Q>();
    for (index, block) in blocks.iter().enumerate() {
        // Blocks lie anywhere: nothing but this fetches ahead. After the last keys come the first values.
        let next = match blocks.get(index + 1) {
            Some(next) => next.keys,
            None => blocks[0].values,
        };
        let scores = block_scores::<V, E, Q>(interleaved, block.keys, next, options.scale);
        for (row, scores) in scores.into_iter().enumerate() {
            let out = &mut scratch.scores[row][index * BLOCK_TOKENS..][..BLOCK_TOKENS];
            let (out, _) = out.as_chunks_mut::<LANES>();
            scores[0].store(&mut out[0]);
            scores[1].store(&mut out[1]);
        }
    }
    let keys = blocks.len() * BLOCK_TOKENS;
    for (row, query) in queries.iter().enumerate() {
        let scores = &mut scratch.scores[row][..keys];
        (scratch.largest[row], scratch.total[row]) =
            turn_into_weights(scores, query.first, query.end, options.softcap);
    }
    weigh_values::<V, E, Q>(blocks, queries, scratch);
}

/// The scores of all keys of a block, seen or not, while `next`, a block too, is fetched. queries: (width, Q)
#[inline(always)]
fn block_scores<V: Vector, E: KvElement, const Q: usize>(
    queries: &[[f32; Q]],
    keys: &[E],
    next: &[E],
    scale: f32,
) -> [[V; 2]; Q] {
    // Sums over even and odd inputs, so that more are in flight.
    let mut sums = [[[V::splat(0.0); 2]; Q]; 2];
    let (keys, _) = keys.as_chunks::<LANES>();
    let (keys, _) = keys.as_chunks::<2>();
    let (pairs, last) = queries.as_chunks::<2>();
    let (key_pairs, last_keys) = keys.as_chunks::<2>();
    let (next, _) = next.as_chunks::<{ 4 * LANES }>();
    for ((pair, keys), next) in pairs.iter().zip(key_pairs).zip(next) {
        prefetch(&raw const next[0]);
        prefetch(&raw const next[2 * LANES]);
        for parity in 0..2 {
            add_input::<V, E, Q>(&mut sums[parity], &pair[parity], &keys[parity]);
        }
    }
    for (input, keys) in last.iter().zip(last_keys) {
        add_input::<V, E, Q>(&mut sums[0], input, keys);
    }
    let scale = V::splat(scale);
    // Loops, and no closures: those are compiled for the plainest processor.
    let mut scores = [[V::splat(0.0); 2]; Q];
    for row in 0..Q {
        for half in 0..2 {
            scores[row][half] = sums[0][row][half].add(sums[1][row][half]).mul(scale);
        }
    }
    scores
}

#[inline(always)]
fn add_input<V: Vector, E: KvElement, const Q: usize>(
    sums: &mut [[V; 2]; Q],
    input: &[f32; Q],
    keys: &[[E; LANES]; 2],
) {
    let keys = [E::load::<V>(&keys[0]), E::load::<V>(&keys[1])];
    for row in 0..Q {
        let input = V::splat(input[row]);
        for half in 0..2 {
            sums[row][half] = input.mul_add(keys[half], sums[row][half]);
        }
    }
}

/// Scores to weights; those outside `first..end` become zero: they are another sequence's, or were, and nothing of
/// them may be seen, not even a NaN. Returns the largest score and the sum of weights.
#[inline(always)]
fn turn_into_weights(
    scores: &mut [f32],
    first: usize,
    end: usize,
    softcap: Option<f32>,
) -> (f32, f32) {
    scores[..first].fill(f32::NEG_INFINITY);
    scores[end..].fill(f32::NEG_INFINITY);
    if let Some(cap) = softcap {
        for score in &mut scores[first..end] {
            *score = cap * tanh(*score / cap);
        }
    }
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.iter() {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] {
                chunk[lane]
            } else {
                lanes[lane]
            };
        }
    }
    let largest = largest_lane(lanes);
    let mut lanes = [0f32; LANES];
    for chunk in chunks.iter_mut() {
        for lane in 0..LANES {
            // The power of minus infinity is almost, but must be, zero.
            let power = exp(chunk[lane] - largest);
            let weight = if chunk[lane] == f32::NEG_INFINITY {
                0.0
            } else {
                power
            };
            chunk[lane] = weight;
            lanes[lane] += weight;
        }
    }
    (largest, sum_lanes(lanes))
}

/// The weighted sums of values, key after key, over the keys that each query sees.
#[inline(always)]
fn weigh_values<V: Vector, E: KvElement, const Q: usize>(
    blocks: &[KvBlock<'_, E>],
    queries: &[Query<'_>; Q],
    scratch: &mut Scratch,
) {
    let width = queries[0].q.len();
    let mut weights: [&[f32]; Q] = [&[]; Q];
    for (weights, scores) in weights.iter_mut().zip(&scratch.scores) {
        *weights = scores;
    }
    let sums = &mut scratch.values[..Q * width];
    sums.fill(0.0);
    // What all see in one go; before and after it each its own.
    let first = queries.iter().map(|query| query.first).max().unwrap_or(0);
    let end = queries.iter().map(|query| query.end).min().unwrap_or(0);
    let end = end.max(first);
    for (row, query) in queries.iter().enumerate() {
        let sums = &mut sums[row * width..(row + 1) * width];
        let before = query.first..first.min(query.end);
        add_keys::<V, E, 1>(sums, &[weights[row]], blocks, before);
    }
    if queries.iter().all(|query| query.end >= end) {
        add_keys::<V, E, Q>(sums, &weights, blocks, first..end);
    }
    for (row, query) in queries.iter().enumerate() {
        let sums = &mut sums[row * width..(row + 1) * width];
        add_keys::<V, E, 1>(sums, &[weights[row]], blocks, end..query.end);
    }
}

/// sums (Q, width) += Σ weight * value over `keys`.
#[inline(always)]
fn add_keys<V: Vector, E: KvElement, const Q: usize>(
    sums: &mut [f32],
    weights: &[&[f32]; Q],
    blocks: &[KvBlock<'_, E>],
    keys: std::ops::Range<usize>,
) {
    if keys.is_empty() {
        return;
    }
    let width = sums.len() / Q;
    let mut column = 0;
    while column + 4 * LANES <= width && V::REGISTERS == 1 {
        add_columns::<V, E, Q, 4>(sums, weights, blocks, &keys, column);
        column += 4 * LANES;
    }
    while column + 2 * LANES <= width {
        add_columns::<V, E, Q, 2>(sums, weights, blocks, &keys, column);
        column += 2 * LANES;
    }
    while column + LANES <= width {
        add_columns::<V, E, Q, 1>(sums, weights, blocks, &keys, column);
        column += LANES;
    }
    for column in column..width {
        for row in 0..Q {
            let mut total = sums[row * width + column];
            for key in keys.clone() {
                let value = blocks[key / BLOCK_TOKENS].values[key % BLOCK_TOKENS * width + column];
                total = weights[row][key].mul_add(value.widen(), total);
            }
            sums[row * width + column] = total;
        }
    }
}

/// `C` times sixteen columns, whose sums stay in registers while the keys pass by.
#[inline(always)]
fn add_columns<V: Vector, E: KvElement, const Q: usize, const C: usize>(
    sums: &mut [f32],
    weights: &[&[f32]; Q],
    blocks: &[KvBlock<'_, E>],
    keys: &std::ops::Range<usize>,
    column: usize,
) {
    let width = sums.len() / Q;
    // Loops of constant length over indices: they unroll, and the totals stay in registers.
    let mut totals = [[V::splat(0.0); C]; Q];
    for row in 0..Q {
        let (sums, _) = sums[row * width + column..].as_chunks::<LANES>();
        for vector in 0..C {
            totals[row][vector] = V::load(&sums[vector]);
        }
    }
    let mut key = keys.start;
    while key < keys.end {
        let offset = key % BLOCK_TOKENS;
        let count = (BLOCK_TOKENS - offset).min(keys.end - key);
        let values = &blocks[key / BLOCK_TOKENS].values[offset * width..(offset + count) * width];
        let mut weights = *weights;
        for weights in &mut weights {
            *weights = &weights[key..key + count];
        }
        let next = blocks
            .get(key / BLOCK_TOKENS + 1)
            .map_or(values, |next| next.values);
        for (index, values) in values.chunks_exact(width).enumerate() {
            for vector in (0..C).step_by(2) {
                prefetch(
                    next.as_ptr()
                        .wrapping_add(index * width + column + vector * LANES),
                );
            }
            let (values, _) = values[column..].as_chunks::<LANES>();
            let values: &[[E; LANES]; C] = values.first_chunk().expect("as many columns as sums");
            let mut loaded = [V::splat(0.0); C];
            for vector in 0..C {
                loaded[vector] = E::load(&values[vector]);
            }
            for row in 0..Q {
                let weight = V::splat(weights[row][index]);
                for vector in 0..C {
                    totals[row][vector] = weight.mul_add(loaded[vector], totals[row][vector]);
                }
            }
        }
        key += count;
    }
    for row in 0..Q {
        let (sums, _) = sums[row * width + column..].as_chunks_mut::<LANES>();
        for vector in 0..C {
            totals[row][vector].store(&mut sums[vector]);
        }
    }
}

per_isa! {
    /// f32 -> f16, of equal length, to the nearest.
    fn narrow(from: &[f32], to: &mut [f16]) = narrow_body<Vector>;
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
