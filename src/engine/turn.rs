//! One lap of scheduler, model and logs.
//!
//! [`Engine::turn`] reads the mail, asks the scheduler what is due, runs at most one forward pass and
//! writes down what came of it. It never sleeps: it says until when nothing is due. The engine's
//! thread calls it with real time, the simulation with its own.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::desk::Desk;
use super::handle::{EngineHandle, Shared};
use super::mailbox::{CancelKind, Delivery, Mail};
use super::request::{Request, TokenGap};
use super::{EngineConfig, EngineState, Observer, RequestEnd, StepReport};
use crate::batch::{
    Admission, DeviceNumber, Emission, Next, Phase, PlannedRow, Prefix, RowOutcome, Slot, StepPlan,
};
use crate::events::FailureKind;
use crate::job::{Job, RequestId};
use crate::model::{Model, ModelError};
use crate::scheduler::{Endings, Entry, RowResult, Scheduler};
use crate::time::{Clock, Time};

/// What to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next turn is due at once.
    Again,
    /// Nothing is due before this time, unless mail arrives.
    Sleep(Time),
    /// Nothing is due until mail arrives.
    Idle,
    /// Drained: there will be nothing more to do.
    Stopped,
}

/// One device's model, and its part in what the model's engines share.
pub struct Engine {
    shared: Arc<Shared>,
    device: DeviceNumber,
    model: Box<dyn Model>,
    steps: u64,
    /// News that it has seen.
    news: u64,
    /// Passes that failed since the last that did not, other than for want of memory.
    failed_passes: u32,
    gave_up: Option<String>,
}

/// Places in the queue are reckoned at most so often, whatever the load.
const SURVEY_INTERVAL: Duration = Duration::from_secs(1);
/// So many failed passes in a row, and a device is given up if there is another: failing fast, it would take
/// ever more of the rows that others could have run.
const MAX_FAILED_PASSES: u32 = 3;

/// An engine without a thread, for whoever brings the time along: the simulation. It is ready.
pub fn unthreaded(
    model_name: &str,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    model: Box<dyn Model>,
) -> (EngineHandle, Engine) {
    let (handle, engines) = unthreaded_on(&["0"], model_name, config, clock, observer, vec![model]);
    let mut engines = engines.into_iter();
    (handle, engines.next().expect("one for each model"))
}

/// The same for several devices with these names, and a model for each.
pub fn unthreaded_on(
    names: &[&str],
    model_name: &str,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    models: Vec<Box<dyn Model>>,
) -> (EngineHandle, Vec<Engine>) {
    let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
    let shared = Arc::new(Shared::new(model_name, &config, &names, clock, observer));
    let numbers = (0..).map(DeviceNumber);
    let engines = numbers
        .zip(models)
        .map(|(device, model)| Engine::new(Arc::clone(&shared), device, model))
        .collect();
    (EngineHandle::new(shared), engines)
}

/// Somebody looks at the scheduler; no engine goes on meanwhile.
struct View<'a>(MutexGuard<'a, Desk>);

