//! The search for the greatest load that is carried: pure, a question at a time.
//!
//! Up by doubling until something fails, then down the middle on a log scale with quick tests that may err; then
//! both ends of an interval around what is left are confirmed, each with an error of 2.5 %. An end that cannot be
//! confirmed moves outwards. So what is stated at the end has been shown, not assumed.
//!
//! A server's speed may wander while it is measured, and then one load fails at one time and a greater one passes at
//! another. No single point decides: every one has a vote, the answer is where the fewest votes are wrong, and where
//! votes are equal the load is measured again. The interval lies outside of everything that was shown both ways.

use crate::bench::results::Estimate;
use crate::bench::run::{Judgement, Rigour, Tally};

/// Confirmations of one load that told nothing, before it is taken for one that cannot be told.
const MAX_UNDECIDED: u32 = 2;
/// Visits of one load, to settle votes that are equal.
const MAX_VISITS: u32 = 6;
/// While the order of magnitude is sought, this share of bad requests is too much: a dozen requests tell.
const COARSE_BAD_SHARE: f64 = 0.2;
/// The quick tests' idea of too much, times the allowed share.
const FINE_FACTOR: f64 = 3.0;
/// What a point that is beyond doubt has to say counts so much ..
const SURE_VOTE: f64 = 1.0;
/// .. what a quick test says so much ..
const QUICK_VOTE: f64 = 0.5;
/// .. and what a point was nearer to that said neither, so much.
const GUESSED_VOTE: f64 = 0.25;

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchConfig {
    /// Only whole numbers: users.
    pub whole: bool,
    /// The first load.
    pub start: f64,
    /// From one load to the next while none has failed, or all have. Above 1.
    pub growth: f64,
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
    /// What confirmations of this load have shown that told nothing yet.
    pub earlier: Option<Tally>,
    /// How often it was measured before.
    pub repeat: u32,
}

/// What is known about a load.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    level: f64,
    visits: u32,
    /// Votes that it is carried, and that it is not.
    passes: f64,
    fails: f64,
    /// Whether it was ever beyond doubt that it is carried, or that it is not: both where the server wanders.
    surely_passed: bool,
    surely_failed: bool,
    /// What the last confirmation that told something said.
    confirmed: Option<Judgement>,
    /// Confirmations since then that told nothing, and all that they have shown.
    undecided: u32,
    tally: Option<Tally>,
}

impl Known {
    fn vote(&mut self, judgement: Judgement, votes: f64) {
        match judgement {
            Judgement::Pass => self.passes += votes,
            Judgement::Fail => self.fails += votes,
        }
        if votes >= SURE_VOTE {
            self.surely_passed |= judgement == Judgement::Pass;
            self.surely_failed |= judgement == Judgement::Fail;
        }
    }

    fn cannot_be_told(&self) -> bool {
        self.undecided >= MAX_UNDECIDED || self.visits >= MAX_VISITS
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The load that is carried, with its 95 % interval; 0 where not even the least load is. The interval's lower end
    /// has been shown to be carried, its upper end not to be.
    pub capacity: Estimate,
    /// Nothing failed: it may be more.
    pub lower_bound: bool,
    /// Both ends have been confirmed.
    pub is_certain: bool,
    /// A load that is carried: the interval's lower end, or the nearest to it that was measured.
    pub passed: Option<f64>,
    /// One that is not: its upper end, likewise.
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

/// An end of the interval: known, or what to ask for it, or neither where nothing more can be asked.
enum End {
    Known(f64),
    Ask(Question),
    Unknown,
}

/// Which end.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Low,
    High,
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
        if let Some(disputed) = self.disputed() {
            return Some(self.question(disputed, Rigour::Confirm));
        }
        let SearchConfig {
            start,
            growth,
            min,
            max,
            ..
        } = self.config;
        match self.bracket() {
            (None, None) => Some(self.screen(start, true)),
            (Some(low), None) if low < max => Some(self.screen(self.step(low, growth), true)),
            (None, Some(high)) if high > min => {
                Some(self.screen(self.step(high, 1.0 / growth), true))
            }
            (Some(low), Some(high)) if !self.is_close(low, high) => {
                Some(self.screen((low * high).sqrt(), false))
            }
            (low, high) => {
                let ends = [high.map(|_| Side::High), low.map(|_| Side::Low)];
                let mut ends = ends.into_iter().flatten().map(|side| self.end(side));
                let asked = ends.find_map(|end| match end {
                    End::Ask(question) => Some(question),
                    End::Known(_) | End::Unknown => None,
                });
                asked.or_else(|| self.recheck())
            }
        }
    }

