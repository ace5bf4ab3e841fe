//! One request's events in order: append-only, numbered from 1 without gaps, closed by exactly one
//! terminal event. Plain data; [`super::store`] shares it and wakes readers.

use super::{Event, EventKind};
use crate::batch::TokenLogprob;
use crate::time::Time;

/// An append-only list of events.
#[derive(Debug, Default)]
pub struct EventLog {
    events: Vec<Event>,
    bytes: u64,
}

impl EventLog {
    /// Adds the next event and returns the bytes that it takes. A closed log takes nothing more:
    /// 0 bytes.
    pub fn append(&mut self, at: Time, kind: EventKind) -> u64 {
        if self.is_closed() {
            return 0;
        }
        let bytes = event_bytes(&kind);
        let seq = self.last_seq() + 1;
        self.events.push(Event { seq, at, kind });
        self.bytes += bytes;
        bytes
    }

    /// The events from number `seq` on; 0 and 1 both mean all.
    pub fn read_from(&self, seq: u64) -> &[Event] {
        let skip = usize::try_from(seq.saturating_sub(1)).unwrap_or(usize::MAX);
        self.events.get(skip..).unwrap_or_default()
    }

    /// The number of the newest event; 0 for none.
    pub fn last_seq(&self) -> u64 {
        self.events.len() as u64
    }

    /// Whether the terminal event is in.
    pub fn is_closed(&self) -> bool {
        self.events
            .last()
            .is_some_and(|event| event.kind.is_terminal())
    }

    /// Memory that the events take, near enough to bound it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What an event takes in memory. Counts contents, not spare capacity.
fn event_bytes(kind: &EventKind) -> u64 {
    let contents = match kind {
        EventKind::Queued { .. }
        | EventKind::Started
        | EventKind::ChoiceFinished { .. }
        | EventKind::Finished { .. } => 0,
        EventKind::Text {
            text,
            tokens,
            logprobs,
            ..
        } => text.len() + size_of_val(tokens.as_slice()) + logprobs_bytes(logprobs),
        EventKind::PromptLogprobs { logprobs } => logprobs_bytes(logprobs),
        EventKind::Failed { failure, .. } => failure.message.len(),
    };
    (size_of::<Event>() + contents) as u64
}

fn logprobs_bytes(logprobs: &[TokenLogprob]) -> usize {
    logprobs
        .iter()
        .map(|entry| {
            let rivals: usize = entry.top.iter().map(|(_, bytes, _)| bytes.len()).sum();
            size_of::<TokenLogprob>()
                + entry.bytes.len()
                + size_of_val(entry.top.as_slice())
                + rivals
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Usage;

    fn text(text: &str) -> EventKind {
        EventKind::Text {
            choice: 0,
            text: text.into(),
            tokens: vec![1],
            logprobs: Vec::new(),
        }
    }

    #[test]
    fn numbers_start_at_one_and_have_no_gaps() {
        let mut log = EventLog::default();
        assert_eq!(log.last_seq(), 0);
        for _ in 0..3 {
            log.append(Time::ZERO, text("a"));
        }
        let numbers = |from| {
            log.read_from(from)
                .iter()
                .map(|event| event.seq)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(0), [1, 2, 3]);
        assert_eq!(numbers(1), [1, 2, 3]);
        assert_eq!(numbers(3), [3]);
        assert!(numbers(4).is_empty());
        assert!(numbers(u64::MAX).is_empty());
    }

    #[test]
    fn nothing_follows_a_terminal_event() {
        let mut log = EventLog::default();
        let usage = Usage::default();
        assert!(log.append(Time::ZERO, EventKind::Finished { usage }) > 0);
        assert!(log.is_closed());
        assert_eq!(log.append(Time::ZERO, text("late")), 0);
        assert_eq!(log.append(Time::ZERO, EventKind::Finished { usage }), 0);
        assert_eq!(log.last_seq(), 1);
    }

    #[test]
    fn bytes_count_what_an_event_holds() {
        let mut log = EventLog::default();
        let small = log.append(Time::ZERO, text("a"));
        let large = log.append(Time::ZERO, text(&"a".repeat(1_001)));
        assert_eq!(large - small, 1_000);
        assert_eq!(log.bytes(), small + large);
    }
}
