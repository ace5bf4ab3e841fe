//! When will a waiting request start? The queue played forward over the slots, by measured costs.
//!
//! One sweep answers for the whole queue in `O(n log slots)`, and a newcomer is added to the end of
//! it in `O(log slots)`: telling everybody their place costs no more than that, however many wait.
//!
//! Time in the sweep is counted in rounds, in each of which every row that iterates does so once: a pass
//! for each group of rows that can share one. How long a round takes follows from who is in it. `Begin` and
//! `Finish` work come on top: they hold up everybody, whoever's they are, and of those that finish,
//! one does in each round.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use crate::batch::{BatchKey, RowCost};
use crate::time::Time;

/// What a row will take, as far as can be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowForecast {
    /// With whom it iterates.
    pub(crate) key: BatchKey,
    /// Rounds until it has iterated for the last time.
    pub(crate) rounds: f64,
    /// What it adds to each of them.
    pub(crate) iterate_seconds: f64,
    /// What is left of its `Begin` work.
    pub(crate) begin_seconds: f64,
    /// Its `Finish`, a pass of its own; 0 if it has none.
    pub(crate) finish_seconds: f64,
    pub(crate) memory_units: u32,
}

/// What is free when the sweep begins, and the rules it follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outlook {
    pub(crate) now: Time,
    /// What a pass takes beside what its rows add; `None` until that has been measured.
    pub(crate) pass_seconds: Option<f64>,
    pub(crate) free_slots: u32,
    pub(crate) free_memory_units: u32,
    /// Nobody joins before the whole batch has ended.
    pub(crate) dynamic: bool,
    /// How long an idle engine will wait for its batch to fill.
    pub(crate) idle_delay: Duration,
}

/// The sweep, as far as it has come: rows are pushed in the order of the queue.
#[derive(Clone, Debug)]
pub(crate) struct Forecast {
    outlook: Outlook,
    /// Every row there ever was in the sweep, those that ran at its beginning first.
    rows: Vec<RowForecast>,
    /// When these end, in seconds from its beginning, as far as the sweep has come.
    running_ends: Vec<Option<f64>>,
    running: usize,
    /// Round after which a row iterates no more, and its place in `rows`; earliest first.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    last_end: u64,
    /// Places of those who only have to finish.
    finishing: VecDeque<usize>,
    /// First round after which the next of them can.
    next_finish: u64,
    /// Where the sweep stands: rounds, and seconds from its beginning; `None` if they can't be told.
    round: u64,
    seconds: Option<f64>,
    /// Who iterates: rows in each group, and what they add to a round.
    groups: BTreeMap<BatchKey, u32>,
    iterate_seconds: f64,
    /// `Begin` work of rows that were let in where the sweep stands.
    begin_seconds: f64,
    /// `Finish` work of all rows in the sweep that have not ended.
    finish_seconds: f64,
}

impl Forecast {
    /// A sweep that begins with these rows running.
    pub(crate) fn new(outlook: Outlook, running: impl Iterator<Item = RowForecast>) -> Self {
        let mut forecast = Forecast {
            outlook,
            rows: Vec::new(),
            running_ends: Vec::new(),
            running: 0,
            ends: BinaryHeap::new(),
            last_end: 0,
            finishing: VecDeque::new(),
            next_finish: 0,
            round: 0,
            seconds: Some(0.0),
            groups: BTreeMap::new(),
            iterate_seconds: 0.0,
            begin_seconds: 0.0,
            finish_seconds: 0.0,
        };
        for row in running {
            forecast.occupy(row);
        }
        forecast.running = forecast.rows.len();
        forecast.running_ends = vec![None; forecast.running];
        if forecast.rows.is_empty() {
            forecast.seconds = Some(outlook.idle_delay.as_secs_f64());
        } else if outlook.dynamic {
            forecast.free_next();
        }
        forecast
    }

    /// Adds a row at the end of the queue. Returns when it starts, if that can be told.
    pub(crate) fn push(&mut self, row: RowForecast) -> Option<Time> {
        while (self.outlook.free_slots == 0 || self.outlook.free_memory_units < row.memory_units)
            && !self.is_over()
        {
            self.free_next();
        }
        self.outlook.free_slots = self.outlook.free_slots.saturating_sub(1);
        self.outlook.free_memory_units = self
            .outlook
            .free_memory_units
            .saturating_sub(row.memory_units);
        self.occupy(row);
        self.time(self.seconds)
    }

