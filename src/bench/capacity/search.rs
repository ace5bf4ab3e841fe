//! The search for the greatest load that is carried: pure, a question at a time.
//!
//! Up by doubling until something fails, then down the middle on a log scale with quick tests that may err; then
//! both ends of what is left are confirmed, each with an error of 2.5 %. An end that cannot be confirmed moves
//! outwards, one that turns out wrong inwards: so what is stated at the end has been shown, not assumed.

use crate::bench::results::Estimate;
use crate::bench::run::{Judgement, Rigour, Tally};

/// Confirmations of one load before it is taken for one that cannot be told.
const MAX_CONFIRMATIONS: u32 = 2;
/// While the order of magnitude is sought, this share of bad requests is too much: a dozen requests tell.
const COARSE_BAD_SHARE: f64 = 0.2;
/// The quick tests' idea of too much, times the allowed share.
const FINE_FACTOR: f64 = 3.0;

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchConfig {
    /// Only whole numbers: users.
    pub whole: bool,
    /// The first load.
    pub start: f64,
    /// The least that is tried.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The interval is to be no wider than this share of the answer.
    pub precision: f64,
    /// The share of requests that may be bad.
    pub allowed: f64,
    /// Points at most.
    pub max_points: usize,
}

/// A load to be measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// Users, or requests a second.
    pub level: f64,
    /// How sure the answer must be.
    pub rigour: Rigour,
    /// What confirmations of this load have shown before.
    pub earlier: Option<Tally>,
    /// How often it was measured before.
    pub repeat: u32,
}

/// What is known about a load.
#[derive(Clone, Copy, Debug)]
struct Known {
    level: f64,
    screened: Option<Judgement>,
    confirmed: Option<Judgement>,
    confirmations: u32,
    /// Of all confirmations.
    tally: Option<Tally>,
    /// Of the last visit.
    bad_share: f64,
    visits: u32,
    ever_passed: bool,
    ever_failed: bool,
}

impl Known {
    /// The best guess.
    fn passes(&self, allowed: f64) -> bool {
        match self.confirmed.or(self.screened) {
            Some(judgement) => judgement == Judgement::Pass,
            None => self.tally.map_or(self.bad_share, |tally| tally.bad_share()) <= allowed,
        }
    }

