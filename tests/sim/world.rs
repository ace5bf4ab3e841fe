//! One engine on virtual time: the requests sent to it, and everything that its model was told.
//!
//! The world checks as it goes. The model's side: slots are taken and given back in turn, first come
//! first admitted, nobody waits while there is room. The log's side: the order of events. After each
//! turn: see [`World::check`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use girandole::batch::{BatchKey, Capacity, Emission, Next, Phase, PlannedRow, RowCost, Slot};
use girandole::engine::turn::{Engine, Turn, unthreaded};
use girandole::engine::{EngineConfig, EngineHandle, Observer, Reject, Submission};
use girandole::events::EventSink;
use girandole::job::{ImageJob, Job, RequestId, TextJob, UserId};
use girandole::model::Model;
use girandole::model::scripted::{Pause, Script, ScriptedImageModel, ScriptedModel};
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::{Clock, ManualClock, Time};

use crate::log::Log;
use crate::order::{Shares, Who};
use crate::scarcity::Scarcity;
use crate::watched::Watched;

/// A request that was taken by the engine.
pub(crate) struct Sent {
    pub(crate) log: Arc<Log>,
    pub(crate) job: Arc<Job>,
    pub(crate) who: Who,
    pub(crate) deadline: Option<Time>,
    pub(crate) at: Time,
    /// A cancel was sent while it was live.
    pub(crate) cancelled: bool,
    pub(crate) rows_admitted: u32,
}

impl Sent {
    pub(crate) fn waits(&self) -> bool {
        self.rows_admitted < self.job.rows() && !self.log.is_closed()
    }
}

/// One forward pass, as the model saw it.
#[derive(Clone, Debug)]
pub(crate) struct PassSeen {
    pub(crate) turn: u64,
    pub(crate) took: Duration,
    pub(crate) rows: Vec<PlannedRow>,
}

impl PassSeen {
    pub(crate) fn iterate_rows(&self) -> usize {
        let iterates = |row: &&PlannedRow| row.phase == Phase::Iterate;
        self.rows.iter().filter(iterates).count()
    }

    pub(crate) fn begin_work(&self) -> u32 {
        let begins = self.rows.iter().filter(|row| row.phase == Phase::Begin);
        begins.map(|row| row.work).sum()
    }
}

/// What is to happen at a time, also in the middle of a pass.
pub(crate) enum Action {
    Submit {
        job: Job,
        deadline: Option<Duration>,
    },
    SubmitAs {
        who: Who,
        job: Job,
        deadline: Option<Duration>,
    },
    /// Cancels the request that was sent so many requests ago.
    Cancel {
        back: usize,
    },
    Abandon {
        back: usize,
    },
    Drain,
}

/// What the model's side and the client's side share.
pub(crate) struct Book {
    config: EngineConfig,
    capacity: Capacity,
    /// Asked for keys and costs, and nothing else.
    pub(crate) twin: Box<dyn Model>,
    /// In the order of sending, which is that of the queue.
    pub(crate) sent: Vec<(RequestId, Sent)>,
    pub(crate) refused: u32,
    /// Which row holds which slot, with its memory; and in which turn it got it.
    pub(crate) slots: BTreeMap<Slot, Held>,
    pub(crate) turn: u64,
    pub(crate) passes: Vec<PassSeen>,
    /// Groups of rows that could have a pass, and how long each may still wait.
    pub(crate) waits: BTreeMap<Group, Wait>,
    /// What is known of passes that memory ran out in.
    pub(crate) scarcity: Scarcity,
    actions: VecDeque<(Time, Action)>,
    pub(crate) shares: Shares,
    /// What the model's side found wrong. The engine contains panics in the model, so it is kept
    /// until the turn is over.
    violations: Vec<&'static str>,
}

