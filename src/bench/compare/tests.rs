use super::*;
use crate::bench::render;

/// A report as the tests of the whole program have it.
fn report() -> BenchReport {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/bench/text.json"
    );
    render::read(path.as_ref()).unwrap()
}

/// With only its points at 46 users, and nothing but one figure of them: a latency, or the throughput.
fn only(value: Option<Estimate>, latency: bool) -> BenchReport {
    let mut report = report();
    report.capacity = None;
    report
        .points
        .retain(|point| point.offered == Offered::Users { users: 46 });
    report.points.truncate(1);
    let point = &mut report.points[0];
    let mut found = point.latencies.end_to_end.take().unwrap();
    point.latencies = Default::default();
    point.energy = None;
    point.goodput.share = Estimate::point(1.0);
    point.throughput.requests_per_second = Estimate::point(1.0);
    point.throughput.output_tokens_per_second = None;
    (found.p90, found.p95, found.p99) = (None, None, None);
    match latency {
        true => {
            found.p50 = value;
            point.latencies.end_to_end = Some(found);
        }
        false => point.throughput.output_tokens_per_second = value,
    }
    report
}

#[test]
fn only_differences_beyond_the_intervals_are_marked() {
    let between = |value, low, high| Some(Estimate::between(value, low, high));
    let old = between(100.0, 95.0, 105.0);
    for (latency, after, allowed, change, code) in [
        (true, between(100.0, 95.0, 105.0), 0.0, Change::Same, 0),
        (true, between(110.0, 104.0, 116.0), 0.0, Change::Same, 0),
        (true, between(110.0, 105.0, 116.0), 0.0, Change::Same, 0),
        (true, between(112.0, 106.0, 118.0), 0.0, Change::Worse, 1),
        (true, between(112.0, 106.0, 118.0), 0.12, Change::Allowed, 0),
        (true, between(112.0, 106.0, 118.0), 0.11, Change::Worse, 1),
        (true, between(80.0, 75.0, 85.0), 0.0, Change::Better, 0),
        (true, Some(Estimate::point(500.0)), 0.0, Change::Unknown, 0),
        (false, between(112.0, 106.0, 118.0), 0.0, Change::Better, 0),
        (false, between(80.0, 75.0, 85.0), 0.0, Change::Worse, 1),
        (false, between(80.0, 75.0, 96.0), 0.0, Change::Same, 0),
    ] {
        let found = compare(&only(old, latency), &only(after, latency), allowed);
        let figure = if latency {
            "end to end p50"
        } else {
            "throughput"
        };
        let judged = found
            .differences
            .iter()
            .find(|found| found.figure == figure && (latency || found.unit == "tokens/s"));
        assert_eq!(judged.unwrap().change, change, "{after:?} {allowed}");
        assert_eq!(found.judgement.exit_code(), code, "{after:?} {allowed}");
    }
}

#[test]
fn from_nothing_to_something_is_worse() {
    let zero = Some(Estimate::between(0.0, 0.0, 0.0));
    let some = Some(Estimate::between(5.0, 4.0, 6.0));
    let found = compare(&only(zero, true), &only(some, true), 10.0);
    assert_eq!(found.judgement, Judgement::Regression);
}

#[test]
fn a_report_is_as_good_as_itself() {
    let found = compare(&report(), &report(), 0.0);
    assert_eq!(
        found.judgement,
        Judgement::NoRegression,
        "{}",
        found.table(true)
    );
    assert!(
        found
            .differences
            .iter()
            .all(|found| matches!(found.change, Change::Same | Change::Unknown))
    );
    assert!(
        found.differences.iter().any(|found| found.load.is_none()),
        "the capacity"
    );
    // Twelve points, two of them repeats of one load, one void.
    let mut loads: Vec<_> = found
        .differences
        .iter()
        .filter_map(|found| found.load)
        .collect();
    loads.dedup();
    assert_eq!(loads.len(), 10);
}

#[test]
fn different_questions_are_not_compared() {
    let check = |change: fn(&mut BenchReport), obstacle: &str| {
        let mut other = report();
        change(&mut other);
        let found = compare(&report(), &other, 0.0);
        assert_eq!(found.judgement.exit_code(), 2, "{obstacle}");
        assert_eq!(found.obstacles.join(", "), obstacle);
        assert!(found.table(false).contains(obstacle));
    };
    check(
        |report| report.client.objectives.limits[0].limit_ms = 1.0,
        "objectives differ",
    );
    check(
        |report| report.client.load.prompt_tokens = None,
        "prompt lengths differ",
    );
    check(
        |report| report.client.load.unique_salt = false,
        "salts differ",
    );
    check(
        |report| {
            report.capacity = None;
            for point in &mut report.points {
                point.verdict.outcome = Outcome::Void;
            }
        },
        "they have no load in common that is not void",
    );
}

#[test]
fn what_may_explain_a_difference_is_noted() {
    let mut other = report();
    other.server.version = None;
    other.client.seed = 8;
    let found = compare(&report(), &other, 0.0);
    assert_eq!(found.judgement, Judgement::NoRegression);
    let notes = found.notes.join("\n");
    for note in [
        "the version differs: 0.1.0 and unknown",
        "the seed differs: 7 and 8",
        "void points left out of the first report: 1",
    ] {
        assert!(notes.contains(note), "{notes}");
    }
}
