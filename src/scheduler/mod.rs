//! Who runs next: a pure state machine, told the time, answering with data.
//!
//! A request is added with all its rows; rows wait in the order of their arrival, are admitted to a
//! slot with their whole memory reserved, do their `Begin` work in chunks, iterate, and end. The
//! cycle is [`schedule`](Scheduler::schedule), one forward pass by somebody else,
//! [`update`](Scheduler::update). No threads, clock, channels, tensors or logging here.

mod capacity;
mod policy;
mod queue;

use std::time::Duration;

use crate::batch::{
    Admission, BatchKey, Capacity, Expired, Phase, PlannedRow, RowCost, Slot, StepPlan,
};
use crate::job::{RequestId, RowId};
use crate::time::Time;

use capacity::Ledger;
use policy::Joiners;
use queue::{Waiting, WaitingQueue};

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
    /// Rows that may run at once.
    pub batch_size: u32,
    /// How long the oldest waiting row may be kept waiting for an idle engine's batch to fill.
    pub max_queue_delay: Duration,
    /// When newcomers may join.
    pub batching: Batching,
    /// How long one step should take at most: it caps the prefill chunks that share a pass with
    /// decoding rows.
    pub step_budget: Duration,
}

/// A request on its way into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub request: RequestId,
    /// How many rows, numbered from 0. At least 1.
    pub rows: u32,
    /// The key of its rows' first pass.
    pub key: BatchKey,
    /// What each row needs. It fits an empty engine.
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

/// A row that has a slot.
#[derive(Debug)]
struct Running {
    row: RowId,
    /// Order of admission.
    ticket: u64,
    key: BatchKey,
    cost: RowCost,
    deadline: Option<Time>,
    phase: Phase,
    begin_done: u32,
    iterations: u32,
    /// Number of the last step that it was part of, or before which it was admitted.
    last_step: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: WaitingQueue,
    /// By slot.
    running: Vec<Option<Running>>,
    ledger: Ledger,
    step: u64,
    next_ticket: u64,
}

impl Scheduler {
    /// An idle scheduler for a model of this capacity.
    pub fn new(config: SchedulerConfig, capacity: Capacity) -> Self {
        let capacity = Capacity {
            slots: capacity.slots.min(config.batch_size),
            ..capacity
        };
        Scheduler {
            config,
            waiting: WaitingQueue::default(),
            running: (0..capacity.slots).map(|_| None).collect(),
            ledger: Ledger::new(capacity),
            step: 0,
            next_ticket: 0,
        }
    }

    // Getters.

    /// Rows and memory that may be in use at once.
    pub fn capacity(&self) -> Capacity {
        self.ledger.total()
    }

    /// Requests that wait, wholly or with some of their rows.
    pub fn waiting_requests(&self) -> u32 {
        self.waiting.requests() as u32
    }

    /// Rows that wait.
    pub fn waiting_rows(&self) -> u32 {
        self.waiting.rows()
    }

    /// Rows that have a slot.
    pub fn running_rows(&self) -> u32 {
        self.ledger.slots_used()
    }

    /// Memory units reserved.
    pub fn memory_units_used(&self) -> u32 {
        self.ledger.memory_units_used()
    }

    // Commands.

    /// Puts a request at the end of the queue.
    pub fn add(&mut self, now: Time, entry: Entry) {
        self.waiting.push(Waiting {
            request: entry.request,
            next_choice: 0,
            rows: entry.rows,
            key: entry.key,
            cost: entry.cost,
            since: now,
            deadline: entry.deadline,
        });
    }

    /// Takes every row of a request out, waiting or running. Returns the slots that are free again.
    pub fn cancel(&mut self, request: RequestId) -> Vec<Slot> {
        self.waiting.remove(request);
        let slots: Vec<Slot> = self
            .running_rows_with_slot()
            .filter(|(_, running)| running.row.request == request)
            .map(|(slot, _)| slot)
            .collect();
        for &slot in &slots {
            self.release(slot);
        }
        slots
    }

    /// Decides the next step: who is given up, who joins, and what the pass does.
    pub fn schedule(&mut self, now: Time) -> StepPlan {
        self.step += 1;
        StepPlan {
            expired: self.expire(now),
            admit: self.admit(now),
            run: self.plan_pass(),
        }
    }

    /// A row admitted by `plan` needs less `Begin` work than was said: `done` units were found done.
    pub fn begin_work_done(&mut self, plan: &mut StepPlan, slot: Slot, done: u32) {
        let Some(row) = &mut self.running[slot.index()] else {
            return;
        };
        row.begin_done = done.min(row.cost.begin_work.saturating_sub(1));
        let left = row.cost.begin_work - row.begin_done;
        for planned in plan.run.iter_mut().filter(|planned| planned.slot == slot) {
            planned.work = planned.work.min(left);
        }
    }

