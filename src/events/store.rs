//! Request id -> shared log: wakes readers, keeps finished logs for a while, forgets them in order.

use std::sync::Arc;
use std::time::Duration;

use super::{Event, EventKind, EventSink};
use crate::job::RequestId;
use crate::time::{Clock, Time};

/// How long finished logs are kept, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Finished logs are kept this long.
    pub max_age: Duration,
    /// All logs together hold at most this many bytes; the oldest finished go first.
    pub max_bytes: u64,
    /// At most this many finished logs.
    pub max_logs: usize,
    /// Ids of forgotten logs that are remembered, to answer 410 and not 404.
    pub max_expired_ids: usize,
}

/// One request's log, shared by the engine, which appends, and any number of readers.
pub struct SharedLog {}

impl SharedLog {
    /// Every event from number `seq` on, in order.
    pub fn read_from(&self, _seq: u64) -> Vec<Event> {
        todo!()
    }
    /// The number of the newest event; 0 for none.
    pub fn last_seq(&self) -> u64 {
        todo!()
    }
    /// Whether the terminal event is in.
    pub fn is_closed(&self) -> bool {
        todo!()
    }
    /// Returns when an event numbered above `seq` is in, or the log is closed.
    pub async fn wait_beyond(&self, _seq: u64) {
        todo!()
    }
}

impl EventSink for SharedLog {
    fn append(&self, _at: Time, _kind: EventKind) {
        todo!()
    }
}

/// What the store knows of an id.
pub enum Lookup {
    /// Here it is.
    Found(Arc<SharedLog>),
    /// There was one; it has been forgotten (410).
    Expired,
    /// There never was one, as far as is known (404).
    Unknown,
}

/// All logs of the service.
pub struct EventStore {}

impl EventStore {
    /// An empty store.
    pub fn new(_retention: Retention, _clock: Arc<dyn Clock>) -> Self {
        todo!()
    }
    /// A fresh log for a request that is about to be submitted.
    pub fn open(&self, _id: RequestId) -> Arc<SharedLog> {
        todo!()
    }
    /// Forgets a log whose request was refused after all.
    pub fn discard(&self, _id: RequestId) {
        todo!()
    }
    /// The log of a request.
    pub fn get(&self, _id: RequestId) -> Lookup {
        todo!()
    }
}