impl Deref for View<'_> {
    type Target = Scheduler;
    fn deref(&self) -> &Scheduler {
        &self.0.scheduler
    }
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, device: DeviceNumber, model: Box<dyn Model>) -> Self {
        let engine = Engine {
            shared,
            device,
            model,
            steps: 0,
            news: 0,
            failed_passes: 0,
            gave_up: None,
        };
        let shared = Arc::clone(&engine.shared);
        let mut desk = shared.desk();
        let (capacity, work) = (engine.model.capacity(), engine.model.pass_work());
        let all_are_open = desk.open(device, capacity, work);
        // Whoever sees it ready can also see how many rows it takes.
        engine.publish(&mut desk, shared.clock.now());
        if all_are_open {
            shared.enter(EngineState::Ready);
        }
        engine
    }

    /// How the scheduler stands.
    pub fn scheduler(&self) -> impl Deref<Target = Scheduler> + '_ {
        View(self.shared.desk())
    }

    /// How much of the news it has seen.
    pub(super) fn news_seen(&self) -> u64 {
        self.news
    }

    /// Why it stopped, if nobody told it to.
    pub(super) fn gave_up(&self) -> Option<&str> {
        self.gave_up.as_deref()
    }

    /// Reads the mail, runs at most one forward pass, and writes down what came of it.
    pub fn turn(&mut self, clock: &dyn Clock) -> Turn {
        let shared = Arc::clone(&self.shared);
        let mut desk = shared.desk();
        let now = clock.now();
        let mut drain = self.read_mail(&mut desk, now);
        if drain.is_some_and(|deadline| deadline <= now) {
            let message = "the service was stopped";
            self.fail_all(&mut desk, now, FailureKind::Shutdown, message);
        }
        for slot in desk.take_left(self.device) {
            self.model.retire(slot);
        }
        let mut plan = desk.scheduler.schedule(now, self.device);
        self.give_up_expired(&mut desk, now, &plan);
        self.admit(&mut desk, now, &mut plan);
        if !plan.run.is_empty() {
            (desk, drain) = self.run_pass(&shared, desk, clock, now, &plan.run);
        }
        let now = clock.now();
        self.tell_places(&mut desk, now);
        self.publish(&mut desk, now);
        let next = self.next_turn(&desk, drain);
        // What ended here may be what another waits for.
        if next == Turn::Stopped || desk.scheduler.is_anybody_stuck() && !plan.run.is_empty() {
            shared.mailbox.wake();
        }
        next
    }

    fn next_turn(&self, desk: &Desk, drain: Option<Time>) -> Turn {
        if self.gave_up.is_some() || drain.is_some() && desk.requests.is_empty() {
            return Turn::Stopped;
        }
        match (desk.scheduler.next_wakeup(self.device), drain) {
            (Some(Time::ZERO), _) => Turn::Again,
            (Some(wakeup), drain) => Turn::Sleep(drain.map_or(wakeup, |end| wakeup.min(end))),
            // What is left runs elsewhere.
            (None, Some(end)) if end < Time::FAR_FUTURE => Turn::Sleep(end),
            (None, _) => Turn::Idle,
        }
    }

    /// Takes submissions, applies cancels; says by when to be drained, if that was ever asked for.
    #[must_use = "a drain that is not heeded leaves the engine waiting for ever"]
    fn read_mail(&mut self, desk: &mut Desk, now: Time) -> Option<Time> {
        let Mail {
            submissions,
            cancels,
            drain,
            news,
        } = self.shared.mailbox.take();
        self.news = news;
        for delivery in submissions {
            self.accept(desk, now, delivery);
        }
        for (id, kind) in cancels {
            match kind {
                CancelKind::Explicit => self.end(desk, now, id, |request| request.cancel(now)),
                CancelKind::Abandoned => {
                    let message = "nobody read the answer";
                    self.fail(desk, now, id, FailureKind::Abandoned, message);
                }
            }
        }
        if drain.is_some() {
            self.shared.enter(EngineState::Draining);
        }
        drain
    }

    fn accept(&mut self, desk: &mut Desk, now: Time, delivery: Delivery) {
        let mut request = Request::new(delivery);
        let (id, job) = (request.id, Arc::clone(&request.job));
        let several = desk.are_several();
        let priced = contain(|| {
            let prefix = match several {
                true => self.model.prefix(&job),
                false => Prefix::default(),
            };
            Ok((self.model.key(&job), self.model.cost(&job), prefix))
        });
        let (key, cost, prefix) = match priced {
            Ok(priced) => priced,
            Err(error) => {
                desk.requests.insert(id, request);
                return self.fail(desk, now, id, FailureKind::Row, &error.to_string());
            }
        };
        let limit = desk.scheduler.max_row_memory_units();
        let entry = Entry {
            request: id,
            user: request.user(),
            priority: request.priority,
            rows: job.rows(),
            key,
            cost,
            deadline: request.deadline,
        };
        if cost.memory_units > limit {
            let message = format!(
                "the request needs {} memory units a row, and the model has {limit}",
                cost.memory_units
            );
            desk.requests.insert(id, request);
            return self.fail(desk, now, id, FailureKind::Row, &message);
        }
        let place = desk.scheduler.add_with_prefix(now, entry, prefix);
        request.tell_place(now, &place, desk.scheduler.waiting_requests());
        desk.requests.insert(id, request);
    }

    /// Tells waiting requests their places, once in a while.
    fn tell_places(&mut self, desk: &mut Desk, now: Time) {
        if now < desk.next_survey {
            return;
        }
        desk.next_survey = now + SURVEY_INTERVAL;
        let waiting = desk.scheduler.waiting_requests();
        for place in desk.scheduler.survey(now) {
            if let Some(request) = desk.requests.get_mut(&place.request) {
                request.tell_place(now, &place, waiting);
            }
        }
    }

    fn give_up_expired(&mut self, desk: &mut Desk, now: Time, plan: &StepPlan) {
        for expired in &plan.expired {
            let message = "the request's deadline has passed";
            let id = expired.row.request;
            self.fail(desk, now, id, FailureKind::DeadlineExceeded, message);
        }
    }

    /// Gives admitted rows to the model. A row that it refuses is struck from the plan.
    fn admit(&mut self, desk: &mut Desk, now: Time, plan: &mut StepPlan) {
        for Admission { row, slot } in plan.admit.clone() {
            let Some(request) = desk.requests.get(&row.request) else {
                continue;
            };
            let job = Arc::clone(&request.job);
            desk.rows_of(self.device)[slot.index()] = Some(row);
            match contain(|| self.model.admit(slot, &job, row.choice)) {
                Ok(admitted) => {
                    let cached = admitted.begin_work_done;
                    let scheduler = &mut desk.scheduler;
                    scheduler.begin_work_done(self.device, plan, slot, cached);
                    let Some(request) = desk.requests.get_mut(&row.request) else {
                        continue;
                    };
                    if request.start_row(now, row, slot, cached) {
                        let (queued, prompt) =
                            (now - request.submitted, request.usage().prompt_tokens);
                        self.shared
                            .observer
                            .started(&self.shared.model, queued, prompt, cached);
                    }
                }
                Err(error) => {
                    let message = error.to_string();
                    self.fail(desk, now, row.request, FailureKind::Row, &message);
                }
            }
        }
        plan.run
            .retain(|planned| desk.row_in(self.device, planned.slot).is_some());
    }

    /// Runs the pass and writes down what came of it. Others have the desk meanwhile. Mail that came is read
    /// before, so that a cancelled row says nothing more; the answer is [`Engine::read_mail`]'s.
    fn run_pass<'a>(
        &mut self,
        shared: &'a Shared,
        desk: MutexGuard<'a, Desk>,
        clock: &dyn Clock,
        started: Time,
        run: &[PlannedRow],
    ) -> (MutexGuard<'a, Desk>, Option<Time>) {
        self.steps += 1;
        let reads_tokens = self.reads_tokens(&desk, run);
        drop(desk);
        let (outcome, run) = {
            let _span = tracing::debug_span!(
                "step",
                engine = %self.shared.model,
                device = self.device.0,
                step = self.steps,
                phase = phase_name(run),
                rows = run.len(),
            )
            .entered();
            self.run_what_fits(run)
        };
        let run = &*run;
        let mut desk = shared.desk();
        let now = clock.now();
        let drain = self.read_mail(&mut desk, now);
        match outcome {
            Ok(outcomes) => {
                self.failed_passes = 0;
                self.move_on(&mut desk, now, run, outcomes);
            }
            Err(error) => {
                self.fail_pass(&mut desk, now, run, &error);
                self.count_failure(&desk, &error);
            }
        }
        self.shared.observer.step(
            &self.shared.model,
            self.device,
            &step_report(started, now, run, reads_tokens),
        );
        (desk, drain)
    }

    /// A pass failed. Memory that ran out says nothing of the device.
    fn count_failure(&mut self, desk: &Desk, error: &ModelError) {
        if matches!(error, ModelError::OutOfMemory(_)) {
            return;
        }
        self.failed_passes += 1;
        if self.failed_passes >= MAX_FAILED_PASSES && desk.has_others(self.device) {
            let reason = format!("{MAX_FAILED_PASSES} passes in a row failed: {error}");
            self.gave_up = Some(reason);
        }
    }

    /// Runs the pass, or, for as long as memory runs out in it, a smaller one: the rows left out have their turn later.
    /// Tells what was run last.
    fn run_what_fits<'a>(
        &mut self,
        planned: &'a [PlannedRow],
    ) -> (Result<Vec<RowOutcome>, ModelError>, Cow<'a, [PlannedRow]>) {
        let mut run = Cow::Borrowed(planned);
        let mut failed_passes = 0;
        let outcome = loop {
            let outcome = contain(|| self.model.step(&run));
            if !matches!(outcome, Err(ModelError::OutOfMemory(_))) {
                break outcome;
            }
            failed_passes += 1;
            match self.shared.desk().scheduler.shrink(self.device, &run) {
                Some(smaller) => run = Cow::Owned(smaller),
                None => break outcome,
            }
        };
        if failed_passes > 0 {
            tracing::warn!(
                engine = %self.shared.model,
                failed_passes,
                rows_planned = planned.len(),
                rows_run = run.len(),
                "memory ran out in a step, which was made smaller"
            );
            let observer = &self.shared.observer;
            observer.out_of_memory(&self.shared.model, failed_passes);
        }
        (outcome, run)
    }

    /// Whether the `Begin` work of these rows is prompt tokens: pictures count otherwise.
    fn reads_tokens(&self, desk: &Desk, run: &[PlannedRow]) -> bool {
        run.first()
            .and_then(|planned| desk.row_in(self.device, planned.slot))
            .and_then(|row| desk.requests.get(&row.request))
            .is_some_and(|request| matches!(&*request.job, Job::Text(_)))
    }

    /// Writes down what each row said, and frees those that are done.
    fn move_on(
        &mut self,
        desk: &mut Desk,
        now: Time,
        run: &[PlannedRow],
        outcomes: Vec<RowOutcome>,
    ) {
        let results: Vec<RowResult> = outcomes
            .iter()
            .map(|outcome| RowResult {
                slot: outcome.slot,
                next: match outcome.next {
                    Next::Continue(key) => Some(key),
                    Next::Finish(_) | Next::Fail(_) => None,
                },
            })
            .collect();
        desk.scheduler.update(now, self.device, run, &results);
        let said = || outcomes.iter().flat_map(|outcome| &outcome.emitted);
        let endings = match said().any(|said| matches!(said, Emission::Progress { .. })) {
            true => desk.scheduler.endings(now, self.device),
            false => Endings::default(),
        };
        for (outcome, planned) in outcomes.into_iter().zip(run) {
            self.record(desk, now, outcome, planned.phase, &endings);
        }
    }

    fn record(
        &mut self,
        desk: &mut Desk,
        now: Time,
        outcome: RowOutcome,
        phase: Phase,
        endings: &Endings,
    ) {
        let slot = outcome.slot;
        // A row that was cancelled during the pass has no slot any more.
        let Some(row) = desk.row_in(self.device, slot) else {
            return;
        };
        let Some(request) = desk.requests.get_mut(&row.request) else {
            return;
        };
        request.enter_phase(row.choice, phase);
        for emission in outcome.emitted {
            for gap in request.emit(now, row.choice, emission, endings) {
                let (observer, model) = (&self.shared.observer, &self.shared.model);
                match gap {
                    TokenGap::First(since) => observer.first_token(model, since),
                    TokenGap::Next(gap) => observer.inter_token(model, gap),
                }
            }
        }
        match outcome.next {
            Next::Continue(_) => {}
            Next::Finish(reason) => {
                request.finish_row(now, row.choice, reason);
                let complete = request.all_rows_finished();
                self.retire(desk, slot);
                if complete {
                    self.end(desk, now, row.request, |request| request.finish(now));
                }
            }
            Next::Fail(message) => {
                self.retire(desk, slot);
                self.fail(desk, now, row.request, FailureKind::Row, &message);
            }
        }
    }

    /// The pass failed as a whole. If memory ran out, it was as small as can be: one row, which alone is too much.
    fn fail_pass(&mut self, desk: &mut Desk, now: Time, run: &[PlannedRow], error: &ModelError) {
        tracing::error!(engine = %self.shared.model, rows = run.len(), %error, "a step failed");
        for planned in run {
            // A request's rows end together, and with the first of them.
            if let Some(row) = desk.row_in(self.device, planned.slot) {
                self.fail(
                    desk,
                    now,
                    row.request,
                    FailureKind::Step,
                    &error.to_string(),
                );
            }
        }
    }

    fn fail(
        &mut self,
        desk: &mut Desk,
        now: Time,
        id: RequestId,
        kind: FailureKind,
        message: &str,
    ) {
        self.end(desk, now, id, |request| request.fail(now, kind, message));
    }

    fn fail_all(&mut self, desk: &mut Desk, now: Time, kind: FailureKind, message: &str) {
        let ids: Vec<RequestId> = desk.requests.keys().copied().collect();
        for id in ids {
            self.fail(desk, now, id, kind, message);
        }
    }

    /// Ends a request: takes its rows from scheduler and models, closes its log, gives its place back.
    fn end(
        &mut self,
        desk: &mut Desk,
        now: Time,
        id: RequestId,
        close: impl FnOnce(Request) -> RequestEnd,
    ) {
        let Some(request) = desk.requests.remove(&id) else {
            return;
        };
        desk.scheduler.cancel(id);
        desk.leave_others(self.device, id);
        for slot in desk.slots_of(self.device, id) {
            self.retire(desk, slot);
        }
        self.shared.mailbox.forget(id);
        self.shared.close_log(now, request, close);
    }

    fn retire(&mut self, desk: &mut Desk, slot: Slot) {
        // In this order: should the model panic, it is known whose slot it was.
        self.model.retire(slot);
        desk.rows_of(self.device)[slot.index()] = None;
    }

    fn publish(&self, desk: &mut Desk, now: Time) {
        desk.note_cache(self.device, self.model.cache_report());
        self.shared.publish(desk.snapshot(now));
    }
}

