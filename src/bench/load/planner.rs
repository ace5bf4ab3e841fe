//! Who starts when: a pure state machine that is told the time and the ends of requests.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use rand_distr::{Distribution, Exp1};

use super::arrivals::ArrivalTimes;
use super::trace::Trace;
use super::{Arrivals, Purpose, random};
use crate::time::Time;

/// How requests come.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// Requests come whether or not the server keeps up.
    Open {
        /// Requests a second.
        rate: f64,
        /// How they are spread.
        arrivals: Arrivals,
    },
    /// Requests come as they did once.
    Trace(Trace),
    /// Users who wait for an answer, think, and ask again. They hide queueing: a slow server is asked less.
    Closed {
        /// How many.
        users: u32,
        /// Mean seconds from an answer to the next question, exponentially distributed; 0 for none.
        think_seconds: f64,
        /// Questions of a conversation; the next one begins anew.
        turns: u32,
    },
}

/// One request that is to start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    /// Which, from 0.
    pub ordinal: u64,
    /// Whose; none in an open loop.
    pub user: Option<u32>,
    /// Which question of its conversation, from 0.
    pub turn: u32,
    /// When it should start. All latencies count from here.
    pub intended: Time,
    /// Prompt tokens, if a trace says so.
    pub input_tokens: Option<u32>,
    /// New tokens, if a trace says so.
    pub output_tokens: Option<u32>,
}

/// See the module.
#[derive(Debug)]
pub struct Planner {
    source: Source,
    next_ordinal: u64,
}

#[derive(Debug)]
enum Source {
    Open {
        times: ArrivalTimes,
        next: Time,
    },
    Trace {
        trace: Trace,
        start: Time,
        next: usize,
    },
    Closed(Users),
}

#[derive(Debug)]
struct Users {
    think_seconds: f64,
    turns: u32,
    /// Who starts when, the earliest first.
    waiting: BinaryHeap<Reverse<(Time, u32)>>,
    turn_of: Vec<u32>,
    random: ChaCha8Rng,
}

impl Planner {
    /// A plan from `start` on. The users of a closed loop come one by one over `ramp`, at random moments, so
    /// that they do not march in step.
    pub fn new(pattern: &Pattern, start: Time, ramp: Duration, seed: u64) -> Self {
        let source = match pattern {
            Pattern::Open { rate, arrivals } => {
                let mut times = ArrivalTimes::new(*arrivals, *rate, start, seed);
                let next = times.next().unwrap_or(Time::FAR_FUTURE);
                Source::Open { times, next }
            }
            Pattern::Trace(trace) => Source::Trace {
                trace: trace.clone(),
                start,
                next: 0,
            },
            Pattern::Closed {
                users,
                think_seconds,
                turns,
            } => {
                let mut random = random(seed, Purpose::Thinking, 0);
                let share = |user: u32, random: &mut ChaCha8Rng| {
                    let within = random.next_u32() as f64 / 2f64.powi(32);
                    (f64::from(user) + within) / f64::from(*users)
                };
                let waiting = (0..*users)
                    .map(|user| Reverse((start + ramp.mul_f64(share(user, &mut random)), user)))
                    .collect();
                Source::Closed(Users {
                    think_seconds: *think_seconds,
                    turns: *turns,
                    waiting,
                    turn_of: vec![0; *users as usize],
                    random,
                })
            }
        };
        Planner {
            source,
            next_ordinal: 0,
        }
    }

    /// When the next request starts; `None` if none does until one ends.
    pub fn next_due(&self) -> Option<Time> {
        match &self.source {
            Source::Open { next, .. } => Some(*next),
            Source::Trace { trace, start, next } => {
                trace.requests.get(*next).map(|request| *start + request.at)
            }
            Source::Closed(users) => users.waiting.peek().map(|Reverse((at, _))| *at),
        }
    }