/// A slot in use.
pub(crate) struct Held {
    pub(crate) user: UserId,
    pub(crate) key: BatchKey,
    pub(crate) cost: RowCost,
    /// When it was taken.
    pub(crate) turn: u64,
    pub(crate) begin_done: u32,
    pub(crate) iterations: u32,
    /// The number of the pass that it last took part in.
    pub(crate) last_pass: usize,
}

/// Rows that may be planned into one pass: those with a key, or all that finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Stepping(BatchKey),
    Finishing,
}

/// How long a group has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Passes of others since it could have had one.
    pub(crate) passes: usize,
    /// Other groups that there were then.
    pub(crate) allowed: usize,
}

impl Held {
    pub(crate) fn has_begun(&self) -> bool {
        self.begin_done >= self.cost.begin_work
    }

    pub(crate) fn group(&self) -> Group {
        let drawn = self.has_begun() && self.iterations >= self.cost.max_iterations;
        match drawn && self.cost.finish_work > 0 {
            true => Group::Finishing,
            false => Group::Stepping(self.key),
        }
    }
}

pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) handle: EngineHandle,
    pub(crate) engine: Engine,
    pub(crate) book: Rc<RefCell<Book>>,
    hand: Hand,
}

/// Carries actions to the engine.
#[derive(Clone)]
struct Hand {
    clock: Arc<ManualClock>,
    book: Rc<RefCell<Book>>,
}

pub(crate) struct Silent;
impl Observer for Silent {}

pub(crate) fn config(batch_size: u32, batching: Batching) -> EngineConfig {
    EngineConfig {
        devices: 1,
        scheduler: SchedulerConfig {
            batch_size,
            max_queue_delay: Duration::from_millis(20),
            batching,
            step_budget: Duration::from_millis(50),
            fairness: Fairness::default(),
        },
        max_queued_requests: 10_000,
        max_queued_tokens: 10_000_000,
        max_queued_source_bytes: 1 << 30,
    }
}

/// The scripted model, of the kind that its script asks for.
fn model(script: &Script, pause: Pause) -> Box<dyn Model> {
    let script = script.clone();
    match script.image {
        None => Box::new(ScriptedModel::new(script, pause).expect("a sound script")),
        Some(_) => Box::new(ScriptedImageModel::new(script, pause).expect("a sound script")),
    }
}

pub(crate) fn prompt(text: &str) -> Arc<[u32]> {
    text.bytes().map(u32::from).collect()
}

pub(crate) fn script(toml: &str) -> Script {
    Script::parse(toml).expect("the test's script")
}

impl World {
    pub(crate) fn new(config: EngineConfig, script: &Script) -> Self {
        let clock = Arc::new(ManualClock::default());
        let book = Rc::new(RefCell::new(Book {
            config: config.clone(),
            capacity: Capacity {
                slots: script.model.slots.min(config.scheduler.batch_size),
                memory_units: script.model.memory_units,
            },
            twin: model(script, Box::new(|_| ())),
            sent: Vec::new(),
            refused: 0,
            slots: BTreeMap::new(),
            turn: 0,
            passes: Vec::new(),
            waits: BTreeMap::new(),
            scarcity: Scarcity::default(),
            actions: VecDeque::new(),
            shares: Shares::default(),
            violations: Vec::new(),
        }));
        let hand = Hand {
            clock: Arc::clone(&clock),
            book: Rc::clone(&book),
        };
        // The model needs the handle, and the handle comes after the model.
        let handle_for_pause: Rc<RefCell<Option<EngineHandle>>> = Rc::default();
        let (in_pause, hand_in_pause) = (Rc::clone(&handle_for_pause), hand.clone());
        let pause = move |by: Duration| {
            hand_in_pause.clock.advance(by);
            if let Some(handle) = &*in_pause.borrow() {
                hand_in_pause.deliver(handle);
            }
        };
        let model = Watched {
            inner: model(script, Box::new(pause)),
            clock: Arc::clone(&clock),
            book: Rc::clone(&book),
        };
        let (handle, engine) = unthreaded(
            "sim",
            config,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(Silent),
            Box::new(model),
        );
        *handle_for_pause.borrow_mut() = Some(handle.clone());
        World {
            clock,
            handle,
            engine,
            book,
            hand,
        }
    }

