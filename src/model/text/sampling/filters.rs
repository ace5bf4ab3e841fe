//! Filters: which tokens may be drawn. Each keeps a part of what the ones before it left, at least
//! one token, and takes the probabilities of what is left as a whole.

use std::cmp::Ordering;

use crate::job::Sampling;
use crate::kernels::logits;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) token: u32,
    /// As the model gave it, with bias and penalties.
    pub(super) logit: f32,
    /// Its probability's share, not normalised.
    weight: f32,
}

impl Candidate {
    fn new(token: usize, logit: f32, weight: f32) -> Self {
        Candidate {
            token: token as u32,
            logit,
            weight,
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

/// The tokens that may be drawn, with their weights, in the order of their ids. `best_logit` is the largest.
///
/// A vocabulary has many tokens and a choice few: what cannot be chosen is left out before anything is sorted.
pub(super) fn candidates(sampling: &Sampling, logits: &[f32], best_logit: f32) -> Vec<Candidate> {
    let mut weights = vec![0.0; logits.len()];
    let mut total = logits::weigh(logits, best_logit, sampling.temperature, &mut weights);
    let mut candidates = if sampling.top_k > 0 && (sampling.top_k as usize) < logits.len() {
        let top_k = sampling.top_k as usize;
        let bound = logits::reached_by(logits, top_k).unwrap_or(f32::NEG_INFINITY);
        let mut best = collect(logits, &weights, |logit, _| logit >= bound);
        keep_best(&mut best, top_k);
        total = sum(&best);
        best
    } else {
        // Those below the bound weigh too little, all together, to be among the best that reach `top_p`.
        let rest = 1.0 - f64::from(sampling.top_p.clamp(0.0, 1.0));
        let bound = (rest * total / logits.len() as f64) as f32 * (1.0 - f32::EPSILON);
        collect(logits, &weights, |_, weight| weight >= bound)
    };
    if sampling.top_p < 1.0 {
        let wanted = f64::from(sampling.top_p) * total;
        keep_mass(&mut candidates, wanted, Candidate::best_first);
    }
    if sampling.min_p > 0.0 {
        keep_min_p(&mut candidates, f64::from(sampling.min_p.min(1.0)));
    }
    if sampling.typical_p < 1.0 {
        keep_typical(
            &mut candidates,
            f64::from(sampling.typical_p),
            f64::from(sampling.temperature),
        );
    }
    // One order for all, however they were selected: a draw walks through it.
    candidates.sort_unstable_by_key(|candidate| candidate.token);
    candidates
}

/// At least the `count` best tokens, without weights.
pub(super) fn among_best(logits: &[f32], count: usize) -> Vec<Candidate> {
    if count == 0 {
        return Vec::new();
    }
    let bound = logits::reached_by(logits, count).unwrap_or(f32::NEG_INFINITY);
    let all = logits.iter().enumerate();
    all.filter(|(_, logit)| **logit >= bound)
        .map(|(token, &logit)| Candidate::new(token, logit, 0.0))
        .collect()
}

fn collect(logits: &[f32], weights: &[f32], keep: impl Fn(f32, f32) -> bool) -> Vec<Candidate> {
    let all = logits.iter().zip(weights).enumerate();
    all.filter(|(_, (logit, weight))| keep(**logit, **weight))
        .map(|(token, (&logit, &weight))| Candidate::new(token, logit, weight))
        .collect()
}

/// Keeps the `count` best, in no particular order.
pub(super) fn keep_best(candidates: &mut Vec<Candidate>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, Candidate::best_first);
        candidates.truncate(count);
    }
}

/// Keeps those whose probability is at least `min_p` of the best one's.
fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f64) {
    let best = candidates.iter().map(Candidate::weight).fold(0.0, f64::max);
    candidates.retain(|candidate| candidate.weight() >= min_p * best);
}

/// Locally typical sampling (arXiv 2202.00666): keeps those whose surprise is nearest to the
/// distribution's entropy, the fewest whose probabilities together reach `typical_p`.
fn keep_typical(candidates: &mut Vec<Candidate>, typical_p: f64, temperature: f64) {
    candidates.retain(|candidate| candidate.weight > 0.0);
    let total = sum(candidates);
    // A token's surprise is the logarithm of the total less that of its weight; the entropy is the mean surprise.
    let best = candidates
        .iter()
        .map(|candidate| candidate.logit)
        .fold(f32::NEG_INFINITY, f32::max);
    let log_total = total.ln();
    let surprise = |candidate: &Candidate| {
        log_total - (f64::from(candidate.logit) - f64::from(best)) / temperature
    };
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

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(Candidate::weight).sum()
}