    /// The upper end once more, at last: what other programs do to a server makes it slower, never faster, so it is
    /// failures that a bad minute may have made.
    fn recheck(&self) -> Option<Question> {
        let (_, high) = self.bracket();
        let End::Known(level) = self.end(Side::High) else {
            return None;
        };
        let was_once = self.at(level).is_some_and(|known| known.visits < 2);
        (high.is_some() && was_once).then(|| self.question(level, Rigour::Confirm))
    }

    /// What a measurement has shown.
    pub fn record(&mut self, question: &Question, tally: Tally, judgement: Option<Judgement>) {
        self.points += 1;
        let allowed = self.config.allowed;
        let known = self.place(question.level);
        known.visits += 1;
        let is_confirmation = question.rigour == Rigour::Confirm;
        let is_sure = is_confirmation || tally.judge(allowed, Rigour::Confirm) == judgement;
        match judgement {
            Some(judgement) => {
                known.vote(judgement, if is_sure { SURE_VOTE } else { QUICK_VOTE });
                if is_confirmation {
                    (known.confirmed, known.undecided, known.tally) = (Some(judgement), 0, None);
                }
            }
            None => {
                let all = known.tally.map_or(tally, |earlier| earlier.and(tally));
                let guess = match all.bad_share() <= allowed {
                    true => Judgement::Pass,
                    false => Judgement::Fail,
                };
                known.vote(guess, GUESSED_VOTE);
                if is_confirmation {
                    (known.undecided, known.tally) = (known.undecided + 1, Some(all));
                }
            }
        }
    }

    fn place(&mut self, level: f64) -> &mut Known {
        let index = self.known.partition_point(|known| known.level < level);
        if self
            .known
            .get(index)
            .is_none_or(|known| known.level > level)
        {
            let known = Known {
                level,
                ..Known::default()
            };
            self.known.insert(index, known);
        }
        &mut self.known[index]
    }

    fn at(&self, level: f64) -> Option<&Known> {
        self.known.iter().find(|known| known.level == level)
    }

    /// The answer, as far as it is known.
    pub fn found(&self) -> Found {
        let (low, high) = self.bracket();
        let end = |side| match self.end(side) {
            End::Known(level) => Some(level),
            End::Ask(_) | End::Unknown => None,
        };
        let (passed, failed) = (
            low.and_then(|_| end(Side::Low)),
            high.and_then(|_| end(Side::High)),
        );
        let contradiction = self
            .surely_failed()
            .zip(self.surely_passed())
            .filter(|(failed, passed)| *passed > *failed * (1.0 + self.config.precision));
        let value = match (low, high) {
            (None, _) => 0.0,
            (Some(low), None) => low,
            (Some(low), Some(_)) if self.config.whole => low,
            (Some(low), Some(high)) => (low * high).sqrt(),
        };
        Found {
            capacity: Estimate {
                value,
                low: passed.or(low.is_none().then_some(0.0)),
                high: failed,
            },
            lower_bound: high.is_none() && low.is_some(),
            is_certain: failed.is_some() && (passed.is_some() || low.is_none()),
            passed: passed.or(low),
            failed: failed.or(high),
            contradiction,
        }
    }

    /// The least load that failed beyond doubt, at whatever time.
    fn surely_failed(&self) -> Option<f64> {
        let mut known = self.known.iter();
        known
            .find(|known| known.surely_failed)
            .map(|known| known.level)
    }

    /// The greatest that passed beyond doubt.
    fn surely_passed(&self) -> Option<f64> {
        let mut known = self.known.iter().rev();
        known
            .find(|known| known.surely_passed)
            .map(|known| known.level)
    }