    /// Plans an action. Actions are planned in the order of their times.
    pub(crate) fn at(&self, time: Time, action: Action) {
        let mut book = self.book.borrow_mut();
        assert!(book.actions.back().is_none_or(|(last, _)| *last <= time));
        book.actions.push_back((time, action));
    }

    /// Sends a text's request now.
    pub(crate) fn submit(&self, job: TextJob) -> Arc<Log> {
        self.send(Job::Text(job))
    }

    /// Sends a picture's request now.
    pub(crate) fn draw(&self, job: ImageJob) -> Arc<Log> {
        self.send(Job::Image(job))
    }

    fn send(&self, job: Job) -> Arc<Log> {
        self.send_as(Who::default(), job)
    }

    /// Sends a request now, as somebody.
    pub(crate) fn send_as(&self, who: Who, job: Job) -> Arc<Log> {
        let sent = self.hand.submit(&self.handle, who, job, None);
        sent.expect("there is room");
        let book = self.book.borrow();
        let (_, sent) = book.sent.last().expect("just sent");
        Arc::clone(&sent.log)
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// One turn with all checks.
    pub(crate) fn turn(&mut self) -> Turn {
        self.hand.deliver(&self.handle);
        let began = self.now();
        self.book.borrow_mut().turn += 1;
        let turn = self.engine.turn(&*self.clock);
        self.check(began, turn);
        turn
    }

    /// Turns, and moves the time on when nothing is due, until nothing is left to do.
    pub(crate) fn run(&mut self) -> Turn {
        self.run_until(Time::FAR_FUTURE)
    }

    /// As [`run`](Self::run), no further than to `end` (a pass may reach beyond). Returns what the
    /// last turn said.
    pub(crate) fn run_until(&mut self, end: Time) -> Turn {
        let mut turn = Turn::Again;
        while self.now() < end {
            turn = self.turn();
            let action = self.book.borrow().actions.front().map(|(time, _)| *time);
            let until = match (turn, action) {
                (Turn::Again, _) => continue,
                (Turn::Sleep(until), action) => until.min(action.unwrap_or(until)),
                (Turn::Idle, Some(action)) => action,
                (Turn::Idle, None) if end == Time::FAR_FUTURE => return turn,
                (Turn::Idle, None) => end,
                (Turn::Stopped, _) => return turn,
            };
            self.clock.advance_to(until.min(end));
        }
        turn
    }

    /// What holds after every turn.
    fn check(&self, began: Time, turn: Turn) {
        let book = self.book.borrow();
        assert_eq!(book.violations, Vec::<&str>::new());
        let scheduler = self.engine.scheduler();
        let memory = book.memory_units_used();
        assert_eq!(scheduler.running_rows() as usize, book.slots.len());
        assert_eq!(scheduler.memory_units_used(), memory);
        assert!(memory <= book.capacity.memory_units);
        let snapshot = self.handle.snapshot();
        assert_eq!(snapshot.running_rows as usize, book.slots.len());
        let live: Vec<&Sent> = book.live().collect();
        let tokens: u64 = live.iter().map(|sent| prompt_tokens(&sent.job)).sum();
        assert_eq!(
            snapshot.queued_tokens, tokens,
            "prompt tokens in the engine"
        );
        for sent in live {
            assert!(!sent.cancelled, "a cancel took more than a step");
            assert!(sent.deadline.is_none_or(|deadline| deadline > began));
        }
        match turn {
            Turn::Again => {}
            Turn::Idle => assert!(book.live().next().is_none(), "somebody is left waiting"),
            Turn::Sleep(until) => book.check_idle_wait(self.now(), until),
            Turn::Stopped => assert!(book.live().next().is_none()),
        }
    }

    /// What holds when everything has been done.
    pub(crate) fn check_at_rest(&self) {
        let book = self.book.borrow();
        assert!(book.slots.is_empty(), "slots are held");
        for (id, sent) in &book.sent {
            assert!(sent.log.is_closed(), "{id} was lost");
        }
        let all = book.config.max_rows();
        let of_one = book.config.max_rows_per_user();
        let mut permits = Vec::new();
        for user in 0..all / of_one {
            let permit = self.handle.reserve(UserId(user.into()), of_one, 0);
            permits.push(permit.expect("every place was given back"));
        }
        let rest = self.handle.reserve(UserId(all.into()), all % of_one, 0);
        assert!(rest.is_ok(), "a place was not given back");
        drop((permits, rest));
        let tokens = book.config.max_queued_tokens;
        let tokens = self.handle.reserve(UserId::default(), 1, tokens);
        assert!(tokens.is_ok(), "tokens were not given back");
    }

    /// The texts that a request's rows would have if it were alone in the world.
    pub(crate) fn alone(&self, script: &Script, job: &Arc<Job>) -> Vec<String> {
        let mut script = Script {
            faults: Vec::new(),
            ..script.clone()
        };
        // It may take its prompt whole.
        script.model.out_of_memory_above_tokens = None;
        let mut model = ScriptedModel::new(script, Box::new(|_| ())).expect("a sound script");
        (0..job.rows())
            .map(|choice| text_alone(&mut model, job, choice))
            .collect()
    }
}

fn text_alone(model: &mut ScriptedModel, job: &Arc<Job>, choice: u32) -> String {
    let slot = Slot(0);
    let cached = model.admit(slot, job, choice).unwrap().begin_work_done;
    let mut planned = PlannedRow {
        slot,
        phase: Phase::Begin,
        work: model.cost(job).begin_work - cached,
    };
    let mut whole = String::new();
    loop {
        let outcome = model.step(&[planned]).unwrap().remove(0);
        for emission in outcome.emitted {
            if let Emission::Text { text, .. } = emission {
                whole += &text;
            }
        }
        if matches!(outcome.next, Next::Finish(_)) {
            model.retire(slot);
            return whole;
        }
        planned.phase = Phase::Iterate;
        planned.work = 1;
    }
}

/// What the gate counts for a job.
fn prompt_tokens(job: &Job) -> u64 {
    match job {
        Job::Text(text) => text.prompt.len() as u64,
        Job::Image(_) => 77,
    }
}

impl Hand {
    /// Does what is due.
    fn deliver(&self, handle: &EngineHandle) {
        loop {
            let due = {
                let mut book = self.book.borrow_mut();
                match book.actions.front() {
                    Some((time, _)) if *time <= self.clock.now() => book.actions.pop_front(),
                    _ => return,
                }
            };
            match due.expect("the front is there").1 {
                Action::Submit { job, deadline } => {
                    self.try_submit(handle, Who::default(), job, deadline);
                }
                Action::SubmitAs { who, job, deadline } => {
                    self.try_submit(handle, who, job, deadline);
                }
                Action::Cancel { back } => {
                    if let Some(id) = self.mark_cancelled(back) {
                        handle.cancel(id);
                    }
                }
                Action::Drain => handle.drain(Time::FAR_FUTURE),
                Action::Abandon { back } => {
                    if let Some(id) = self.mark_cancelled(back) {
                        handle.abandon(id);
                    }
                }
            }
        }
    }

