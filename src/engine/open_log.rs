//! A request's log while it is open: whatever becomes of the request, its readers are told.

use std::sync::Arc;

use crate::batch::Usage;
use crate::events::{EventKind, EventSink, Failure, FailureKind};
use crate::time::{Clock, Time};

/// An open log. Dropped unclosed, as when a panic unwinds past the request, it is closed with
/// [`FailureKind::EngineDead`]: else its readers would wait for ever.
pub(super) struct OpenLog {
    /// `None` once it has been closed.
    sink: Option<Arc<dyn EventSink>>,
    clock: Arc<dyn Clock>,
}

impl OpenLog {
    pub(super) fn new(sink: Arc<dyn EventSink>, clock: Arc<dyn Clock>) -> Self {
        OpenLog {
            sink: Some(sink),
            clock,
        }
    }

    pub(super) fn append(&self, at: Time, kind: EventKind) {
        if let Some(sink) = &self.sink {
            sink.append(at, kind);
        }
    }

    /// Writes the terminal event.
    pub(super) fn close(mut self, at: Time, terminal: EventKind) {
        if let Some(sink) = self.sink.take() {
            sink.append(at, terminal);
        }
    }

    /// Lets go of a log that is not the engine's after all.
    pub(super) fn leave_alone(mut self) {
        self.sink = None;
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        let Some(sink) = self.sink.take() else {
            return;
        };
        let failure = Failure {
            kind: FailureKind::EngineDead,
            message: "the engine failed before the request had ended".to_owned(),
        };
        let usage = Usage::default();
        sink.append(self.clock.now(), EventKind::Failed { failure, usage });
    }
}
