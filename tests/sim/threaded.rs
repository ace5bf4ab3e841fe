//! The engine on its own thread, with real time: what only a thread can get wrong.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use girandole::batch::{BatchKey, Capacity, PlannedRow, RowCost, RowOutcome, Slot};
use girandole::engine::{
    EngineConfig, EngineHandle, EngineState, Observer, Reject, Submission, spawn,
};
use girandole::events::{EventKind, EventSink, FailureKind};
use girandole::job::{Job, Priority, RequestId, TextJob, UserId};
use girandole::model::scripted::{Script, ScriptedModel, sleep};
use girandole::model::{Admitted, Model, ModelError};
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::{Clock, RealClock, Time};

#[derive(Default)]
pub(crate) struct Log {
    events: Mutex<Vec<EventKind>>,
    news: Condvar,
}

impl EventSink for Log {
    fn append(&self, _at: Time, kind: EventKind) {
        self.events.lock().unwrap().push(kind);
        self.news.notify_all();
    }
}

impl Log {
    pub(crate) fn has_started(&self) -> bool {
        self.events.lock().unwrap().contains(&EventKind::Started)
    }

    pub(crate) fn events_so_far(&self) -> Vec<EventKind> {
        self.events.lock().unwrap().clone()
    }

    /// Every event, once the terminal one is there.
    pub(crate) fn until_closed(&self) -> Vec<EventKind> {
        let open = |events: &mut Vec<EventKind>| !events.last().is_some_and(EventKind::is_terminal);
        let (events, timeout) = self
            .news
            .wait_timeout_while(self.events.lock().unwrap(), Duration::from_secs(10), open)
            .unwrap();
        assert!(!timeout.timed_out(), "no terminal event: {events:?}");
        events.clone()
    }
}

pub(crate) struct Silent;
impl Observer for Silent {}

pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        devices: 1,
        scheduler: SchedulerConfig {
            batch_size: 4,
            max_queue_delay: Duration::from_millis(1),
            batching: Batching::Continuous,
            step_budget: Duration::from_millis(50),
            fairness: Fairness::default(),
        },
        max_queued_requests: 8,
        max_queued_tokens: 10_000,
        max_queued_source_bytes: 1 << 30,
    }
}

fn scripted(toml: &str) -> EngineHandle {
    let script = toml.to_owned();
    start(move || {
        let model = ScriptedModel::new(Script::parse(&script)?, sleep())?;
        Ok(Box::new(model) as Box<dyn Model>)
    })
}

fn start(
    build: impl FnOnce() -> Result<Box<dyn Model>, ModelError> + Send + 'static,
) -> EngineHandle {
    spawn(
        "test",
        config(),
        Arc::new(RealClock::start()),
        Arc::new(Silent),
        build,
    )
}

pub(crate) fn job(prompt: &str, max_tokens: u32) -> Arc<Job> {
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    Arc::new(Job::Text(TextJob::greedy(tokens, max_tokens)))
}

pub(crate) fn submit(engine: &EngineHandle, id: u128, job: Arc<Job>) -> Result<Arc<Log>, Reject> {
    let permit = engine.reserve(UserId::default(), job.rows(), 10)?;
    let log = Arc::new(Log::default());
    let submission = Submission {
        id: RequestId::from_u128(id),
        job,
        log: Arc::clone(&log) as Arc<dyn EventSink>,
        deadline: None,
        priority: Priority::Normal,
    };
    engine.submit(permit, submission)?;
    Ok(log)
}

pub(crate) fn failure(events: &[EventKind]) -> Option<FailureKind> {
    match events.last()? {
        EventKind::Failed { failure, .. } => Some(failure.kind),
        _ => None,
    }
}

pub(crate) fn text(events: &[EventKind]) -> String {
    let pieces = events.iter().filter_map(|event| match event {
        EventKind::Text { text, .. } => Some(text.as_str()),
        _ => None,
    });
    pieces.collect()
}

