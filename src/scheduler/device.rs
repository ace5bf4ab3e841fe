//! One device: who holds its slots and its memory, and what its next pass does.

use std::time::Duration;

use crate::batch::{BatchKey, Capacity, Phase, PlannedRow, Slot};
use crate::job::{RequestId, RowId};
use crate::time::Time;

use super::RowResult;
use super::capacity::Ledger;
use super::cost::{CostModel, Load};
use super::placement::KnownPrefixes;
use super::policy;
use super::queue::Waiting;
use super::room::{self, Member, Room, Work};
use super::running::Running;
use super::turns::{self, Group, Turns};

/// The pass under way.
#[derive(Clone, Copy, Debug)]
struct Pass {
    started: Time,
    rows: usize,
    load: Load,
}

/// One device. It is closed until its capacity is known, and again when it has failed: then it takes nothing.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) is_open: bool,
    /// By slot.
    running: Vec<Option<Running>>,
    pub(super) ledger: Ledger,
    /// Units of `Iterate` work that a pass may have; `u32::MAX` for any.
    pass_work: u32,
    /// What passes may have since memory ran out in one.
    room: Room,
    /// The work of the pass under way as it was planned, if memory ran out in it.
    too_large: Option<Work>,
    /// Number of the last part in a pass that only began rows while these could not share one with others.
    last_apart: u64,
    pub(super) costs: CostModel,
    pass: Option<Pass>,
    turns: Turns,
    step: u64,
    /// Parts of rows in passes so far.
    parts: u64,
    next_ticket: u64,
    /// Work of an iteration of all its rows together.
    pub(super) iterate_work: u64,
    pub(super) known: KnownPrefixes,
    /// It is idle, rows wait, and there is none for it: it should look again then.
    pub(super) look_again_at: Option<Time>,
}

impl Device {
    /// One that takes nothing.
    pub(super) fn closed() -> Self {
        let nothing = Capacity {
            slots: 0,
            memory_units: 0,
        };
        Device {
            is_open: false,
            ..Device::new(nothing, u32::MAX)
        }
    }

    /// An idle one of this capacity, whose passes may have so much `Iterate` work.
    pub(super) fn new(capacity: Capacity, pass_work: u32) -> Self {
        Device {
            is_open: true,
            running: (0..capacity.slots).map(|_| None).collect(),
            ledger: Ledger::new(capacity),
            pass_work,
            room: Room::default(),
            too_large: None,
            last_apart: 0,
            costs: CostModel::default(),
            pass: None,
            turns: Turns::default(),
            step: 0,
            parts: 0,
            next_ticket: 0,
            iterate_work: 0,
            known: KnownPrefixes::new(capacity.memory_units as usize),
            look_again_at: None,
        }
    }

    // Getters.

    pub(super) fn slots_used(&self) -> u32 {
        self.ledger.slots_used()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots_used() == 0
    }

    pub(super) fn running_rows_with_slot(&self) -> impl Iterator<Item = (Slot, &Running)> {
        (0..)
            .zip(&self.running)
            .filter_map(|(slot, row)| Some((Slot(slot), row.as_ref()?)))
    }

