//! The way from the async side to the engines' threads: submissions, cancels and the order to drain. The first
//! engine to look takes what is there; the others are woken all the same, since some of it may fall to them.
//!
//! Everything in it belongs to a live request, and live requests are bounded by their permits
//! (`devices * batch_size + max_queued_requests`); so nothing can be lost for want of room, a cancel least of
//! all, and nothing can pile up.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Reject;
use super::gate::Permit;
use super::open_log::OpenLog;
use crate::job::{Job, Priority, RequestId};
use crate::time::Time;

/// A submission with the place it holds. The place is given back before the log is closed, also where
/// this is merely dropped.
pub(super) struct Delivery {
    pub(super) id: RequestId,
    pub(super) job: Arc<Job>,
    pub(super) deadline: Option<Time>,
    pub(super) priority: Priority,
    pub(super) permit: Permit,
    pub(super) submitted: Time,
    pub(super) log: OpenLog,
}

/// Why a request is to be ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CancelKind {
    /// Somebody asked for it.
    Explicit,
    /// Nobody reads it any more.
    Abandoned,
}

/// What has arrived since somebody last looked.
#[derive(Default)]
pub(super) struct Mail {
    pub(super) submissions: Vec<Delivery>,
    pub(super) cancels: Vec<(RequestId, CancelKind)>,
    /// From now on nothing new is taken; what is left at this time is ended.
    pub(super) drain: Option<Time>,
    /// How often there has been news: who has seen as much need not look again.
    pub(super) news: u64,
}

#[derive(Default)]
struct State {
    mail: Mail,
    /// Submitted and not yet ended, and whether a cancel for it is under way.
    live: HashMap<RequestId, bool>,
    refusal: Option<Reject>,
}

#[derive(Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Mailbox {
    /// Hands a request over, or gives it back with the reason.
    pub(super) fn post(&self, delivery: Delivery) -> Result<(), Reject> {
        let mut state = self.lock();
        if let Some(refusal) = &state.refusal {
            delivery.log.leave_alone();
            return Err(refusal.clone());
        }
        state.live.insert(delivery.id, false);
        state.mail.submissions.push(delivery);
        self.ring(state);
        Ok(())
    }

    /// Asks for the end of a request. The first to ask decides the kind.
    pub(super) fn cancel(&self, id: RequestId, kind: CancelKind) {
        let mut state = self.lock();
        match state.live.get_mut(&id) {
            Some(asked) if !*asked => *asked = true,
            _ => return,
        }
        state.mail.cancels.push((id, kind));
        self.ring(state);
    }

    /// Refuses new work; the earliest of several deadlines counts.
    pub(super) fn drain(&self, deadline: Time) {
        let mut state = self.lock();
        state.refusal.get_or_insert(Reject::Draining);
        let deadline = state.mail.drain.map_or(deadline, |old| old.min(deadline));
        state.mail.drain = Some(deadline);
        self.ring(state);
    }

    /// Takes nothing more, for this reason, and gives back what has not been looked at.
    pub(super) fn close(&self, refusal: Reject) -> Mail {
        let mut state = self.lock();
        state.refusal = Some(refusal);
        state.live.clear();
        let rest = Mail {
            news: state.mail.news,
            ..Mail::default()
        };
        std::mem::replace(&mut state.mail, rest)
    }

    /// What has arrived. The order to drain stays.
    pub(super) fn take(&self) -> Mail {
        let mut state = self.lock();
        let Mail { drain, news, .. } = state.mail;
        let rest = Mail {
            drain,
            news,
            ..Mail::default()
        };
        std::mem::replace(&mut state.mail, rest)
    }

    /// Wakes every engine that sleeps: there is news elsewhere than here.
    pub(super) fn wake(&self) {
        self.ring(self.lock());
    }

    /// A request has ended: cancels for it mean nothing any more.
    pub(super) fn forget(&self, id: RequestId) {
        self.lock().live.remove(&id);
    }

    /// Returns when there is news beyond what has been `seen` or `timeout` has passed.
    pub(super) fn wait(&self, seen: u64, timeout: Option<Duration>) {
        let state = self.lock();
        let quiet = |state: &mut State| state.mail.news == seen;
        match timeout {
            None => drop(self.arrived.wait_while(state, quiet)),
            Some(timeout) => drop(self.arrived.wait_timeout_while(state, timeout, quiet)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, mut state: MutexGuard<'_, State>) {
        state.mail.news += 1;
        drop(state);
        self.arrived.notify_all();
    }
}