    fn mark_cancelled(&self, back: usize) -> Option<RequestId> {
        let mut book = self.book.borrow_mut();
        let index = book.sent.len().checked_sub(back + 1)?;
        let (id, sent) = &mut book.sent[index];
        sent.cancelled |= !sent.log.is_closed();
        Some(*id)
    }

    fn try_submit(&self, handle: &EngineHandle, who: Who, job: Job, deadline: Option<Duration>) {
        if self.submit(handle, who, job, deadline).is_err() {
            self.book.borrow_mut().refused += 1;
        }
    }

    fn submit(
        &self,
        handle: &EngineHandle,
        who: Who,
        job: Job,
        deadline: Option<Duration>,
    ) -> Result<(), Reject> {
        let now = self.clock.now();
        let job = Arc::new(job);
        let mut permit = handle.reserve(who.user, job.rows(), 1)?;
        permit.settle(prompt_tokens(&job));
        let id = RequestId::from_u128(self.book.borrow().sent.len() as u128 + 1);
        let log = Arc::new(Log::default());
        let deadline = deadline.map(|after| now + after);
        let submission = Submission {
            id,
            job: Arc::clone(&job),
            log: Arc::clone(&log) as Arc<dyn EventSink>,
            deadline,
            priority: who.priority,
        };
        handle.submit(permit, submission)?;
        let sent = Sent {
            log,
            job,
            who,
            deadline,
            at: now,
            cancelled: false,
            rows_admitted: 0,
        };
        self.book.borrow_mut().sent.push((id, sent));
        Ok(())
    }
}

impl Book {
    pub(crate) fn live(&self) -> impl Iterator<Item = &Sent> {
        let sent = self.sent.iter().map(|(_, sent)| sent);
        sent.filter(|sent| !sent.log.is_closed())
    }