    /// Whether a row would start where the sweep stands.
    pub(crate) fn has_room(&self, cost: &RowCost) -> bool {
        self.outlook.free_slots > 0 && self.outlook.free_memory_units >= cost.memory_units
    }

    /// The time at which the sweep stands, if that can be told.
    pub(crate) fn now(&self) -> Option<Time> {
        self.time(self.seconds)
    }

    /// Slots that are free where it stands.
    pub(crate) fn free_slots(&self) -> u32 {
        self.outlook.free_slots
    }

    /// When everybody in the sweep will have ended.
    pub(crate) fn end(&self) -> Option<Time> {
        let seconds = match self.is_over() {
            true => self.seconds?,
            false => self.seconds_at(self.last_end)? + self.finish_seconds,
        };
        self.time(Some(seconds))
    }

    /// Whether a row that ran at the beginning still does where the sweep stands.
    pub(crate) fn is_anybody_running(&self) -> bool {
        self.running > 0
    }

    /// Goes on to `seconds` from the beginning, or to the last round before.
    pub(crate) fn pass_time(&mut self, seconds: f64) {
        loop {
            self.end_due();
            let Some(now) = self.seconds else {
                return;
            };
            let Some(next) = self.next_event() else {
                self.seconds = Some(now.max(seconds));
                return;
            };
            if self.seconds_at(next).is_none_or(|then| then > seconds) {
                break;
            }
            self.advance(next);
        }
        let round_seconds = self.round_seconds().unwrap_or(0.0);
        let left = seconds - self.seconds.unwrap_or(0.0) - self.begin_seconds;
        if left > round_seconds && round_seconds > 0.0 {
            self.advance(self.round + (left / round_seconds) as u64);
        }
    }

    /// Goes on until everybody has ended.
    pub(crate) fn run_out(&mut self) {
        while !self.is_over() {
            self.free_next();
        }
    }

    fn is_over(&self) -> bool {
        self.ends.is_empty() && self.finishing.is_empty()
    }

    /// When the rows that ran at the beginning end, in their order: as time from then.
    pub(crate) fn running_ends(&self) -> impl Iterator<Item = Option<Duration>> {
        let ends = self.running_ends.iter();
        ends.map(|end| Duration::try_from_secs_f64((*end)?).ok())
    }

    /// When a small row that came at the end of the queue would start.
    pub(crate) fn next_start(&self) -> Option<Time> {
        if self.outlook.free_slots > 0 {
            return self.time(self.seconds);
        }
        let finishing = self.finishing.front().map(|&row| (self.next_finish, row));
        let ending = || self.ends.peek().map(|Reverse(end)| *end);
        let (end, finish_seconds) = match (self.outlook.dynamic, finishing.or_else(ending)) {
            (false, Some((end, row))) => (end, self.rows[row].finish_seconds),
            _ => (self.last_end, self.finish_seconds),
        };
        let seconds = self.seconds_at(end)? + finish_seconds;
        self.time(Some(seconds))
    }

    fn occupy(&mut self, row: RowForecast) {
        let place = self.rows.len();
        let end = self.round + row.rounds.ceil() as u64;
        if end == self.round && row.finish_seconds > 0.0 {
            self.finishing.push_back(place);
        } else {
            self.ends.push(Reverse((end, place)));
            self.last_end = self.last_end.max(end);
            *self.groups.entry(row.key).or_default() += 1;
            self.iterate_seconds += row.iterate_seconds;
        }
        self.begin_seconds += row.begin_seconds;
        self.finish_seconds += row.finish_seconds;
        self.rows.push(row);
    }

    /// Goes on to the next time that slots are free: some of them, or with `dynamic` all.
    fn free_next(&mut self) {
        loop {
            let freed = self.end_due();
            match self.next_event() {
                Some(next) if self.outlook.dynamic || !freed => self.advance(next),
                _ => return,
            }
        }
    }

