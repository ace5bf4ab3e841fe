//! Engines that share a queue: on threads of their own, and by turns on one for what has to happen in order.

use std::sync::Arc;
use std::time::Duration;

use girandole::batch::DeviceNumber;
use girandole::engine::turn::{Engine, unthreaded_on};
use girandole::engine::{
    Build, DeviceEngine, EngineConfig, EngineHandle, EngineState, Reject, Snapshot,
    spawn_on_devices,
};
use girandole::events::{EventKind, FailureKind};
use girandole::job::{RequestId, UserId};
use girandole::model::Model;
use girandole::model::scripted::{Script, ScriptedModel, sleep};
use girandole::time::{Clock, ManualClock, RealClock, Time};

use crate::threaded::{Broken, Log, Silent, config, failure, job, submit, text};

fn on_two() -> EngineConfig {
    EngineConfig {
        devices: 2,
        ..config()
    }
}

fn start(builds: [Build; 2]) -> EngineHandle {
    let names = ["left", "right"].map(Arc::from);
    let devices = names
        .into_iter()
        .zip(builds)
        .map(|(name, build)| DeviceEngine { name, build });
    spawn_on_devices(
        "test",
        on_two(),
        Arc::new(RealClock::start()),
        Arc::new(Silent),
        devices.collect(),
    )
}

fn scripted(toml: &str, device: u32) -> Build {
    let script = toml.to_owned();
    Box::new(move || {
        let model = ScriptedModel::new(Script::parse(&script)?, sleep())?;
        Ok(Box::new(model.on_device(DeviceNumber(device))) as Box<dyn Model>)
    })
}

fn both(toml: &str) -> EngineHandle {
    start([scripted(toml, 0), scripted(toml, 1)])
}

