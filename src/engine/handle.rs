//! The async side's end of a model's engines.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::desk::Desk;
use super::gate::{Gate, Permit};
use super::mailbox::{CancelKind, Delivery, Mailbox};
use super::open_log::OpenLog;
use super::{EngineConfig, EngineState, Observer, Reject, Snapshot, Submission};
use crate::job::{RequestId, UserId};
use crate::time::{Clock, Time};

/// What the engines' threads and their handles share.
pub(super) struct Shared {
    pub(super) model: String,
    devices: Vec<Arc<str>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) gate: Arc<Gate>,
    pub(super) mailbox: Mailbox,
    /// Of the engines among themselves. Locked before the mailbox, where both are.
    desk: Mutex<Desk>,
    state: watch::Sender<EngineState>,
    snapshot: Mutex<Snapshot>,
}

impl Shared {
    pub(super) fn new(
        model: &str,
        config: &EngineConfig,
        devices: &[Arc<str>],
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        debug_assert_eq!(config.devices as usize, devices.len());
        let desk = Desk::new(config, devices);
        Shared {
            snapshot: Mutex::new(desk.snapshot(clock.now())),
            desk: Mutex::new(desk),
            model: model.to_owned(),
            devices: devices.to_vec(),
            clock,
            observer,
            gate: Arc::new(Gate::new(config)),
            mailbox: Mailbox::default(),
            state: watch::Sender::new(EngineState::Loading),
        }
    }

    /// Moves on to `next`, unless the engine is past that already.
    pub(super) fn enter(&self, next: EngineState) {
        self.state.send_if_modified(|state| {
            let forward = stage(&next) > stage(state);
            if forward {
                *state = next;
            }
            forward
        });
    }

    /// What a panic leaves behind is used all the same: each request in it is whole.
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.observer.snapshot(&self.model, &snapshot);
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}

/// An engine's life goes one way.
fn stage(state: &EngineState) -> u8 {
    match state {
        EngineState::Loading => 0,
        EngineState::Ready => 1,
        EngineState::Draining => 2,
        EngineState::Stopped => 3,
        EngineState::Failed(_) => 4,
    }
}

/// The async side's end of a model's engines. Cheap to clone. When the last one is dropped, they finish what
/// they have and end.
#[derive(Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

/// Lets the engines go when nobody can send them anything any more.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.mailbox.drain(Time::FAR_FUTURE);
    }
}

impl EngineHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        EngineHandle {
            owner: Arc::new(Owner { shared }),
        }
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.shared().model
    }

    /// What the devices are called.
    pub fn devices(&self) -> &[Arc<str>] {
        &self.shared().devices
    }

    /// Where the engines are in their life: ready from when all have their model for as long as one lives.
    pub fn state(&self) -> EngineState {
        self.shared().state.borrow().clone()
    }

    /// Returns when the engine is no longer `Loading`, with what it is then.
    pub async fn until_started(&self) -> EngineState {
        self.until(|state| *state != EngineState::Loading).await
    }

    /// Rows of one user that may be in the engine at once, waiting or running.
    pub fn max_rows_per_user(&self) -> u32 {
        self.shared().gate.max_rows_per_user()
    }

    /// Takes a place for a user's request of `rows` rows, before its prompt is tokenized.
    ///
    /// # Errors
    /// See [`Reject`]. The answer never waits.
    pub fn reserve(
        &self,
        user: UserId,
        rows: u32,
        estimated_prompt_tokens: u64,
    ) -> Result<Permit, Reject> {
        let shared = self.shared();
        let open = match &*shared.state.borrow() {
            EngineState::Ready => Ok(()),
            EngineState::Loading => Err(Reject::Loading),
            EngineState::Draining | EngineState::Stopped => Err(Reject::Draining),
            EngineState::Failed(reason) => Err(Reject::Dead(reason.clone())),
        };
        let now = shared.clock.now();
        let reserve = || {
            shared
                .gate
                .reserve(user, rows, estimated_prompt_tokens, now)
        };
        open.and_then(|()| reserve())
            .inspect_err(|reject| shared.observer.rejected(&shared.model, reject))
    }

    /// Counts the picture that a request with this place begins from, `bytes` of it, decoded.
    ///
    /// # Errors
    /// [`Reject::QueueFull`]: there are too many in the engine.
    pub fn hold_source(&self, permit: &mut Permit, bytes: u64) -> Result<(), Reject> {
        let shared = self.shared();
        permit
            .hold_source(bytes, shared.clock.now())
            .inspect_err(|reject| shared.observer.rejected(&shared.model, reject))
    }

    /// Hands the request to the engine. Its log is closed by exactly one terminal event, whatever
    /// happens. A request's id is its own: no two live ones share it.
    ///
    /// # Errors
    /// See [`Reject`]; the log has then been left alone.
    pub fn submit(&self, permit: Permit, submission: Submission) -> Result<(), Reject> {
        let shared = self.shared();
        let delivery = Delivery {
            id: submission.id,
            job: submission.job,
            deadline: submission.deadline,
            priority: submission.priority,
            permit,
            submitted: shared.clock.now(),
            log: OpenLog::new(submission.log, Arc::clone(&shared.clock)),
        };
        shared
            .mailbox
            .post(delivery)
            .inspect_err(|reject| shared.observer.rejected(&shared.model, reject))
    }

    /// Ends a request within one step. An unknown or ended one is left alone.
    pub fn cancel(&self, id: RequestId) {
        self.shared().mailbox.cancel(id, CancelKind::Explicit);
    }

    /// Ends a request that nobody reads any more, within one step, with
    /// [`FailureKind::Abandoned`](crate::events::FailureKind::Abandoned). An unknown or ended one is
    /// left alone.
    pub fn abandon(&self, id: RequestId) {
        self.shared().mailbox.cancel(id, CancelKind::Abandoned);
    }

    /// Refuses new work; ends what is left at `deadline` with
    /// [`FailureKind::Shutdown`](crate::events::FailureKind::Shutdown). The earliest of several
    /// deadlines counts. An engine that is still loading stops when its model has been built.
    pub fn drain(&self, deadline: Time) {
        self.shared().enter(EngineState::Draining);
        self.shared().mailbox.drain(deadline);
    }

    /// Returns when the engines' threads have let their models go, drained or failed.
    pub async fn until_stopped(&self) {
        self.until(|state| matches!(state, EngineState::Stopped | EngineState::Failed(_)))
            .await;
    }

    /// How they are doing.
    pub fn snapshot(&self) -> Snapshot {
        let snapshot = &self.shared().snapshot;
        snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn until(&self, reached: impl FnMut(&EngineState) -> bool) -> EngineState {
        let mut state = self.shared().state.subscribe();
        state
            .wait_for(reached)
            .await
            .expect("the sender lives as long as this handle")
            .clone()
    }
}