    fn cannot_be_told(&self) -> bool {
        self.confirmed.is_none() && self.confirmations >= MAX_CONFIRMATIONS
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The load that is carried, with its 95 % interval; 0 where not even the least load is.
    pub capacity: Estimate,
    /// Nothing failed: it may be more.
    pub lower_bound: bool,
    /// Both ends have been confirmed.
    pub is_certain: bool,
    /// The greatest load that passed.
    pub passed: Option<f64>,
    /// The least that failed.
    pub failed: Option<f64>,
    /// A load that failed at one time, and a greater one that passed at another, further apart than the precision.
    pub contradiction: Option<(f64, f64)>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Search {
    config: SearchConfig,
    /// In the order of loads.
    known: Vec<Known>,
    points: usize,
}

impl Search {
    /// A search that knows nothing yet.
    pub fn new(config: SearchConfig) -> Self {
        Search {
            config,
            known: Vec::new(),
            points: 0,
        }
    }

    /// What to measure next; `None` when the answer is there, or as good as it gets.
    pub fn next(&self) -> Option<Question> {
        if self.points >= self.config.max_points {
            return None;
        }
        let (low, high) = self.bracket();
        match (low, high) {
            (None, None) => Some(self.screen(self.config.start, true)),
            (Some(low), None) if low.level >= self.config.max => self.confirm_low(low),
            (Some(low), None) => Some(self.screen((low.level * 2.0).min(self.config.max), true)),
            (None, Some(high)) if high.level <= self.config.min => self.confirm_high(high),
            (None, Some(high)) => Some(self.screen((high.level / 2.0).max(self.config.min), true)),
            (Some(low), Some(high)) if !self.is_close(low.level, high.level) => {
                Some(self.screen((low.level * high.level).sqrt(), false))
            }
            (Some(low), Some(high)) => self.confirm_high(high).or_else(|| self.confirm_low(low)),
        }
    }

    /// What a measurement has shown.
    pub fn record(&mut self, question: &Question, tally: Tally, judgement: Option<Judgement>) {
        self.points += 1;
        let index = self
            .known
            .partition_point(|known| known.level < question.level);
        let is_new = self
            .known
            .get(index)
            .is_none_or(|known| known.level > question.level);
        if is_new {
            let known = Known {
                level: question.level,
                screened: None,
                confirmed: None,
                confirmations: 0,
                tally: None,
                bad_share: 0.0,
                visits: 0,
                ever_passed: false,
                ever_failed: false,
            };
            self.known.insert(index, known);
        }
        let known = &mut self.known[index];
        known.visits += 1;
        known.bad_share = tally.bad_share();
        known.ever_passed |= judgement == Some(Judgement::Pass);
        known.ever_failed |= judgement == Some(Judgement::Fail);
        match question.rigour {
            Rigour::Screen { .. } => known.screened = judgement,
            Rigour::Confirm => {
                known.confirmations += 1;
                known.tally = Some(known.tally.map_or(tally, |earlier| earlier.and(tally)));
                known.confirmed = judgement;
            }
        }
        if known.confirmed.is_some() {
            self.drop_contradictions(index);
        }
    }

    /// What was confirmed at one load holds for all beyond it: quick tests that said otherwise are forgotten.
    fn drop_contradictions(&mut self, index: usize) {
        let judgement = self.known[index].confirmed;
        let (below, above) = self.known.split_at_mut(index);
        let beyond = match judgement {
            Some(Judgement::Pass) => below,
            _ => &mut above[1..],
        };
        for known in beyond.iter_mut().filter(|known| known.confirmed.is_none()) {
            known.screened = judgement;
        }
    }

    /// The answer, as far as it is known.
    pub fn found(&self) -> Found {
        let (low, high) = self.bracket();
        let confirmed = |wanted| move |known: &&Known| known.confirmed == Some(wanted);
        let failed = self
            .known
            .iter()
            .find(confirmed(Judgement::Fail))
            .map(|known| known.level);
        let passed = self
            .known
            .iter()
            .rev()
            .filter(|known| failed.is_none_or(|failed| known.level < failed))
            .find(confirmed(Judgement::Pass))
            .map(|known| known.level);
        let ever_failed = self.known.iter().find(|known| known.ever_failed);
        let ever_passed = self.known.iter().rev().find(|known| known.ever_passed);
        let contradiction = ever_failed
            .zip(ever_passed)
            .map(|(failed, passed)| (failed.level, passed.level))
            .filter(|(failed, passed)| *passed > *failed * (1.0 + self.config.precision));
        let greatest = failed.map(|failed| {
            if self.config.whole {
                failed - 1.0
            } else {
                failed
            }
        });
        let value = match (low, high) {
            (None, _) => 0.0,
            (Some(low), None) => low.level,
            (Some(low), Some(_)) if self.config.whole => low.level,
            (Some(low), Some(high)) => (low.level * high.level).sqrt(),
        };
        Found {
            capacity: Estimate {
                value,
                low: passed.or(low.is_none().then_some(0.0)),
                high: greatest,
            },
            lower_bound: high.is_none() && low.is_some(),
            is_certain: failed.is_some() && (passed.is_some() || low.is_none()),
            passed: low.map(|known| known.level),
            failed: high.map(|known| known.level),
            contradiction,
        }
    }

    /// The least load that fails, and the greatest below it that passes.
    fn bracket(&self) -> (Option<&Known>, Option<&Known>) {
        let allowed = self.config.allowed;
        let high = self.known.iter().position(|known| !known.passes(allowed));
        let low = high.unwrap_or(self.known.len()).checked_sub(1);
        (
            low.map(|index| &self.known[index]),
            high.map(|index| &self.known[index]),
        )
    }

    fn is_close(&self, low: f64, high: f64) -> bool {
        // Both ends may still move by a step: half of the interval is left to that.
        let width = high / low - 1.0;
        width <= self.config.precision / 2.0 || (self.config.whole && high - low <= 1.0)
    }

    fn screen(&self, level: f64, coarse: bool) -> Question {
        let factor = match coarse {
            true => FINE_FACTOR.max(COARSE_BAD_SHARE / self.config.allowed),
            false => FINE_FACTOR,
        };
        self.question(level, Rigour::Screen { factor })
    }

    fn question(&self, level: f64, rigour: Rigour) -> Question {
        let level = if self.config.whole {
            level.round()
        } else {
            level
        };
        let known = self.known.iter().find(|known| known.level == level);
        Question {
            level,
            rigour,
            earlier: known
                .filter(|_| rigour == Rigour::Confirm)
                .and_then(|known| known.tally),
            repeat: known.map_or(0, |known| known.visits),
        }
    }

    /// The next step towards a load at or below this one that certainly passes.
    fn confirm_low(&self, low: &Known) -> Option<Question> {
        let mut level = low.level;
        loop {
            let known = self.known.iter().find(|known| known.level == level);
            match known {
                Some(known) if known.confirmed == Some(Judgement::Pass) => return None,
                Some(known) if known.cannot_be_told() => {}
                _ => return Some(self.question(level, Rigour::Confirm)),
            }
            if level <= self.config.min {
                return None;
            }
            level = self.step(level, 1.0 / (1.0 + self.config.precision / 2.0));
        }
    }

    /// The next step towards a load at or above this one that certainly fails.
    fn confirm_high(&self, high: &Known) -> Option<Question> {
        let mut level = high.level;
        loop {
            let known = self.known.iter().find(|known| known.level == level);
            match known {
                Some(known) if known.confirmed == Some(Judgement::Fail) => return None,
                Some(known) if known.cannot_be_told() => {}
                _ => return Some(self.question(level, Rigour::Confirm)),
            }
            if level >= self.config.max {
                return None;
            }
            level = self.step(level, 1.0 + self.config.precision / 2.0);
        }
    }

    fn step(&self, level: f64, factor: f64) -> f64 {
        let next = (level * factor).clamp(self.config.min, self.config.max);
        match self.config.whole {
            false => next,
            true if factor > 1.0 => next.round().max(level + 1.0).min(self.config.max),
            true => next.round().min(level - 1.0).max(self.config.min),
        }
    }
}
