//! When a stream may say its next frame. Pure: it is told the time.
//!
//! The first text goes at once, then at most `max_frames_per_second` frames go in any second, and
//! the last frames go at once again. The end can only go at once if there is room for it, so the
//! frames in between are spaced as if there were that many fewer in a second.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// The second in which frames are counted, with some slack: what leaves here evenly arrives
/// a little unevenly, and the promise is made for what the client sees.
const WINDOW: Duration = Duration::from_millis(1_050);

/// How a frame stands in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// One of many: keeps its distance from the last.
    Routine,
    /// News that somebody waits for (a place in the queue, the start, the first text): at once if
    /// the second has room.
    News,
    /// The end: at once, and the room kept for it is its own.
    Terminal,
}

/// Counts one stream's frames.
#[derive(Debug)]
pub struct Pacer {
    max_frames: usize,
    routine_frames: usize,
    /// When the frames of the last window were said, oldest first; never more than `max_frames`.
    said: VecDeque<Time>,
}

impl Pacer {
    /// A pacer that keeps room for `terminal_frames` in every second. At least one frame a second
    /// is left for the others.
    pub fn new(max_frames_per_second: u32, terminal_frames: u32) -> Self {
        let max_frames = max_frames_per_second.max(1) as usize;
        let routine_frames = max_frames.saturating_sub(terminal_frames as usize).max(1);
        Pacer {
            max_frames,
            routine_frames,
            said: VecDeque::with_capacity(max_frames),
        }
    }

    /// The earliest time at which one frame may be said.
    pub fn ready_at(&self, urgency: Urgency) -> Time {
        match urgency {
            Urgency::Terminal => self.room_at(self.max_frames),
            Urgency::News => self.room_at(self.routine_frames),
            Urgency::Routine => self.room_at(self.routine_frames).max(self.spaced_at()),
        }
    }

    /// One frame was said.
    pub fn said(&mut self, now: Time) {
        if self.said.len() == self.max_frames {
            self.said.pop_front();
        }
        self.said.push_back(now);
    }

    /// When fewer than `limit` frames lie within one window back.
    fn room_at(&self, limit: usize) -> Time {
        match self.said.len().checked_sub(limit) {
            None => Time::ZERO,
            Some(oldest) => self.said[oldest] + WINDOW,
        }
    }

    fn spaced_at(&self) -> Time {
        let interval = WINDOW / self.routine_frames as u32;
        self.said.back().map_or(Time::ZERO, |last| *last + interval)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Says a frame as early as allowed, but not before `now`, and returns when that was.
    fn say(pacer: &mut Pacer, now: Time, urgency: Urgency) -> Time {
        let at = pacer.ready_at(urgency).max(now);
        pacer.said(at);
        at
    }

    #[test]
    fn the_first_and_the_last_go_at_once() {
        let mut pacer = Pacer::new(20, 3);
        let start = Time::from_millis(5);
        assert_eq!(say(&mut pacer, start, Urgency::News), start);
        assert_eq!(say(&mut pacer, start, Urgency::News), start);
        let mut now = start;
        for _ in 0..100 {
            now = say(&mut pacer, now, Urgency::Routine);
        }
        for _ in 0..3 {
            assert_eq!(say(&mut pacer, now, Urgency::Terminal), now);
        }
    }

    #[test]
    fn routine_frames_keep_their_distance() {
        let mut pacer = Pacer::new(20, 0);
        let first = say(&mut pacer, Time::ZERO, Urgency::Routine);
        let second = say(&mut pacer, first, Urgency::Routine);
        assert_eq!(second - first, WINDOW / 20);
    }

    #[test]
    fn a_reserve_beyond_the_maximum_still_leaves_one_frame() {
        let mut pacer = Pacer::new(2, 9);
        assert_eq!(say(&mut pacer, Time::ZERO, Urgency::Routine), Time::ZERO);
        assert_eq!(pacer.ready_at(Urgency::Routine), Time::ZERO + WINDOW);
        assert_eq!(pacer.ready_at(Urgency::Terminal), Time::ZERO);
    }

    fn urgency() -> impl Strategy<Value = Urgency> {
        prop_oneof![
            8 => Just(Urgency::Routine),
            2 => Just(Urgency::News),
            1 => Just(Urgency::Terminal),
        ]
    }

    proptest! {
        #[test]
        fn no_second_ever_holds_more_than_the_maximum(
            max in 1u32..30,
            terminal in 0u32..6,
            frames in proptest::collection::vec((0u64..120_000, urgency()), 1..200),
        ) {
            let mut pacer = Pacer::new(max, terminal);
            let mut now = Time::ZERO;
            let mut said = Vec::new();
            for (pause, urgency) in frames {
                now = say(&mut pacer, now + Duration::from_micros(pause), urgency);
                said.push(now);
            }
            for (first, start) in said.iter().enumerate() {
                let within = said[first..]
                    .iter()
                    .take_while(|time| **time - *start < WINDOW)
                    .count();
                prop_assert!(within <= max as usize, "{within} frames from {start}");
            }
        }

        /// With only routine frames and a little news before it, an end of the size kept for it
        /// never waits.
        #[test]
        fn the_end_never_waits(
            max in 2u32..30,
            terminal in 1u32..6,
            frames in proptest::collection::vec((0u64..120_000, prop::bool::ANY), 0..200),
        ) {
            prop_assume!(terminal < max);
            let mut pacer = Pacer::new(max, terminal);
            let mut now = Time::ZERO;
            for (pause, news) in frames {
                let urgency = if news { Urgency::News } else { Urgency::Routine };
                now = say(&mut pacer, now + Duration::from_micros(pause), urgency);
            }
            for _ in 0..terminal {
                prop_assert!(pacer.ready_at(Urgency::Terminal) <= now);
                pacer.said(now);
            }
        }
    }
}
