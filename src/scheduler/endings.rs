//! When will a running picture be there? The same forecast that tells those who wait when they start.

use std::time::Duration;

use super::{Batching, Scheduler};
use crate::batch::{DeviceNumber, Slot};
use crate::time::Time;

/// Of those who have not come yet, so many are reckoned with at most.
const MAX_NEWCOMERS: usize = 100;

/// When running rows should have ended, decoding included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endings {
    /// By slot, as time from then.
    after: Vec<Option<Duration>>,
}

impl Endings {
    /// How long the row in `slot` still needs, if that can be told.
    pub fn after(&self, slot: Slot) -> Option<Duration> {
        *self.after.get(slot.index())?
    }
}

impl Scheduler {
    /// When the rows running on a device should have ended, if rows keep coming as they lately did. A sweep over
    /// the queue and some newcomers, as far as they matter by then: for passes that take milliseconds.
    pub fn endings(&self, now: Time, device: DeviceNumber) -> Endings {
        let number = device.index();
        let mut forecast = self.new_forecast(now);
        for (_, waiting) in self.waiting.in_turn(now) {
            if !forecast.is_anybody_running(number) {
                break;
            }
            self.push_row(&mut forecast, waiting.key, &waiting.cost);
        }
        let newcomers = match self.config.batching {
            Batching::Continuous => MAX_NEWCOMERS,
            Batching::Dynamic => 0,
        };
        for (after, key, cost) in self.arrivals.expected(now).take(newcomers) {
            forecast.pass_time(after.as_secs_f64());
            if !forecast.is_anybody_running(number) {
                break;
            }
            self.push_row(&mut forecast, key, cost);
        }
        let own = &self.devices[number];
        let mut after = vec![None; own.ledger.total().slots as usize];
        let slots = own.running_rows_with_slot().map(|(slot, _)| slot);
        for (slot, end) in slots.zip(forecast.running_ends(number)) {
            after[slot.index()] = end;
        }
        Endings { after }
    }
}
