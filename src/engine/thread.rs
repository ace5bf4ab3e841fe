//! The engine's own thread: builds the model, takes one turn after another, sleeps when nothing is
//! due, and closes every log however it ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::handle::{EngineHandle, Shared};
use super::turn::{Engine, Turn, panic_message};
use super::{EngineConfig, EngineState, Observer, Reject};
use crate::events::FailureKind;
use crate::model::{Model, ModelError};
use crate::time::Clock;

/// Starts an engine. The model is built on its thread; see [`EngineHandle::state`].
pub fn spawn(
    model_name: &str,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    build: impl FnOnce() -> Result<Box<dyn Model>, ModelError> + Send + 'static,
) -> EngineHandle {
    let shared = Arc::new(Shared::new(model_name, &config, clock, observer));
    let on_thread = Arc::clone(&shared);
    let started = std::thread::Builder::new()
        .name(format!("engine-{model_name}"))
        .spawn(move || run(&on_thread, &config, build));
    if let Err(error) = started {
        die(
            &shared,
            &format!("its thread could not be started: {error}"),
        );
    }
    EngineHandle::new(shared)
}

fn run(
    shared: &Arc<Shared>,
    config: &EngineConfig,
    build: impl FnOnce() -> Result<Box<dyn Model>, ModelError>,
) {
    let model = match catch_unwind(AssertUnwindSafe(build)) {
        Ok(Ok(model)) => model,
        Ok(Err(error)) => return die(shared, &format!("the model cannot be loaded: {error}")),
        Err(panic) => {
            let message = panic_message(&*panic);
            return die(
                shared,
                &format!("the model panicked while loading: {message}"),
            );
        }
    };
    let mut engine = Engine::new(Arc::clone(shared), config, model);
    let outcome = catch_unwind(AssertUnwindSafe(|| take_turns(shared, &mut engine)));
    let now = shared.clock.now();
    let (refusal, kind, message) = match outcome {
        Ok(()) => (
            Reject::Draining,
            FailureKind::Shutdown,
            "the service was stopped".to_owned(),
        ),
        Err(panic) => {
            // What a panic says may quote what it was given, which is a client's.
            tracing::trace!(
                message = panic_message(&*panic),
                "an engine's thread panicked"
            );
            let reason = "its thread panicked".to_owned();
            (
                Reject::Dead(reason.clone()),
                FailureKind::EngineDead,
                reason,
            )
        }
    };
    // The model goes with the engine, and may panic once more.
    let close = || engine.close(now, refusal, kind, &message);
    let closed = catch_unwind(AssertUnwindSafe(close));
    match (kind, closed) {
        (FailureKind::Shutdown, Ok(())) => shared.enter(EngineState::Stopped),
        _ => die(shared, &message),
    }
}

fn take_turns(shared: &Shared, engine: &mut Engine) {
    loop {
        match engine.turn(&*shared.clock) {
            Turn::Again => {}
            Turn::Sleep(until) => shared.mailbox.wait(Some(until - shared.clock.now())),
            Turn::Idle => shared.mailbox.wait(None),
            Turn::Stopped => return,
        }
    }
}

/// The engine cannot go on: refuses what comes, and closes the logs of what had come.
fn die(shared: &Shared, reason: &str) {
    tracing::error!(engine = %shared.model, reason, "the engine has failed");
    let refusal = Reject::Dead(reason.to_owned());
    shared.close_mailbox(shared.clock.now(), refusal, FailureKind::EngineDead, reason);
    shared.enter(EngineState::Failed(reason.to_owned()));
}
