//! The queue played forward over several devices: each row goes to the one that could start it first.
//!
//! One device's sweep is a [`Forecast`]; with one of them this adds nothing to it.

use std::cmp::Reverse;
use std::time::Duration;

use super::forecast::{Forecast, RowForecast};
use crate::batch::RowCost;
use crate::time::Time;

/// The sweeps of all open devices, and which device each is of.
#[derive(Clone, Debug)]
pub(crate) struct Forecasts {
    sweeps: Vec<(usize, Forecast)>,
}

impl Forecasts {
    pub(crate) fn new(sweeps: Vec<(usize, Forecast)>) -> Self {
        Forecasts { sweeps }
    }

    /// Adds a row at the end of the queue: `row_on` tells what it takes on each device. Returns when it starts, if
    /// that can be told.
    pub(crate) fn push(
        &mut self,
        cost: &RowCost,
        row_on: impl Fn(usize) -> RowForecast,
    ) -> Option<Time> {
        let (device, sweep) = match &mut self.sweeps[..] {
            [only] => only,
            several => several
                .iter_mut()
                .min_by_key(|(_, sweep)| earliest(sweep, cost))?,
        };
        sweep.push(row_on(*device))
    }

    /// Lets a batch that nobody can join later begin, on the device whose own ends first: others are full or
    /// have not begun. Returns which sweep that is.
    pub(crate) fn begin_batch(&mut self) -> Option<usize> {
        let ends = self.sweeps.iter().enumerate();
        let (place, _) = ends.min_by_key(|(_, (_, sweep))| or_last(sweep.end()))?;
        self.sweeps[place].1.run_out();
        Some(place)
    }

    /// Adds a row to the batch that has begun in this sweep.
    pub(crate) fn push_to(
        &mut self,
        place: usize,
        row_on: impl Fn(usize) -> RowForecast,
    ) -> Option<Time> {
        let (device, sweep) = &mut self.sweeps[place];
        sweep.push(row_on(*device))
    }

    /// Whether a row would start where this sweep stands.
    pub(crate) fn has_room(&self, place: usize, cost: &RowCost) -> bool {
        self.sweeps[place].1.has_room(cost)
    }

    /// When a small row that came at the end of the queue would start.
    pub(crate) fn next_start(&self) -> Option<Time> {
        let starts = self.sweeps.iter().map(|(_, sweep)| sweep.next_start());
        starts.min_by_key(|start| or_last(*start))?
    }

    /// Whether a row that ran on this device at the beginning still does where its sweep stands.
    pub(crate) fn is_anybody_running(&self, device: usize) -> bool {
        let mut of_device = self.sweeps.iter().filter(|(number, _)| *number == device);
        of_device.any(|(_, sweep)| sweep.is_anybody_running())
    }

    /// Goes on to `seconds` from the beginning, or to the last round before.
    pub(crate) fn pass_time(&mut self, seconds: f64) {
        for (_, sweep) in &mut self.sweeps {
            sweep.pass_time(seconds);
        }
    }

    /// Goes on until everybody has ended. Returns when the rows that ran on this device at the beginning end, in
    /// their order.
    pub(crate) fn running_ends(&mut self, device: usize) -> Vec<Option<Duration>> {
        let mut of_device = self.sweeps.iter_mut();
        let found = of_device.find(|(number, _)| *number == device);
        found.map_or_else(Vec::new, |(_, sweep)| {
            sweep.run_out();
            sweep.running_ends().collect()
        })
    }
}

/// What cannot be told comes after all that can.
fn or_last(time: Option<Time>) -> Time {
    time.unwrap_or(Time::FAR_FUTURE)
}

/// When a device could start a row; of two that could at the same time, the one with more room.
fn earliest(sweep: &Forecast, cost: &RowCost) -> (Time, Reverse<u32>) {
    let start = match sweep.has_room(cost) {
        true => sweep.now(),
        false => sweep.next_start(),
    };
    (or_last(start), Reverse(sweep.free_slots()))
}
