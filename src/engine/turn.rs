//! One lap of scheduler, model and logs.
//!
//! [`Engine::turn`] reads the mail, asks the scheduler what is due, runs at most one forward pass and
//! writes down what came of it. It never sleeps: it says until when nothing is due. The engine's
//! thread calls it with real time, the simulation with its own.

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::handle::{EngineHandle, Shared};
use super::mailbox::{CancelKind, Delivery, Mail};
use super::request::{Request, TokenGap};
use super::{EngineConfig, EngineState, Observer, Reject, RequestEnd, Snapshot, StepReport};
use crate::batch::{Admission, Emission, Next, Phase, PlannedRow, RowOutcome, Slot, StepPlan};
use crate::events::FailureKind;
use crate::job::{Job, RequestId, RowId};
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

/// The scheduler, the model and the requests between them.
pub struct Engine {
    shared: Arc<Shared>,
    model: Box<dyn Model>,
    scheduler: Scheduler,
    requests: HashMap<RequestId, Request>,
    /// The row in each slot.
    rows: Vec<Option<RowId>>,
    steps: u64,
    next_survey: Time,
}

/// Places in the queue are reckoned at most so often, whatever the load.
const SURVEY_INTERVAL: Duration = Duration::from_secs(1);

/// An engine without a thread, for whoever brings the time along: the simulation. It is ready.
pub fn unthreaded(
    model_name: &str,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    model: Box<dyn Model>,
) -> (EngineHandle, Engine) {
    let shared = Arc::new(Shared::new(model_name, &config, clock, observer));
    let engine = Engine::new(Arc::clone(&shared), &config, model);
    (EngineHandle::new(shared), engine)
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, config: &EngineConfig, model: Box<dyn Model>) -> Self {
        let scheduler = Scheduler::new(config.scheduler.clone(), model.capacity())
            .with_pass_work(model.pass_work());
        let engine = Engine {
            rows: vec![None; scheduler.capacity().slots as usize],
            shared,
            model,
            scheduler,
            requests: HashMap::new(),
            steps: 0,
            next_survey: Time::ZERO,
        };
        // Whoever sees it ready can also see how many rows it takes.
        engine.publish(engine.shared.clock.now());
        engine.shared.enter(EngineState::Ready);
        engine
    }

    /// How the scheduler stands.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Reads the mail, runs at most one forward pass, and writes down what came of it.
    pub fn turn(&mut self, clock: &dyn Clock) -> Turn {
        let now = clock.now();
        let mut drain = self.read_mail(now);
        if drain.is_some_and(|deadline| deadline <= now) {
            self.fail_all(now, FailureKind::Shutdown, "the service was stopped");
        }
        let mut plan = self.scheduler.schedule(now);
        self.give_up_expired(now, &plan);
        self.admit(now, &mut plan);
        if !plan.run.is_empty() {
            drain = self.run_pass(clock, now, &plan.run);
        }
        let now = clock.now();
        self.tell_places(now);
        self.publish(now);
        self.next_turn(drain)
    }

    fn next_turn(&self, drain: Option<Time>) -> Turn {
        if drain.is_some() && self.requests.is_empty() {
            return Turn::Stopped;
        }
        match (self.scheduler.next_wakeup(), drain) {
            (Some(Time::ZERO), _) => Turn::Again,
            (Some(wakeup), drain) => Turn::Sleep(drain.map_or(wakeup, |end| wakeup.min(end))),
            (None, _) => Turn::Idle,
        }
    }

    /// Takes submissions, applies cancels; says by when to be drained, if that was ever asked for.
    #[must_use = "a drain that is not heeded leaves the engine waiting for ever"]
    fn read_mail(&mut self, now: Time) -> Option<Time> {
        let Mail {
            submissions,
            cancels,
            drain,
        } = self.shared.mailbox.take();
        for delivery in submissions {
            self.accept(now, delivery);
        }
        for (id, kind) in cancels {
            match kind {
                CancelKind::Explicit => self.end(now, id, |request| request.cancel(now)),
                CancelKind::Abandoned => {
                    self.fail(now, id, FailureKind::Abandoned, "nobody read the answer");
                }
            }
        }
        if drain.is_some() {
            self.shared.enter(EngineState::Draining);
        }
        drain
    }

    fn accept(&mut self, now: Time, delivery: Delivery) {
        let mut request = Request::new(delivery);
        let (id, job) = (request.id, Arc::clone(&request.job));
        let priced = contain(|| Ok((self.model.key(&job), self.model.cost(&job))));
        let (key, cost) = match priced {
            Ok(priced) => priced,
            Err(error) => {
                self.requests.insert(id, request);
                return self.fail(now, id, FailureKind::Row, &error.to_string());
            }
        };
        let limit = self.scheduler.capacity().memory_units;
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
            self.requests.insert(id, request);
            return self.fail(now, id, FailureKind::Row, &message);
        }
        let place = self.scheduler.add(now, entry);
        request.tell_place(now, &place, self.scheduler.waiting_requests());
        self.requests.insert(id, request);
    }

    /// Tells waiting requests their places, once in a while.
    fn tell_places(&mut self, now: Time) {
        if now < self.next_survey {
            return;
        }
        self.next_survey = now + SURVEY_INTERVAL;
        let waiting = self.scheduler.waiting_requests();
        for place in self.scheduler.survey(now) {
            if let Some(request) = self.requests.get_mut(&place.request) {
                request.tell_place(now, &place, waiting);
            }
        }
    }

    fn give_up_expired(&mut self, now: Time, plan: &StepPlan) {
        for expired in &plan.expired {
            let message = "the request's deadline has passed";
            self.fail(
                now,
                expired.row.request,
                FailureKind::DeadlineExceeded,
                message,
            );
        }
    }

    /// Gives admitted rows to the model. A row that it refuses is struck from the plan.
    fn admit(&mut self, now: Time, plan: &mut StepPlan) {
        for Admission { row, slot } in plan.admit.clone() {
            let Some(request) = self.requests.get_mut(&row.request) else {
                continue;
            };
            let job = Arc::clone(&request.job);
            self.rows[slot.index()] = Some(row);
            match contain(|| self.model.admit(slot, &job, row.choice)) {
                Ok(admitted) => {
                    let cached = admitted.begin_work_done;
                    self.scheduler.begin_work_done(plan, slot, cached);
                    if request.start_row(now, row, slot, cached) {
                        let (queued, prompt) =
                            (now - request.submitted, request.usage().prompt_tokens);
                        self.shared
                            .observer
                            .started(&self.shared.model, queued, prompt, cached);
                    }
                }
                Err(error) => {
                    self.fail(now, row.request, FailureKind::Row, &error.to_string());
                }
            }
        }
        plan.run
            .retain(|planned| self.rows[planned.slot.index()].is_some());
    }

    /// Runs the pass and writes down what came of it. Mail that came meanwhile is read before, so that
    /// a cancelled row says nothing more; the answer is [`Engine::read_mail`]'s.
    fn run_pass(&mut self, clock: &dyn Clock, started: Time, run: &[PlannedRow]) -> Option<Time> {
        self.steps += 1;
        let reads_tokens = self.reads_tokens(run);
        let (outcome, run) = {
            let _span = tracing::debug_span!(
                "step",
                engine = %self.shared.model,
                step = self.steps,
                phase = phase_name(run),
                rows = run.len(),
            )
            .entered();
            self.run_what_fits(run)
        };
        let run = &*run;
        let now = clock.now();
        let drain = self.read_mail(now);
        match outcome {
            Ok(outcomes) => self.move_on(now, run, outcomes),
            Err(error) => self.fail_pass(now, run, &error),
        }
        self.shared.observer.step(
            &self.shared.model,
            &step_report(started, now, run, reads_tokens),
        );
        drain
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
            match self.scheduler.shrink(&run) {
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
    fn reads_tokens(&self, run: &[PlannedRow]) -> bool {
        run.first()
            .and_then(|planned| self.rows[planned.slot.index()])
            .and_then(|row| self.requests.get(&row.request))
            .is_some_and(|request| matches!(&*request.job, Job::Text(_)))
    }

    /// Writes down what each row said, and frees those that are done.
    fn move_on(&mut self, now: Time, run: &[PlannedRow], outcomes: Vec<RowOutcome>) {
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
        self.scheduler.update(now, run, &results);
        let said = || outcomes.iter().flat_map(|outcome| &outcome.emitted);
        let endings = match said().any(|said| matches!(said, Emission::Progress { .. })) {
            true => self.scheduler.endings(now),
            false => Endings::default(),
        };
        for (outcome, planned) in outcomes.into_iter().zip(run) {
            self.record(now, outcome, planned.phase, &endings);
        }
    }

    fn record(&mut self, now: Time, outcome: RowOutcome, phase: Phase, endings: &Endings) {
        let slot = outcome.slot;
        // A row that was cancelled during the pass has no slot any more.
        let Some(row) = self.rows[slot.index()] else {
            return;
        };
        let Some(request) = self.requests.get_mut(&row.request) else {
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
                self.retire(slot);
                if complete {
                    self.end(now, row.request, |request| request.finish(now));
                }
            }
            Next::Fail(message) => {
                self.retire(slot);
                self.fail(now, row.request, FailureKind::Row, &message);
            }
        }
    }

    /// The pass failed as a whole. If memory ran out, it was as small as can be: one row, which alone is too much.
    fn fail_pass(&mut self, now: Time, run: &[PlannedRow], error: &ModelError) {
        tracing::error!(engine = %self.shared.model, rows = run.len(), %error, "a step failed");
        for planned in run {
            // A request's rows end together, and with the first of them.
            if let Some(row) = self.rows[planned.slot.index()] {
                self.fail(now, row.request, FailureKind::Step, &error.to_string());
            }
        }
    }

    fn fail(&mut self, now: Time, id: RequestId, kind: FailureKind, message: &str) {
        self.end(now, id, |request| request.fail(now, kind, message));
    }

    pub(super) fn fail_all(&mut self, now: Time, kind: FailureKind, message: &str) {
        let ids: Vec<RequestId> = self.requests.keys().copied().collect();
        for id in ids {
            self.fail(now, id, kind, message);
        }
    }

    /// Ends a request: takes its rows from scheduler and model, closes its log, gives its place back.
    fn end(&mut self, now: Time, id: RequestId, close: impl FnOnce(Request) -> RequestEnd) {
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        self.scheduler.cancel(id);
        for slot in (0..).map(Slot).take(self.rows.len()) {
            if self.rows[slot.index()].is_some_and(|row| row.request == id) {
                self.retire(slot);
            }
        }
        self.shared.mailbox.forget(id);
        self.shared.close_log(now, request, close);
    }

    fn retire(&mut self, slot: Slot) {
        self.rows[slot.index()] = None;
        self.model.retire(slot);
    }

    fn publish(&self, now: Time) {
        let capacity = self.scheduler.capacity();
        self.shared.publish(Snapshot {
            waiting_requests: self.scheduler.waiting_requests(),
            waiting_by_priority: self.scheduler.waiting_by_priority(),
            waiting_rows: self.scheduler.waiting_rows(),
            running_rows: self.scheduler.running_rows(),
            slots: capacity.slots,
            memory_units_used: self.scheduler.memory_units_used(),
            memory_units_total: capacity.memory_units,
            cache: self.model.cache_report(),
            queued_tokens: self.requests.values().map(Request::queued_tokens).sum(),
            eta: self.scheduler.newcomer_eta(now).map(|eta| eta - now),
        });
    }

    /// Takes nothing more and fails whatever is left, without touching the model again.
    pub(super) fn close(mut self, now: Time, refusal: Reject, kind: FailureKind, message: &str) {
        self.shared.close_mailbox(now, refusal, kind, message);
        for (_, request) in self.requests.drain() {
            let fail = |request: Request| request.fail(now, kind, message);
            self.shared.close_log(now, request, fail);
        }
        // Nothing waits or runs any more.
        self.shared.publish(Snapshot::default());
    }
}

impl Shared {
    /// Ends a request for good; its place is free when this returns.
    fn close_log(&self, now: Time, request: Request, close: impl FnOnce(Request) -> RequestEnd) {
        let (submitted, usage) = (request.submitted, request.usage());
        let end = close(request);
        self.gate.note_end(now);
        self.observer
            .ended(&self.model, end, now - submitted, usage);
    }

    /// Takes nothing more, and fails what nobody has looked at yet.
    pub(super) fn close_mailbox(&self, now: Time, why: Reject, kind: FailureKind, message: &str) {
        for delivery in self.mailbox.close(why).submissions {
            let fail = |request: Request| request.fail(now, kind, message);
            self.close_log(now, Request::new(delivery), fail);
        }
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
