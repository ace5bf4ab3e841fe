//! The softmax of attention, block after block of keys.

use super::panel::{COLUMNS, PIXEL_STRIDE, SEGMENT_INPUTS};
use crate::kernels::isa::per_isa;
use crate::kernels::math::{exp, largest_lane, sum_lanes};

/// What queries have seen so far.
#[derive(Default)]
pub(super) struct Softmax {
    /// Largest score of each query.
    pub largest: Vec<f32>,
    /// Sum of e^(score - largest).
    pub total: Vec<f32>,
    /// What the values so far are to be multiplied with.
    pub keep: Vec<f32>,
}

per_isa! {
    /// Turns the scores of one of `count` queries into weights, of which the first `visible` count; notes what it has
    /// seen. scores: (tiles, count, 16), weights: per segment (count, [`PIXEL_STRIDE`]).
    pub(super) fn weigh(scores: &[[f32; COLUMNS]], query: usize, count: usize, visible: usize, weights: &mut [f32], softmax: &mut Softmax) = weigh_body;
}

#[inline(always)]
fn weigh_body(
    scores: &[[f32; COLUMNS]],
    query: usize,
    count: usize,
    visible: usize,
    weights: &mut [f32],
    softmax: &mut Softmax,
) {
    let tiles = scores.len() / count;
    let mut lanes = [f32::NEG_INFINITY; COLUMNS];
    for tile in 0..tiles {
        let scores = &scores[tile * count + query];
        let visible = visible.saturating_sub(tile * COLUMNS);
        for lane in 0..COLUMNS {
            let counts = lane < visible && scores[lane] > lanes[lane];
            lanes[lane] = if counts { scores[lane] } else { lanes[lane] };
        }
    }
    let block = largest_lane(lanes);
    let before = softmax.largest[query];
    let largest = if block > before { block } else { before };
    let keep = exp(before - largest);
    let mut lanes = [0f32; COLUMNS];
    for tile in 0..tiles {
        let scores = &scores[tile * count + query];
        let visible = visible.saturating_sub(tile * COLUMNS);
        let segment = tile * COLUMNS / SEGMENT_INPUTS * count + query;
        let at = segment * PIXEL_STRIDE + tile * COLUMNS % SEGMENT_INPUTS;
        let Some(weights) = weights[at..].first_chunk_mut::<COLUMNS>() else {
            return;
        };
        for lane in 0..COLUMNS {
            let power = exp(scores[lane] - largest);
            let weight = if lane < visible { power } else { 0.0 };
            weights[lane] = weight;
            lanes[lane] += weight;
        }
    }
    softmax.largest[query] = largest;
    softmax.keep[query] = keep;
    softmax.total[query] = softmax.total[query] * keep + sum_lanes(lanes);
}

per_isa! {
    /// values: (tiles, queries, 16), keep: (queries,)
    pub(super) fn rescale(values: &mut [[f32; COLUMNS]], keep: &[f32]) = rescale_body;
}

#[inline(always)]
fn rescale_body(values: &mut [[f32; COLUMNS]], keep: &[f32]) {
    for values in values.chunks_exact_mut(keep.len()) {
        for (values, keep) in values.iter_mut().zip(keep) {
            for value in values.iter_mut() {
                *value *= keep;
            }
        }
    }
}
