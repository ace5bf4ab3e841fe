//! The softmax of attention, block after block of keys.

use super::panel::{COLUMNS, PIXEL_STRIDE, SEGMENT_INPUTS};
use crate::kernels::isa::per_isa;
use crate::kernels::math::{exp2, largest_lane, sum_lanes};
use crate::kernels::simd::Vector;

/// What a query has seen so far.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// The largest score.
    pub largest: f32,
    /// Sum of 2^(score - largest).
    pub total: f32,
    /// What its values so far are to be multiplied with.
    pub keep: f32,
}

impl Seen {
    pub(super) const NOTHING: Self = Self {
        largest: f32::NEG_INFINITY,
        total: 0.0,
        keep: 1.0,
    };
}

per_isa! {
    /// Turns the scores of one of `count` queries, logarithms to base two, into weights, of which the first `visible` count; notes what it has
    /// seen. scores: (tiles, count, 16), weights: per segment (count, [`PIXEL_STRIDE`]).
    pub(super) fn weigh(scores: &[[f32; COLUMNS]], query: usize, count: usize, visible: usize, weights: &mut [f32], seen: &mut Seen) = weigh_body<Vector>;
}

#[inline(always)]
fn weigh_body<V: Vector>(
    scores: &[[f32; COLUMNS]],
    query: usize,
    count: usize,
    visible: usize,
    weights: &mut [f32],
    seen: &mut Seen,
) {
    let tiles = scores.len() / count;
    // All keys of these count.
    let whole = (visible / COLUMNS).min(tiles);
    let mut largest_lanes = V::splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact(count).take(whole) {
        largest_lanes = V::load(&scores[query]).max(largest_lanes);
    }
    let mut lanes = [0f32; COLUMNS];
    largest_lanes.store(&mut lanes);
    for tile in whole..tiles {
        let visible = visible.saturating_sub(tile * COLUMNS);
        for (lane, score) in scores[tile * count + query].iter().enumerate() {
            if lane < visible && *score > lanes[lane] {
                lanes[lane] = *score;
            }
        }
    }
    let block = largest_lane(lanes);
    let before = seen.largest;
    let largest = if block > before { block } else { before };
    let keep = exp2(before - largest);
    let mut total_lanes = V::splat(0.0);
    for (tile, scores) in scores.chunks_exact(count).enumerate() {
        let scores = &scores[query];
        let mut powers = [0f32; COLUMNS];
        for lane in 0..COLUMNS {
            powers[lane] = exp2(scores[lane] - largest);
        }
        if tile >= whole {
            let visible = visible.saturating_sub(tile * COLUMNS);
            for (lane, power) in powers.iter_mut().enumerate() {
                *power = if lane < visible { *power } else { 0.0 };
            }
        }
        let powers = V::load(&powers);
        total_lanes = total_lanes.add(powers);
        let segment = tile * COLUMNS / SEGMENT_INPUTS * count + query;
        let at = segment * PIXEL_STRIDE + tile * COLUMNS % SEGMENT_INPUTS;
        if let Some(weights) = weights[at..].first_chunk_mut() {
            powers.store(weights);
        }
    }
    let mut totals = [0f32; COLUMNS];
    total_lanes.store(&mut totals);
    seen.largest = largest;
    seen.keep = keep;
    seen.total = seen.total * keep + sum_lanes(totals);
}

per_isa! {
    /// values: (tiles, queries, 16), seen: (queries,)
    pub(super) fn rescale(values: &mut [[f32; COLUMNS]], seen: &[Seen]) = rescale_body;
}

#[inline(always)]
fn rescale_body(values: &mut [[f32; COLUMNS]], seen: &[Seen]) {
    for values in values.chunks_exact_mut(seen.len()) {
        for (values, seen) in values.iter_mut().zip(seen) {
            for value in values.iter_mut() {
                *value *= seen.keep;
            }
        }
    }
}
