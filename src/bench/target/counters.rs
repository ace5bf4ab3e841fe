//! A server's own counters, as Prometheus reads them.

use std::collections::BTreeMap;

use crate::bench::results::{Distribution, Estimate};

/// Lines that are read of one page.
const MAX_LINES: usize = 100_000;

/// A page of metrics: names with labels, and values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Reads a page. What is no metric is skipped.
    pub fn read(page: &str) -> Self {
        let lines = page
            .lines()
            .take(MAX_LINES)
            .filter(|line| !line.starts_with('#'));
        Counters(
            lines
                .filter_map(|line| {
                    // A label's value may hold blanks, a name without labels may not.
                    let end = match line.rfind('}') {
                        Some(brace) => brace + 1,
                        None => line.find(' ')?,
                    };
                    let value: f64 = line[end..].split_whitespace().next()?.parse().ok()?;
                    value.is_finite().then(|| (line[..end].to_owned(), value))
                })
                .collect(),
        )
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0
            .range(name.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(name))
            .filter_map(move |(key, value)| {
                let labels = &key[name.len()..];
                (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
            })
    }

    /// The sum of all series of this name that belong to a model: those whose label `model` is this one, or
    /// that have none.
    pub fn sum(&self, name: &str, model: &str) -> Option<f64> {
        let label = format!("model=\"{model}\"");
        let mut values = self
            .series(name)
            .filter(|(labels, _)| labels.contains(&label) || !labels.contains("model="))
            .map(|(_, value)| value)
            .peekable();
        values.peek().is_some().then(|| values.sum())
    }

    /// Mean of a histogram's or summary's samples since `before`.
    pub fn mean_since(&self, before: &Counters, name: &str, model: &str) -> Option<f64> {
        let grown = |part: &str| {
            let name = format!("{name}{part}");
            Some(self.sum(&name, model)? - before.sum(&name, model).unwrap_or(0.0))
        };
        let count = grown("_count").filter(|count| *count > 0.0)?;
        Some(grown("_sum")? / count)
    }

    /// How much a counter has grown since `before`.
    pub fn grown_since(&self, before: &Counters, name: &str, model: &str) -> Option<f64> {
        Some(self.sum(name, model)? - before.sum(name, model).unwrap_or(0.0))
    }

    /// A histogram of seconds, of what it counted since `before`, in milliseconds. Percentiles lie in the
    /// bucket that holds them, in proportion; they have no interval, and are left out where fewer samples
    /// than [`Distribution`] asks for lie above.
    pub fn distribution_since(
        &self,
        before: &Counters,
        name: &str,
        model: &str,
    ) -> Option<Distribution> {
        let label = format!("model=\"{model}\"");
        let bucket_name = format!("{name}_bucket");
        let mut bounds: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (labels, value) in self
            .series(&bucket_name)
            .filter(|(labels, _)| labels.contains(&label))
        {
            let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
            let bound = if bound == "+Inf" {
                f64::INFINITY
            } else {
                bound.parse().ok()?
            };
            let key = format!("{bucket_name}{labels}");
            let old = before.0.get(&key).copied().unwrap_or(0.0);
            // Bounds are not negative, so their bits sort as they do.
            let entry = bounds.entry(f64::to_bits(bound)).or_insert((bound, 0.0));
            entry.1 += value - old;
        }
        let bounds: Vec<(f64, f64)> = bounds.into_values().collect();
        let (_, count) = *bounds.last()?;
        if count <= 0.0 {
            return None;
        }
        let percentile = |share: f64| {
            if count * (1.0 - share) < crate::bench::results::MIN_SAMPLES_ABOVE {
                return None;
            }
            let wanted = count * share;
            let at = bounds.iter().position(|(_, below)| *below >= wanted)?;
            let (low, below) = if at == 0 { (0.0, 0.0) } else { bounds[at - 1] };
            let (high, within) = bounds[at];
            // Beyond the last bound nothing is known.
            let high = if high.is_finite() { high } else { low };
            let part = (wanted - below) / (within - below).max(1.0);
            Some(Estimate::point((low + (high - low) * part) * 1e3))
        };
        Some(Distribution {
            count: count as u64,
            mean: self.mean_since(before, name, model).map(|mean| mean * 1e3),
            deviation: None,
            min: None,
            max: None,
            p50: percentile(0.50),
            p90: percentile(0.90),
            p95: percentile(0.95),
            p99: percentile(0.99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP x y\ngirandole_rows{model=\"a\"} 3\ngirandole_rows{model=\"b\"} 4\nplain 2.5\n\
        broken\nh_sum{model=\"a\"} 1\nh_count{model=\"a\"} 10\n";
    const AFTER: &str = "girandole_rows{model=\"a\"} 5\ngirandole_rows_waiting{model=\"a\"} 7\nplain 4 1234\n\
        h_sum{model=\"a\"} 9\nh_count{model=\"a\"} 110\n\
        h_bucket{le=\"0.1\",model=\"a\"} 90\nh_bucket{le=\"0.2\",model=\"a\"} 100\nh_bucket{le=\"+Inf\",model=\"a\"} 100\n";

    #[test]
    fn sums_are_of_one_model_and_one_name() {
        let (before, after) = (Counters::read(BEFORE), Counters::read(AFTER));
        assert_eq!(before.sum("girandole_rows", "a"), Some(3.0));
        assert_eq!(after.sum("girandole_rows", "a"), Some(5.0));
        assert_eq!(after.sum("plain", "a"), Some(4.0));
        assert_eq!(after.sum("none", "a"), None);
        assert_eq!(after.grown_since(&before, "plain", "a"), Some(1.5));
        assert_eq!(after.mean_since(&before, "h", "a"), Some(0.08));
    }

    #[test]
    fn percentiles_lie_in_their_bucket() {
        let (before, after) = (Counters::read(BEFORE), Counters::read(AFTER));
        let found = after.distribution_since(&before, "h", "a").unwrap();
        assert_eq!(found.count, 100);
        assert!((found.p50.unwrap().value - 55.56).abs() < 0.01, "{found:?}");
        assert!((found.p95.unwrap().value - 150.0).abs() < 0.01, "{found:?}");
        assert_eq!(found.p99, None);
        assert_eq!(after.distribution_since(&before, "none", "a"), None);
    }
}
