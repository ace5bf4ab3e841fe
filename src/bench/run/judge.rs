//! When enough is known about a load: pure, told the time, so that the simulation of a search decides as the real
//! one does.

use std::time::Duration;

use super::recorder::{Judged, Recorder};
use super::steady::rises;
use super::{Judgement, Plan, PointSpec, Rigour, Tally};
use crate::bench::load::Pattern;
use crate::bench::results::Objectives;
use crate::time::Time;

/// Between two looks at what has been shown.
pub const LOOK: Duration = Duration::from_millis(250);
/// Requests after which a test of rigour may look again: that many times as many.
const NEXT_CONFIRMATION: f64 = 1.5;
/// Of a window that was asked for, at most one part of so many is left out as not yet steady.
const LONGEST_BEGINNING: u32 = 10;
/// Quick tests look more often.
const NEXT_SCREENING: f64 = 1.1;
/// Looks at requests in flight that are kept; when there are more, every other one goes.
const MAX_LOOKS: usize = 4_096;

/// What a look has shown.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// The measured window.
    pub window: (Time, Time),
    /// Since when it is steady, if it is.
    pub steady_since: Option<Time>,
    /// Whether enough requests were good.
    pub judgement: Option<Judgement>,
    /// The requests in flight only grew.
    pub rising: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Judge {
    plan: Plan,
    objectives: Objectives,
    timeout: Duration,
    is_open: bool,
    base: Time,
    in_flight: Vec<f64>,
    /// Requests that had ended at the last test.
    tested_at: usize,
    /// Since when the run is steady; kept once it is found, or a test could choose its beginning.
    steady_since: Option<Time>,
}

impl Judge {
    /// Of a point that starts at `start`.
    pub fn new(spec: &PointSpec, objectives: Objectives, timeout: Duration, start: Time) -> Self {
        Judge {
            plan: spec.plan,
            objectives,
            timeout,
            is_open: !matches!(spec.pattern, Pattern::Closed { .. }),
            base: start + spec.ramp + spec.warm_up,
            in_flight: Vec::new(),
            tested_at: 0,
            steady_since: None,
        }
    }

    /// When ramp and warm-up are over.
    pub fn base(&self) -> Time {
        self.base
    }

    /// Looks at what is known, every [`LOOK`]. `is_over`: nothing more will come.
    pub fn look(&mut self, now: Time, recorder: &Recorder, is_over: bool) -> Option<Decision> {
        if now < self.base {
            return None;
        }
        self.in_flight.push(recorder.in_flight() as f64);
        if self.in_flight.len() > MAX_LOOKS {
            self.in_flight = self.in_flight.iter().copied().step_by(2).collect();
        }
        match self.plan {
            Plan::Fixed { measured } => self.look_at_fixed(now, recorder, measured, is_over),
            Plan::Test { .. } => self.look_at_test(now, recorder, is_over),
        }
    }

    /// Good and bad of what is known.
    pub fn so_far(&self, now: Time, recorder: &Recorder) -> Tally {
        let known_to = recorder.known_to(&self.objectives, now);
        self.tally(recorder, self.base, known_to, now)
    }

    fn tally(&self, recorder: &Recorder, from: Time, to: Time, now: Time) -> Tally {
        let judged = recorder.judged(&self.objectives, from, to, now);
        Tally::of(&Judged::used(&judged))
    }

    fn allowed(&self) -> f64 {
        1.0 - self.objectives.good_share
    }

    fn is_rising(&self) -> bool {
        self.is_open && rises(&self.in_flight)
    }

    /// Ends when everything that was due has ended, with the load kept up until then.
    fn look_at_fixed(
        &self,
        now: Time,
        recorder: &Recorder,
        measured: Duration,
        is_over: bool,
    ) -> Option<Decision> {
        let to = self.base + measured;
        let is_done = now >= to && (!recorder.waits_for(to) || now >= to + self.timeout);
        if !is_done && !is_over {
            return None;
        }
        let to = to.min(now);
        // Of what was asked for, only a beginning is left out: a stall at half time is a result, and no warm-up.
        let latest = self.base + to.saturating_since(self.base) / LONGEST_BEGINNING;
        let steady_since = recorder
            .steady_since(self.base, to)
            .filter(|since| *since <= latest);
        let from = steady_since.unwrap_or(self.base);
        let judgement = self
            .tally(recorder, from, to, now)
            .judge(self.allowed(), Rigour::Confirm);
        Some(Decision {
            window: (from, to),
            steady_since,
            judgement,
            rising: self.is_rising(),
        })
    }

    fn look_at_test(&mut self, now: Time, recorder: &Recorder, is_over: bool) -> Option<Decision> {
        let Plan::Test {
            rigour,
            earlier,
            min,
            max,
        } = self.plan
        else {
            return None;
        };
        let is_last = now >= self.base + max || is_over;
        if now < self.base + min && !is_last {
            return None;
        }
        let known_to = recorder.known_to(&self.objectives, now);
        // A queue that grows has no share of good requests: it has fewer with every second.
        let is_rising = self.is_rising();
        let wait = match rigour {
            Rigour::Screen { .. } => NEXT_SCREENING,
            Rigour::Confirm => NEXT_CONFIRMATION,
        };
        let ended = recorder.all_ended().len() + recorder.in_flight();
        if (ended as f64) < self.tested_at as f64 * wait && !is_last && !is_rising {
            return None;
        }
        self.tested_at = ended;
        if self.steady_since.is_none() {
            self.steady_since = recorder.steady_since(self.base, known_to);
        }
        let steady_since = self.steady_since;
        let from = steady_since.unwrap_or(self.base);
        let decision = |judgement, rising| Decision {
            // Where nothing that was due since then is known yet, the window is empty.
            window: (from, known_to.max(from)),
            steady_since,
            judgement,
            rising,
        };
        if is_rising {
            return Some(decision(Some(Judgement::Fail), true));
        }
        let tally = self.tally(recorder, from, known_to, now);
        let all = earlier.map_or(tally, |earlier| earlier.and(tally));
        let judgement = all.judge(self.allowed(), rigour);
        (judgement.is_some() || is_last).then(|| decision(judgement, false))
    }
}
