//! Filters: which tokens may be drawn. Each keeps a part of what the ones before it left, at least
//! one token, and takes the probabilities of what is left as a whole.

use std::cmp::Ordering;

use crate::job::Sampling;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
    /// Its probability's share, not normalised: the exponential of `logit`, once [`apply`] has seen it.
    weight: f32,
}

impl Candidate {
    pub(super) fn new(token: u32, logit: f32) -> Self {
        Candidate {
            token,
            logit,
            weight: 0.0,
        }
    }

    pub(super) fn weight(&self) -> f64 {
        f64::from(self.weight)
    }

    /// Higher logits first, then lower ids. Logits are no NaN.
    pub(super) fn best_first(&self, other: &Self) -> Ordering {
        other
            .logit
            .partial_cmp(&self.logit)
            .unwrap_or(Ordering::Equal)
            .then(self.token.cmp(&other.token))
    }
}

/// Leaves the candidates that may be drawn, with their weights, in the order of their ids. Logits are
/// divided by the temperature and relative to the best one, so none is above 0.
pub(super) fn apply(sampling: &Sampling, candidates: &mut Vec<Candidate>) {
    if sampling.top_k > 0 {
        keep_best(candidates, sampling.top_k as usize);
    }
    for candidate in candidates.iter_mut() {
        candidate.weight = candidate.logit.exp();
    }
    if sampling.top_p < 1.0 {
        keep_top_p(candidates, f64::from(sampling.top_p));
    }
    if sampling.min_p > 0.0 {
        keep_min_p(candidates, f64::from(sampling.min_p));
    }
    if sampling.typical_p < 1.0 {
        keep_typical(candidates, f64::from(sampling.typical_p));
    }
    // One order for all, however they were selected: a draw walks through it.
    candidates.sort_unstable_by_key(|candidate| candidate.token);
}

/// Keeps the `count` best, in no particular order.
pub(super) fn keep_best(candidates: &mut Vec<Candidate>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, Candidate::best_first);
        candidates.truncate(count);
    }
}

/// Keeps the fewest best whose probabilities together reach `top_p`.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let wanted = top_p * total(candidates);
    keep_mass(candidates, wanted, Candidate::best_first);
}

/// Keeps those whose probability is at least `min_p` of the best one's.
fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f64) {
    let best = candidates.iter().map(Candidate::weight).fold(0.0, f64::max);
    candidates.retain(|candidate| candidate.weight() >= min_p * best);
}

/// Locally typical sampling (arXiv 2202.00666): keeps those whose surprise is nearest to the
/// distribution's entropy, the fewest whose probabilities together reach `typical_p`.
fn keep_typical(candidates: &mut Vec<Candidate>, typical_p: f64) {
    candidates.retain(|candidate| candidate.weight > 0.0);
    let total = total(candidates);
    // A token's surprise is `log_total - logit`; the entropy is the mean surprise.
    let log_total = total.ln();
    let surprise = |candidate: &Candidate| log_total - f64::from(candidate.logit);
    let entropy = candidates
        .iter()
        .map(|candidate| candidate.weight() / total * surprise(candidate))
        .sum::<f64>();
    let distance = |candidate: &Candidate| (surprise(candidate) - entropy).abs();
    keep_mass(candidates, typical_p * total, |one, other| {
        distance(one)
            .total_cmp(&distance(other))
            .then(one.token.cmp(&other.token))
    });
}

/// Keeps the first in this order, as many as it takes for their weights to reach `wanted`.
///
/// Those are usually few, so only growing heads of the list are sorted, seldom all of it.
fn keep_mass(
    candidates: &mut Vec<Candidate>,
    wanted: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) {
    const FIRST_HEAD: usize = 256;
    const GROWTH: usize = 8;
    let mut reached = 0.0;
    let mut sorted = 0;
    let mut head = FIRST_HEAD;
    while sorted < candidates.len() {
        let end = head.min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, &order);
        }
        candidates[sorted..end].sort_unstable_by(&order);
        for index in sorted..end {
            reached += candidates[index].weight();
            if reached >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted = end;
        head *= GROWTH;
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(Candidate::weight).sum()
}
