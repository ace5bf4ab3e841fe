//! Time as the core sees it: a number that somebody else supplies.
//!
//! [`Time`] is microseconds since the process (or the simulation) began. Nothing below the engine
//! reads a clock; this file is the only place where `Instant::now` may be called.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time: microseconds since the clock's start. Never goes backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The clock's start.
    pub const ZERO: Time = Time(0);
    /// Later than any time that will be reached.
    pub const FAR_FUTURE: Time = Time(u64::MAX);

    /// A time `micros` microseconds after the start.
    pub const fn from_micros(micros: u64) -> Self {
        Time(micros)
    }

    /// A time `millis` milliseconds after the start.
    pub const fn from_millis(millis: u64) -> Self {
        Time(millis * 1_000)
    }

    /// Microseconds since the start.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Seconds since the start.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn saturating_since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    /// Saturates at [`Time::FAR_FUTURE`], so that an unlimited timeout needs no special case.
    fn add(self, duration: Duration) -> Time {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(micros))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;
    fn sub(self, earlier: Time) -> Duration {
        self.saturating_since(earlier)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.as_secs_f64())
    }
}

/// Tells the time. The service has one real clock; tests move theirs by hand.
pub trait Clock: Send + Sync {
    /// The current time.
    fn now(&self) -> Time;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct RealClock {
    start: Instant,
}

impl RealClock {
    /// A clock that starts now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn start() -> Self {
        RealClock {
            start: Instant::now(),
        }
    }

    /// How long it has been running, to the nanosecond: for measuring what is shorter than a [`Time`]
    /// can tell.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The `Instant` of a [`Time`], for timers of the async runtime.
    pub fn instant(&self, time: Time) -> Instant {
        self.start + Duration::from_micros(time.as_micros())
    }
}

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }
}

/// Seconds since the Unix epoch: a date for people, not a time to reckon with.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the calendar"
)]
pub fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub struct ManualClock {
    micros: AtomicU64,
}

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::SeqCst);
    }

    /// Moves the clock to `time`, unless it is already past it.
    pub fn advance_to(&self, time: Time) {
        self.micros.fetch_max(time.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time(self.micros.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let one = Time::from_millis(1);
        assert_eq!(one + Duration::from_millis(2), Time::from_millis(3));
        assert_eq!(Time::ZERO - one, Duration::ZERO);
        assert_eq!(one + Duration::MAX, Time::FAR_FUTURE);
    }

    #[test]
    fn a_manual_clock_never_goes_back() {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(1));
        clock.advance_to(Time::from_millis(500));
        assert_eq!(clock.now(), Time::from_millis(1_000));
    }
}
