//! Who stands where in the queue, and when they should start: what the scheduler puts into a
//! [`Forecast`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::cost::CostModel;
use super::device::Device;
use super::forecast::{Forecast, Outlook, RowForecast};
use super::forecasts::Forecasts;
use super::queue::Waiting;
use super::running::Running;
use super::{Batching, Scheduler, policy};
use crate::batch::{BatchKey, Phase, RowCost};
use crate::job::RequestId;
use crate::time::Time;

/// Where a request stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The request.
    pub request: RequestId,
    /// Requests ahead of it.
    pub position: u32,
    /// When its next row should start, if that can be told.
    pub eta: Option<Time>,
}

impl Scheduler {
    /// Everybody's place in the queue, in the order of their turns. One sweep over the queue: not for every step.
    pub fn survey(&mut self, now: Time) -> Vec<Place> {
        let mut forecast = self.new_forecast(now);
        let mut newcomer_start = None;
        let mut places = Vec::with_capacity(self.waiting.requests());
        let starts = self.starts_of_overtaken(now);
        let etas = match self.batches_are_sorted() {
            true => Some(self.push_batches(now, &mut forecast)),
            false => None,
        };
        for (number, (row, waiting)) in self.waiting.in_turn(now).enumerate() {
            if newcomer_start.is_none() && self.waiting.newcomer_precedes(&row) {
                newcomer_start = Some(forecast.next_start());
            }
            let eta = match &etas {
                Some(etas) => etas[number],
                None => self.push_row(&mut forecast, waiting.key, &waiting.cost),
            };
            if row.is_first {
                let request = waiting.request;
                let may_be_overtaken = self.waiting.may_be_overtaken(now, &row);
                let start = starts.get(&request).filter(|_| may_be_overtaken);
                places.push(Place {
                    request,
                    position: places.len() as u32,
                    eta: start.copied().or(eta),
                });
            }
        }
        self.newcomer_start = newcomer_start.unwrap_or_else(|| forecast.next_start());
        self.forecast = Some(forecast);
        places
    }

    /// Puts a request into the queue and tells its place.
    pub(super) fn place(&mut self, now: Time, waiting: Waiting) -> Place {
        let (request, ahead) = (waiting.request, self.waiting.requests() as u32);
        let known = self.forecast.take().filter(|_| ahead > 0);
        let mut forecast = match known {
            Some(forecast) => forecast,
            None => self.new_forecast(now),
        };
        let last_eta = self.push_row(&mut forecast, waiting.key, &waiting.cost);
        for _ in 1..waiting.rows {
            self.push_row(&mut forecast, waiting.key, &waiting.cost);
        }
        self.waiting.push(waiting);
        if self.batches_are_sorted() {
            let places = self.survey(now);
            let own = places.into_iter().find(|place| place.request == request);
            return own.unwrap_or(Place {
                request,
                position: ahead,
                eta: None,
            });
        }
        // Whoever comes after all others is added to what has been reckoned.
        let overtaken = self.start_behind_overtakers(now, request);
        let place = match self.waiting.is_last(now, request) {
            true => {
                if ahead == 0 || self.waiting.newcomer_is_last() {
                    self.newcomer_start = forecast.next_start();
                }
                Place {
                    request,
                    position: ahead,
                    eta: overtaken.or(last_eta),
                }
            }
            false => {
                let place = self.place_among(now, request);
                let eta = overtaken.or(place.eta);
                Place { eta, ..place }
            }
        };
        self.forecast = Some(forecast);
        place
    }

    /// The place of a request that others come after: what is reckoned ends with it.
    fn place_among(&mut self, now: Time, request: RequestId) -> Place {
        let mut forecast = self.new_forecast(now);
        let (mut position, mut eta) = (0, None);
        for (row, waiting) in self.waiting.in_turn(now) {
            let start = self.push_row(&mut forecast, waiting.key, &waiting.cost);
            if waiting.request == request {
                eta = start;
                break;
            }
            position += u32::from(row.is_first);
        }
        if self.waiting.is_newcomers(request) {
            self.newcomer_start = forecast.next_start();
        }
        Place {
            request,
            position,
            eta,
        }
    }

    /// Adds a row that has not begun to the forecast. Returns when it starts.
    pub(super) fn push_row(
        &self,
        forecast: &mut Forecasts,
        key: BatchKey,
        cost: &RowCost,
    ) -> Option<Time> {
        forecast.push(cost, |device| self.newcomer_on(device, key, cost))
    }

    fn newcomer_on(&self, device: usize, key: BatchKey, cost: &RowCost) -> RowForecast {
        forecast_newcomer(&self.devices[device].costs, key, cost)
    }

    /// Whether those who wait do not start in the order of their turns: a batch that nobody can
    /// join later is made of rows with one key.
    pub(super) fn batches_are_sorted(&self) -> bool {
        self.config.batching == Batching::Dynamic && self.waiting.keys() > 1
    }