    pub(crate) fn insist(&mut self, holds: bool, violation: &'static str) {
        if !holds {
            self.violations.push(violation);
        }
    }

    pub(crate) fn batching(&self) -> Batching {
        self.config.scheduler.batching
    }

    pub(crate) fn fairness(&self) -> &Fairness {
        &self.config.scheduler.fairness
    }

    fn memory_units_used(&self) -> u32 {
        let held = self.slots.values();
        held.map(|held| held.cost.memory_units).sum()
    }

    /// Whether one row of a request would fit beside those that run.
    pub(crate) fn fits(&self, cost: RowCost) -> bool {
        self.slots.len() < self.capacity.slots as usize
            && self.memory_units_used() + cost.memory_units <= self.capacity.memory_units
    }

    /// Counts a pass of `ran`, and what it means for the others: each group has its turn before any
    /// has two, so it waits for no more passes than there were other groups.
    pub(crate) fn count_turn(&mut self, ran: Group) {
        let present: BTreeSet<Group> = self.slots.values().map(Held::group).collect();
        self.waits.retain(|group, _| present.contains(group));
        for group in &present {
            let fresh = Wait {
                passes: 0,
                allowed: present.len() - 1,
            };
            let wait = self.waits.entry(*group).or_insert(fresh);
            wait.passes += 1;
        }
        self.waits.remove(&ran);
        let overdue = self.waits.values().any(|wait| wait.passes > wait.allowed);
        self.insist(!overdue, "a group was passed over");
    }

    /// An engine that sleeps has nobody running, no full batch, and nobody whose window is over.
    fn check_idle_wait(&self, now: Time, until: Time) {
        assert!(self.slots.is_empty(), "asleep with rows to run");
        let delay = self.config.scheduler.max_queue_delay;
        let oldest = self.live().map(|sent| sent.at).min().expect("it waits for");
        assert!(oldest + delay >= until, "the oldest waits too long");
        let mut rows: BTreeMap<BatchKey, (u32, u32)> = BTreeMap::new();
        for sent in self.live() {
            let (group, memory_units) = rows.entry(self.twin.key(&sent.job)).or_default();
            let waiting = sent.job.rows() - sent.rows_admitted;
            *group += waiting;
            *memory_units += waiting * self.twin.cost(&sent.job).memory_units;
        }
        for (rows, memory_units) in rows.into_values() {
            let full = rows >= self.capacity.slots || memory_units >= self.capacity.memory_units;
            assert!(!full, "a full batch waits");
        }
        let ran = self
            .passes
            .last()
            .is_some_and(|pass| pass.turn == self.turn);
        assert!(ran || until > now, "the oldest should be running");
    }
}
