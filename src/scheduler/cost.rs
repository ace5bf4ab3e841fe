//! What a pass costs in seconds: a linear model, fitted to the passes just run.
//!
//! A pass takes so much by itself, so much for each unit of iterating rows, of `Begin` work and of `Finish`
//! work, and for each earlier position that a unit attends to. Least squares with exponential
//! forgetting finds the five prices. Passes with `Begin` work, those that finish a row and the others
//! are forgotten separately, so that a thousand steps do not wipe out what a prompt or a picture's
//! decoding costs.

use std::time::Duration;

/// Prices fitted: pass, unit of iterating rows, unit of `Begin` work, thousand attended positions, unit
/// of `Finish` work.
const TERMS: usize = 5;
const PASS: usize = 0;
const ITERATE: usize = 1;
const WORK: usize = 2;
const ATTENDED: usize = 3;
const FINISH: usize = 4;

/// Weight that a sample keeps when the next of its kind comes: some 30 samples count.
const MEMORY: f64 = 0.97;
/// Pulls prices that no sample speaks of to zero; far below the weight of one sample. The pass's own the
/// least: while all passes had one row, what it took is taken for the price of a pass and not of a row,
/// as it is where batching pays.
const RIDGE: [f64; TERMS] = [1e-5, 1e-4, 1e-4, 1e-4, 1e-4];
/// Once this many samples are in, one that is far off is not believed in full.
const TRUSTED_SAMPLES: u32 = 8;
/// How far off: the machine did something else meanwhile, or a new regime begins.
const MAX_SURPRISE: f64 = 4.0;
/// The first chunk is twice this, before anything is known of what a unit costs.
const FIRST_BEGIN_WORK: u32 = 16;
/// No pass does more, however cheap it seems: activations take memory, too.
pub const MAX_BEGIN_WORK: u32 = 8_192;

/// What a pass does, in the terms that its time depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) iterate_work: u32,
    pub(crate) begin_work: u32,
    pub(crate) finish_work: u32,
    /// Sum over all computed positions of the positions before them.
    pub(crate) attended: f64,
}

impl Load {
    /// One more row that iterates with `work` units, at `position`.
    pub(crate) fn iterate(&mut self, work: u32, position: u32) {
        self.iterate_work += work;
        self.attended += f64::from(position);
    }

    /// A row that finishes with `work` units.
    pub(crate) fn finish(&mut self, work: u32) {
        self.finish_work += work;
    }

    /// `work` units of `Begin` from `position` on.
    pub(crate) fn begin(&mut self, work: u32, position: u32) {
        let work_units = f64::from(work);
        self.begin_work += work;
        self.attended += work_units * (f64::from(position) + work_units / 2.0);
    }

    fn terms(&self) -> [f64; TERMS] {
        [
            1.0,
            f64::from(self.iterate_work),
            f64::from(self.begin_work),
            self.attended / 1000.0,
            f64::from(self.finish_work),
        ]
    }
}

/// Sums of squares and products, the older ones fading.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    squares: [[f64; TERMS]; TERMS],
    products: [f64; TERMS],
    samples: u32,
}

impl Moments {
    fn add(&mut self, terms: [f64; TERMS], seconds: f64) {
        self.samples = self.samples.saturating_add(1);
        for (i, term) in terms.into_iter().enumerate() {
            for (sum, other) in self.squares[i].iter_mut().zip(terms) {
                *sum = *sum * MEMORY + term * other;
            }
            self.products[i] = self.products[i] * MEMORY + term * seconds;
        }
    }
}

/// The measured cost model.
#[derive(Clone, Debug, Default)]
pub(crate) struct CostModel {
    /// Of passes that only iterate, of passes with `Begin` work, and of passes that finish a row.
    iterating: Moments,
    beginning: Moments,
    finishing: Moments,
    prices: [f64; TERMS],
    /// The most `Begin` work that a measured pass did.
    largest_begin_work: u32,
    /// Iterations that ended rows took, and those they might have taken; fading.
    iterations_used: f64,
    iterations_allowed: f64,
}

impl CostModel {
    /// A pass with this load took this long.
    pub(crate) fn learn(&mut self, load: &Load, took: Duration) {
        let mut seconds = took.as_secs_f64();
        let moments = match (load.begin_work, load.finish_work) {
            (0, 0) => &mut self.iterating,
            (_, 0) => &mut self.beginning,
            (_, _) => &mut self.finishing,
        };
        if moments.samples >= TRUSTED_SAMPLES {
            let expected = dot(&self.prices, &load.terms());
            seconds = seconds.min(expected * MAX_SURPRISE + 1e-6);
        }
        moments.add(load.terms(), seconds);
        self.largest_begin_work = self.largest_begin_work.max(load.begin_work);
        self.prices = fit(&[&self.iterating, &self.beginning, &self.finishing]);
    }