    /// Where the loads that are carried end, by the fewest votes that are wrong: all cuts that have so few, as the
    /// number of loads below.
    fn cuts(&self) -> (usize, usize) {
        let mut wrong: f64 = self.known.iter().map(|known| known.passes).sum();
        let (mut least, mut first, mut last) = (wrong, 0, 0);
        for (index, known) in self.known.iter().enumerate() {
            wrong += known.fails - known.passes;
            // Votes are quarters: sums of them are exact.
            if wrong < least {
                (least, first) = (wrong, index + 1);
            }
            if wrong <= least {
                last = index + 1;
            }
        }
        (first, last)
    }

    /// The greatest load that is carried, and the least beyond it that is not. Of equal cuts the lowest.
    fn bracket(&self) -> (Option<f64>, Option<f64>) {
        let (cut, _) = self.cuts();
        let level = |index: usize| self.known.get(index).map(|known| known.level);
        (cut.checked_sub(1).and_then(level), level(cut))
    }

    /// A load between cuts that are as good as each other: it was shown both ways, or a greater one was shown to be
    /// carried and it was not.
    fn disputed(&self) -> Option<f64> {
        let (first, last) = self.cuts();
        let mut between = self.known[first..last].iter();
        between
            .find(|known| known.visits < MAX_VISITS)
            .map(|known| known.level)
    }

    fn is_close(&self, low: f64, high: f64) -> bool {
        // The other half of the interval is left to its ends.
        high / low - 1.0 <= self.config.precision / 2.0 || (self.config.whole && high - low <= 1.0)
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
        let known = self.at(level);
        Question {
            level,
            rigour,
            earlier: known
                .filter(|_| rigour == Rigour::Confirm)
                .and_then(|known| known.tally),
            repeat: known.map_or(0, |known| known.visits),
        }
    }

    /// An end of the interval. It lies a quarter of the precision beyond the bracket, where that makes a difference:
    /// what is so near to the limit that every breath of the server decides it would take for ever to confirm, and
    /// would claim more than can be known. It lies outside of all that was shown both ways.
    fn end(&self, side: Side) -> End {
        let (low, high) = self.bracket();
        let (limit, wanted, disputed) = match side {
            Side::Low => (self.config.min, Judgement::Pass, self.surely_failed()),
            Side::High => (self.config.max, Judgement::Fail, self.surely_passed()),
        };
        let Some(inner) = (if side == Side::Low { low } else { high }) else {
            return End::Unknown;
        };
        let is_outside = |level: f64| match side {
            Side::Low => disputed.is_none_or(|disputed| level < disputed),
            Side::High => disputed.is_none_or(|disputed| level > disputed),
        };
        let is_shown = |known: &&Known| known.confirmed == Some(wanted) && is_outside(known.level);
        let shown = match side {
            Side::Low => self
                .known
                .iter()
                .rev()
                .filter(|known| known.level <= inner)
                .find(is_shown),
            Side::High => self
                .known
                .iter()
                .filter(|known| known.level >= inner)
                .find(is_shown),
        };
        let shown = shown.map(|known| known.level);
        let factor = |share: f64| match side {
            Side::Low => 1.0 / (1.0 + self.config.precision * share),
            Side::High => 1.0 + self.config.precision * share,
        };
        let is_between = low.is_some() && high.is_some();
        let mut level = self.rounded(inner * if is_between { factor(0.25) } else { 1.0 });
        loop {
            // What was shown already is as good as the wanted place, if it is nearer.
            let is_reached = shown.is_some_and(|shown| match side {
                Side::Low => shown >= level,
                Side::High => shown <= level,
            });
            if let Some(shown) = shown.filter(|_| is_reached) {
                return End::Known(shown);
            }
            let is_hopeless = self.at(level).is_some_and(Known::cannot_be_told);
            if is_outside(level) && !is_hopeless {
                return End::Ask(self.question(level, Rigour::Confirm));
            }
            if level == limit {
                return End::Unknown;
            }
            level = self.step(level, factor(0.5));
        }
    }

    fn rounded(&self, level: f64) -> f64 {
        let level = level.clamp(self.config.min, self.config.max);
        if self.config.whole {
            level.round()
        } else {
            level
        }
    }

    /// At least one user further.
    fn step(&self, level: f64, factor: f64) -> f64 {
        let next = self.rounded(level * factor);
        match self.config.whole {
            false => next,
            true if factor > 1.0 => next.max(level + 1.0).min(self.config.max),
            true => next.min(level - 1.0).max(self.config.min),
        }
    }
}
