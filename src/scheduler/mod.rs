//! Who runs next: a pure state machine, told the time, answering with data.
//!
//! A request is added with all its rows; rows wait for their user's turn, are admitted to a slot with their whole memory reserved (so nothing is preempted later), do their `Begin` work in
//! chunks, iterate, and end. The cycle is [`schedule`](Scheduler::schedule), one forward pass by
//! somebody else, [`update`](Scheduler::update). No threads, clock, channels, tensors or logging here.
//!
//! Several devices may serve one queue: each has a cycle of its own, and takes rows when it has room for them. One
//! device is the rule, and several are that rule repeated ([`device`]).
//!
//! Four decisions are made, each in one place: who may join and how much time `Begin` work may take
//! in a pass ([`policy`]), which group of rows that can share a pass has the next one ([`turns`]), and of several
//! devices which should have a row ([`placement`]).

mod arrivals;
mod capacity;
mod cost;
mod device;
mod endings;
mod fairness;
mod forecast;
mod forecasts;
mod overtakers;
mod placement;
mod places;
mod policy;
mod queue;
mod room;
mod running;
mod turns;

use std::collections::HashMap;
use std::time::Duration;

use crate::batch::{
    Admission, BatchKey, Capacity, DeviceNumber, Expired, PlannedRow, Prefix, RowCost, Slot,
    StepPlan,
};
use crate::job::{Priority, RequestId, UserId};
use crate::time::Time;

use arrivals::Arrivals;
use device::Device;
use forecasts::Forecasts;
use policy::Joiners;
use queue::{Ticket, Waiting, WaitingQueue};
use running::Running;

pub use cost::MAX_BEGIN_WORK;
pub use endings::Endings;
pub use places::Place;

/// When newcomers may join a running batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// At the next step.
    Continuous,
    /// When the batch has ended.
    Dynamic,
}

/// The scheduler's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Rows that may run at once on each device. At least 1.
    pub batch_size: u32,
    /// How long the oldest waiting row may be kept waiting for an idle engine's batch to fill.
    pub max_queue_delay: Duration,
    /// When newcomers may join.
    pub batching: Batching,
    /// How long one step should take at most: it caps the prefill chunks that share a pass with
    /// decoding rows.
    pub step_budget: Duration,
    /// What users owe each other.
    pub fairness: Fairness,
}

/// What one user may take while others wait, and how long the less urgent wait for the more urgent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fairness {
    /// Rows of one user that may wait beyond those that may run; `None` for no limit of their own.
    pub max_waiting_per_user: Option<u32>,
    /// Rows of one user that may run at once, on all devices; `None` for no limit of their own. At least 1.
    pub max_running_per_user: Option<u32>,
    /// A class of priority in which somebody has waited so long takes turns with more urgent ones.
    pub priority_ageing: Duration,
    /// Users who do not wait any more, and are remembered since they have had more than their share.
    pub max_remembered_users: usize,
}

impl Default for Fairness {
    fn default() -> Self {
        Fairness {
            max_waiting_per_user: None,
            max_running_per_user: None,
            priority_ageing: Duration::from_secs(30),
            max_remembered_users: 10_000,
        }
    }
}

/// A request on its way into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub request: RequestId,
    /// Whose it is.
    pub user: UserId,
    /// How urgent it is.
    pub priority: Priority,
    /// How many rows, numbered from 0. At least 1.
    pub rows: u32,
    /// The key of its rows' first pass.
    pub key: BatchKey,
    /// What each row needs. It fits some device while it is empty.
    pub cost: RowCost,
    /// When it is given up.
    pub deadline: Option<Time>,
}

/// What became of a row in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowResult {
    /// The row's slot.
    pub slot: Slot,
    /// The key it goes on with; `None` if it has ended.
    pub next: Option<BatchKey>,
}

/// The state machine.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: WaitingQueue,
    devices: Vec<Device>,
    /// Running rows of each user that has some, on all devices.
    running_of: HashMap<UserId, u32>,
    forecast: Option<Forecasts>,
    /// When a user who has none here would start, as of the last survey or arrival.
    newcomer_start: Option<Time>,
    arrivals: Arrivals,
}

