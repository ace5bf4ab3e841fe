//! One answer from several searches.

use super::search::Found;
use crate::bench::results::Estimate;
use crate::bench::run::sequential::batch_means;

/// Searches from which their spread tells something; of two, Student's interval would be eleven times as wide as they lie
/// apart.
const FEW: usize = 3;

/// The mean of what was found. Its interval is Student's over the searches, and never narrower than the middle one of
/// theirs; of two searches it is what covers both. Everything else is of the search that lies nearest to the mean.
/// There is at least one.
pub(super) fn combined(searches: &[Found], whole: bool) -> Found {
    let values: Vec<f64> = searches.iter().map(|found| found.capacity.value).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let distance = |found: &&Found| (found.capacity.value - mean).abs();
    let nearest = searches
        .iter()
        .min_by(|one, other| distance(one).total_cmp(&distance(other)))
        .expect("a search has been made");
    if searches.len() == 1 {
        return *nearest;
    }
    let is_known = |end: &Vec<f64>| end.len() == searches.len();
    let ends = |of: fn(&Found) -> Option<f64>| {
        let mut ends: Vec<f64> = searches.iter().filter_map(of).collect();
        ends.sort_by(f64::total_cmp);
        Some(ends).filter(is_known)
    };
    let (lows, highs) = (
        ends(|found| found.capacity.low),
        ends(|found| found.capacity.high),
    );
    let (low, high) = match searches.len() < FEW {
        true => (
            lows.and_then(|lows| lows.first().copied()),
            highs.and_then(|highs| highs.last().copied()),
        ),
        false => {
            let spread = batch_means(&values);
            let middle = |ends: Vec<f64>| ends[ends.len() / 2];
            (
                lows.map(middle).zip(spread.low).map(|(a, b)| a.min(b)),
                highs.map(middle).zip(spread.high).map(|(a, b)| a.max(b)),
            )
        }
    };
    Found {
        capacity: Estimate {
            value: if whole { mean.round() } else { mean },
            low,
            high,
        },
        lower_bound: searches.iter().any(|found| found.lower_bound),
        is_certain: searches.iter().all(|found| found.is_certain),
        contradiction: searches.iter().find_map(|found| found.contradiction),
        ..*nearest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(low: f64, value: f64, high: f64) -> Found {
        Found {
            capacity: Estimate::between(value, low, high),
            lower_bound: false,
            is_certain: true,
            passed: Some(low),
            failed: Some(high),
            contradiction: None,
        }
    }

    #[test]
    fn several_searches_make_one_answer() {
        let (one, other) = (found(60.0, 62.0, 64.0), found(61.0, 63.0, 66.0));
        for (searches, expected) in [
            (vec![one], (60.0, 62.0, 64.0)),
            // Two are covered.
            (vec![one, other], (60.0, 63.0, 66.0)),
            // Equal ones know no more than each of them.
            (vec![one; 3], (60.0, 62.0, 64.0)),
            // Three that lie apart: 62, 70, 78 are 70 +- 4.303 x 8 / sqrt(3).
            (
                vec![one, found(69.0, 70.0, 71.0), found(76.0, 78.0, 80.0)],
                (50.1, 70.0, 89.9),
            ),
        ] {
            let Estimate { value, low, high } = combined(&searches, true).capacity;
            let found = (low.unwrap(), value, high.unwrap());
            let near = |a: f64, b: f64| (a - b).abs() < 0.1;
            assert!(
                near(found.0, expected.0) && near(found.1, expected.1) && near(found.2, expected.2),
                "{found:?}, not {expected:?}"
            );
        }
        let nothing_failed = Found {
            lower_bound: true,
            capacity: Estimate {
                high: None,
                ..one.capacity
            },
            ..one
        };
        let all = combined(&[one, nothing_failed, one], true);
        assert!(all.lower_bound);
        assert_eq!((all.capacity.low, all.capacity.high), (Some(60.0), None));
    }
}
