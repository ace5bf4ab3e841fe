//! An engine's own thread: builds the model, takes one turn after another, sleeps when nothing is
//! due, and closes every log that is its own to close however it ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::ending::Ending;
use super::handle::{EngineHandle, Shared};
use super::turn::{Engine, Turn, panic_message};
use super::{EngineConfig, EngineState, Observer, Reject};
use crate::batch::DeviceNumber;
use crate::events::FailureKind;
use crate::model::{Model, ModelError};
use crate::time::Clock;

/// Builds a model on the thread that will own it.
pub type Build = Box<dyn FnOnce() -> Result<Box<dyn Model>, ModelError> + Send>;

/// A device, and how the model gets onto it.
pub struct DeviceEngine {
    /// What the device is called: no other of the model is called so.
    pub name: Arc<str>,
    /// Builds the model there.
    pub build: Build,
}

/// Starts an engine on the one device. The model is built on its thread; see [`EngineHandle::state`].
pub fn spawn(
    model_name: &str,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    build: impl FnOnce() -> Result<Box<dyn Model>, ModelError> + Send + 'static,
) -> EngineHandle {
    let only = DeviceEngine {
        name: Arc::from("0"),
        build: Box::new(build),
    };
    spawn_on_devices(model_name, config, clock, observer, vec![only])
}

/// Starts an engine on each device, behind one queue: [`EngineConfig::devices`] of them.
pub fn spawn_on_devices(
    model_name: &str,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    devices: Vec<DeviceEngine>,
) -> EngineHandle {
    let names: Vec<Arc<str>> = devices
        .iter()
        .map(|device| Arc::clone(&device.name))
        .collect();
    let shared = Arc::new(Shared::new(model_name, &config, &names, clock, observer));
    let several = devices.len() > 1;
    for (number, device) in (0..).map(DeviceNumber).zip(devices) {
        let name = match several {
            true => format!("engine-{model_name}-{}", device.name),
            false => format!("engine-{model_name}"),
        };
        let thread = Thread {
            shared: Arc::clone(&shared),
            number,
            whose: match several {
                true => format!("device {}: ", device.name),
                false => String::new(),
            },
        };
        let failed = thread.clone();
        let started = std::thread::Builder::new()
            .name(name)
            .spawn(move || thread.run(device.build));
        if let Err(error) = started {
            failed.cannot_start(&format!("its thread could not be started: {error}"));
        }
    }
    EngineHandle::new(shared)
}

/// One engine's thread.
#[derive(Clone)]
struct Thread {
    shared: Arc<Shared>,
    number: DeviceNumber,
    /// Comes before what is said of it, where there are others.
    whose: String,
}

impl Thread {
    fn run(self, build: Build) {
        let model = match catch_unwind(AssertUnwindSafe(build)) {
            Ok(Ok(model)) => model,
            Ok(Err(error)) => {
                return self.cannot_start(&format!("the model cannot be loaded: {error}"));
            }
            Err(panic) => {
                let message = panic_message(&*panic);
                return self.cannot_start(&format!("the model panicked while loading: {message}"));
            }
        };
        let mut engine = Engine::new(Arc::clone(&self.shared), self.number, model);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.take_turns(&mut engine)));
        let ending = match outcome {
            Ok(()) => match engine.gave_up() {
                None => Ending::drained(),
                Some(reason) => Ending::failed(format!("{}{reason}", self.whose)),
            },
            Err(panic) => {
                // What a panic says may quote what it was given, which is a client's.
                tracing::trace!(
                    message = panic_message(&*panic),
                    "an engine's thread panicked"
                );
                Ending::failed(format!("{}its thread panicked", self.whose))
            }
        };
        let shared = &self.shared;
        if let Some(reason) = &ending.failure {
            tracing::error!(engine = %shared.model, reason, "the engine has failed");
        }
        shared.close_device(shared.clock.now(), self.number, &ending);
        // The model goes with the engine, and may panic once more.
        let gone = catch_unwind(AssertUnwindSafe(|| drop(engine)));
        shared.leave(gone.is_ok(), &self.whose);
    }

    fn take_turns(&self, engine: &mut Engine) {
        let shared = &*self.shared;
        loop {
            match engine.turn(&*shared.clock) {
                Turn::Again => {}
                Turn::Sleep(until) => {
                    let timeout = until - shared.clock.now();
                    shared.mailbox.wait(engine.news_seen(), Some(timeout));
                }
                Turn::Idle => shared.mailbox.wait(engine.news_seen(), None),
                Turn::Stopped => return,
            }
        }
    }

    /// A service that lacks what it was told to serve should not look as if it had come up: all engines of
    /// the model end, refuse what comes, and close the logs of what had come.
    fn cannot_start(&self, reason: &str) {
        let (shared, now) = (&self.shared, self.shared.clock.now());
        let reason = format!("{}{reason}", self.whose);
        tracing::error!(engine = %shared.model, reason, "the engine has failed");
        let refusal = Reject::Dead(reason.clone());
        shared.close_mailbox(now, refusal, FailureKind::EngineDead, &reason);
        shared.enter(EngineState::Failed(reason.clone()));
        shared.close_device(now, self.number, &Ending::failed(reason));
        // Those that have their model already, or will.
        shared.mailbox.drain(now);
    }
}