impl Scheduler {
    /// An idle scheduler for one device, with a model of this capacity on it.
    pub fn new(config: SchedulerConfig, capacity: Capacity) -> Self {
        let mut scheduler = Scheduler::with_devices(config, 1);
        scheduler.open(DeviceNumber(0), capacity, u32::MAX);
        scheduler
    }

    /// An idle scheduler for so many devices, each of which takes rows when it has been opened.
    pub fn with_devices(config: SchedulerConfig, devices: u32) -> Self {
        Scheduler {
            waiting: WaitingQueue::new(
                config.fairness.priority_ageing,
                config.fairness.max_remembered_users,
            ),
            config,
            devices: (0..devices).map(|_| Device::closed()).collect(),
            running_of: HashMap::new(),
            forecast: None,
            newcomer_start: None,
            arrivals: Arrivals::default(),
        }
    }

    // Getters.

    /// Rows and memory that may be in use at once, on all open devices together.
    pub fn capacity(&self) -> Capacity {
        let open = self.open_devices().map(|(_, device)| device.ledger.total());
        open.fold(
            Capacity {
                slots: 0,
                memory_units: 0,
            },
            |sum, device| Capacity {
                slots: sum.slots.saturating_add(device.slots),
                memory_units: sum.memory_units.saturating_add(device.memory_units),
            },
        )
    }

    /// The same of one device; nothing while it is closed.
    pub fn capacity_of(&self, device: DeviceNumber) -> Capacity {
        self.devices[device.index()].ledger.total()
    }

    /// Memory that one row may take at most.
    pub fn max_row_memory_units(&self) -> u32 {
        let open = self.open_devices().map(|(_, device)| device.ledger.total());
        open.map(|capacity| capacity.memory_units)
            .max()
            .unwrap_or(0)
    }

    /// Requests that wait, wholly or with some of their rows.
    pub fn waiting_requests(&self) -> u32 {
        self.waiting.requests() as u32
    }

    /// Of these, how many asked for each class of [`Priority::ALL`].
    pub fn waiting_by_priority(&self) -> [u32; Priority::ALL.len()] {
        self.waiting.requests_by_priority()
    }

    /// Rows that wait.
    pub fn waiting_rows(&self) -> u32 {
        self.waiting.rows()
    }

    /// Rows that have a slot, on all devices.
    pub fn running_rows(&self) -> u32 {
        self.devices.iter().map(Device::slots_used).sum()
    }

    /// The same of one device.
    pub fn running_rows_on(&self, device: DeviceNumber) -> u32 {
        self.devices[device.index()].slots_used()
    }

    /// Memory units reserved, on all devices.
    pub fn memory_units_used(&self) -> u32 {
        let used = self.devices.iter();
        used.map(|device| device.ledger.memory_units_used()).sum()
    }

    /// The same of one device.
    pub fn memory_units_used_on(&self, device: DeviceNumber) -> u32 {
        self.devices[device.index()].ledger.memory_units_used()
    }

    // Commands.

    /// A device takes rows from now on: a model of this capacity is on it, whose passes have at most so many units
    /// of `Iterate` work, or a single row: rows beyond take turns.
    pub fn open(&mut self, device: DeviceNumber, capacity: Capacity, pass_work: u32) {
        let capacity = Capacity {
            slots: capacity.slots.min(self.config.batch_size),
            ..capacity
        };
        self.devices[device.index()] = Device::new(capacity, pass_work);
        self.forecast = None;
    }

    /// A device takes nothing any more; its rows are out. Returns the requests that some of them belonged to, whose
    /// other rows are left as they are, and those that wait for more memory than any other device has.
    pub fn close(&mut self, device: DeviceNumber) -> Vec<RequestId> {
        let rows = self.devices[device.index()].running_rows_with_slot();
        let rows: Vec<(Slot, RequestId)> =
            rows.map(|(slot, row)| (slot, row.row.request)).collect();
        let mut requests: Vec<RequestId> = rows.iter().map(|(_, request)| *request).collect();
        for (slot, _) in rows {
            self.release(device.index(), slot);
        }
        self.devices[device.index()] = Device::closed();
        self.forecast = None;
        requests.extend(self.waiting.larger_than(self.max_row_memory_units()));
        requests.sort_unstable();
        requests.dedup();
        requests
    }

