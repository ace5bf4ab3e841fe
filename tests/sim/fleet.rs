//! Several devices on virtual time: the scheduler itself, with passes of different devices under way at once.
//!
//! The fleet checks as it goes: rows are admitted once and in their order, slots and memory suffice, and no device
//! idles while a row waits that it could take.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use girandole::batch::{BatchKey, Capacity, DeviceNumber, Phase, Prefix, RowCost, Slot, StepPlan};
use girandole::job::{Priority, RequestId, RowId, UserId};
use girandole::scheduler::{Batching, Entry, Place, RowResult, Scheduler, SchedulerConfig};
use girandole::time::Time;

/// A request that is to come.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Time,
    pub(crate) user: u64,
    pub(crate) rows: u32,
    pub(crate) cost: RowCost,
    pub(crate) prefix: Vec<u64>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) asked: Asked,
    /// What was said of it when it came.
    pub(crate) place: Place,
    pub(crate) admitted: u32,
    pub(crate) ended: u32,
    /// Its first row's.
    pub(crate) started: Option<(Time, DeviceNumber)>,
}

struct Held {
    row: RowId,
    /// Place of its request among those seen.
    seen: usize,
    cost: RowCost,
    begin_done: u32,
    iterations: u32,
}

#[derive(Default)]
struct Machine {
    /// What a pass takes is multiplied by this.
    slowness: u32,
    pass: Option<(Time, StepPlan)>,
    slots: BTreeMap<Slot, Held>,
    wakeup: Option<Time>,
    closed: bool,
}

pub(crate) struct Fleet {
    pub(crate) now: Time,
    pub(crate) scheduler: Scheduler,
    config: SchedulerConfig,
    capacity: Capacity,
    machines: Vec<Machine>,
    to_come: Vec<Asked>,
    pub(crate) seen: Vec<Seen>,
    places: BTreeMap<RequestId, usize>,
    /// Since when a device has idled beside somebody who waits.
    idle_since: Option<Time>,
    /// The longest that it was so.
    pub(crate) longest_idle: Duration,
    /// How often a device looked for work.
    pub(crate) looks: u32,
    pub(crate) most_of_a_user: u32,
    pub(crate) lost: BTreeSet<RequestId>,
}

const KEY: BatchKey = BatchKey(0);

pub(crate) fn cost(begin_work: u32, max_iterations: u32) -> RowCost {
    RowCost {
        begin_work,
        max_iterations,
        iterate_work: 1,
        finish_work: 0,
        memory_units: (begin_work + max_iterations).div_ceil(32),
    }
}

fn id(index: usize) -> RequestId {
    RequestId::from_u128(index as u128 + 1)
}

impl Fleet {
    /// One machine for each slowness.
    pub(crate) fn new(config: SchedulerConfig, slowness: &[u32], memory_units: u32) -> Self {
        let mut scheduler = Scheduler::with_devices(config.clone(), slowness.len() as u32);
        let capacity = Capacity {
            slots: config.batch_size,
            memory_units,
        };
        for number in 0..slowness.len() as u32 {
            scheduler.open(DeviceNumber(number), capacity, u32::MAX);
        }
        let machine = |slowness: &u32| Machine {
            slowness: *slowness,
            ..Machine::default()
        };
        Fleet {
            now: Time::ZERO,
            scheduler,
            config,
            capacity,
            machines: slowness.iter().map(machine).collect(),
            to_come: Vec::new(),
            seen: Vec::new(),
            places: BTreeMap::new(),
            idle_since: None,
            longest_idle: Duration::ZERO,
            looks: 0,
            most_of_a_user: 0,
            lost: BTreeSet::new(),
        }
    }

    /// Plans requests to come.
    pub(crate) fn ask(&mut self, asked: impl IntoIterator<Item = Asked>) {
        self.to_come.extend(asked);
        self.to_come
            .sort_by_key(|asked| std::cmp::Reverse(asked.at));
    }

