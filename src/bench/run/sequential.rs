//! Whether enough requests are good: tests that stop as soon as they know.

use crate::bench::results::Estimate;

/// Standard normal quantile of a two-sided 95 % interval.
const Z_95: f64 = 1.96;
/// Of the ends of a capacity's interval: one that passes, and one that fails. One-sided 2.5 % would be 1.96; the rest
/// pays for looking repeatedly. Few bad requests are so unlike a bell that the second needs more, and is asked for
/// one bad request beyond that. Both were set by simulation, for shares of 1 and 5 %.
const Z_PASS: f64 = 2.4;
const Z_FAIL: f64 = 2.8;
/// Of both errors of the sequential probability ratio test.
const SPRT_ERROR: f64 = 0.05;
/// Batches by which the dependence between neighbours is judged: the number that finds the most counts.
const BATCHES: [usize; 3] = [8, 16, 32];
/// Few batches know their own variance badly; Student's t would be so much wider.
const FEW_BATCHES: f64 = 1.2;
/// Uses of a limit that differ by less are the same: their drift is no sign of a queue.
const ALIKE: f64 = 0.02;

/// Good and bad requests of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// Within every limit.
    pub good: u64,
    /// All others.
    pub bad: u64,
    /// By how much the variance of the share exceeds that of independent requests. Requests that share a queue
    /// fail together: a hundred of them tell less than a hundred throws of a coin.
    pub inflation: f64,
}

/// What a test says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Few enough are bad.
    Pass,
    /// Too many are.
    Fail,
}

/// How sure a test wants to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rigour {
    /// Wald's sequential probability ratio test of half the allowed share of bad requests against this many
    /// times the allowed one, 5 % error each. Finds the way.
    Screen {
        /// The allowed share times this is too much. Above 1.
        factor: f64,
    },
    /// Wilson's interval of the share lies on one side of what is allowed. Says the answer.
    Confirm,
}

impl Tally {
    /// Of requests in the order of their starts: how much of its limits each has used, 1 for all; more is bad.
    /// Neighbours depend on each other by their times before any of them is bad, so the times tell, too.
    pub fn of(used: &[f64]) -> Self {
        let good: Vec<f64> = used
            .iter()
            .map(|used| f64::from(u8::from(*used <= 1.0)))
            .collect();
        let good_count = good.iter().sum::<f64>() as u64;
        let inflation = inflation(&good, 0.0).max(inflation(used, ALIKE));
        Tally {
            good: good_count,
            bad: used.len() as u64 - good_count,
            inflation,
        }
    }

    /// Both together.
    pub fn total(&self) -> u64 {
        self.good + self.bad
    }

    /// With those of another window at the same load.
    pub fn and(self, other: Tally) -> Tally {
        Tally {
            good: self.good + other.good,
            bad: self.bad + other.bad,
            inflation: self.inflation.max(other.inflation),
        }
    }

    /// The share of bad requests; 0 if there are none at all.
    pub fn bad_share(&self) -> f64 {
        self.bad as f64 / self.total().max(1) as f64
    }

    /// The share of good requests with its interval; a share of nothing is 0 and unknown.
    pub fn good_share(&self) -> Estimate {
        share(self.good, self.total(), self.inflation)
    }

    /// What can be said so far; `allowed` is the share of requests that may be bad.
    pub fn judge(&self, allowed: f64, rigour: Rigour) -> Option<Judgement> {
        match rigour {
            Rigour::Screen { factor } => {
                let (fine, too_much) = (allowed / 2.0, (allowed * factor).min(0.9));
                let ratio = (self.bad as f64 * (too_much / fine).ln()
                    + self.good as f64 * ((1.0 - too_much) / (1.0 - fine)).ln())
                    / self.inflation;
                let bound = ((1.0 - SPRT_ERROR) / SPRT_ERROR).ln();
                match ratio {
                    ratio if ratio >= bound => Some(Judgement::Fail),
                    ratio if ratio <= -bound => Some(Judgement::Pass),
                    _ => None,
                }
            }
            Rigour::Confirm => {
                let count = self.total() as f64 / self.inflation;
                let (_, high) = wilson(self.bad_share(), count, Z_PASS);
                let (low, _) = wilson(
                    (self.bad_share() - 1.0 / count.max(1.0)).max(0.0),
                    count,
                    Z_FAIL,
                );
                match () {
                    () if self.total() == 0 => None,
                    () if high <= allowed => Some(Judgement::Pass),
                    () if low >= allowed => Some(Judgement::Fail),
                    () => None,
                }
            }
        }
    }
}

/// By how much the variance of the mean exceeds that of independent values, from means of batches. Values whose
/// deviation is no more than `alike` have none worth a name.
fn inflation(values: &[f64], alike: f64) -> f64 {
    let variance_of = |values: &[f64]| {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / (count - 1.0).max(1.0)
    };
    let variance = variance_of(values);
    if variance <= alike * alike {
        return 1.0;
    }
    BATCHES
        .into_iter()
        .map(|batches| (batches, values.len() / batches))
        .filter(|(_, size)| *size >= 5)
        .map(|(_, size)| {
            let means: Vec<f64> = values
                .chunks_exact(size)
                .map(|batch| batch.iter().sum::<f64>() / size as f64)
                .collect();
            variance_of(&means) * size as f64 / variance
        })
        // Between independent batches the ratio itself varies; only what is above that is dependence.
        .map(|ratio| {
            if ratio > 2.0 {
                ratio * FEW_BATCHES
            } else {
                1.0
            }
        })
        .fold(1.0, f64::max)
}

