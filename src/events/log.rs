//! One request's events in order: append-only, numbered from 1 without gaps, closed by exactly one
//! terminal event. Plain data; [`super::store`] shares it and wakes readers.
//!
//! Of each choice's passing previews only the newest is kept, however many come: what they take
//! does not grow with the steps. A reader is told nothing of those that are forgotten, as if they had
//! been merged; their numbers are not given again.

use std::collections::BTreeMap;

use super::{Event, EventKind};
use crate::batch::TokenLogprob;
use crate::time::Time;

/// An append-only list of events.
///
/// Nearly all events are one token's text, of which a busy service holds hundreds of thousands. They
/// lie end to end in two shared buffers, so that one takes some 30 bytes and not 200.
#[derive(Debug, Default)]
pub struct EventLog {
    records: Vec<Record>,
    /// The texts of all [`Entry::Text`] records, one after the other.
    text: String,
    /// Their tokens, likewise.
    tokens: Vec<u32>,
    /// Where each choice's passing preview is among the records.
    passing: BTreeMap<u32, usize>,
    bytes: u64,
}

#[derive(Debug)]
struct Record {
    at: Time,
    entry: Entry,
}

#[derive(Debug)]
enum Entry {
    /// `EventKind::Text` without log-probabilities: where its parts end in the shared buffers. They
    /// begin where those of the last such record end.
    Text {
        choice: u32,
        text_end: u32,
        tokens_end: u32,
    },
    /// Any other event.
    Whole(Box<EventKind>),
    /// A preview that a later one has outdated.
    Forgotten,
}

/// What an append changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Bytes that the event takes; 0 if it was not taken.
    pub bytes: u64,
    /// Bytes of what it outdated.
    pub freed: u64,
}

impl EventLog {
    /// Adds the next event. A closed log takes nothing more.
    pub fn append(&mut self, at: Time, kind: EventKind) -> Appended {
        if self.is_closed() {
            return Appended::default();
        }
        let freed = self.forget_outdated(&kind);
        let (entry, bytes) = self.pack(kind);
        let bytes = bytes + size_of::<Record>() as u64;
        self.records.push(Record { at, entry });
        self.bytes += bytes;
        Appended { bytes, freed }
    }

    /// If this is a passing preview, forgets the one before it. Returns the bytes that it took.
    fn forget_outdated(&mut self, kind: &EventKind) -> u64 {
        let EventKind::Preview {
            choice,
            kept: false,
            ..
        } = kind
        else {
            return 0;
        };
        let next = self.records.len();
        let outdated = self.passing.insert(*choice, next);
        let Some(record) = outdated.and_then(|index| self.records.get_mut(index)) else {
            return 0;
        };
        let freed = match std::mem::replace(&mut record.entry, Entry::Forgotten) {
            Entry::Whole(kind) => event_bytes(&kind),
            Entry::Text { .. } | Entry::Forgotten => 0,
        };
        self.bytes -= freed;
        freed
    }

    /// An event's compact form and what it takes beside its record.
    fn pack(&mut self, kind: EventKind) -> (Entry, u64) {
        if let EventKind::Text {
            choice,
            text,
            tokens,
            logprobs,
        } = &kind
            && logprobs.is_empty()
            && let Ok(text_end) = u32::try_from(self.text.len() + text.len())
            && let Ok(tokens_end) = u32::try_from(self.tokens.len() + tokens.len())
        {
            self.text.push_str(text);
            self.tokens.extend_from_slice(tokens);
            let entry = Entry::Text {
                choice: *choice,
                text_end,
                tokens_end,
            };
            return (entry, (text.len() + size_of_val(tokens.as_slice())) as u64);
        }
        let bytes = event_bytes(&kind);
        (Entry::Whole(Box::new(kind)), bytes)
    }