async fn eventually(engine: &EngineHandle, done: impl Fn(&Snapshot) -> bool) {
    let clock = RealClock::start();
    while !done(&engine.snapshot()) {
        assert!(
            clock.now() < Time::from_millis(10_000),
            "{:?}",
            engine.snapshot()
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn submit_all(engine: &EngineHandle, ids: std::ops::Range<u128>, tokens: u32) -> Vec<Arc<Log>> {
    ids.map(|id| submit(engine, id, job("hello", tokens)).expect("there is room"))
        .collect()
}

#[tokio::test]
async fn both_devices_work_and_drain() {
    let engine = both("cost.tokens_per_second = 200.0");
    assert_eq!(engine.until_started().await, EngineState::Ready);
    assert_eq!(engine.devices().to_vec(), ["left", "right"].map(Arc::from));
    // Places: two batches of four, and eight that wait.
    let logs = submit_all(&engine, 0..16, 60);
    assert!(matches!(
        engine.reserve(UserId::default(), 1, 1),
        Err(Reject::QueueFull { .. })
    ));
    eventually(&engine, |snapshot| {
        snapshot
            .devices
            .iter()
            .all(|device| device.running_rows == 4)
    })
    .await;
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.running_rows, snapshot.slots), (8, 8));
    for log in &logs {
        assert_eq!(text(&log.until_closed()).len(), 60);
    }
    engine.drain(Time::FAR_FUTURE);
    engine.until_stopped().await;
    assert_eq!(engine.state(), EngineState::Stopped);
}

#[tokio::test]
async fn a_request_of_many_rows_has_them_on_both() {
    let engine = both("cost.tokens_per_second = 200.0");
    engine.until_started().await;
    let mut wide = girandole::job::TextJob::greedy(vec![65; 40], 30);
    wide.rows = 8;
    let log = submit(&engine, 1, Arc::new(girandole::job::Job::Text(wide))).unwrap();
    eventually(&engine, |snapshot| {
        snapshot
            .devices
            .iter()
            .all(|device| device.running_rows > 0)
    })
    .await;
    let events = log.until_closed();
    let ended = |event: &&EventKind| matches!(event, EventKind::ChoiceFinished { .. });
    assert_eq!(events.iter().filter(ended).count(), 8);
    let again = submit(&engine, 2, job("hello", 8_000)).unwrap();
    engine.cancel(RequestId::from_u128(2));
    assert!(matches!(
        again.until_closed().last(),
        Some(EventKind::Finished { .. })
    ));
    eventually(&engine, |snapshot| snapshot.running_rows == 0).await;
}

#[tokio::test]
async fn a_device_that_fails_again_and_again_is_given_up() {
    let faulty = "cost.tokens_per_second = 200.0\n[[fault]]\ndevice = 1\nfail_steps_from = 4";
    let engine = both(faulty);
    engine.until_started().await;
    let mut failed = Vec::new();
    for id in 0..200 {
        if engine.snapshot().devices[1].state != EngineState::Ready {
            break;
        }
        let log = submit(&engine, id, job("hello", 20)).unwrap();
        failed.extend(failure(&log.until_closed()));
    }
    let EngineState::Failed(reason) = engine.snapshot().devices[1].state.clone() else {
        panic!("it goes on");
    };
    assert_eq!(
        reason,
        "device right: 3 passes in a row failed: a planted device error"
    );
    assert!(
        failed.iter().all(|kind| *kind == FailureKind::Step),
        "{failed:?}"
    );
    // The other one goes on, and has all rows.
    assert_eq!(engine.state(), EngineState::Ready);
    for log in submit_all(&engine, 1_000..1_008, 20) {
        assert_eq!(text(&log.until_closed()).len(), 20);
    }
    assert_eq!(engine.snapshot().slots, 4);
    engine.drain(Time::FAR_FUTURE);
    engine.until_stopped().await;
    assert_eq!(engine.state(), EngineState::Stopped);
}

#[tokio::test]
async fn the_last_device_is_never_given_up() {
    let engine = both("[[fault]]\nfail_steps_from = 1");
    engine.until_started().await;
    for id in 0..20 {
        let log = submit(&engine, id, job("hello", 3)).unwrap();
        assert_eq!(failure(&log.until_closed()), Some(FailureKind::Step));
    }
    let devices = engine.snapshot().devices;
    let ready = devices
        .iter()
        .filter(|device| device.state == EngineState::Ready);
    assert_eq!((ready.count(), engine.state()), (1, EngineState::Ready));
}

#[tokio::test]
async fn a_thread_that_dies_takes_its_own_rows_along() {
    let steady = "cost.tokens_per_second = 100.0";
    let engine = start([
        scripted(steady, 0),
        Box::new(move || {
            let script = Script::parse(steady)?;
            Ok(Box::new(Broken(ScriptedModel::new(script, sleep())?)) as Box<dyn Model>)
        }),
    ]);
    engine.until_started().await;
    // Twice as many as run at once; the rows on the right end with the first of them.
    let logs = submit_all(&engine, 0..16, 40);
    let ends: Vec<_> = logs.iter().map(|log| log.until_closed()).collect();
    let dead = |events: &&Vec<EventKind>| failure(events) == Some(FailureKind::EngineDead);
    let died = ends.iter().filter(dead).count();
    // One of them may have ended by itself before its slot was given back.
    assert!((3..=4).contains(&died), "{died}");
    for events in ends.iter().filter(|events| !dead(events)) {
        assert_eq!(text(events).len(), 40);
    }
    let said = ends.iter().flatten().find_map(|event| match event {
        EventKind::Failed { failure, .. } => Some(failure.message.clone()),
        _ => None,
    });
    assert_eq!(engine.state(), EngineState::Ready);
    assert!(matches!(
        engine.snapshot().devices[1].state,
        EngineState::Failed(_)
    ));
    assert!(said.is_some());
}

#[tokio::test]
async fn a_device_that_cannot_load_ends_them_all() {
    let engine = start([
        scripted("", 0),
        scripted("model.fail_load = 'no weights'", 1),
    ]);
    let EngineState::Failed(reason) = engine.until_started().await else {
        panic!("it started");
    };
    assert_eq!(
        reason,
        "device right: the model cannot be loaded: no weights"
    );
    assert!(matches!(
        engine.reserve(UserId::default(), 1, 1),
        Err(Reject::Dead(_))
    ));
}

/// Two engines that have their turns when the test says so.
struct ByHand {
    clock: Arc<ManualClock>,
    handle: EngineHandle,
    engines: Vec<Engine>,
}

impl ByHand {
    fn new(batch_size: u32) -> Self {
        let clock = Arc::new(ManualClock::default());
        let mut config = on_two();
        config.scheduler.batch_size = batch_size;
        let model = || {
            let script = Script::parse("cost.step_micros = 10000").expect("a script");
            let moved = Arc::clone(&clock);
            let pause = move |by: Duration| moved.advance(by);
            let model = ScriptedModel::new(script, Box::new(pause)).expect("a model");
            Box::new(model) as Box<dyn Model>
        };
        let (handle, engines) = unthreaded_on(
            &["left", "right"],
            "test",
            config,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(Silent),
            vec![model(), model()],
        );
        ByHand {
            clock,
            handle,
            engines,
        }
    }

    fn turn(&mut self, device: usize) {
        self.clock.advance(Duration::from_millis(5));
        self.engines[device].turn(&*self.clock);
    }

    fn running(&self) -> [u32; 2] {
        let snapshot = self.handle.snapshot();
        [0, 1].map(|device| snapshot.devices[device].running_rows)
    }
}

#[test]
fn a_row_that_ends_by_another_engine_leaves_its_slot() {
    let mut world = ByHand::new(1);
    let first = submit(&world.handle, 1, job("one", 500)).unwrap();
    let second = submit(&world.handle, 2, job("two", 500)).unwrap();
    for device in [0, 0, 1, 1] {
        world.turn(device);
    }
    assert_eq!(world.running(), [1, 1]);
    assert!(first.has_started() && second.has_started());
    // The left engine reads that the row on the right is given up.
    let of_right = world.engines[0]
        .scheduler()
        .running_rows_on(DeviceNumber(1));
    assert_eq!(of_right, 1);
    let (gone, other) = (RequestId::from_u128(2), RequestId::from_u128(1));
    world.handle.cancel(gone);
    world.turn(0);
    let ended = [&first, &second].map(|log| {
        let events = log.events_so_far();
        events.last().is_some_and(EventKind::is_terminal)
    });
    assert_eq!(ended, [false, true], "at once, whoever reads of it");
    assert_eq!(world.running(), [1, 0]);
    // Its slot is free for the next, which the right engine takes.
    let third = submit(&world.handle, 3, job("three", 3)).unwrap();
    for _ in 0..6 {
        world.turn(1);
    }
    assert_eq!(text(&third.events_so_far()).len(), 3);
    world.handle.cancel(other);
    world.turn(1);
    assert_eq!(world.running(), [0, 0]);
    let fourth = submit(&world.handle, 4, job("four", 2)).unwrap();
    for _ in 0..4 {
        world.turn(0);
    }
    assert_eq!(text(&fourth.events_so_far()).len(), 2);
}
