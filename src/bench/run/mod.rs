//! One load, offered for a while: [`Session::measure`]. `bench run` measures the loads that were asked for,
//! `bench capacity` those that its search wants.
//!
//! Two threads do the work. The one that calls [`Session::measure`] keeps the plan: it sleeps until the next
//! request is due, to within some tens of microseconds, and hands it over. The other has all connections, on one
//! core. How late either is, is measured all the while.

mod device;
mod drive;
#[cfg(test)]
mod faults;
pub mod frames;
pub mod judge;
pub mod recorder;
mod runtime;
mod sampler;
pub mod sequential;
pub mod session;
pub mod steady;
mod summary;

use std::time::Duration;

pub use self::sequential::{Judgement, Rigour, Tally};
pub use self::session::{Session, SessionConfig};
use super::load::{LoadError, Pattern};
use super::results;

/// A load to be offered.
#[derive(Clone, Debug)]
pub struct PointSpec {
    /// How requests come.
    pub pattern: Pattern,
    /// Why it is measured: `asked`, `search`, `confirm`, ..
    pub purpose: &'static str,
    /// Counts repeats of the same load.
    pub repeat: u32,
    /// Of this point's arrivals and prompts.
    pub seed: u64,
    /// Over which users come.
    pub ramp: Duration,
    /// Load before anything counts, at least.
    pub warm_up: Duration,
    /// When it ends.
    pub plan: Plan,
}

/// When a point ends.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// After a time.
    Fixed {
        /// Length of the measured window, at most.
        measured: Duration,
    },
    /// When it is known whether enough requests are good.
    Test {
        /// How sure.
        rigour: Rigour,
        /// What earlier points of the same load have shown.
        earlier: Option<Tally>,
        /// Length of the measured window, at least.
        min: Duration,
        /// And at most.
        max: Duration,
    },
}

/// What a point has shown.
#[derive(Clone, Debug)]
pub struct Measured {
    /// For the report.
    pub point: results::Point,
    /// Good and bad requests of this point alone.
    pub tally: Tally,
    /// Whether enough were good, with those of earlier points.
    pub judgement: Option<Judgement>,
}

/// A measurement cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The load cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The HTTP client or its thread.
    #[error("cannot start the client: {0}")]
    Client(String),
    /// The server cannot be reached, or does not answer as it should.
    #[error("{0}")]
    Server(String),
    /// Somebody wants it to end, by [`Watcher::is_stopped`].
    #[error("stopped")]
    Stopped,
}

/// What is shown while a point runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// Seconds since the point's start.
    pub seconds: f64,
    /// Seconds that it may still take at most.
    pub seconds_left: f64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests that ended well.
    pub completed: u64,
    /// And badly.
    pub bad: u64,
    /// Of those that count so far.
    pub good_share: Option<f64>,
    /// Median and 99th percentile of the times to first token (or first step) of the last 500 requests, in
    /// milliseconds.
    pub first_ms: Option<(f64, f64)>,
    /// Answers' tokens a second over the last seconds.
    pub output_tokens_per_second: f64,
}

/// Somebody who watches.
pub trait Watcher {
    /// A point begins.
    fn begins(&mut self, spec: &PointSpec);
    /// It goes on.
    fn goes_on(&mut self, live: &Live);
    /// It has ended.
    fn ended(&mut self, point: &results::Point);
    /// Whether the measurement is to be given up.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug, Default)]
pub struct Unwatched;

impl Watcher for Unwatched {
    fn begins(&mut self, _spec: &PointSpec) {}
    fn goes_on(&mut self, _live: &Live) {}
    fn ended(&mut self, _point: &results::Point) {}
}
