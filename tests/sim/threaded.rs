//! The engine on its own thread, with real time: what only a thread can get wrong.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use girandole::engine::{
    EngineConfig, EngineHandle, EngineState, Observer, Reject, Submission, spawn,
};
use girandole::events::{EventKind, EventSink};
use girandole::job::{Job, RequestId, TextJob};
use girandole::model::Model;
use girandole::model::scripted::{Script, ScriptedModel, sleep};
use girandole::scheduler::{Batching, SchedulerConfig};
use girandole::time::{RealClock, Time};

#[derive(Default)]
struct Log {
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
    /// Every event, once the terminal one is there.
    fn until_closed(&self) -> Vec<EventKind> {
        let open = |events: &mut Vec<EventKind>| !events.last().is_some_and(EventKind::is_terminal);
        let (events, timeout) = self
            .news
            .wait_timeout_while(self.events.lock().unwrap(), Duration::from_secs(10), open)
            .unwrap();
        assert!(!timeout.timed_out(), "no terminal event: {events:?}");
        events.clone()
    }
}

struct Silent;
impl Observer for Silent {}

fn config() -> EngineConfig {
    EngineConfig {
        scheduler: SchedulerConfig {
            batch_size: 4,
            max_queue_delay: Duration::from_millis(1),
            batching: Batching::Continuous,
            step_budget: Duration::from_millis(50),
        },
        max_queued_requests: 8,
        max_queued_tokens: 10_000,
    }
}

fn scripted(toml: &str) -> EngineHandle {
    let script = toml.to_owned();
    let build = move || {
        let model = ScriptedModel::new(Script::parse(&script)?, sleep())?;
        Ok(Box::new(model) as Box<dyn Model>)
    };
    spawn(
        "test",
        config(),
        Arc::new(RealClock::start()),
        Arc::new(Silent),
        build,
    )
}

fn job(prompt: &str, max_tokens: u32) -> Arc<Job> {
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    Arc::new(Job::Text(TextJob::greedy(tokens, max_tokens)))
}

fn submit(engine: &EngineHandle, id: u128, job: Arc<Job>) -> Result<Arc<Log>, Reject> {
    let permit = engine.reserve(job.rows(), 10)?;
    let log = Arc::new(Log::default());
    let submission = Submission {
        id: RequestId::from_u128(id),
        job,
        log: Arc::clone(&log) as Arc<dyn EventSink>,
        deadline: None,
    };
    engine.submit(permit, submission)?;
    Ok(log)
}

fn text(events: &[EventKind]) -> String {
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
    assert!(matches!(engine.reserve(1, 1), Err(Reject::Dead(_))));
}