    /// At most `limit` events from number `seq` on; 0 and 1 both mean from the first. Not empty unless
    /// `seq` is beyond the last: what is forgotten has something after it.
    pub fn read_from(&self, seq: u64, limit: usize) -> Vec<Event> {
        let skip = usize::try_from(seq.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(rest) = self.records.get(skip..) else {
            return Vec::new();
        };
        let (mut text_start, mut tokens_start) = self.ends_before(skip);
        let mut events = Vec::with_capacity(rest.len().min(limit));
        for (index, record) in rest.iter().enumerate() {
            if events.len() == limit {
                break;
            }
            let kind = match &record.entry {
                Entry::Forgotten => continue,
                Entry::Whole(kind) => EventKind::clone(kind),
                Entry::Text {
                    choice,
                    text_end,
                    tokens_end,
                } => {
                    let text = text_start..*text_end as usize;
                    let tokens = tokens_start..*tokens_end as usize;
                    (text_start, tokens_start) = (text.end, tokens.end);
                    EventKind::Text {
                        choice: *choice,
                        text: self.text[text].to_owned(),
                        tokens: self.tokens[tokens].to_vec(),
                        logprobs: Vec::new(),
                    }
                }
            };
            events.push(Event {
                seq: (skip + index + 1) as u64,
                at: record.at,
                kind,
            });
        }
        events
    }

    /// Where the texts and tokens of the first `count` records end.
    fn ends_before(&self, count: usize) -> (usize, usize) {
        let ends = |record: &Record| match record.entry {
            Entry::Text {
                text_end,
                tokens_end,
                ..
            } => Some((text_end as usize, tokens_end as usize)),
            Entry::Whole(_) | Entry::Forgotten => None,
        };
        self.records[..count]
            .iter()
            .rev()
            .find_map(ends)
            .unwrap_or_default()
    }

    /// The number of the newest event; 0 for none.
    pub fn last_seq(&self) -> u64 {
        self.records.len() as u64
    }

    /// Whether the terminal event is in.
    pub fn is_closed(&self) -> bool {
        self.records
            .last()
            .is_some_and(|record| matches!(&record.entry, Entry::Whole(kind) if kind.is_terminal()))
    }

    /// Memory that the events take, near enough to bound it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a whole event takes in memory. Counts contents, not spare capacity.
fn event_bytes(kind: &EventKind) -> u64 {
    let contents = match kind {
        EventKind::Queued { .. }
        | EventKind::Started
        | EventKind::Progress { .. }
        | EventKind::ChoiceFinished { .. }
        | EventKind::Finished { .. } => 0,
        EventKind::Preview { picture, .. } | EventKind::Image { picture, .. } => {
            picture.memory_bytes()
        }
        EventKind::Text {
            text,
            tokens,
            logprobs,
            ..
        } => text.len() + size_of_val(tokens.as_slice()) + logprobs_bytes(logprobs),
        EventKind::PromptLogprobs { logprobs } => logprobs_bytes(logprobs),
        EventKind::Failed { failure, .. } => failure.message.len(),
    };
    (size_of::<EventKind>() + contents) as u64
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
    use std::sync::Arc;

    use super::*;
    use crate::batch::Usage;
    use crate::picture::Picture;

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
            log.read_from(from, usize::MAX)
                .iter()
                .map(|event| event.seq)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(0), [1, 2, 3]);
        assert_eq!(numbers(1), [1, 2, 3]);
        assert_eq!(numbers(3), [3]);
        assert!(numbers(4).is_empty());
        assert!(numbers(u64::MAX).is_empty());
        assert_eq!(log.read_from(2, 1).len(), 1);
    }

