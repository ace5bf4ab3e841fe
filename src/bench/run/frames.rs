//! Gaps between frames, second by second, within a bound of memory.

use std::sync::Mutex;
use std::time::Duration;

use super::super::target::Watch;
use crate::time::Time;

/// Gaps that are kept of a second; of more, an even selection stands for all.
const MAX_GAPS_PER_SECOND: usize = 2_000;
/// The longest that a point is followed.
const MAX_SECONDS: usize = 6 * 3600;

/// All streams' gaps since a point began.
#[derive(Debug)]
pub struct FrameLog {
    origin: Time,
    stall: Duration,
    seconds: Mutex<Vec<FrameSecond>>,
}

/// What happened in one second.
#[derive(Clone, Debug, Default)]
pub struct FrameSecond {
    /// Gaps in microseconds.
    pub gaps: Vec<u32>,
    /// How many there were.
    pub count: u64,
    /// The longest, in microseconds.
    pub longest_micros: u64,
    /// Those longer than what counts as a stall.
    pub stalls: u32,
}

impl FrameLog {
    /// From `origin` on. Gaps above `stall` are counted apart.
    pub fn new(origin: Time, stall: Duration) -> Self {
        FrameLog {
            origin,
            stall,
            seconds: Mutex::default(),
        }
    }

    /// A gap that ended at a time.
    pub fn add(&self, at: Time, micros: u64) {
        let index = at.saturating_since(self.origin).as_secs() as usize;
        if index >= MAX_SECONDS {
            return;
        }
        let mut seconds = self.seconds.lock().expect("nobody panics while holding it");
        if seconds.len() <= index {
            seconds.resize_with(index + 1, FrameSecond::default);
        }
        let second = &mut seconds[index];
        let gap = u32::try_from(micros).unwrap_or(u32::MAX);
        if second.gaps.len() < MAX_GAPS_PER_SECOND {
            second.gaps.push(gap);
        } else {
            // A multiplicative hash of the count: each has the same chance to stay.
            let at = second.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let place = (at % (second.count + 1)) as usize;
            if let Some(kept) = second.gaps.get_mut(place) {
                *kept = gap;
            }
        }
        second.count += 1;
        second.longest_micros = second.longest_micros.max(micros);
        second.stalls += u32::from(Duration::from_micros(micros) > self.stall);
    }

    /// All seconds so far.
    pub fn seconds(&self) -> Vec<FrameSecond> {
        self.seconds
            .lock()
            .expect("nobody panics while holding it")
            .clone()
    }
}

/// A request that runs: when its first text came, and where its gaps go.
#[derive(Debug)]
pub struct Running<'a> {
    /// Microseconds; 0 for not yet.
    pub first: &'a std::sync::atomic::AtomicU64,
    /// Of all.
    pub frames: &'a FrameLog,
}

impl Watch for Running<'_> {
    fn first(&self, at: Time) {
        self.first
            .store(at.as_micros().max(1), std::sync::atomic::Ordering::Relaxed);
    }

    fn gap(&self, at: Time, micros: u64) {
        self.frames.add(at, micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_selection_even() {
        let log = FrameLog::new(Time::from_millis(500), Duration::from_millis(15));
        for index in 0..20_000u64 {
            log.add(Time::from_millis(1_600), index);
        }
        let seconds = log.seconds();
        assert_eq!(
            (seconds.len(), seconds[0].count, seconds[1].count),
            (2, 0, 20_000)
        );
        assert_eq!(
            (seconds[1].longest_micros, seconds[1].stalls),
            (19_999, 4_999)
        );
        let gaps = &seconds[1].gaps;
        assert_eq!(gaps.len(), MAX_GAPS_PER_SECOND);
        let mean = gaps.iter().map(|gap| f64::from(*gap)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 10_000.0 - 1.0).abs() < 0.1, "{mean}");
    }
}
