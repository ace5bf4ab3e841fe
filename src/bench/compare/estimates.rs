//! Repeats of one load as one estimate.

use crate::bench::results::Estimate;

/// Two-sided 95 % quantiles of Student's t for 2, 3, .. degrees of freedom; beyond the last, that of the
/// normal distribution is close enough (2.04 against 1.96).
const STUDENT_T: [f64; 29] = [
    4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052,
    2.048, 2.045, 2.042,
];

/// The mean of the repeats. From three on, its interval is Student's: what repeats differ by is more than
/// the samples within one can tell. Two repeats give the interval that covers both of theirs.
pub(super) fn combined(repeats: &[Estimate]) -> Option<Estimate> {
    let count = repeats.len();
    let (first, rest) = repeats.split_first()?;
    if rest.is_empty() {
        return Some(*first);
    }
    let mean = repeats.iter().map(|repeat| repeat.value).sum::<f64>() / count as f64;
    if count >= 3 {
        let squares = repeats.iter().map(|repeat| (repeat.value - mean).powi(2));
        let deviation = (squares.sum::<f64>() / (count - 1) as f64).sqrt();
        let quantile = STUDENT_T.get(count - 3).copied().unwrap_or(1.96);
        let reach = quantile * deviation / (count as f64).sqrt();
        return Some(Estimate::between(mean, mean - reach, mean + reach));
    }
    let ends: Option<Vec<(f64, f64)>> = repeats.iter().map(Estimate::interval).collect();
    Some(match ends {
        Some(ends) => Estimate::between(
            mean,
            ends.iter()
                .map(|(low, _)| *low)
                .fold(f64::INFINITY, f64::min),
            ends.iter()
                .map(|(_, high)| *high)
                .fold(f64::NEG_INFINITY, f64::max),
        ),
        None => Estimate::point(mean),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_become_one_estimate() {
        let one = Estimate::between(10.0, 9.0, 11.0);
        let other = Estimate::between(12.0, 11.5, 12.5);
        assert_eq!(combined(&[]), None);
        assert_eq!(combined(&[one]), Some(one));
        assert_eq!(
            combined(&[one, other]),
            Some(Estimate::between(11.0, 9.0, 12.5))
        );
        assert_eq!(
            combined(&[one, Estimate::point(12.0)]),
            Some(Estimate::point(11.0))
        );
        let three = [8.0, 10.0, 12.0].map(Estimate::point);
        let found = combined(&three).unwrap();
        let reach = 4.303 * 2.0 / 3f64.sqrt();
        assert_eq!(found.value, 10.0);
        assert!((found.high.unwrap() - 10.0 - reach).abs() < 1e-9);
        assert!((found.low.unwrap() - 10.0 + reach).abs() < 1e-9);
    }
}