    /// The next request.
    pub fn take(&mut self) -> Option<Planned> {
        let intended = self.next_due()?;
        let mut planned = Planned {
            ordinal: self.next_ordinal,
            user: None,
            turn: 0,
            intended,
            input_tokens: None,
            output_tokens: None,
        };
        match &mut self.source {
            Source::Open { times, next } => *next = times.next().unwrap_or(Time::FAR_FUTURE),
            Source::Trace { trace, next, .. } => {
                let request = trace.requests.get(*next)?;
                planned.input_tokens = request.input_tokens;
                planned.output_tokens = request.output_tokens;
                *next += 1;
            }
            Source::Closed(users) => {
                let Reverse((_, user)) = users.waiting.pop()?;
                planned.user = Some(user);
                planned.turn = users.turn_of[user as usize];
            }
        }
        self.next_ordinal += 1;
        Some(planned)
    }

    /// A request has ended. `well`: its user goes on with the conversation, and begins a new one otherwise.
    pub fn ended(&mut self, user: Option<u32>, well: bool, at: Time) {
        let (Source::Closed(users), Some(user)) = (&mut self.source, user) else {
            return;
        };
        let turn = &mut users.turn_of[user as usize];
        *turn = if well { (*turn + 1) % users.turns } else { 0 };
        let draw: f64 = Exp1.sample(&mut users.random);
        let next = at + Duration::from_secs_f64(users.think_seconds * draw);
        users.waiting.push(Reverse((next, user)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn closed(users: u32, think_seconds: f64, turns: u32) -> Pattern {
        Pattern::Closed {
            users,
            think_seconds,
            turns,
        }
    }

    #[test]
    fn users_come_one_by_one_and_wait_for_their_answers() {
        let mut planner = Planner::new(&closed(4, 0.0, 2), Time::ZERO, SECOND, 1);
        let first: Vec<Planned> = std::iter::from_fn(|| planner.take()).collect();
        let users: Vec<u32> = first.iter().filter_map(|planned| planned.user).collect();
        assert_eq!(users, [0, 1, 2, 3]);
        for (user, planned) in (0u64..).zip(&first) {
            let quarter = Time::from_millis(250 * user)..Time::from_millis(250 * (user + 1));
            assert!(quarter.contains(&planned.intended), "{planned:?}");
        }
        assert_eq!(planner.next_due(), None);
        planner.ended(Some(2), true, Time::from_millis(3_000));
        let second = planner.take().unwrap();
        assert_eq!((second.user, second.turn, second.ordinal), (Some(2), 1, 4));
        assert_eq!(second.intended, Time::from_millis(3_000));
        // A conversation ends with its last turn, or with a failure.
        planner.ended(Some(2), true, Time::from_millis(4_000));
        assert_eq!(planner.take().unwrap().turn, 0);
        planner.ended(Some(2), true, Time::from_millis(5_000));
        assert_eq!(planner.take().unwrap().turn, 1);
        planner.ended(Some(2), false, Time::from_millis(6_000));
        assert_eq!(planner.take().unwrap().turn, 0);
    }

    #[test]
    fn users_think_as_long_as_they_should() {
        let mut planner = Planner::new(&closed(1, 2.0, 1), Time::ZERO, SECOND, 1);
        let mut thought = Duration::ZERO;
        for _ in 0..10_000 {
            let planned = planner.take().unwrap();
            planner.ended(planned.user, true, planned.intended);
            thought += planner.next_due().unwrap() - planned.intended;
        }
        let mean = thought.as_secs_f64() / 10_000.0;
        assert!((mean - 2.0).abs() < 0.08, "{mean}");
    }

    #[test]
    fn an_open_loop_does_not_wait() {
        let pattern = Pattern::Open {
            rate: 10.0,
            arrivals: Arrivals::Constant,
        };
        let mut planner = Planner::new(&pattern, Time::from_millis(1_000), SECOND, 1);
        for expected in 1..=30u64 {
            assert_eq!(
                planner.take().unwrap().intended,
                Time::from_millis(1_000 + 100 * expected)
            );
        }
    }

    #[test]
    fn one_seed_one_plan() {
        let pattern = Pattern::Open {
            rate: 10.0,
            arrivals: Arrivals::Gamma(0.5),
        };
        let times = |seed| -> Vec<Time> {
            let mut planner = Planner::new(&pattern, Time::ZERO, SECOND, seed);
            (0..20)
                .filter_map(|_| planner.take())
                .map(|planned| planned.intended)
                .collect()
        };
        assert_eq!(times(5), times(5));
        assert_ne!(times(5), times(6));
    }
}
