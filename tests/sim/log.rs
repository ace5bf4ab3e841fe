//! A request's log that insists on the order of events.

use std::sync::Mutex;

use girandole::batch::FinishReason;
use girandole::events::{EventKind, EventSink, FailureKind};
use girandole::time::Time;

/// A log that insists on the order of events.
#[derive(Default)]
pub(crate) struct Log {
    events: Mutex<Vec<(Time, EventKind)>>,
}

impl EventSink for Log {
    fn append(&self, at: Time, kind: EventKind) {
        let mut events = self.events.lock().unwrap();
        let seen = |wanted: fn(&EventKind) -> bool| events.iter().any(|(_, kind)| wanted(kind));
        let started = seen(|kind| matches!(kind, EventKind::Started));
        assert!(
            !seen(EventKind::is_terminal),
            "{kind:?} after a terminal event"
        );
        assert!(events.last().is_none_or(|(last, _)| *last <= at));
        match &kind {
            EventKind::Queued { .. } => assert!(!started, "queued after it was started"),
            EventKind::Started => assert!(!started && !events.is_empty()),
            EventKind::Text { choice, .. } => {
                assert!(started);
                assert_eq!(reason(&events, *choice), None, "text of a finished choice");
            }
            EventKind::ChoiceFinished { choice, .. } => {
                assert_eq!(reason(&events, *choice), None, "a choice finished twice");
            }
            EventKind::Progress { choice, step, .. } => {
                assert!(started && !is_drawn(&events, *choice));
                assert_eq!(
                    reason(&events, *choice),
                    None,
                    "a step of a finished choice"
                );
                let done = last_step(&events, *choice);
                assert_eq!(*step, done + 1, "steps are told one by one");
            }
            EventKind::Preview { choice, step, .. } => {
                assert_eq!(
                    reason(&events, *choice),
                    None,
                    "a view of a finished choice"
                );
                assert_eq!(*step, last_step(&events, *choice), "a view of another step");
            }
            EventKind::Image { choice, .. } => {
                assert!(started && !is_drawn(&events, *choice), "drawn twice");
                assert_eq!(reason(&events, *choice), None, "drawn after its end");
            }
            _ => {}
        }
        events.push((at, kind));
    }
}

fn reason(events: &[(Time, EventKind)], wanted: u32) -> Option<FinishReason> {
    events.iter().find_map(|(_, kind)| match kind {
        EventKind::ChoiceFinished { choice, reason, .. } if *choice == wanted => Some(*reason),
        _ => None,
    })
}

fn is_drawn(events: &[(Time, EventKind)], wanted: u32) -> bool {
    events
        .iter()
        .any(|(_, kind)| matches!(kind, EventKind::Image { choice, .. } if *choice == wanted))
}

/// The last step of a choice that was told; 0 for none.
fn last_step(events: &[(Time, EventKind)], wanted: u32) -> u32 {
    let steps = events.iter().rev().find_map(|(_, kind)| match kind {
        EventKind::Progress { choice, step, .. } if *choice == wanted => Some(*step),
        _ => None,
    });
    steps.unwrap_or(0)
}

impl Log {
    /// Every event with its time.
    pub(crate) fn timed(&self) -> Vec<(Time, EventKind)> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn events(&self) -> Vec<EventKind> {
        let events = self.events.lock().unwrap();
        events.iter().map(|(_, kind)| kind.clone()).collect()
    }

    pub(crate) fn text(&self, wanted: u32) -> String {
        let events = self.events.lock().unwrap();
        let pieces = events.iter().filter_map(|(_, kind)| match kind {
            EventKind::Text { choice, text, .. } if *choice == wanted => Some(text.as_str()),
            _ => None,
        });
        pieces.collect()
    }

    pub(crate) fn reason(&self, choice: u32) -> Option<FinishReason> {
        reason(&self.events.lock().unwrap(), choice)
    }

    pub(crate) fn is_closed(&self) -> bool {
        let events = self.events.lock().unwrap();
        events.last().is_some_and(|(_, kind)| kind.is_terminal())
    }

    pub(crate) fn failure(&self) -> Option<FailureKind> {
        match &self.events.lock().unwrap().last()?.1 {
            EventKind::Failed { failure, .. } => Some(failure.kind),
            _ => None,
        }
    }

    /// When the first event of this sort was written.
    pub(crate) fn time_of(&self, wanted: fn(&EventKind) -> bool) -> Option<Time> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .find(|(_, kind)| wanted(kind))
            .map(|(at, _)| *at)
    }

    pub(crate) fn started_at(&self) -> Option<Time> {
        self.time_of(|kind| matches!(kind, EventKind::Started))
    }

    pub(crate) fn closed_at(&self) -> Option<Time> {
        self.time_of(EventKind::is_terminal)
    }

    /// When each new token came.
    pub(crate) fn token_times(&self) -> Vec<Time> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter(|(_, kind)| matches!(kind, EventKind::Text { .. }))
            .map(|(at, _)| *at)
            .collect()
    }
}
