//! How an engine ends: what is said to who comes, to who is there, and by the last one to the model's handles.

use super::handle::Shared;
use super::request::Request;
use super::{EngineState, Reject, RequestEnd};
use crate::batch::DeviceNumber;
use crate::events::FailureKind;
use crate::time::Time;

/// Whether an engine was told to end.
pub(super) struct Ending {
    /// Why it ended, if nobody told it to.
    pub(super) failure: Option<String>,
}

impl Ending {
    /// It was told to, and has nothing left to do.
    pub(super) fn drained() -> Self {
        Ending { failure: None }
    }

    /// It cannot go on, for this reason.
    pub(super) fn failed(reason: String) -> Self {
        Ending {
            failure: Some(reason),
        }
    }

    pub(super) fn state(&self) -> EngineState {
        match &self.failure {
            None => EngineState::Stopped,
            Some(reason) => EngineState::Failed(reason.clone()),
        }
    }

    /// What is said to who comes, and to who is there.
    fn words(&self) -> (Reject, FailureKind, &str) {
        match &self.failure {
            None => (
                Reject::Draining,
                FailureKind::Shutdown,
                "the service was stopped",
            ),
            Some(reason) => (
                Reject::Dead(reason.clone()),
                FailureKind::EngineDead,
                reason,
            ),
        }
    }
}

impl Shared {
    /// Ends a request for good; its place is free when this returns.
    pub(super) fn close_log(
        &self,
        now: Time,
        request: Request,
        close: impl FnOnce(Request) -> RequestEnd,
    ) {
        let (submitted, usage) = (request.submitted, request.usage());
        let end = close(request);
        self.gate.note_end(now);
        self.observer
            .ended(&self.model, end, now - submitted, usage);
    }

    /// A device takes nothing more, and what had rows on it fails, without its model being touched again. With the
    /// last device goes whatever else is left.
    pub(super) fn close_device(&self, now: Time, device: DeviceNumber, ending: &Ending) {
        let mut desk = self.desk();
        let (refusal, kind, message) = ending.words();
        let mut lost = desk.close(device, ending.state());
        if !desk.has_others(device) {
            desk.ending = Some(ending.state());
            self.close_mailbox(now, refusal, kind, message);
            lost = desk.requests.keys().copied().collect();
        }
        for id in lost {
            let Some(request) = desk.requests.remove(&id) else {
                continue;
            };
            desk.scheduler.cancel(id);
            desk.leave_others(device, id);
            self.mailbox.forget(id);
            let fail = |request: Request| request.fail(now, kind, message);
            self.close_log(now, request, fail);
        }
        self.publish(desk.snapshot(now));
        drop(desk);
        self.mailbox.wake();
    }

    /// A device's model is gone, well or with a panic. With the last one the engines have stopped.
    pub(super) fn leave(&self, went_well: bool, whose: &str) {
        let mut desk = self.desk();
        if !went_well {
            desk.ending = Some(EngineState::Failed(format!("{whose}its thread panicked")));
        }
        desk.threads -= 1;
        if let (0, Some(ending)) = (desk.threads, &desk.ending) {
            self.enter(ending.clone());
        }
    }

    /// Takes nothing more, and fails what nobody has looked at yet.
    pub(super) fn close_mailbox(&self, now: Time, why: Reject, kind: FailureKind, message: &str) {
        for delivery in self.mailbox.close(why).submissions {
            let fail = |request: Request| request.fail(now, kind, message);
            self.close_log(now, Request::new(delivery), fail);
        }
    }
}