    /// Adds those who wait to the forecast, batch by batch, as they will be taken: those with the key
    /// of whose turn it is. Returns when each row starts, in the order of turns.
    fn push_batches(&self, now: Time, forecast: &mut Forecasts) -> Vec<Option<Time>> {
        let queue: Vec<&Waiting> = self
            .waiting
            .in_turn(now)
            .map(|(_, waiting)| waiting)
            .collect();
        let mut lines: BTreeMap<BatchKey, VecDeque<usize>> = BTreeMap::new();
        for (place, waiting) in queue.iter().enumerate() {
            lines.entry(waiting.key).or_default().push_back(place);
        }
        let mut etas = vec![None; queue.len()];
        for first in 0..queue.len() {
            let Some(line) = lines.get_mut(&queue[first].key) else {
                continue;
            };
            if line.front() != Some(&first) {
                continue;
            }
            let Some(sweep) = forecast.begin_batch() else {
                return etas;
            };
            while let Some(place) = line.pop_front() {
                let row = queue[place];
                etas[place] =
                    forecast.push_to(sweep, |device| self.newcomer_on(device, row.key, &row.cost));
                let next = line.front();
                if !next.is_some_and(|&next| forecast.has_room(sweep, &queue[next].cost)) {
                    break;
                }
            }
        }
        etas
    }

    /// When a request that came now would start, as of the last survey.
    pub fn newcomer_eta(&self, now: Time) -> Option<Time> {
        let is_closed = |device: &Device| {
            let batch_runs = self.config.batching == Batching::Dynamic && !device.is_idle();
            batch_runs || device.ledger.is_full()
        };
        self.open_devices().next()?;
        let all_closed = self.open_devices().all(|(_, device)| is_closed(device));
        let must_wait = all_closed || self.waiting.requests() > 0;
        let start = match &self.forecast {
            Some(_) if must_wait => self.newcomer_start?,
            _ => now + self.least_delay(now),
        };
        Some(start.max(now))
    }

    /// Forecasts with the running rows in them and nobody who waits.
    pub(super) fn new_forecast(&self, now: Time) -> Forecasts {
        let sweeps = self.open_devices();
        Forecasts::new(
            sweeps
                .map(|(number, device)| (number, self.forecast_of(now, device)))
                .collect(),
        )
    }

    fn forecast_of(&self, now: Time, device: &Device) -> Forecast {
        let (capacity, costs) = (device.ledger.total(), &device.costs);
        let outlook = Outlook {
            now,
            pass_seconds: costs.knows_iterations().then(|| costs.pass_seconds()),
            free_slots: capacity.slots - device.slots_used(),
            free_memory_units: capacity.memory_units - device.ledger.memory_units_used(),
            dynamic: self.config.batching == Batching::Dynamic,
            idle_delay: self.idle_delay(now, device),
        };
        let running = device.running_rows_with_slot();
        Forecast::new(
            outlook,
            running.map(|(_, row)| forecast_running(costs, row)),
        )
    }

    /// How long an idle device will still wait for its batch to fill.
    fn idle_delay(&self, now: Time, device: &Device) -> Duration {
        if !self.waits_for_a_batch(device) {
            return Duration::ZERO;
        }
        match policy::release_time(&self.config, device.ledger.total(), &self.waiting) {
            Some(release) => release - now,
            None => self.config.max_queue_delay,
        }
    }

    /// The shortest such delay of any device that could begin with something now.
    fn least_delay(&self, now: Time) -> Duration {
        let open = self.open_devices().map(|(_, device)| device);
        let takes =
            open.filter(|device| self.config.batching == Batching::Continuous || device.is_idle());
        let delays = takes.map(|device| self.idle_delay(now, device));
        delays.min().unwrap_or_default()
    }
}

/// The forecast of a row that has not begun.
fn forecast_newcomer(costs: &CostModel, key: BatchKey, cost: &RowCost) -> RowForecast {
    let iterations = costs.expected_iterations(0, cost.max_iterations);
    forecast(costs, key, cost, 0, iterations + begin_rounds(cost))
}

fn forecast_running(costs: &CostModel, row: &Running) -> RowForecast {
    let iterations = costs.expected_iterations(row.iterations, row.cost.max_iterations);
    let rounds = match row.phase {
        Phase::Begin => iterations + begin_rounds(&row.cost),
        Phase::Iterate => iterations,
        Phase::Finish => 0.0,
    };
    RowForecast {
        begin_seconds: costs.begin_seconds(row.begin_left(), row.begin_done),
        ..forecast(costs, row.key, &row.cost, row.iterations, rounds)
    }
}

/// The forecast of a row that has iterated so often and has so many rounds before it.
fn forecast(
    costs: &CostModel,
    key: BatchKey,
    cost: &RowCost,
    iterations: u32,
    rounds: f64,
) -> RowForecast {
    // On average over its rounds. A picture's steps attend to nothing before them.
    let position = match cost.finish_work {
        0 => f64::from(cost.begin_work) + f64::from(iterations) + rounds / 2.0,
        _ => 0.0,
    };
    RowForecast {
        key,
        rounds,
        iterate_seconds: costs.iterate_seconds(cost.iterate_work, position),
        begin_seconds: costs.begin_seconds(cost.begin_work, 0),
        finish_seconds: costs.finish_seconds(cost.finish_work),
        memory_units: cost.memory_units,
    }
}

/// Rounds that `Begin` takes: none for a text, whose first token comes of it.
fn begin_rounds(cost: &RowCost) -> f64 {
    f64::from(u8::from(cost.finish_work > 0))
}
