//! Who runs next: a pure state machine, told the time, answering with data.
//!
//! A request is added with all its rows; rows wait for their user's turn, are admitted to a slot with their whole memory reserved (so nothing is preempted later), do their `Begin` work in
//! chunks, iterate, and end. The cycle is [`schedule`](Scheduler::schedule), one forward pass by
//! somebody else, [`update`](Scheduler::update). No threads, clock, channels, tensors or logging here.
//!
//! Three decisions are made, each in one place: who may join and how much time `Begin` work may take
//! in a pass ([`policy`]), and which group of rows that can share a pass has the next one ([`turns`]).

mod arrivals;
mod capacity;
mod cost;
mod endings;
mod fairness;
mod forecast;
mod overtakers;
mod places;
mod policy;
mod queue;
mod room;
mod running;
mod turns;

use std::collections::HashMap;
use std::time::Duration;

use crate::batch::{
    Admission, BatchKey, Capacity, Expired, Phase, PlannedRow, RowCost, Slot, StepPlan,
};
use crate::job::{Priority, RequestId, RowId, UserId};
use crate::time::Time;

use arrivals::Arrivals;
use capacity::Ledger;
use cost::{CostModel, Load};
use forecast::Forecast;
use policy::Joiners;
use queue::{Ticket, Waiting, WaitingQueue};
use room::{Member, Room, Work};
use running::Running;
use turns::{Group, Turns};

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
    /// Rows that may run at once. At least 1.
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
    /// Rows of one user that may run at once; `None` for no limit of their own. At least 1.
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

/// The pass under way.
#[derive(Clone, Copy, Debug)]
struct Pass {
    started: Time,
    rows: usize,
    load: Load,
}

