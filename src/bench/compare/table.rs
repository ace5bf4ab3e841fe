//! A comparison for people.

use std::fmt::Write as _;

use super::{Change, Comparison, Difference, Judgement};
use crate::bench::render::words;
use crate::bench::results::Estimate;
use crate::bench::table::aligned;

impl Comparison {
    /// The differences beyond the intervals, or `all`, and what they come to.
    pub fn table(&self, all: bool) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "note: {}", note.replace(char::is_control, " "));
        }
        if self.judgement == Judgement::Unusable {
            let _ = writeln!(text, "not comparable: {}", self.obstacles.join("; "));
            return text;
        }
        let shown: Vec<&Difference> = self
            .differences
            .iter()
            .filter(|found| all || !matches!(found.change, Change::Same | Change::Unknown))
            .collect();
        if !shown.is_empty() {
            let head = ["figure", "load", "before", "after", "change", ""];
            let mut grid = vec![head.map(str::to_owned).to_vec()];
            grid.extend(shown.iter().map(|found| line(found)));
            text.push_str(&aligned(&grid, true));
        }
        let _ = writeln!(text, "{}", self.summary());
        text
    }

    fn summary(&self) -> String {
        let count = |change: Change| {
            let found = self
                .differences
                .iter()
                .filter(|found| found.change == change);
            found.count()
        };
        let counted = [
            (count(Change::Worse), "worse"),
            (count(Change::Allowed), "worse within what is allowed"),
            (count(Change::Better), "better"),
            (count(Change::Same), "within the intervals"),
            (count(Change::Unknown), "without an interval, not judged"),
        ];
        let told: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"))
            .collect();
        let verdict = match self.judgement {
            Judgement::Regression => "regression",
            Judgement::NoRegression | Judgement::Unusable => "no regression",
        };
        format!(
            "{verdict}: of {} figures {}",
            self.differences.len(),
            told.join(", ")
        )
    }
}

fn line(found: &Difference) -> Vec<String> {
    let mark = match found.change {
        Change::Better => "better",
        Change::Worse => "WORSE",
        Change::Allowed => "worse, allowed",
        Change::Same => "",
        Change::Unknown => "?",
    };
    let load = found.load.as_ref().map_or_else(String::new, words::offered);
    let change = found.relative.map_or_else(
        || words::UNKNOWN.to_owned(),
        |relative| format!("{:+.1} %", relative * 100.0),
    );
    vec![
        format!("{}, {}", found.figure, found.unit),
        load,
        value(&found.before),
        value(&found.after),
        change,
        mark.to_owned(),
    ]
}

/// `41 (38 to 43)`
fn value(estimate: &Estimate) -> String {
    match words::interval(estimate) {
        Some(interval) => format!("{} ({interval})", words::tidy(estimate.value)),
        None => words::tidy(estimate.value),
    }
}
