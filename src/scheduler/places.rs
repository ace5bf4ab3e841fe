//! Who stands where in the queue, and when they should start: what the scheduler puts into a
//! [`Forecast`].

use std::time::Duration;

use super::cost::{CostModel, Load};
use super::forecast::{Forecast, Outlook, RowForecast};
use super::queue::Waiting;
use super::{Batching, Scheduler, policy};
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
    /// Everybody's place in the queue. One sweep over the queue: not for every step.
    pub fn survey(&mut self, now: Time) -> Vec<Place> {
        let mut forecast = self.new_forecast(now);
        let places = (0..)
            .zip(self.waiting.iter())
            .map(|(position, waiting)| Place {
                request: waiting.request,
                position,
                eta: push_rows(&mut forecast, &self.costs, waiting),
            })
            .collect();
        self.forecast = Some(forecast);
        places
    }

    /// When a request that came now would start, as of the last survey.
    pub fn newcomer_eta(&self, now: Time) -> Option<Time> {
        let closed = self.config.batching == Batching::Dynamic && self.running_rows() > 0;
        let must_wait = closed || self.ledger.is_full() || self.waiting.requests() > 0;
        let start = match &self.forecast {
            Some(forecast) if must_wait => forecast.next_start()?,
            _ => now + self.idle_delay(now),
        };
        Some(start.max(now))
    }

    /// A forecast with the running rows in it and nobody who waits.
    pub(super) fn new_forecast(&self, now: Time) -> Forecast {
        let capacity = self.capacity();
        let outlook = Outlook {
            now,
            step_seconds: self.full_step_seconds(),
            free_slots: capacity.slots - self.running_rows(),
            free_memory_units: capacity.memory_units - self.memory_units_used(),
            dynamic: self.config.batching == Batching::Dynamic,
            idle_delay: self.idle_delay(now),
        };
        let running = self.running_rows_with_slot().map(|(_, row)| RowForecast {
            iterations: self
                .costs
                .expected_iterations(row.iterations, row.cost.max_iterations),
            solo_seconds: self.costs.begin_seconds(row.begin_left(), row.begin_done)
                + self.costs.finish_seconds(row.cost.finish_work),
            memory_units: row.cost.memory_units,
        });
        Forecast::new(outlook, running)
    }

    /// What an iteration takes once the rows that are here fill the batch.
    fn full_step_seconds(&self) -> Option<f64> {
        if !self.costs.knows_iterations() {
            return None;
        }
        let running = self.running_rows();
        let wanted = self.capacity().slots.min(running + self.waiting_rows());
        let positions: f64 = self
            .running_rows_with_slot()
            .map(|(_, row)| f64::from(row.position()))
            .sum();
        let rows = f64::from(wanted.max(1));
        let load = Load {
            iterate_work: (f64::from(wanted.max(1)) * self.mean_work()) as u32,
            begin_work: 0,
            attended: positions / f64::from(running.max(1)) * rows,
        };
        Some(self.costs.seconds(&load))
    }

    /// Units of an iteration of a running row.
    fn mean_work(&self) -> f64 {
        let rows = self.running_rows();
        let units: f64 = self
            .running_rows_with_slot()
            .map(|(_, row)| f64::from(row.cost.iterate_work))
            .sum();
        match rows {
            0 => 1.0,
            rows => units / f64::from(rows),
        }
    }

    /// How long an idle engine will still wait for its batch to fill.
    fn idle_delay(&self, now: Time) -> Duration {
        if self.running_rows() > 0 {
            return Duration::ZERO;
        }
        match policy::release_time(&self.config, self.capacity(), &self.waiting) {
            Some(release) => release - now,
            None => self.config.max_queue_delay,
        }
    }
}

/// Adds a waiting request's rows to the forecast. Returns when the first of them starts.
pub(super) fn push_rows(
    forecast: &mut Forecast,
    costs: &CostModel,
    waiting: &Waiting,
) -> Option<Time> {
    let row = RowForecast {
        iterations: costs.expected_iterations(0, waiting.cost.max_iterations),
        solo_seconds: costs.begin_seconds(waiting.cost.begin_work, 0)
            + costs.finish_seconds(waiting.cost.finish_work),
        memory_units: waiting.cost.memory_units,
    };
    let first = forecast.push(row);
    for _ in 1..waiting.rows {
        forecast.push(row);
    }
    first
}