    /// Round of the next end of iterations, or the next `Finish`.
    fn next_event(&self) -> Option<u64> {
        let end = self.ends.peek().map(|Reverse((end, _))| *end);
        let finish = self.finishing.front().map(|_| self.next_finish);
        end.into_iter().chain(finish).min()
    }

    /// Does what is due where the sweep stands. Tells whether a slot is free by that.
    fn end_due(&mut self) -> bool {
        let mut freed = self.end_iterating();
        if self.next_finish <= self.round
            && let Some(place) = self.finishing.pop_front()
        {
            self.finish(place);
            freed = true;
        }
        freed
    }

    /// Takes out those who have iterated for the last time. Tells whether a slot is free by that.
    fn end_iterating(&mut self) -> bool {
        let mut freed = false;
        while let Some(&Reverse((end, place))) = self.ends.peek()
            && end <= self.round
        {
            self.ends.pop();
            self.leave_group(place);
            if self.rows[place].finish_seconds > 0.0 {
                self.finishing.push_back(place);
            } else {
                self.release(place);
                freed = true;
            }
        }
        freed
    }

    fn finish(&mut self, place: usize) {
        let finish_seconds = self.rows[place].finish_seconds;
        self.next_finish = self.round + 1;
        self.finish_seconds -= finish_seconds;
        self.seconds = self.seconds.map(|seconds| seconds + finish_seconds);
        self.release(place);
    }

    fn release(&mut self, place: usize) {
        if let Some(end) = self.running_ends.get_mut(place) {
            *end = self.seconds;
            self.running -= 1;
        }
        self.outlook.free_slots += 1;
        self.outlook.free_memory_units += self.rows[place].memory_units;
    }

    fn leave_group(&mut self, place: usize) {
        let row = &self.rows[place];
        // Not below nothing, by rounding: there are no negative durations.
        self.iterate_seconds = (self.iterate_seconds - row.iterate_seconds).max(0.0);
        if let Some(rows) = self.groups.get_mut(&row.key) {
            *rows -= 1;
            if *rows == 0 {
                self.groups.remove(&row.key);
            }
        }
    }

    /// Lets the time pass to the end of `round`.
    fn advance(&mut self, round: u64) {
        self.seconds = self.seconds_at(round);
        self.round = self.round.max(round);
        self.begin_seconds = 0.0;
    }

    /// When a round will be over if those who iterate go on.
    fn seconds_at(&self, round: u64) -> Option<f64> {
        let rounds = round.saturating_sub(self.round) as f64;
        Some(self.seconds? + self.begin_seconds + rounds * self.round_seconds()?)
    }

    fn round_seconds(&self) -> Option<f64> {
        let passes = self.groups.len() as f64;
        Some(self.outlook.pass_seconds? * passes + self.iterate_seconds)
    }

