//! When requests of an open loop come: they do not wait for each other.

use std::str::FromStr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use super::{LoadError, Purpose, random};
use crate::time::Time;

/// Shapes beyond these are constant gaps, or no arrivals at all for all of a run.
const SHAPES: std::ops::RangeInclusive<f64> = 0.01..=1e4;

/// How the gaps between arrivals are spread around their mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// All gaps are equal.
    Constant,
    /// Independent users: exponential gaps.
    Poisson,
    /// Gamma-distributed gaps of this shape: below 1 burstier than Poisson, 1 is Poisson, above 1 smoother.
    Gamma(f64),
}

impl FromStr for Arrivals {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let shape = |text: &str| {
            let shape: f64 = text.parse().ok()?;
            SHAPES.contains(&shape).then_some(Arrivals::Gamma(shape))
        };
        match text.split_once(':') {
            None if text == "constant" => Some(Arrivals::Constant),
            None if text == "poisson" => Some(Arrivals::Poisson),
            Some(("gamma", text)) => shape(text),
            _ => None,
        }
        .ok_or_else(|| {
            LoadError::wrong("arrivals are constant, poisson or gamma:SHAPE (0.01 to 10000)")
        })
    }
}

impl std::fmt::Display for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arrivals::Constant => f.write_str("constant"),
            Arrivals::Poisson => f.write_str("poisson"),
            Arrivals::Gamma(shape) => write!(f, "gamma:{shape}"),
        }
    }
}

/// The arrivals themselves, one after another, for ever.
#[derive(Clone, Debug)]
pub struct ArrivalTimes {
    arrivals: Arrivals,
    /// Mean gap.
    mean: Duration,
    /// Kept in seconds: rounding each gap to microseconds would bend the rate.
    seconds: f64,
    start: Time,
    random: ChaCha8Rng,
}

impl ArrivalTimes {
    /// Arrivals from `start` on, `rate` a second.
    pub fn new(arrivals: Arrivals, rate: f64, start: Time, seed: u64) -> Self {
        ArrivalTimes {
            arrivals,
            mean: Duration::from_secs_f64(1.0 / rate),
            seconds: 0.0,
            start,
            random: random(seed, Purpose::Arrivals, 0),
        }
    }

    fn gap_seconds(&mut self) -> f64 {
        let mean = self.mean.as_secs_f64();
        let gamma = |shape: f64| {
            Gamma::new(shape, mean / shape).expect("shape and mean are above 0 and finite")
        };
        match self.arrivals {
            Arrivals::Constant => mean,
            Arrivals::Poisson => gamma(1.0).sample(&mut self.random),
            Arrivals::Gamma(shape) => gamma(shape).sample(&mut self.random),
        }
    }
}

impl Iterator for ArrivalTimes {
    type Item = Time;

    fn next(&mut self) -> Option<Time> {
        self.seconds += self.gap_seconds();
        Some(self.start + Duration::from_secs_f64(self.seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and coefficient of variation of many gaps, in seconds.
    fn gaps(arrivals: Arrivals) -> (f64, f64) {
        let times: Vec<f64> = ArrivalTimes::new(arrivals, 50.0, Time::from_millis(500), 7)
            .take(20_001)
            .map(Time::as_secs_f64)
            .collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_and_spread_of_their_kind() {
        for (arrivals, variation) in [
            (Arrivals::Constant, 0.0_f64),
            (Arrivals::Poisson, 1.0),
            (Arrivals::Gamma(0.25), 2.0),
            (Arrivals::Gamma(4.0), 0.5),
        ] {
            let (mean, found) = gaps(arrivals);
            // Four standard errors of a mean of 20,000 gaps.
            assert!(
                (mean / 0.02 - 1.0).abs() < 4.0 * variation.max(0.01) / 141.0,
                "{arrivals}: {mean}"
            );
            assert!(
                (found - variation).abs() < 0.05 * variation + 1e-3,
                "{arrivals}: {found}"
            );
        }
    }

    #[test]
    fn arrivals_are_read_as_they_are_written() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson, Arrivals::Gamma(0.5)] {
            assert_eq!(arrivals.to_string().parse::<Arrivals>().unwrap(), arrivals);
        }
        for wrong in [
            "",
            "gamma",
            "gamma:0",
            "gamma:x",
            "gamma:1e9",
            "poisson:2",
            "gamma:NaN",
        ] {
            assert!(wrong.parse::<Arrivals>().is_err(), "{wrong}");
        }
    }
}
