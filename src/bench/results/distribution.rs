//! Many samples in a few figures, none of which promises more than the samples hold.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Standard normal quantile of a two-sided 95 % interval.
const Z_95: f64 = 1.959_963_984_540_054;
/// Samples that have to lie above a percentile for it to be told: with fewer, one outlier more or less
/// moves it at will. So p50 needs 10 samples, p90 50, p95 100 and p99 500.
pub const MIN_SAMPLES_ABOVE: f64 = 5.0;

/// A figure and how well it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower end of its 95 % interval, in the figure's unit; null if it is not known.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

impl Estimate {
    /// With its interval.
    pub fn between(value: f64, low: f64, high: f64) -> Self {
        Estimate {
            value,
            low: Some(low),
            high: Some(high),
        }
    }

    /// Without an interval.
    pub fn point(value: f64) -> Self {
        Estimate {
            value,
            low: None,
            high: None,
        }
    }

    /// The interval, if both ends are known.
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.low.zip(self.high)
    }
}

/// Samples of one latency, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Distribution {
    /// How many samples there are.
    pub count: u64,
    /// Their mean, in milliseconds.
    pub mean: Option<f64>,
    /// Their standard deviation, in milliseconds; needs two.
    pub deviation: Option<f64>,
    /// The least, in milliseconds.
    pub min: Option<f64>,
    /// The greatest, in milliseconds.
    pub max: Option<f64>,
    /// Half are at most this long, in milliseconds.
    pub p50: Option<Estimate>,
    /// Nine of ten, in milliseconds.
    pub p90: Option<Estimate>,
    /// 19 of 20, in milliseconds.
    pub p95: Option<Estimate>,
    /// 99 of 100, in milliseconds.
    pub p99: Option<Estimate>,
}

impl Distribution {
    /// Of these samples, which it sorts. A percentile is the least sample that the wanted share does not
    /// exceed (the nearest rank); its interval is that of order statistics, which assumes nothing about
    /// the distribution but that samples are independent.
    pub fn of(samples: &mut [f64]) -> Self {
        samples.sort_by(f64::total_cmp);
        let samples = &*samples;
        let count = samples.len() as f64;
        let mean = (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / count);
        let deviation = mean.filter(|_| samples.len() > 1).map(|mean| {
            let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
            (squares / (count - 1.0)).sqrt()
        });
        Distribution {
            count: samples.len() as u64,
            mean,
            deviation,
            min: samples.first().copied(),
            max: samples.last().copied(),
            p50: percentile(samples, 0.50),
            p90: percentile(samples, 0.90),
            p95: percentile(samples, 0.95),
            p99: percentile(samples, 0.99),
        }
    }

    /// The percentiles with their names, where there are enough samples.
    pub fn percentiles(&self) -> [(&'static str, Option<Estimate>); 4] {
        [
            ("p50", self.p50),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
        ]
    }
}

/// Of sorted samples; `None` if too few lie above it.
fn percentile(sorted: &[f64], share: f64) -> Option<Estimate> {
    let count = sorted.len() as f64;
    // Rounding must not cost p90 its fiftieth sample.
    if count * (1.0 - share) < MIN_SAMPLES_ABOVE - 1e-9 {
        return None;
    }
    let at = |rank: f64| sorted[(rank.max(1.0) as usize).min(sorted.len()) - 1];
    let middle = count * share;
    let reach = Z_95 * (count * share * (1.0 - share)).sqrt();
    Some(Estimate::between(
        at((middle - 1e-9).ceil()),
        at((middle - reach).floor()),
        at((middle + reach).ceil() + 1.0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: u32) -> Vec<f64> {
        (1..=count).rev().map(f64::from).collect()
    }

    #[test]
    fn percentiles_need_samples_above_them() {
        for (count, told) in [
            (0, [false; 4]),
            (9, [false; 4]),
            (10, [true, false, false, false]),
            (49, [true, false, false, false]),
            (50, [true, true, false, false]),
            (99, [true, true, false, false]),
            (100, [true, true, true, false]),
            (499, [true, true, true, false]),
            (500, [true; 4]),
        ] {
            let found = Distribution::of(&mut numbers(count)).percentiles();
            assert_eq!(found.map(|(_, value)| value.is_some()), told, "{count}");
        }
    }

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let found = Distribution::of(&mut numbers(1000));
        let values = found.percentiles().map(|(_, value)| value.unwrap().value);
        assert_eq!(values, [500.0, 900.0, 950.0, 990.0]);
        assert_eq!((found.min, found.max), (Some(1.0), Some(1000.0)));
        assert_eq!(found.mean, Some(500.5));
        let median = found.p50.unwrap();
        // 500 and 1.96 times the root of 250 to each side.
        assert_eq!(median.interval(), Some((469.0, 532.0)));
        let one = Distribution::of(&mut [7.0]);
        assert_eq!((one.mean, one.deviation, one.p50), (Some(7.0), None, None));
        let two = Distribution::of(&mut [3.0, 1.0]);
        assert!((two.deviation.unwrap() - 2f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn nineteen_of_twenty_intervals_hold_the_true_median() {
        // A counter's hash as random numbers: uniform on 0..1, so the true median is 0.5.
        let uniform = |index: u64| {
            let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 27)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let held = (0..1000u64).filter(|run| {
            let mut samples: Vec<f64> = (0..200).map(|index| uniform(run * 200 + index)).collect();
            let (low, high) = Distribution::of(&mut samples)
                .p50
                .unwrap()
                .interval()
                .unwrap();
            low <= 0.5 && 0.5 <= high
        });
        let held = held.count();
        assert!((930..=985).contains(&held), "{held} of 1000");
    }
}