    #[test]
    fn events_come_back_as_they_went_in() {
        let scored = EventKind::Text {
            choice: 1,
            text: "scored".into(),
            tokens: vec![7],
            logprobs: vec![TokenLogprob {
                token: 7,
                bytes: b"scored".to_vec(),
                logprob: -0.5,
                top: vec![(7, b"scored".to_vec(), -0.5)],
            }],
        };
        let several = EventKind::Text {
            choice: 2,
            text: "öffnen".into(),
            tokens: vec![3, 4],
            logprobs: Vec::new(),
        };
        let silent = EventKind::Text {
            choice: 0,
            text: String::new(),
            tokens: vec![9],
            logprobs: Vec::new(),
        };
        let kinds = [
            EventKind::Started,
            text("a"),
            scored,
            several,
            silent,
            text("z"),
            EventKind::Finished {
                usage: Usage::default(),
            },
        ];
        let mut log = EventLog::default();
        for (index, kind) in kinds.iter().enumerate() {
            log.append(Time::from_millis(index as u64), kind.clone());
        }
        let expected: Vec<Event> = kinds
            .into_iter()
            .enumerate()
            .map(|(index, kind)| Event {
                seq: index as u64 + 1,
                at: Time::from_millis(index as u64),
                kind,
            })
            .collect();
        for from in 1..=8_usize {
            for limit in [1, 2, usize::MAX] {
                let wanted = &expected[from - 1..];
                let wanted = &wanted[..wanted.len().min(limit)];
                assert_eq!(log.read_from(from as u64, limit), wanted, "{from}, {limit}");
            }
        }
    }

    #[test]
    fn a_token_of_text_takes_little() {
        let mut log = EventLog::default();
        assert!(log.append(Time::ZERO, text(" the")).bytes <= 32);
    }

    #[test]
    fn nothing_follows_a_terminal_event() {
        let mut log = EventLog::default();
        let usage = Usage::default();
        let finished = log.append(Time::ZERO, EventKind::Finished { usage });
        assert!(finished.bytes > 0);
        assert!(log.is_closed());
        let nothing = Appended::default();
        assert_eq!(log.append(Time::ZERO, text("late")), nothing);
        let again = log.append(Time::ZERO, EventKind::Finished { usage });
        assert_eq!(again, nothing);
        assert_eq!(log.last_seq(), 1);
    }

    #[test]
    fn bytes_count_what_an_event_holds() {
        let mut log = EventLog::default();
        let small = log.append(Time::ZERO, text("a")).bytes;
        let large = log.append(Time::ZERO, text(&"a".repeat(1_001))).bytes;
        assert_eq!(large - small, 1_000);
        assert_eq!(log.bytes(), small + large);
    }

    fn preview(choice: u32, step: u32, kept: bool) -> EventKind {
        EventKind::Preview {
            choice,
            step,
            picture: Arc::new(Picture::new(10, 10, vec![step as u8; 300])),
            kept,
        }
    }

    #[test]
    fn of_passing_previews_the_newest_of_each_choice_is_kept() {
        let mut log = EventLog::default();
        let mut taken = Vec::new();
        for step in 1..=100 {
            for choice in 0..2 {
                taken.push(log.append(Time::ZERO, preview(choice, step, false)));
            }
            if step % 50 == 0 {
                taken.push(log.append(Time::ZERO, preview(0, step, true)));
            }
        }
        assert_eq!(log.last_seq(), 202);
        let seen = |from, limit| -> Vec<u64> {
            let events = log.read_from(from, limit);
            events.iter().map(|event| event.seq).collect()
        };
        assert_eq!(seen(1, usize::MAX), [101, 200, 201, 202]);
        // A reader goes on from any number, however few it takes at once.
        assert_eq!(seen(1, 1), [101]);
        assert_eq!(seen(102, 1), [200]);
        assert_eq!(seen(202, 1), [202]);
        let held: u64 = taken.iter().map(|taken| taken.bytes - taken.freed).sum();
        assert_eq!(log.bytes(), held);
        let most = 202 * size_of::<Record>() + 4 * (size_of::<EventKind>() + 2 * 300);
        assert!(log.bytes() <= most as u64, "{} bytes", log.bytes());
    }
}