/// `reads_tokens`: `Begin` work is prompt tokens.
fn step_report(started: Time, now: Time, run: &[PlannedRow], reads_tokens: bool) -> StepReport {
    let mut report = StepReport {
        duration: now - started,
        ..StepReport::default()
    };
    for planned in run {
        match planned.phase {
            Phase::Begin => {
                report.begin_rows += 1;
                report.begin_work += if reads_tokens { planned.work } else { 0 };
            }
            Phase::Iterate => {
                report.iterate_rows += 1;
                report.units += planned.work;
            }
            Phase::Finish => {
                report.finish_rows += 1;
                report.units += planned.work;
            }
        }
    }
    report
}

/// What a pass does, in one word.
fn phase_name(run: &[PlannedRow]) -> &'static str {
    let all = |phase| run.iter().all(|planned| planned.phase == phase);
    match () {
        () if all(Phase::Begin) => "begin",
        () if all(Phase::Iterate) => "iterate",
        () if all(Phase::Finish) => "finish",
        () => "mixed",
    }
}

/// Calls into the model; a panic is an error like any other, and the engine goes on.
fn contain<T>(call: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        // What a panic says may quote what it was given, which is the client's.
        tracing::trace!(message = panic_message(&*panic), "the model panicked");
        Err(ModelError::Device("the model panicked".to_owned()))
    })
}

/// What a panic had to say.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