/// A share with Wilson's 95 % interval at the effective number of samples.
pub fn share(of: u64, total: u64, inflation: f64) -> Estimate {
    if total == 0 {
        return Estimate::point(0.0);
    }
    let value = of as f64 / total as f64;
    let (low, high) = wilson(value, total as f64 / inflation, Z_95);
    Estimate::between(value, low, high)
}

fn wilson(share: f64, count: f64, z: f64) -> (f64, f64) {
    if count <= 0.0 {
        return (0.0, 1.0);
    }
    let squared = z * z / count;
    let middle = (share + squared / 2.0) / (1.0 + squared);
    let reach =
        z / (1.0 + squared) * (share * (1.0 - share) / count + squared / (4.0 * count)).sqrt();
    ((middle - reach).max(0.0), (middle + reach).min(1.0))
}

/// Mean of a rate from its values in equal parts of a window, with Student's 95 % interval.
pub fn batch_means(parts: &[f64]) -> Estimate {
    /// Two-sided 95 % quantiles of Student's t for 1 to 20 degrees of freedom.
    const T: [f64; 20] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    ];
    let count = parts.len() as f64;
    let mean = parts.iter().sum::<f64>() / count.max(1.0);
    if parts.len() < 2 {
        return Estimate::point(mean);
    }
    let squares: f64 = parts.iter().map(|part| (part - mean).powi(2)).sum();
    let error = (squares / (count - 1.0) / count).sqrt();
    let reach = T.get(parts.len() - 2).copied().unwrap_or(Z_95) * error;
    Estimate::between(mean, (mean - reach).max(0.0), mean + reach)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::RngCore;

    use crate::bench::load::{Purpose, random};

    /// Requests of which each is bad with this probability, until the test knows or has seen enough.
    fn tested(bad_share: f64, rigour: Rigour, run: u64) -> Option<Judgement> {
        let mut numbers = random(9, Purpose::Asks, run);
        let mut good = Vec::new();
        while good.len() < 6_000 {
            for _ in 0..25.max(good.len() / 2) {
                let is_bad = (numbers.next_u32() as f64 / 2f64.powi(32)) < bad_share;
                good.push(if is_bad { 2.0 } else { 0.5 });
            }
            let judgement = Tally::of(&good).judge(0.05, rigour);
            if judgement.is_some() {
                return judgement;
            }
        }
        None
    }

    #[test]
    fn errors_are_as_rare_as_stated() {
        let screen = Rigour::Screen { factor: 2.0 };
        for (bad_share, rigour, wrong, allowed) in [
            (0.025, screen, Judgement::Fail, 50),
            (0.10, screen, Judgement::Pass, 50),
            // At the very limit each verdict is wrong on one side.
            (0.05, Rigour::Confirm, Judgement::Pass, 25),
            (0.05, Rigour::Confirm, Judgement::Fail, 25),
        ] {
            let runs = 500;
            let count = (0..runs)
                .filter(|run| tested(bad_share, rigour, *run) == Some(wrong))
                .count();
            // Two standard errors of that many runs.
            assert!(
                count <= allowed * runs as usize / 1000 + 14,
                "{bad_share} {wrong:?}: {count} of {runs}"
            );
        }
        for (bad_share, expected) in [(0.01, Judgement::Pass), (0.3, Judgement::Fail)] {
            for run in 0..50 {
                assert_eq!(tested(bad_share, Rigour::Confirm, run), Some(expected));
            }
        }
    }

    #[test]
    fn neighbours_that_fail_together_count_for_less() {
        let used = |is_bad: bool| if is_bad { 1.5 } else { 0.5 };
        let alone: Vec<f64> = (0..1000).map(|index| used(index % 10 == 0)).collect();
        let together: Vec<f64> = (0..1000)
            .map(|index| used((300..400).contains(&index)))
            .collect();
        // All good, but their times come and go together.
        let waves: Vec<f64> = (0..1000)
            .map(|index| 0.5 + 0.3 * (f64::from(index) / 60.0).sin())
            .collect();
        assert!(Tally::of(&waves).inflation > 20.0);
        assert_eq!(Tally::of(&[0.5; 1000]).inflation, 1.0);
        assert!(Tally::of(&alone).inflation < 1.1);
        assert!(Tally::of(&together).inflation > 20.0);
        assert_eq!(
            Tally::of(&alone).judge(0.05, Rigour::Confirm),
            Some(Judgement::Fail)
        );
        assert_eq!(Tally::of(&together).judge(0.05, Rigour::Confirm), None);
    }

    #[test]
    fn a_mean_of_parts_has_students_interval() {
        let found = batch_means(&[9.0, 10.0, 11.0, 10.0]);
        assert_eq!(found.value, 10.0);
        let (low, high) = found.interval().unwrap();
        // s = 0.8165, over the root of 4, times 3.182.
        assert!(
            (high - 11.299).abs() < 1e-3 && (low - 8.701).abs() < 1e-3,
            "{found:?}"
        );
        assert_eq!(batch_means(&[]), Estimate::point(0.0));
    }
}