    /// Moves rows on after a pass. `ran` is what was run; rows cancelled since then are passed over.
    pub fn update(&mut self, _now: Time, ran: &[PlannedRow], results: &[RowResult]) {
        for planned in ran {
            if let Some(row) = &mut self.running[planned.slot.index()] {
                row.advance(planned);
                row.last_step = self.step;
            }
        }
        for result in results {
            let Some(row) = &mut self.running[result.slot.index()] else {
                continue;
            };
            match result.next {
                Some(key) => row.key = key,
                None => self.release(result.slot),
            }
        }
    }

    // Polls.

    /// When [`schedule`](Self::schedule) has something to do again if nothing is added meanwhile.
    /// A time in the past means at once, `None` never.
    pub fn next_wakeup(&self) -> Option<Time> {
        if self.running_rows() > 0 {
            return Some(Time::ZERO);
        }
        let release = policy::release_time(&self.config, self.capacity(), &self.waiting)?;
        let deadline = self.waiting.next_deadline().unwrap_or(Time::FAR_FUTURE);
        Some(release.min(deadline))
    }

    // The parts of a step.

    fn expire(&mut self, now: Time) -> Vec<Expired> {
        let mut expired: Vec<Expired> = Vec::new();
        for waiting in self.waiting.expire(now) {
            expired.extend(waiting.row_ids().map(|row| Expired { row }));
        }
        let late: Vec<(Slot, RowId)> = self
            .running_rows_with_slot()
            .filter(|(_, running)| running.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(slot, running)| (slot, running.row))
            .collect();
        for (slot, row) in late {
            self.release(slot);
            expired.push(Expired { row });
        }
        expired
    }

    fn admit(&mut self, now: Time) -> Vec<Admission> {
        let idle = self.running_rows() == 0;
        let key = match policy::joiners(&self.config, self.capacity(), now, &self.waiting, idle) {
            Joiners::Nobody => return Vec::new(),
            Joiners::Anybody => None,
            Joiners::Only(key) => Some(key),
        };
        let mut admitted = Vec::new();
        while let Some((place, first)) = self.waiting.first(key) {
            let (key, cost, deadline) = (first.key, first.cost, first.deadline);
            let Some(slot) = self.ledger.reserve(cost.memory_units) else {
                break;
            };
            let row = self.waiting.take_row(place);
            self.next_ticket += 1;
            self.running[slot.index()] = Some(Running {
                row,
                ticket: self.next_ticket,
                key,
                cost,
                deadline,
                phase: Phase::Begin,
                begin_done: 0,
                iterations: 0,
                last_step: self.step,
            });
            admitted.push(Admission { row, slot });
        }
        admitted
    }

    fn plan_pass(&mut self) -> Vec<PlannedRow> {
        let rows = self.running_rows_with_slot().map(|(_, row)| row);
        let Some(key) = policy::next_group(rows) else {
            return Vec::new();
        };
        let mut planned = Vec::new();
        let mut beginners: Vec<(u64, Slot, u32)> = Vec::new();
        for (slot, row) in self.running_rows_with_slot() {
            if row.key != key {
                continue;
            }
            if row.phase == Phase::Begin {
                beginners.push((row.ticket, slot, row.cost.begin_work - row.begin_done));
            } else {
                planned.push(PlannedRow {
                    slot,
                    phase: row.phase,
                    work: 1,
                });
            }
        }
        beginners.sort_unstable();
        let mut allowance = 64;
        for (_, slot, left) in beginners {
            let work = left.min(allowance);
            if work == 0 {
                break;
            }
            allowance -= work;
            planned.push(PlannedRow {
                slot,
                phase: Phase::Begin,
                work,
            });
        }
        planned
    }

    fn running_rows_with_slot(&self) -> impl Iterator<Item = (Slot, &Running)> {
        (0..)
            .zip(&self.running)
            .filter_map(|(slot, row)| Some((Slot(slot), row.as_ref()?)))
    }

    fn release(&mut self, slot: Slot) {
        if let Some(row) = self.running[slot.index()].take() {
            self.ledger.release(slot, row.cost.memory_units);
        }
    }
}

impl Running {
    /// Counts what a pass did for the row and moves it to its next phase.
    fn advance(&mut self, planned: &PlannedRow) {
        match planned.phase {
            Phase::Begin => {
                self.begin_done += planned.work;
                if self.begin_done >= self.cost.begin_work {
                    self.phase = Phase::Iterate;
                }
            }
            Phase::Iterate => {
                self.iterations += 1;
                if self.iterations >= self.cost.max_iterations {
                    self.phase = Phase::Finish;
                }
            }
            Phase::Finish => {}
        }
    }
}