#[tokio::test]
async fn a_request_is_answered_and_the_engine_drains() {
    let engine = scripted("output.kind = 'echo'");
    assert_eq!(engine.until_started().await, EngineState::Ready);
    let log = submit(&engine, 1, job("hello, wörld", 100)).unwrap();
    assert_eq!(text(&log.until_closed()), "hello, wörld");
    engine.drain(Time::FAR_FUTURE);
    engine.until_stopped().await;
    assert_eq!(engine.state(), EngineState::Stopped);
    assert_eq!(
        submit(&engine, 2, job("late", 1)).err(),
        Some(Reject::Draining)
    );
}

#[tokio::test]
async fn a_cancel_reaches_a_running_request() {
    let engine = scripted("cost.tokens_per_second = 20.0");
    engine.until_started().await;
    let log = submit(&engine, 1, job("long", 8000)).unwrap();
    engine.cancel(RequestId::from_u128(1));
    let events = log.until_closed();
    assert!(matches!(events.last(), Some(EventKind::Finished { .. })));
}

#[tokio::test]
async fn an_engine_that_cannot_load_says_why() {
    let engine = scripted("model.fail_load = 'no weights'");
    let EngineState::Failed(reason) = engine.until_started().await else {
        panic!("it loaded");
    };
    assert!(reason.contains("no weights"), "{reason}");
    engine.until_stopped().await;
    assert!(matches!(
        engine.reserve(UserId::default(), 1, 1),
        Err(Reject::Dead(_))
    ));
}

#[tokio::test]
async fn exactly_as_many_come_in_as_there_are_places() {
    let engine = scripted("");
    engine.until_started().await;
    let permits: Vec<_> = std::thread::scope(|scope| {
        let reserve = || scope.spawn(|| engine.reserve(UserId::default(), 1, 1).ok());
        let threads: Vec<_> = (0..100).map(|_| reserve()).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.flatten().collect()
    });
    // batch_size + max_queued_requests
    assert_eq!(permits.len(), 4 + 8);
    assert!(matches!(
        engine.reserve(UserId::default(), 1, 1),
        Err(Reject::QueueFull { .. })
    ));
    drop(permits);
    assert!(engine.reserve(UserId::default(), 12, 1).is_ok());
}

#[tokio::test]
async fn a_panic_in_a_step_leaves_the_thread_alive() {
    let engine = scripted("[[fault]]\nprompt_contains = 'boom'\npanic_at_step = 2");
    engine.until_started().await;
    let boom = submit(&engine, 1, job("boom", 5)).unwrap();
    assert_eq!(failure(&boom.until_closed()), Some(FailureKind::Step));
    let next = submit(&engine, 2, job("next", 5)).unwrap();
    assert_eq!(text(&next.until_closed()).len(), 5);
    assert_eq!(engine.state(), EngineState::Ready);
}

/// Works like the scripted model, until it is to give a slot back.
pub(crate) struct Broken(pub(crate) ScriptedModel);

impl Model for Broken {
    fn capacity(&self) -> Capacity {
        self.0.capacity()
    }
    fn key(&self, job: &Job) -> BatchKey {
        self.0.key(job)
    }
    fn cost(&self, job: &Job) -> RowCost {
        self.0.cost(job)
    }
    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        self.0.admit(slot, job, choice)
    }
    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        self.0.step(rows)
    }
    fn retire(&mut self, _slot: Slot) {
        panic!("a planted panic outside a step");
    }
}

/// Works like the scripted model, but cannot tell what `boom` costs.
struct Unpriced(ScriptedModel);

impl Model for Unpriced {
    fn capacity(&self) -> Capacity {
        self.0.capacity()
    }
    fn key(&self, job: &Job) -> BatchKey {
        self.0.key(job)
    }
    fn cost(&self, job: &Job) -> RowCost {
        let boom: Vec<u32> = "boom".bytes().map(u32::from).collect();
        assert!(*job.text().prompt != *boom, "a secret prompt");
        self.0.cost(job)
    }
    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        self.0.admit(slot, job, choice)
    }
    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        self.0.step(rows)
    }
    fn retire(&mut self, slot: Slot) {
        self.0.retire(slot);
    }
}