    /// Puts a request into the queue, behind its user's others, and tells its place there.
    pub fn add(&mut self, now: Time, entry: Entry) -> Place {
        self.add_with_prefix(now, entry, Prefix::default())
    }

    /// The same of a request whose prompt begins with `prefix`: of several devices, one that has computed it should
    /// have it.
    pub fn add_with_prefix(&mut self, now: Time, entry: Entry, prefix: Prefix) -> Place {
        let entry = Entry {
            cost: RowCost {
                begin_work: entry.cost.begin_work.max(1),
                iterate_work: entry.cost.iterate_work.max(1),
                ..entry.cost
            },
            ..entry
        };
        let place = self.place(now, Waiting::new(now, &entry, prefix));
        self.arrivals.note(now, &entry);
        place
    }

    /// Takes every row of a request out, waiting or running.
    pub fn cancel(&mut self, request: RequestId) {
        self.waiting.remove(request);
        for device in 0..self.devices.len() {
            for slot in self.devices[device].slots_of(request) {
                self.release(device, slot);
            }
        }
    }

    /// Decides a device's next step: who is given up (there and anywhere else), who joins, and what the pass does.
    pub fn schedule(&mut self, now: Time, device: DeviceNumber) -> StepPlan {
        let expired = self.expire(now);
        let admit = self.admit(now, device.index());
        let run = self.devices[device.index()].plan(now, self.config.step_budget);
        StepPlan {
            admit,
            run,
            expired,
        }
    }

    /// A row admitted by a device's `plan` needs less `Begin` work than was said: `done` units were found done.
    /// The last unit is never taken as done, since the row's first iteration starts from it.
    pub fn begin_work_done(
        &mut self,
        device: DeviceNumber,
        plan: &mut StepPlan,
        slot: Slot,
        done: u32,
    ) {
        self.devices[device.index()].begin_work_done(&mut plan.run, slot, done);
    }

    /// Memory ran out in a device's pass of `run`, and nothing was done for its rows: a smaller one, to be run in its
    /// stead. `None` if it cannot be smaller: one row that does the least it can. Those left out have their turn later.
    pub fn shrink(&mut self, device: DeviceNumber, run: &[PlannedRow]) -> Option<Vec<PlannedRow>> {
        self.devices[device.index()].shrink(run)
    }

    /// Moves rows on after the pass that [`schedule`](Self::schedule) planned, or
    /// [`shrink`](Self::shrink) made of it. `ran` is what was run; rows cancelled since then are passed over. A pass
    /// that failed is not reported.
    pub fn update(
        &mut self,
        now: Time,
        device: DeviceNumber,
        ran: &[PlannedRow],
        results: &[RowResult],
    ) {
        for slot in self.devices[device.index()].update(now, ran, results) {
            self.release(device.index(), slot);
        }
    }

    // Polls.

    /// When [`schedule`](Self::schedule) has something to do again for a device if nothing is added, and no row ends
    /// elsewhere, meanwhile. A time in the past means at once, `None` never.
    pub fn next_wakeup(&self, device: DeviceNumber) -> Option<Time> {
        let own = &self.devices[device.index()];
        if !own.is_idle() {
            return Some(Time::ZERO);
        }
        let release = match own.look_again_at {
            Some(time) => time,
            None => self.release_time(own)?,
        };
        let deadline = self.waiting.next_deadline().unwrap_or(Time::FAR_FUTURE);
        Some(release.min(deadline))
    }

    /// Whether an idle device found none among the waiting rows that it may take: what ends elsewhere may be its
    /// news.
    pub fn is_anybody_stuck(&self) -> bool {
        let mut open = self.open_devices();
        open.any(|(_, device)| device.look_again_at.is_some())
    }

    // The parts of a step.