    /// A row ended by itself after `used` of `allowed` iterations.
    pub(crate) fn learn_length(&mut self, used: u32, allowed: u32) {
        self.iterations_used = self.iterations_used * MEMORY + f64::from(used);
        self.iterations_allowed = self.iterations_allowed * MEMORY + f64::from(allowed);
    }

    /// Seconds that a pass with this load should take.
    pub(crate) fn seconds(&self, load: &Load) -> f64 {
        dot(&self.prices, &load.terms())
    }

    /// Seconds that a pass takes beside what its rows add.
    pub(crate) fn pass_seconds(&self) -> f64 {
        self.prices[PASS]
    }

    /// Seconds that a row adds to a pass in which it iterates with `work` units at `position`.
    pub(crate) fn iterate_seconds(&self, work: u32, position: f64) -> f64 {
        self.prices[ITERATE] * f64::from(work) + self.prices[ATTENDED] * position / 1000.0
    }

    /// Seconds that `Begin` work adds to a pass.
    pub(crate) fn begin_seconds(&self, work: u32, position: u32) -> f64 {
        let mut load = Load::default();
        load.begin(work, position);
        self.seconds(&load) - self.prices[PASS]
    }

    /// Seconds that a row's `Finish` takes, in a pass of its own.
    pub(crate) fn finish_seconds(&self, work: u32) -> f64 {
        // Until one has been seen, the model's word is taken: its units are those of an iteration.
        let price = match self.finishing.samples {
            0 => self.prices[ITERATE],
            _ => self.prices[FINISH],
        };
        match work {
            0 => 0.0,
            work => self.prices[PASS] + price * f64::from(work),
        }
    }

    /// How much `Begin` work from `position` on fits into `seconds`.
    pub(crate) fn begin_work_within(&self, seconds: f64, position: u32) -> u32 {
        // price * work + curve * work^2 = seconds
        let price = self.prices[WORK] + self.prices[ATTENDED] * f64::from(position) / 1000.0;
        let curve = self.prices[ATTENDED] / 2000.0;
        let seconds = seconds.max(0.0);
        let root = (price * price + 4.0 * curve * seconds).sqrt();
        // The usual formula times its conjugate: sound for a curve of zero. A price of zero gives
        // infinity (or NaN for no time at all), which the casts turn into the largest (zero).
        let work = 2.0 * seconds / (price + root);
        work as u32
    }

    /// The most `Begin` work that a pass may do, whatever the prices say: twice what has been
    /// measured, so that nothing is extrapolated far.
    pub(crate) fn begin_work_limit(&self) -> u32 {
        let known = self.largest_begin_work.max(FIRST_BEGIN_WORK);
        known.saturating_mul(2).min(MAX_BEGIN_WORK)
    }

    /// Whether it can tell what an iteration costs.
    pub(crate) fn knows_iterations(&self) -> bool {
        self.iterating.samples > 0
    }

    /// Iterations that a row is still good for, after `done` of `allowed`.
    pub(crate) fn expected_iterations(&self, done: u32, allowed: u32) -> f64 {
        let share = match self.iterations_allowed > 0.0 {
            true => self.iterations_used / self.iterations_allowed,
            false => 1.0,
        };
        let left = f64::from(allowed.saturating_sub(done));
        let expected = share * f64::from(allowed) - f64::from(done);
        // A row that has outlived the expectation ends somewhere in what is left to it.
        let overdue = left * share / 2.0;
        expected.max(overdue).min(left)
    }
}

/// The prices that explain all kinds of passes best, none of them negative.
fn fit(kinds: &[&Moments]) -> [f64; TERMS] {
    let mut fixed_at_zero = [false; TERMS];
    loop {
        let prices = solve(kinds, &fixed_at_zero);
        let lowest = (0..TERMS)
            .filter(|&i| prices[i] < 0.0)
            .min_by(|&a, &b| prices[a].total_cmp(&prices[b]));
        match lowest {
            Some(i) => fixed_at_zero[i] = true,
            None => return prices,
        }
    }
}

/// Solves the normal equations by elimination. They are symmetric and, thanks to the ridge, positive
/// definite, so no pivoting is needed.
fn solve(kinds: &[&Moments], fixed_at_zero: &[bool; TERMS]) -> [f64; TERMS] {
    let mut matrix = [[0.0; TERMS + 1]; TERMS];
    for i in 0..TERMS {
        if fixed_at_zero[i] {
            matrix[i][i] = 1.0;
            continue;
        }
        for j in (0..TERMS).filter(|&j| !fixed_at_zero[j]) {
            matrix[i][j] = kinds.iter().map(|kind| kind.squares[i][j]).sum();
        }
        matrix[i][i] += RIDGE[i];
        matrix[i][TERMS] = kinds.iter().map(|kind| kind.products[i]).sum();
    }
    for pivot in 0..TERMS {
        let row = matrix[pivot];
        for other in matrix.iter_mut().skip(pivot + 1) {
            let factor = other[pivot] / row[pivot];
            for (value, above) in other.iter_mut().zip(row) {
                *value -= factor * above;
            }
        }
    }
    let mut prices = [0.0; TERMS];
    for i in (0..TERMS).rev() {
        let known: f64 = (i + 1..TERMS).map(|j| matrix[i][j] * prices[j]).sum();
        prices[i] = (matrix[i][TERMS] - known) / matrix[i][i];
    }
    prices
}