/// The state machine.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: WaitingQueue,
    /// By slot.
    running: Vec<Option<Running>>,
    /// Running rows of each user that has some.
    running_of: HashMap<UserId, u32>,
    ledger: Ledger,
    /// Units of `Iterate` work that a pass may have; `u32::MAX` for any.
    pass_work: u32,
    /// What passes may have since memory ran out in one.
    room: Room,
    /// The work of the pass under way as it was planned, if memory ran out in it.
    too_large: Option<Work>,
    /// Number of the last part in a pass that only began rows while these could not share one with others.
    last_apart: u64,
    costs: CostModel,
    forecast: Option<Forecast>,
    /// When a user who has none here would start, as of the last survey or arrival.
    newcomer_start: Option<Time>,
    pass: Option<Pass>,
    turns: Turns,
    arrivals: Arrivals,
    step: u64,
    /// Parts of rows in passes so far.
    parts: u64,
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
            waiting: WaitingQueue::new(
                config.fairness.priority_ageing,
                config.fairness.max_remembered_users,
            ),
            config,
            running: (0..capacity.slots).map(|_| None).collect(),
            running_of: HashMap::new(),
            ledger: Ledger::new(capacity),
            pass_work: u32::MAX,
            room: Room::default(),
            too_large: None,
            last_apart: 0,
            costs: CostModel::default(),
            forecast: None,
            newcomer_start: None,
            pass: None,
            turns: Turns::default(),
            arrivals: Arrivals::default(),
            step: 0,
            parts: 0,
            next_ticket: 0,
        }
    }

    /// The same, whose passes have at most so many units of `Iterate` work, or a single row: rows beyond take
    /// turns.
    #[must_use]
    pub fn with_pass_work(mut self, units: u32) -> Self {
        self.pass_work = units;
        self
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

    /// Of these, how many asked for each class of [`Priority::ALL`].
    pub fn waiting_by_priority(&self) -> [u32; Priority::ALL.len()] {
        self.waiting.requests_by_priority()
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

    /// Puts a request into the queue, behind its user's others, and tells its place there.
    pub fn add(&mut self, now: Time, entry: Entry) -> Place {
        let entry = Entry {
            cost: RowCost {
                begin_work: entry.cost.begin_work.max(1),
                iterate_work: entry.cost.iterate_work.max(1),
                ..entry.cost
            },
            ..entry
        };
        let place = self.place(now, Waiting::new(now, &entry));
        self.arrivals.note(now, &entry);
        place
    }

    /// Takes every row of a request out, waiting or running.
    pub fn cancel(&mut self, request: RequestId) {
        self.waiting.remove(request);
        let slots: Vec<Slot> = self
            .running_rows_with_slot()
            .filter(|(_, running)| running.row.request == request)
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            self.release(slot);
        }
    }

    /// Decides the next step: who is given up, who joins, and what the pass does.
    pub fn schedule(&mut self, now: Time) -> StepPlan {
        self.step += 1;
        let expired = self.expire(now);
        let admit = self.admit(now);
        let run = self.plan_pass(now);
        self.too_large = None;
        let begins = |planned: &PlannedRow| planned.phase == Phase::Begin;
        if self.room.is_apart(now) && run.iter().all(begins) {
            self.last_apart = self.parts + run.len() as u64;
        }
        let plan = StepPlan {
            admit,
            run,
            expired,
        };
        self.pass = Some(Pass {
            started: now,
            rows: plan.run.len(),
            load: self.load_of(&plan.run),
        });
        plan
    }

    /// A row admitted by `plan` needs less `Begin` work than was said: `done` units were found done.
    /// The last unit is never taken as done, since the row's first iteration starts from it.
    pub fn begin_work_done(&mut self, plan: &mut StepPlan, slot: Slot, done: u32) {
        let Some(row) = &mut self.running[slot.index()] else {
            return;
        };
        row.begin_done = done.min(row.cost.begin_work - 1);
        let left = row.begin_left();
        for planned in plan.run.iter_mut().filter(|planned| planned.slot == slot) {
            planned.work = planned.work.min(left);
        }
        let load = self.load_of(&plan.run);
        if let Some(pass) = &mut self.pass {
            pass.load = load;
        }
    }

    /// Memory ran out in the pass of `run`, and nothing was done for its rows: a smaller one, to be run in its stead.
    /// `None` if it cannot be smaller: one row that does the least it can. Those left out have their turn later.
    pub fn shrink(&mut self, run: &[PlannedRow]) -> Option<Vec<PlannedRow>> {
        self.too_large.get_or_insert_with(|| Work::of(run));
        let mut members: Vec<_> = run
            .iter()
            .filter_map(|planned| {
                let row = self.running[planned.slot.index()].as_ref()?;
                let member = Member {
                    planned: *planned,
                    begins_whole: row.begins_whole(),
                };
                Some((row.stepper(), member))
            })
            .collect();
        // `Begin` work stays in the order of the plan.
        members.sort_by_key(|(stepper, member)| match member.planned.phase {
            Phase::Begin => None,
            Phase::Iterate | Phase::Finish => Some(*stepper),
        });
        let members: Vec<Member> = members.into_iter().map(|(_, member)| member).collect();
        room::smaller(&members)
    }

    /// Moves rows on after the pass that [`schedule`](Self::schedule) planned, or
    /// [`shrink`](Self::shrink) made of it. `ran` is what was run; rows cancelled since then are passed over. A pass that failed is not reported.
    pub fn update(&mut self, now: Time, ran: &[PlannedRow], results: &[RowResult]) {
        let pass = self.pass.take();
        match (self.too_large.take(), pass) {
            // Its time was spent on more than what it did.
            (Some(planned), _) => self.room.learn(now, planned, Work::of(ran)),
            (None, Some(pass)) if pass.rows == ran.len() => {
                self.costs.learn(&pass.load, now - pass.started);
            }
            (None, _) => {}
        }
        for planned in ran {
            if let Some(row) = &mut self.running[planned.slot.index()] {
                self.parts += 1;
                row.advance(planned, self.parts);
            }
        }
        for result in results {
            let Some(row) = &mut self.running[result.slot.index()] else {
                continue;
            };
            match result.next {
                Some(key) => row.key = key,
                None => {
                    self.costs
                        .learn_length(row.iterations, row.cost.max_iterations);
                    self.release(result.slot);
                }
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
        while let Some((place, first)) = self.next_in_turn(now, key) {
            let (user, key, cost, deadline) = (first.user, first.key, first.cost, first.deadline);
            let Some(slot) = self.ledger.reserve(cost.memory_units) else {
                break;
            };
            let row = self.waiting.take_row(place);
            *self.running_of.entry(user).or_default() += 1;
            self.next_ticket += 1;
            self.running[slot.index()] = Some(Running {
                row,
                user,
                ticket: self.next_ticket,
                key,
                cost,
                deadline,
                phase: Phase::Begin,
                begin_done: 0,
                iterations: 0,
                last_part: 0,
            });
            admitted.push(Admission { row, slot });
        }
        admitted
    }

    /// The pass of the group whose turn it is.
    fn plan_pass(&mut self, now: Time) -> Vec<PlannedRow> {
        let rows = self.running.iter().flatten();
        let groups = rows.map(|row| (row.group(), row.ticket));
        match self.turns.next(self.step, groups) {
            None => Vec::new(),
            Some(Group::Finishing) => self.plan_finish(),
            Some(Group::Stepping(key)) => self.plan_steps(now, key),
        }
    }

    /// Of rows that finish, the first admitted has a pass to itself.
    fn plan_finish(&self) -> Vec<PlannedRow> {
        let finishing = self
            .running_rows_with_slot()
            .filter(|(_, row)| row.phase == Phase::Finish);
        let first = finishing.min_by_key(|(_, row)| row.ticket);
        first.map(planned).into_iter().collect()
    }

    /// Iterating rows all take part, or as many as a pass may have; `Begin` work, first admitted first, fills the time that they leave.
    fn plan_steps(&self, now: Time, key: BatchKey) -> Vec<PlannedRow> {
        let of_phase = |phase| {
            self.running_rows_with_slot()
                .filter(move |(_, row)| row.key == key && row.phase == phase)
        };
        let beginners: Vec<_> = of_phase(Phase::Begin).collect();
        if self.room.is_apart(now) && !beginners.is_empty() {
            let last = of_phase(Phase::Iterate).map(|(_, row)| row.last_part).max();
            if last.is_none_or(|last| last > self.last_apart) {
                let mut run = Vec::new();
                self.plan_begin_work(beginners, self.room.begin_work(now), &mut run);
                return run;
            }
        }
        let iterating = of_phase(Phase::Iterate);
        let mut run: Vec<PlannedRow> = match self.pass_work.min(self.room.iterate_work(now)) {
            u32::MAX => iterating.map(planned).collect(),
            limit => turns::rotate(
                iterating
                    .map(|(slot, row)| (row.stepper(), planned((slot, row))))
                    .collect(),
                limit,
            ),
        };
        if run.is_empty() || !self.room.is_apart(now) {
            self.plan_begin_work(beginners, self.room.begin_work(now), &mut run);
        }
        run
    }

    /// `room`: units of `Begin` work that memory is known to hold.
    fn plan_begin_work(
        &self,
        mut beginners: Vec<(Slot, &Running)>,
        room: u32,
        run: &mut Vec<PlannedRow>,
    ) {
        beginners.sort_unstable_by_key(|(_, row)| row.ticket);
        let load = self.load_of(run);
        let mut seconds = policy::begin_seconds(
            self.config.step_budget,
            self.costs.seconds(&load),
            load.iterate_work == 0,
        );
        let mut limit = self.costs.begin_work_limit().min(room);
        let mut first = true;
        for (slot, row) in beginners {
            let left = row.begin_left();
            let fitting = self
                .costs
                .begin_work_within(seconds, row.begin_done)
                .min(limit);
            let work = match (first, row.begins_whole()) {
                (_, true) if fitting >= left => left,
                (true, true) => left,
                (false, true) => 0,
                // However slow the machine, each pass moves on by at least one unit.
                (true, false) => fitting.clamp(1, left),
                (false, false) => fitting.min(left),
            };
            if work == 0 {
                break;
            }
            seconds -= self.costs.begin_seconds(work, row.begin_done);
            limit = limit.saturating_sub(work);
            first = false;
            run.push(PlannedRow {
                slot,
                phase: Phase::Begin,
                work,
            });
        }
    }

    fn load_of(&self, run: &[PlannedRow]) -> Load {
        let mut load = Load::default();
        for planned in run {
            let Some(row) = &self.running[planned.slot.index()] else {
                continue;
            };
            match planned.phase {
                Phase::Begin => load.begin(planned.work, row.begin_done),
                Phase::Iterate => load.iterate(planned.work, row.position()),
                Phase::Finish => load.finish(planned.work),
            }
        }
        load
    }

    fn running_rows_with_slot(&self) -> impl Iterator<Item = (Slot, &Running)> {
        (0..)
            .zip(&self.running)
            .filter_map(|(slot, row)| Some((Slot(slot), row.as_ref()?)))
    }

    fn next_in_turn(&self, now: Time, key: Option<BatchKey>) -> Option<(Ticket, &Waiting)> {
        self.waiting.first(now, key, |user| self.may_run_more(user))
    }

    fn may_run_more(&self, user: UserId) -> bool {
        let limit = self.config.fairness.max_running_per_user;
        limit.is_none_or(|limit| self.running_of.get(&user).is_none_or(|rows| *rows < limit))
    }

    fn release(&mut self, slot: Slot) {
        let Some(row) = self.running[slot.index()].take() else {
            return;
        };
        self.ledger.release(slot, row.cost.memory_units);
        if let Some(rows) = self.running_of.get_mut(&row.user) {
            *rows -= 1;
            if *rows == 0 {
                self.running_of.remove(&row.user);
            }
        }
    }
}

/// A row's part in the next pass of its group.
fn planned((slot, row): (Slot, &Running)) -> PlannedRow {
    PlannedRow {
        slot,
        phase: row.phase,
        work: row.work(),
    }
}
