//! What the engines of a model share: the scheduler, the requests, and which of them is in which slot.
//!
//! Behind one lock. An engine holds it while it decides and while it writes down what came of a pass, never
//! during one. A model is touched by its own thread only: a row that ends while another engine has the desk leaves
//! its slot on a list, and its own engine clears it before it plans again.

use std::collections::HashMap;
use std::sync::Arc;

use super::request::Request;
use super::{DeviceSnapshot, EngineConfig, EngineState, Snapshot};
use crate::batch::{Capacity, DeviceNumber, Slot};
use crate::job::{RequestId, RowId};
use crate::model::CacheReport;
use crate::scheduler::Scheduler;
use crate::time::Time;

/// See the module's documentation.
pub(super) struct Desk {
    pub(super) scheduler: Scheduler,
    pub(super) requests: HashMap<RequestId, Request>,
    devices: Vec<DeviceDesk>,
    pub(super) next_survey: Time,
    /// Engines whose model has not gone.
    pub(super) threads: usize,
    /// How the last device ended.
    pub(super) ending: Option<EngineState>,
}

/// What belongs to one device.
struct DeviceDesk {
    name: Arc<str>,
    state: EngineState,
    /// The row in each slot.
    rows: Vec<Option<RowId>>,
    /// Slots whose rows have ended behind its engine's back.
    left: Vec<Slot>,
    cache: CacheReport,
}

impl Desk {
    /// Nobody is there yet, no device has a model.
    pub(super) fn new(config: &EngineConfig, names: &[Arc<str>]) -> Self {
        let device = |name: &Arc<str>| DeviceDesk {
            name: Arc::clone(name),
            state: EngineState::Loading,
            rows: Vec::new(),
            left: Vec::new(),
            cache: CacheReport::default(),
        };
        Desk {
            scheduler: Scheduler::with_devices(config.scheduler.clone(), names.len() as u32),
            requests: HashMap::new(),
            devices: names.iter().map(device).collect(),
            next_survey: Time::ZERO,
            threads: names.len(),
            ending: None,
        }
    }

    /// A device has its model. Tells whether all have theirs.
    pub(super) fn open(&mut self, number: DeviceNumber, capacity: Capacity, work: u32) -> bool {
        self.scheduler.open(number, capacity, work);
        let slots = self.scheduler.capacity_of(number).slots as usize;
        let device = &mut self.devices[number.index()];
        device.rows = vec![None; slots];
        device.state = EngineState::Ready;
        let loading = |device: &DeviceDesk| device.state == EngineState::Loading;
        !self.devices.iter().any(loading)
    }

    /// A device has ended so. Returns the requests that end with it.
    pub(super) fn close(&mut self, number: DeviceNumber, state: EngineState) -> Vec<RequestId> {
        let mut ended = self.scheduler.close(number);
        let device = &mut self.devices[number.index()];
        device.state = state;
        // What a pass had ended when its engine died, and nobody has written down.
        let rows = device.rows.drain(..).flatten();
        ended.extend(rows.map(|row| row.request));
        device.left.clear();
        device.cache = CacheReport::default();
        ended
    }

    /// Whether another device than this lives, or will.
    pub(super) fn has_others(&self, number: DeviceNumber) -> bool {
        let devices = self.devices.iter().enumerate();
        devices.into_iter().any(|(other, device)| {
            other != number.index()
                && matches!(device.state, EngineState::Loading | EngineState::Ready)
        })
    }

    /// Whether there are several: with one, nobody asks where a row is.
    pub(super) fn are_several(&self) -> bool {
        self.devices.len() > 1
    }

    /// A device's rows, by slot.
    pub(super) fn rows_of(&mut self, number: DeviceNumber) -> &mut Vec<Option<RowId>> {
        &mut self.devices[number.index()].rows
    }

    /// The row in a device's slot.
    pub(super) fn row_in(&self, number: DeviceNumber, slot: Slot) -> Option<RowId> {
        self.devices[number.index()].rows[slot.index()]
    }

    /// A device's slots that a request's rows have.
    pub(super) fn slots_of(&self, number: DeviceNumber, id: RequestId) -> Vec<Slot> {
        let rows = &self.devices[number.index()].rows;
        let slots = (0..).map(Slot).zip(rows);
        let own = slots.filter(|(_, row)| row.is_some_and(|row| row.request == id));
        own.map(|(slot, _)| slot).collect()
    }

    /// A request ends by this device's engine: its rows on others leave their slots.
    pub(super) fn leave_others(&mut self, number: DeviceNumber, id: RequestId) {
        let devices = self.devices.iter_mut().enumerate();
        for (_, device) in devices.filter(|(other, _)| *other != number.index()) {
            for (slot, row) in (0..).map(Slot).zip(&mut device.rows) {
                if row.is_some_and(|row| row.request == id) {
                    *row = None;
                    device.left.push(slot);
                }
            }
        }
    }

    /// A device's slots that were left so since the last look.
    pub(super) fn take_left(&mut self, number: DeviceNumber) -> Vec<Slot> {
        std::mem::take(&mut self.devices[number.index()].left)
    }

    /// How all are doing.
    pub(super) fn snapshot(&self, now: Time) -> Snapshot {
        let scheduler = &self.scheduler;
        let capacity = scheduler.capacity();
        let devices: Vec<DeviceSnapshot> = (0..)
            .map(DeviceNumber)
            .zip(&self.devices)
            .map(|(number, device)| device.snapshot(number, scheduler))
            .collect();
        let sum = |part: fn(&CacheReport) -> u64| -> u64 {
            devices.iter().map(|device| part(&device.cache)).sum()
        };
        Snapshot {
            waiting_requests: scheduler.waiting_requests(),
            waiting_by_priority: scheduler.waiting_by_priority(),
            waiting_rows: scheduler.waiting_rows(),
            running_rows: scheduler.running_rows(),
            slots: capacity.slots,
            memory_units_used: scheduler.memory_units_used(),
            memory_units_total: capacity.memory_units,
            cache: CacheReport {
                memory_units: sum(|cache| cache.memory_units.into()) as u32,
                evicted: sum(|cache| cache.evicted),
            },
            queued_tokens: self.requests.values().map(Request::queued_tokens).sum(),
            eta: scheduler.newcomer_eta(now).map(|eta| eta - now),
            devices,
        }
    }

    /// Takes down how a device's prefix cache stands.
    pub(super) fn note_cache(&mut self, number: DeviceNumber, cache: CacheReport) {
        self.devices[number.index()].cache = cache;
    }
}

impl DeviceDesk {
    fn snapshot(&self, number: DeviceNumber, scheduler: &Scheduler) -> DeviceSnapshot {
        let capacity = scheduler.capacity_of(number);
        DeviceSnapshot {
            name: Arc::clone(&self.name),
            state: self.state.clone(),
            running_rows: scheduler.running_rows_on(number),
            slots: capacity.slots,
            memory_units_used: scheduler.memory_units_used_on(number),
            memory_units_total: capacity.memory_units,
            cache: self.cache,
        }
    }
}
