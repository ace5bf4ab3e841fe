//! Whether figures still drift: since when a run is steady, and whether its queue only grows.

/// Observations in one batch of MSER-5.
const BATCH: usize = 5;
/// Batches that have to be there before anything is said.
const MIN_BATCHES: usize = 8;

/// How [`steady_since`] tells.
pub const METHOD: &str = "MSER-5 on end-to-end times in the order of their intended starts";

/// How many of the first observations do not belong to the steady state: MSER-5 (White, Cobb and Spratt, 2000).
/// Means of five observations; of all beginnings that could be dropped, the one whose rest has the smallest
/// standard error of the mean. `None` if that lies in the second half: then nothing is steady yet, or there is
/// too little.
pub fn steady_since(observations: &[f64]) -> Option<usize> {
    let means: Vec<f64> = observations
        .chunks_exact(BATCH)
        .map(|batch| batch.iter().sum::<f64>() / BATCH as f64)
        .collect();
    if means.len() < MIN_BATCHES {
        return None;
    }
    // From the end, so that sums grow by one at a time. Of equals the earliest is taken.
    let (mut sum, mut squares) = (0.0, 0.0);
    let mut best = (f64::INFINITY, 0);
    for (start, mean) in means.iter().enumerate().rev() {
        sum += mean;
        squares += mean * mean;
        let count = (means.len() - start) as f64;
        // A handful at the end is always alike.
        if count < MIN_BATCHES as f64 / 2.0 {
            continue;
        }
        let spread = (squares - sum * sum / count).max(0.0);
        let error = spread / (count * count);
        if error <= best.0 {
            best = (error, start);
        }
    }
    (best.1 <= means.len() / 2).then_some(best.1 * BATCH)
}

/// Whether a count of requests in flight only grows: its last third lies clearly above its first, with the middle
/// one between. Clearly is half as much again, and five standard deviations of a Poisson number of that size.
pub fn rises(in_flight: &[f64]) -> bool {
    let third = in_flight.len() / 3;
    if third < 8 {
        return false;
    }
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let first = mean(&in_flight[..third]);
    let middle = mean(&in_flight[third..2 * third]);
    let last = mean(&in_flight[2 * third..]);
    first < middle && middle < last && last > 1.5 * first + 5.0 * first.sqrt() + 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fraction of a multiple of the golden ratio: spread evenly over 0..1.
    fn noise(index: usize) -> f64 {
        (index as f64 * 0.618_033_988_75).fract()
    }

    #[test]
    fn the_beginning_is_dropped_and_no_more() {
        let with_ramp = |ramp: usize| -> Vec<f64> {
            (0..400)
                .map(|index| {
                    100.0 + noise(index) + 50.0 * (1.0 - index as f64 / ramp as f64).max(0.0)
                })
                .collect()
        };
        for ramp in [1, 50, 120] {
            let dropped = steady_since(&with_ramp(ramp)).unwrap();
            assert!(
                dropped <= ramp + 20 && dropped + 30 >= ramp,
                "{ramp}: {dropped}"
            );
        }
        let growing: Vec<f64> = (0..400).map(|index| index as f64).collect();
        assert_eq!(steady_since(&growing), None);
        assert_eq!(steady_since(&[1.0; 39]), None);
        assert_eq!(steady_since(&[1.0; 40]), Some(0));
    }

    #[test]
    fn a_growing_queue_is_told_from_a_noisy_one() {
        let series = |slope: f64, noise_size: f64| -> Vec<f64> {
            (0..60)
                .map(|index| 10.0 + slope * index as f64 + noise_size * noise(index))
                .collect()
        };
        assert!(rises(&series(1.0, 5.0)));
        assert!(!rises(&series(0.0, 20.0)));
        assert!(!rises(&series(0.1, 5.0)));
        assert!(!rises(&series(1.0, 5.0)[..20]));
    }
}