    pub(super) fn slots_of(&self, request: RequestId) -> Vec<Slot> {
        self.running_rows_with_slot()
            .filter(|(_, running)| running.row.request == request)
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Slots of rows whose deadline is not after `now`.
    pub(super) fn late(&self, now: Time) -> Vec<Slot> {
        self.running_rows_with_slot()
            .filter(|(_, running)| running.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Since when its pass has been under way.
    pub(super) fn busy_since(&self) -> Option<Time> {
        let pass = self.pass.filter(|_| !self.is_idle())?;
        Some(pass.started)
    }

    // Commands.

    /// Gives the next row of a waiting request a slot; `None` if there is no room for it.
    pub(super) fn reserve(&mut self, waiting: &Waiting) -> Option<Slot> {
        let slot = self.ledger.reserve(waiting.cost.memory_units)?;
        self.next_ticket += 1;
        self.iterate_work += u64::from(waiting.cost.iterate_work);
        self.known.note(&waiting.prefix);
        self.running[slot.index()] = Some(Running {
            row: RowId {
                request: waiting.request,
                choice: waiting.next_choice,
            },
            user: waiting.user,
            ticket: self.next_ticket,
            key: waiting.key,
            cost: waiting.cost,
            deadline: waiting.deadline,
            phase: Phase::Begin,
            begin_done: 0,
            iterations: 0,
            last_part: 0,
        });
        Some(slot)
    }

    /// Takes a row out of its slot.
    pub(super) fn release(&mut self, slot: Slot) -> Option<Running> {
        let row = self.running[slot.index()].take()?;
        self.ledger.release(slot, row.cost.memory_units);
        self.iterate_work -= u64::from(row.cost.iterate_work);
        Some(row)
    }

    /// Decides what the next pass does.
    pub(super) fn plan(&mut self, now: Time, step_budget: Duration) -> Vec<PlannedRow> {
        self.step += 1;
        let run = self.plan_pass(now, step_budget);
        self.too_large = None;
        let begins = |planned: &PlannedRow| planned.phase == Phase::Begin;
        if self.room.is_apart(now) && run.iter().all(begins) {
            self.last_apart = self.parts + run.len() as u64;
        }
        self.pass = Some(Pass {
            started: now,
            rows: run.len(),
            load: self.load_of(&run),
        });
        run
    }

    /// See [`Scheduler::begin_work_done`](super::Scheduler::begin_work_done).
    pub(super) fn begin_work_done(&mut self, run: &mut [PlannedRow], slot: Slot, done: u32) {
        let Some(row) = &mut self.running[slot.index()] else {
            return;
        };
        row.begin_done = done.min(row.cost.begin_work - 1);
        let left = row.begin_left();
        for planned in run.iter_mut().filter(|planned| planned.slot == slot) {
            planned.work = planned.work.min(left);
        }
        let load = self.load_of(run);
        if let Some(pass) = &mut self.pass {
            pass.load = load;
        }
    }

    /// See [`Scheduler::shrink`](super::Scheduler::shrink).
    pub(super) fn shrink(&mut self, run: &[PlannedRow]) -> Option<Vec<PlannedRow>> {
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

    /// Moves rows on after a pass. Returns the slots of those that have ended, which are still theirs.
    pub(super) fn update(
        &mut self,
        now: Time,
        ran: &[PlannedRow],
        results: &[RowResult],
    ) -> Vec<Slot> {
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
        let mut ended = Vec::new();
        for result in results {
            let Some(row) = &mut self.running[result.slot.index()] else {
                continue;
            };
            match result.next {
                Some(key) => row.key = key,
                None => {
                    self.costs
                        .learn_length(row.iterations, row.cost.max_iterations);
                    ended.push(result.slot);
                }
            }
        }
        ended
    }

    // The parts of a pass.

    /// The pass of the group whose turn it is.
    fn plan_pass(&mut self, now: Time, step_budget: Duration) -> Vec<PlannedRow> {
        let rows = self.running.iter().flatten();
        let groups = rows.map(|row| (row.group(), row.ticket));
        match self.turns.next(self.step, groups) {
            None => Vec::new(),
            Some(Group::Finishing) => self.plan_finish(),
            Some(Group::Stepping(key)) => self.plan_steps(now, key, step_budget),
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
    fn plan_steps(&self, now: Time, key: BatchKey, step_budget: Duration) -> Vec<PlannedRow> {
        let of_phase = |phase| {
            self.running_rows_with_slot()
                .filter(move |(_, row)| row.key == key && row.phase == phase)
        };
        let beginners: Vec<_> = of_phase(Phase::Begin).collect();
        let begin_room = self.room.begin_work(now);
        if self.room.is_apart(now) && !beginners.is_empty() {
            let last = of_phase(Phase::Iterate).map(|(_, row)| row.last_part).max();
            if last.is_none_or(|last| last > self.last_apart) {
                let mut run = Vec::new();
                self.plan_begin_work(beginners, begin_room, &mut run, step_budget);
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
            self.plan_begin_work(beginners, begin_room, &mut run, step_budget);
        }
        run
    }

    /// `room`: units of `Begin` work that memory is known to hold.
    fn plan_begin_work(
        &self,
        mut beginners: Vec<(Slot, &Running)>,
        room: u32,
        run: &mut Vec<PlannedRow>,
        step_budget: Duration,
    ) {
        beginners.sort_unstable_by_key(|(_, row)| row.ticket);
        let load = self.load_of(run);
        let mut seconds = policy::begin_seconds(
            step_budget,
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
}

/// A row's part in the next pass of its group.
fn planned((slot, row): (Slot, &Running)) -> PlannedRow {
    PlannedRow {
        slot,
        phase: row.phase,
        work: row.work(),
    }
}