    fn expire(&mut self, now: Time) -> Vec<Expired> {
        let mut expired: Vec<Expired> = Vec::new();
        for waiting in self.waiting.expire(now) {
            expired.extend(waiting.row_ids().map(|row| Expired { row }));
        }
        for device in 0..self.devices.len() {
            for slot in self.devices[device].late(now) {
                let row = self.release(device, slot);
                expired.extend(row.map(|row| Expired { row: row.row }));
            }
        }
        expired
    }

    fn admit(&mut self, now: Time, device: usize) -> Vec<Admission> {
        self.devices[device].look_again_at = None;
        let admitted = self.admit_rows(now, device);
        let own = &self.devices[device];
        // Of several: somebody waits who may not run beside those elsewhere, or is left to another. Whoever ends a
        // row wakes those that are stuck, so to look again is the last resort.
        if own.is_idle() && self.release_time(own).is_some_and(|release| release <= now) {
            self.devices[device].look_again_at = Some(now + self.config.step_budget);
        }
        admitted
    }

    fn admit_rows(&mut self, now: Time, device: usize) -> Vec<Admission> {
        let key = match self.joiners(now, device) {
            Joiners::Nobody => return Vec::new(),
            Joiners::Anybody => None,
            Joiners::Only(key) => Some(key),
        };
        if self.open_devices().nth(1).is_some() {
            return self.admit_share(now, device, key);
        }
        let mut admitted = Vec::new();
        while let Some((place, _)) = self.waiting.first(now, key, |user| self.may_run_more(user)) {
            let Some(admission) = self.give_slot(device, place) else {
                break;
            };
            admitted.push(admission);
        }
        admitted
    }

    /// Gives a device the next row of the request at this place; `None` if it has no room for it.
    fn give_slot(&mut self, device: usize, place: Ticket) -> Option<Admission> {
        let waiting = self.waiting.at(place);
        let user = waiting.user;
        let slot = self.devices[device].reserve(waiting)?;
        let row = self.waiting.take_row(place);
        *self.running_of.entry(user).or_default() += 1;
        Some(Admission { row, slot })
    }

    /// Who may join a device's rows now.
    fn joiners(&self, now: Time, device: usize) -> Joiners {
        let own = &self.devices[device];
        if !own.is_open {
            return Joiners::Nobody;
        }
        let may = |user| self.may_run_more(user);
        let capacity = own.ledger.total();
        let idle = self.waits_for_a_batch(own);
        policy::joiners(&self.config, capacity, now, &self.waiting, idle, may)
    }

    /// Whether an idle device should wait for its batch to fill. Where newcomers may join later it need not while
    /// another device is at work: the batch is no fuller for it.
    fn waits_for_a_batch(&self, device: &Device) -> bool {
        match self.config.batching {
            Batching::Continuous => self.devices.iter().all(Device::is_idle),
            Batching::Dynamic => device.is_idle(),
        }
    }

    /// When an idle device should start with what waits.
    fn release_time(&self, device: &Device) -> Option<Time> {
        if !device.is_open {
            return None;
        }
        let capacity = device.ledger.total();
        let release = policy::release_time(&self.config, capacity, &self.waiting)?;
        match self.waits_for_a_batch(device) {
            true => Some(release),
            false => Some(Time::ZERO),
        }
    }

    fn open_devices(&self) -> impl Iterator<Item = (usize, &Device)> {
        let devices = self.devices.iter().enumerate();
        devices.filter(|(_, device)| device.is_open)
    }

    fn may_run_more(&self, user: UserId) -> bool {
        self.may_run_beside(user, 0)
    }

    /// Whether a user may have one more row, beside those that run and so many more.
    fn may_run_beside(&self, user: UserId, more: u32) -> bool {
        let limit = self.config.fairness.max_running_per_user;
        let running = self.running_of.get(&user).copied().unwrap_or(0);
        limit.is_none_or(|limit| running + more < limit)
    }

    fn release(&mut self, device: usize, slot: Slot) -> Option<Running> {
        let row = self.devices[device].release(slot)?;
        if let Some(rows) = self.running_of.get_mut(&row.user) {
            *rows -= 1;
            if *rows == 0 {
                self.running_of.remove(&row.user);
            }
        }
        Some(row)
    }
}