fn dot(a: &[f64; TERMS], b: &[f64; TERMS]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these prices, in microseconds.
    fn truth(load: &Load) -> Duration {
        let [_, rows, work, attended, finish] = load.terms();
        let begin_and_finish = 1_500.0 * work + 4_000.0 * finish;
        Duration::from_secs_f64((8_000.0 + 700.0 * rows + 90.0 * attended + begin_and_finish) / 1e6)
    }

    fn load(iterate_rows: u32, begin_work: u32, position: u32) -> Load {
        let mut load = Load::default();
        for _ in 0..iterate_rows {
            load.iterate(1, position);
        }
        if begin_work > 0 {
            load.begin(begin_work, position);
        }
        load
    }

    fn taught() -> CostModel {
        let mut costs = CostModel::default();
        for i in 0..40 {
            for sample in [load(1 + i % 8, 0, 20 * i), load(i % 8, 8 + i, 10 * i)] {
                costs.learn(&sample, truth(&sample));
            }
        }
        costs
    }

    fn check_close(found: f64, wanted: f64) {
        let error = (found / wanted - 1.0).abs();
        assert!(error < 0.05, "found {found}, wanted {wanted}");
    }

    #[test]
    fn prices_are_found() {
        let costs = taught();
        for sample in [load(4, 0, 300), load(8, 40, 200), load(0, 30, 100)] {
            check_close(costs.seconds(&sample), truth(&sample).as_secs_f64());
        }
        let work = costs.begin_work_within(0.1, 100);
        check_close(costs.begin_seconds(work, 100), 0.1);
    }

    #[test]
    fn a_long_time_without_prompts_does_not_change_what_they_cost() {
        let mut costs = taught();
        let before = costs.begin_seconds(30, 0);
        for _ in 0..5_000 {
            let sample = load(4, 0, 100);
            costs.learn(&sample, truth(&sample));
        }
        check_close(costs.begin_seconds(30, 0), before);
    }

    #[test]
    fn a_pictures_decoding_has_its_own_price_and_until_it_is_seen_that_of_a_step() {
        let mut costs = taught();
        check_close(costs.finish_seconds(10), 0.008 + 10.0 * 0.0007);
        for _ in 0..10 {
            let mut sample = Load::default();
            sample.finish(10);
            costs.learn(&sample, truth(&sample));
        }
        check_close(costs.finish_seconds(10), 0.008 + 10.0 * 0.004);
        check_close(
            costs.iterate_seconds(3, 2_000.0),
            3.0 * 0.0007 + 2.0 * 0.00009,
        );
        for _ in 0..5_000 {
            let sample = load(4, 0, 100);
            costs.learn(&sample, truth(&sample));
        }
        check_close(costs.finish_seconds(10), 0.008 + 10.0 * 0.004);
    }

    #[test]
    fn a_new_regime_is_learnt_and_a_hiccup_is_not() {
        let mut costs = taught();
        let sample = load(4, 0, 100);
        let before = costs.seconds(&sample);
        costs.learn(&sample, Duration::from_secs(30));
        assert!(costs.seconds(&sample) < before * 1.5);
        let mixed = load(4, 20, 100);
        for _ in 0..200 {
            costs.learn(&sample, 10 * truth(&sample));
            costs.learn(&mixed, 10 * truth(&mixed));
        }
        check_close(costs.seconds(&sample), 10.0 * truth(&sample).as_secs_f64());
    }

    #[test]
    fn chunks_grow_no_faster_than_what_was_measured() {
        let mut costs = CostModel::default();
        assert_eq!(costs.begin_work_limit(), 32);
        costs.learn(&load(0, 32, 0), Duration::ZERO);
        assert_eq!(costs.begin_work_limit(), 64);
        assert_eq!(costs.begin_work_within(1.0, 0), u32::MAX);
        assert_eq!(costs.begin_work_within(0.0, 0), 0);
        costs.learn(&load(0, 1_000_000, 0), Duration::ZERO);
        assert_eq!(costs.begin_work_limit(), MAX_BEGIN_WORK);
    }

    #[test]
    fn lengths_are_learnt() {
        let mut costs = CostModel::default();
        assert_eq!(costs.expected_iterations(0, 100), 100.0);
        for _ in 0..100 {
            costs.learn_length(20, 100);
        }
        check_close(costs.expected_iterations(0, 100), 20.0);
        check_close(costs.expected_iterations(15, 100), 8.5);
        check_close(costs.expected_iterations(60, 100), 4.0);
        assert_eq!(costs.expected_iterations(100, 100), 0.0);
    }
}
