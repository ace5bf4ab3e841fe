//! What a run shows: whether it passed, failed, or means nothing, and why.

use super::{MAX_CACHED_SHARE, MAX_LAG_SHARE, Summary, high_end};
use crate::bench::results::{CacheUse, Counts, Goodput, Metric, Outcome, Verdict};
use crate::bench::run::{Judgement, Tally};

impl Summary<'_> {
    pub(super) fn verdict(
        &self,
        tally: &Tally,
        counts: &Counts,
        goodput: &Goodput,
        cache: Option<&CacheUse>,
    ) -> Verdict {
        let mut reasons = self.void_reasons(counts);
        let is_void = !reasons.is_empty();
        if let Some(cache) = cache.filter(|cache| !cache.wanted && cache.prompt_tokens > 0) {
            let share = cache.cached_tokens as f64 / cache.prompt_tokens as f64;
            if share > MAX_CACHED_SHARE {
                reasons.push(format!(
                    "warm cache: {:.0} % of the prompts' tokens were found in the server's prefix cache, and that \
                     was not asked for",
                    share * 100.0
                ));
            }
        }
        if self.driven.rising {
            reasons.push(
                "the number of requests in flight only grew: no steady state exists at this load"
                    .to_owned(),
            );
        }
        let outcome = match self.driven.judgement {
            _ if is_void => Outcome::Void,
            _ if self.driven.rising => Outcome::Fail,
            Some(Judgement::Pass) => Outcome::Pass,
            Some(Judgement::Fail) => Outcome::Fail,
            None => Outcome::Undecided,
        };
        if !matches!(outcome, Outcome::Pass | Outcome::Void) {
            reasons.extend(self.shortfalls(tally, counts, goodput));
        }
        Verdict { outcome, reasons }
    }

    /// Why the figures say more about the client than about the server.
    fn void_reasons(&self, counts: &Counts) -> Vec<String> {
        let mut reasons = Vec::new();
        let limits = self.config.objectives.limits.iter();
        let tightest = limits
            .filter(|limit| {
                matches!(
                    limit.metric,
                    Metric::TimeToFirstToken | Metric::EndToEnd | Metric::TimeToFirstPreview
                )
            })
            .map(|limit| limit.limit_ms)
            .min_by(f64::total_cmp);
        let mut lags: Vec<f64> = self
            .due
            .iter()
            .filter_map(|seen| seen.latency_ms(Metric::ClientLag))
            .collect();
        let mut reading: Vec<f64> = self
            .driven
            .reading_lag
            .iter()
            .map(|micros| f64::from(*micros) / 1e3)
            .collect();
        for (what, lags) in [
            ("requests were sent", &mut lags),
            ("frames were read", &mut reading),
        ] {
            let Some((late, limit)) = high_end(lags).zip(tightest) else {
                continue;
            };
            if late > limit * MAX_LAG_SHARE {
                reasons.push(format!(
                    "the client was slow: {what} {late:.1} ms late (p99), and 1 % of the objective of {limit} ms is \
                     {:.1} ms",
                    limit * MAX_LAG_SHARE
                ));
            }
        }
        if self.driven.client_full {
            reasons.push(format!(
                "the client had as many requests in flight as it may (--max-open-requests {})",
                self.config.max_open_requests
            ));
        }
        if counts.due == 0 {
            reasons.push("no request was due in the measured window".to_owned());
        }
        reasons
    }

    fn shortfalls(&self, tally: &Tally, counts: &Counts, goodput: &Goodput) -> Vec<String> {
        let mut reasons = Vec::new();
        let total = counts.due.max(1) as f64;
        let wanted = self.config.objectives.good_share;
        if tally.bad > 0 {
            reasons.push(format!(
                "{:.1} % of {} requests were good; {:.1} % are wanted",
                goodput.share.value * 100.0,
                tally.total(),
                wanted * 100.0
            ));
        }
        for result in goodput
            .objectives
            .iter()
            .filter(|result| result.share.value < wanted)
        {
            reasons.push(format!(
                "{}: {:.1} % within {} ms",
                result.objective.metric.title(),
                result.share.value * 100.0,
                result.objective.limit_ms
            ));
        }
        for (count, what) in [
            (counts.refused, "were refused"),
            (counts.timed_out, "were not answered in time"),
            (counts.truncated, "broke off"),
            (counts.no_finish_reason, "ended without a finish reason"),
            (counts.errors, "failed"),
        ] {
            if count > 0 {
                reasons.push(format!(
                    "{count} requests ({:.1} %) {what}",
                    count as f64 / total * 100.0
                ));
            }
        }
        reasons
    }
}