#[tokio::test]
async fn a_dead_engine_closes_every_log_and_refuses() {
    let engine = start(|| {
        let script = Script::parse("cost.tokens_per_second = 200.0")?;
        Ok(Box::new(Broken(ScriptedModel::new(script, sleep())?)))
    });
    engine.until_started().await;
    // More than run at once, the first of them the first to end.
    let logs: Vec<_> = (0..10)
        .map(|id| submit(&engine, id, job("hello", 5 + 50 * id as u32)).unwrap())
        .collect();
    engine.until_stopped().await;
    for log in &logs[1..] {
        assert_eq!(failure(&log.until_closed()), Some(FailureKind::EngineDead));
    }
    assert!(
        logs[0]
            .until_closed()
            .last()
            .is_some_and(EventKind::is_terminal)
    );
    assert!(matches!(engine.state(), EngineState::Failed(_)));
    assert!(matches!(
        engine.reserve(UserId::default(), 1, 1),
        Err(Reject::Dead(_))
    ));
}

#[tokio::test]
async fn a_request_that_is_being_ended_when_the_engine_dies_is_closed_too() {
    let engine = start(|| {
        let script = Script::parse("cost.tokens_per_second = 200.0")?;
        Ok(Box::new(Broken(ScriptedModel::new(script, sleep())?)))
    });
    engine.until_started().await;
    let log = submit(&engine, 1, job("hello", 8_000)).unwrap();
    let clock = RealClock::start();
    while !log.has_started() {
        assert!(clock.now() < Time::from_millis(10_000), "it does not start");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Its slot is given back between its leaving the engine's list and its end.
    engine.cancel(RequestId::from_u128(1));
    engine.until_stopped().await;
    assert_eq!(failure(&log.until_closed()), Some(FailureKind::EngineDead));
}

#[tokio::test]
async fn a_panic_over_a_request_that_comes_in_fails_that_one_only() {
    let engine = start(|| {
        Ok(Box::new(Unpriced(ScriptedModel::new(
            Script::parse("")?,
            sleep(),
        )?)))
    });
    engine.until_started().await;
    let boom = submit(&engine, 1, job("boom", 5)).unwrap();
    let next = submit(&engine, 2, job("next", 5)).unwrap();
    let events = boom.until_closed();
    assert_eq!(failure(&events), Some(FailureKind::Row));
    let said = format!("{events:?}");
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(text(&next.until_closed()).len(), 5);
    assert_eq!(engine.state(), EngineState::Ready);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_and_abandoned_requests_say_so() {
    let clock = RealClock::start();
    let engine = scripted("cost.tokens_per_second = 20.0");
    engine.until_started().await;
    let logs: Vec<_> = (0..6)
        .map(|id| submit(&engine, id, job("hello", 2_000)).unwrap())
        .collect();
    engine.abandon(RequestId::from_u128(0));
    engine.cancel(RequestId::from_u128(0));
    assert_eq!(
        failure(&logs[0].until_closed()),
        Some(FailureKind::Abandoned)
    );
    // The engine's clock began a little later: its deadline is a little later, too.
    engine.drain(clock.now() + Duration::from_millis(200));
    engine.until_stopped().await;
    assert_eq!(engine.state(), EngineState::Stopped);
    for log in &logs[1..] {
        assert_eq!(failure(&log.until_closed()), Some(FailureKind::Shutdown));
    }
    assert!(clock.now() < Time::from_millis(2_000));
}

#[tokio::test]
async fn an_engine_that_nobody_holds_finishes_and_goes() {
    struct Alive(Arc<()>);
    impl Observer for Alive {}
    let alive = Arc::new(());
    let observer = Arc::new(Alive(Arc::clone(&alive)));
    assert_eq!(Arc::strong_count(&observer.0), 2);
    let engine = spawn(
        "test",
        config(),
        Arc::new(RealClock::start()),
        observer,
        || {
            let script = Script::parse("cost.tokens_per_second = 500.0")?;
            Ok(Box::new(ScriptedModel::new(script, sleep())?) as Box<dyn Model>)
        },
    );
    engine.until_started().await;
    let log = submit(&engine, 1, job("hello", 20)).unwrap();
    drop(engine);
    assert_eq!(failure(&log.until_closed()), None);
    let clock = RealClock::start();
    while Arc::strong_count(&alive) > 1 {
        assert!(
            clock.now() < Time::from_millis(5_000),
            "the thread is still there"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