    /// Goes on until nothing is left to do, or to `end`.
    pub(crate) fn run_until(&mut self, end: Time) {
        while let Some(next) = self.next_event().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.come();
            self.end_passes();
            self.wake();
            self.check();
        }
    }

    pub(crate) fn run(&mut self) {
        self.run_until(Time::FAR_FUTURE);
        for (number, seen) in self.seen.iter().enumerate() {
            let is_done = seen.admitted == seen.asked.rows && seen.ended == seen.asked.rows;
            assert!(
                is_done || self.lost.contains(&id(number)),
                "{number} is lost: {seen:?}"
            );
        }
        assert_eq!(self.scheduler.running_rows(), 0);
        assert_eq!(self.scheduler.waiting_rows(), 0);
        assert_eq!(self.scheduler.memory_units_used(), 0);
    }

    /// A device fails.
    pub(crate) fn close(&mut self, number: u32) {
        let machine = &mut self.machines[number as usize];
        machine.closed = true;
        machine.pass = None;
        let mut held: BTreeSet<RequestId> = BTreeSet::new();
        held.extend(machine.slots.values().map(|held| held.row.request));
        machine.slots.clear();
        let lost: BTreeSet<_> = self
            .scheduler
            .close(DeviceNumber(number))
            .into_iter()
            .collect();
        assert_eq!(lost, held, "who had rows there, and nobody else");
        for request in lost {
            self.scheduler.cancel(request);
            for machine in &mut self.machines {
                machine.slots.retain(|_, held| held.row.request != request);
            }
            self.lost.insert(request);
        }
    }

    /// Rows that run on each device.
    pub(crate) fn rows(&self) -> Vec<usize> {
        self.machines
            .iter()
            .map(|machine| machine.slots.len())
            .collect()
    }

    fn next_event(&self) -> Option<Time> {
        let ends = self
            .machines
            .iter()
            .filter_map(|machine| match &machine.pass {
                Some((end, _)) => Some(*end),
                None => machine.wakeup,
            });
        ends.chain(self.to_come.last().map(|asked| asked.at)).min()
    }

    fn come(&mut self) {
        let mut anybody = false;
        if self
            .to_come
            .last()
            .is_some_and(|asked| asked.at <= self.now)
        {
            self.scheduler.survey(self.now);
        }
        while let Some(asked) = self.to_come.pop_if(|asked| asked.at <= self.now) {
            let request = id(self.seen.len());
            self.places.insert(request, self.seen.len());
            let entry = Entry {
                request,
                user: UserId(asked.user),
                priority: Priority::Normal,
                rows: asked.rows,
                key: KEY,
                cost: asked.cost,
                deadline: None,
            };
            let prefix = Prefix(asked.prefix.clone().into());
            let place = self.scheduler.add_with_prefix(self.now, entry, prefix);
            assert_eq!(place.request, request);
            self.seen.push(Seen {
                asked,
                place,
                admitted: 0,
                ended: 0,
                started: None,
            });
            anybody = true;
        }
        if anybody {
            self.ring();
        }
    }

    /// Whoever has no pass under way should look.
    fn ring(&mut self) {
        for machine in self.machines.iter_mut().filter(|machine| !machine.closed) {
            if machine.pass.is_none() {
                machine.wakeup = Some(self.now);
            }
        }
    }

    fn end_passes(&mut self) {
        for number in 0..self.machines.len() {
            let machine = &mut self.machines[number];
            let Some((_, plan)) = machine.pass.take_if(|(end, _)| *end <= self.now) else {
                continue;
            };
            let mut results = Vec::new();
            let mut ran = plan.run.clone();
            ran.retain(|planned| machine.slots.contains_key(&planned.slot));
            for planned in &ran {
                let held = machine
                    .slots
                    .get_mut(&planned.slot)
                    .expect("a row runs there");
                match planned.phase {
                    Phase::Begin => held.begin_done += planned.work,
                    _ => held.iterations += 1,
                }
                let is_over = held.iterations == held.cost.max_iterations;
                results.push(RowResult {
                    slot: planned.slot,
                    next: (!is_over).then_some(KEY),
                });
                if is_over {
                    self.seen[held.seen].ended += 1;
                    machine.slots.remove(&planned.slot);
                }
            }
            let device = DeviceNumber(number as u32);
            self.scheduler.update(self.now, device, &plan.run, &results);
            self.machines[number].wakeup = Some(self.now);
            if self.scheduler.is_anybody_stuck() {
                self.ring();
            }
        }
    }

    fn wake(&mut self) {
        for number in 0..self.machines.len() {
            let machine = &self.machines[number];
            let is_due = machine.wakeup.is_some_and(|wakeup| wakeup <= self.now);
            if machine.pass.is_none() && is_due && !machine.closed {
                self.look(number);
            }
        }
    }

    fn look(&mut self, number: usize) {
        self.looks += 1;
        let device = DeviceNumber(number as u32);
        let plan = self.scheduler.schedule(self.now, device);
        for admission in &plan.admit {
            let place = self.places[&admission.row.request];
            let seen = &mut self.seen[place];
            assert_eq!(
                seen.admitted, admission.row.choice,
                "rows in their order, each once"
            );
            seen.admitted += 1;
            seen.started.get_or_insert((self.now, device));
            let held = Held {
                row: admission.row,
                seen: place,
                cost: seen.asked.cost,
                begin_done: 0,
                iterations: 0,
            };
            let before = self.machines[number].slots.insert(admission.slot, held);
            assert!(before.is_none(), "the slot is taken");
        }
        let machine = &mut self.machines[number];
        let work: u32 = plan.run.iter().map(|planned| planned.work).sum();
        let took = Duration::from_micros(4_000 + 500 * u64::from(work)) * machine.slowness;
        if plan.run.is_empty() {
            machine.wakeup = self.scheduler.next_wakeup(device);
            let ahead = machine.wakeup.is_none_or(|wakeup| wakeup > self.now);
            assert!(ahead, "it would look again and again");
        } else {
            machine.pass = Some((self.now + took, plan));
            machine.wakeup = None;
        }
    }

    fn check(&mut self) {
        let mut of_users: BTreeMap<u64, u32> = BTreeMap::new();
        for machine in &self.machines {
            let units: u32 = machine
                .slots
                .values()
                .map(|held| held.cost.memory_units)
                .sum();
            assert!(machine.slots.len() <= self.capacity.slots as usize);
            assert!(units <= self.capacity.memory_units);
            for held in machine.slots.values() {
                let user = self.seen[held.seen].asked.user;
                *of_users.entry(user).or_default() += 1;
            }
        }
        let most = of_users.values().copied().max().unwrap_or(0);
        self.most_of_a_user = self.most_of_a_user.max(most);
        let limit = self.config.fairness.max_running_per_user;
        let waits = self.seen.iter().enumerate().any(|(number, seen)| {
            let user = of_users.get(&seen.asked.user).copied().unwrap_or(0);
            let may = limit.is_none_or(|limit| user < limit);
            may && seen.admitted < seen.asked.rows && !self.lost.contains(&id(number))
        });
        let open = || self.machines.iter().filter(|machine| !machine.closed);
        let idles = open().any(|machine| machine.slots.is_empty());
        // While all idle they wait for a batch; and batches that nobody can join are waited for by each device.
        let is_window = open().all(|machine| machine.slots.is_empty())
            || self.config.batching == Batching::Dynamic;
        match idles && waits && !is_window {
            true => {
                let since = *self.idle_since.get_or_insert(self.now);
                self.longest_idle = self.longest_idle.max(self.now - since);
            }
            false => {
                if let Some(since) = self.idle_since.take() {
                    self.longest_idle = self.longest_idle.max(self.now - since);
                }
            }
        }
        for (number, seen) in self.seen.iter().enumerate() {
            let waited = self.now - seen.asked.at;
            let alone = open().all(|machine| machine.slots.is_empty());
            let is_waiting = seen.admitted == 0 && !self.lost.contains(&id(number));
            let in_time = waited <= self.config.max_queue_delay;
            assert!(
                !alone || !is_waiting || in_time,
                "{number} waits for nobody"
            );
        }
    }
}