    fn time(&self, seconds: Option<f64>) -> Option<Time> {
        let after = Duration::try_from_secs_f64(seconds?).ok()?;
        Some(self.outlook.now + after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rounds: f64) -> RowForecast {
        RowForecast {
            key: BatchKey(0),
            rounds,
            iterate_seconds: 0.0,
            begin_seconds: 0.0,
            finish_seconds: 0.0,
            memory_units: 1,
        }
    }

    fn outlook(free_slots: u32, dynamic: bool) -> Outlook {
        Outlook {
            now: Time::from_millis(1_000),
            pass_seconds: Some(0.1),
            free_slots,
            free_memory_units: 100,
            dynamic,
            idle_delay: Duration::from_millis(7),
        }
    }

    /// Starts of `queue`, in milliseconds from now.
    fn check(outlook: Outlook, running: &[f64], queue: &[f64], starts: &[u64]) {
        let mut forecast = Forecast::new(outlook, running.iter().copied().map(row));
        let found: Vec<Time> = queue
            .iter()
            .map(|&iterations| forecast.push(row(iterations)).expect("costs are known"))
            .collect();
        let wanted: Vec<Time> = starts
            .iter()
            .map(|&millis| outlook.now + Duration::from_millis(millis))
            .collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn slots_are_taken_over_as_they_become_free() {
        check(
            outlook(0, false),
            &[10.0, 30.0],
            &[5.0, 5.0, 50.0, 1.0],
            &[1000, 1500, 2000, 3000],
        );
        check(outlook(1, false), &[10.0], &[5.0, 5.0], &[0, 500]);
        check(outlook(2, false), &[], &[5.0, 5.0, 5.0], &[7, 7, 507]);
    }

    #[test]
    fn a_dynamic_batch_ends_as_a_whole() {
        check(
            outlook(0, true),
            &[10.0, 30.0],
            &[5.0, 8.0, 1.0],
            &[3000, 3000, 3800],
        );
        check(outlook(1, true), &[10.0], &[5.0], &[1000]);
    }

    #[test]
    fn prefill_and_memory_count() {
        let mut forecast = Forecast::new(outlook(0, false), [row(10.0)].into_iter());
        let large = RowForecast {
            begin_seconds: 2.0,
            memory_units: 101,
            ..row(1.0)
        };
        assert_eq!(forecast.push(large), Some(Time::from_millis(2_000)));
        assert_eq!(forecast.next_start(), Some(Time::from_millis(4_100)));
        assert_eq!(forecast.push(row(1.0)), Some(Time::from_millis(4_100)));
    }

    #[test]
    fn a_round_has_a_pass_for_each_group_and_lasts_as_long_as_its_rows_take() {
        let of = |key, rounds, iterate_seconds| RowForecast {
            key: BatchKey(key),
            iterate_seconds,
            ..row(rounds)
        };
        let running = [of(1, 10.0, 0.3), of(2, 20.0, 0.5)];
        let mut forecast = Forecast::new(outlook(0, false), running.into_iter());
        let start = |millis| Some(outlook(0, false).now + Duration::from_millis(millis));
        // Two passes, 0.8 s of rows; then the newcomer in the place of the first.
        assert_eq!(forecast.push(of(2, 5.0, 0.1)), start(10_000));
        // One group is left, with 0.6 s of rows.
        assert_eq!(forecast.push(of(2, 1.0, 0.1)), start(13_500));
    }

    #[test]
    fn pictures_are_decoded_one_in_a_round_and_hold_everybody_up() {
        let picture = |rounds| RowForecast {
            finish_seconds: 1.0,
            ..row(rounds)
        };
        let running = [picture(10.0), picture(10.0), row(50.0)];
        let mut forecast = Forecast::new(outlook(0, false), running.into_iter());
        let start = |millis| Some(outlook(0, false).now + Duration::from_millis(millis));
        assert_eq!(forecast.next_start(), start(2_000));
        assert_eq!(forecast.push(row(100.0)), start(2_000));
        // A round of those who still iterate lies between the two.
        assert_eq!(forecast.push(row(100.0)), start(3_100));
        let batch = [picture(10.0), picture(20.0)];
        let mut forecast = Forecast::new(outlook(0, true), batch.into_iter());
        assert_eq!(forecast.push(row(1.0)), start(4_000));
    }

    #[test]
    fn the_ends_of_those_who_run_are_told() {
        let picture = |rounds| RowForecast {
            finish_seconds: 1.0,
            ..row(rounds)
        };
        let running = [row(30.0), picture(10.0), picture(10.0)];
        let mut forecast = Forecast::new(outlook(0, false), running.into_iter());
        forecast.push(row(100.0));
        assert!(forecast.is_anybody_running());
        forecast.run_out();
        assert!(!forecast.is_anybody_running());
        let ends: Vec<_> = forecast.running_ends().map(|end| end.unwrap()).collect();
        // Each waits for both decodings but the first, which has the step in between before it.
        let millis = [5_000, 2_000, 3_100];
        for (end, millis) in ends.into_iter().zip(millis) {
            assert!(
                (end.as_secs_f64() - f64::from(millis) / 1e3).abs() < 1e-9,
                "{end:?}"
            );
        }
    }

    #[test]
    fn without_measured_steps_only_a_free_slot_can_be_told() {
        let unknown = Outlook {
            pass_seconds: None,
            ..outlook(1, false)
        };
        let mut forecast = Forecast::new(unknown, [row(10.0)].into_iter());
        assert_eq!(forecast.push(row(1.0)), Some(unknown.now));
        assert_eq!(forecast.push(row(1.0)), None);
    }
}
