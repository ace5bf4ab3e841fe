//! Many events to few: what a reader that comes 20 times a second is told.
//!
//! Text is appended for each choice; of `Queued`, and of each choice's `Progress` and passing previews,
//! only the latest is kept; everything else stays.
//!
//! The numbers keep a promise, on which resuming rests: *whoever has seen everything numbered up to
//! `s` in the result has seen exactly the events up to `s`*, but for what an event after `s` outdates. So a
//! merge takes its last number; and where the events of several choices were merged across each
//! other, all of them get the one last number, and a dialect says them in one frame.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, EventKind};

/// Merges events that follow each other in a log. However many come in, few remain beside the previews
/// that were asked for by number: `Queued`, `Started`, the prompt's and the terminal event, and of each
/// choice a text, a progress, a preview, a picture and its end.
pub fn coalesce(events: Vec<Event>) -> Vec<Event> {
    let last_queued = events
        .iter()
        .rev()
        .find(|event| matches!(event.kind, EventKind::Queued { .. }))
        .map(|event| event.seq);
    let mut merged = Vec::new();
    let mut output = Vec::new();
    for event in events {
        match event.kind {
            EventKind::Text { .. }
            | EventKind::Progress { .. }
            | EventKind::Preview { .. }
            | EventKind::Image { .. }
            | EventKind::ChoiceFinished { .. }
            | EventKind::PromptLogprobs { .. } => output.push(event),
            EventKind::Queued { .. } if Some(event.seq) != last_queued => {}
            EventKind::Queued { .. }
            | EventKind::Started
            | EventKind::Finished { .. }
            | EventKind::Failed { .. } => {
                merged.append(&mut merge_output(std::mem::take(&mut output)));
                merged.push(event);
            }
        }
    }
    merged.append(&mut merge_output(output));
    merged
}

/// Merges a run of output events: the prompt's log-probabilities, then choice by choice.
fn merge_output(events: Vec<Event>) -> Vec<Event> {
    let Some(last_seq) = events.last().map(|event| event.seq) else {
        return Vec::new();
    };
    let crossing = crosses(&events);
    let mut by_choice: BTreeMap<Option<u32>, Vec<Event>> = BTreeMap::new();
    for event in events {
        push_or_append(by_choice.entry(choice_of(&event)).or_default(), event);
    }
    let mut merged: Vec<Event> = by_choice.into_values().flatten().collect();
    if crossing {
        for event in &mut merged {
            event.seq = last_seq;
        }
    }
    merged
}

/// The choice that an output event is about; `None` for the prompt.
fn choice_of(event: &Event) -> Option<u32> {
    match event.kind {
        EventKind::Text { choice, .. }
        | EventKind::Progress { choice, .. }
        | EventKind::Preview { choice, .. }
        | EventKind::Image { choice, .. }
        | EventKind::ChoiceFinished { choice, .. } => Some(choice),
        _ => None,
    }
}

/// Whether sorting these events by choice, prompt first, mixes up their numbers. Several choices
/// count as crossing even where they happen to lie side by side: one frame then holds them all,
/// and their number does not raise the number of frames.
fn crosses(events: &[Event]) -> bool {
    let choices: BTreeSet<u32> = events.iter().filter_map(choice_of).collect();
    let prompt_comes_late = events
        .iter()
        .skip_while(|event| choice_of(event).is_none())
        .any(|event| choice_of(event).is_none());
    choices.len() > 1 || prompt_comes_late
}

/// Appends what `event` says to the last of `said` if they are of one kind, or adds it after it. What it
/// outdates goes.
fn push_or_append(said: &mut Vec<Event>, event: Event) {
    said.retain(|earlier| !outdates(&event.kind, &earlier.kind));
    let Some(last) = said.last_mut() else {
        said.push(event);
        return;
    };
    match (&mut last.kind, event.kind) {
        (
            EventKind::Text {
                text,
                tokens,
                logprobs,
                ..
            },
            EventKind::Text {
                text: more_text,
                tokens: more_tokens,
                logprobs: more_logprobs,
                ..
            },
        ) => {
            text.push_str(&more_text);
            tokens.extend(more_tokens);
            logprobs.extend(more_logprobs);
        }
        (
            EventKind::PromptLogprobs { logprobs },
            EventKind::PromptLogprobs {
                logprobs: more_logprobs,
            },
        ) => logprobs.extend(more_logprobs),
        (_, kind) => {
            said.push(Event { kind, ..event });
            return;
        }
    }
    last.seq = event.seq;
    last.at = event.at;
}

/// Whether nobody needs to hear `earlier` who hears `later`, of the same choice.
fn outdates(later: &EventKind, earlier: &EventKind) -> bool {
    match earlier {
        EventKind::Progress { .. } => matches!(
            later,
            EventKind::Progress { .. } | EventKind::Image { .. } | EventKind::ChoiceFinished { .. }
        ),
        EventKind::Preview { kept, .. } => {
            !kept && matches!(later, EventKind::Preview { .. } | EventKind::Image { .. })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::batch::{FinishReason, Usage};
    use crate::events::log::EventLog;
    use crate::picture::Picture;
    use crate::time::Time;

    fn text(choice: u32, text: &str) -> EventKind {
        EventKind::Text {
            choice,
            text: text.into(),
            tokens: vec![text.len() as u32],
            logprobs: Vec::new(),
        }
    }

    fn queued(position: u32) -> EventKind {
        EventKind::Queued {
            position,
            waiting: 9,
            eta: None,
        }
    }

    fn ended(choice: u32) -> EventKind {
        EventKind::ChoiceFinished {
            choice,
            reason: FinishReason::Stop,
            cumulative_logprob: 0.0,
            completion_tokens: 1,
        }
    }

    fn finished() -> EventKind {
        EventKind::Finished {
            usage: Usage::default(),
        }
    }

    fn numbered(kinds: Vec<EventKind>) -> Vec<Event> {
        kinds
            .into_iter()
            .zip(1..)
            .map(|(kind, seq)| Event {
                seq,
                at: Time::from_millis(seq),
                kind,
            })
            .collect()
    }

    /// `(seq, what)` of each merged event.
    fn check(kinds: Vec<EventKind>, expected: &[(u64, &str)]) {
        let merged: Vec<(u64, String)> = coalesce(numbered(kinds))
            .into_iter()
            .map(|event| {
                let what = match event.kind {
                    EventKind::Queued { position, .. } => format!("queued {position}"),
                    EventKind::Started => "started".into(),
                    EventKind::Text { choice, text, .. } => format!("{choice}:{text}"),
                    EventKind::ChoiceFinished { choice, .. } => format!("{choice} ended"),
                    EventKind::PromptLogprobs { .. } => "prompt".into(),
                    EventKind::Progress { choice, step, .. } => format!("{choice} at {step}"),
                    EventKind::Preview { choice, step, .. } => format!("{choice} seen at {step}"),
                    EventKind::Image { choice, .. } => format!("{choice} drawn"),
                    EventKind::Finished { .. } | EventKind::Failed { .. } => "end".into(),
                };
                (event.seq, what)
            })
            .collect();
        let expected: Vec<(u64, String)> = expected
            .iter()
            .map(|(seq, what)| (*seq, (*what).to_owned()))
            .collect();
        assert_eq!(merged, expected);
    }

    fn at(choice: u32, step: u32) -> EventKind {
        EventKind::Progress {
            choice,
            step,
            steps: 9,
            eta: None,
        }
    }

    fn seen(choice: u32, step: u32, kept: bool) -> EventKind {
        EventKind::Preview {
            choice,
            step,
            picture: Arc::new(Picture::new(1, 1, vec![0; 3])),
            kept,
        }
    }

    fn drawn(choice: u32) -> EventKind {
        EventKind::Image {
            choice,
            picture: Arc::new(Picture::new(1, 1, vec![0; 3])),
            seed: 1,
        }
    }

    #[test]
    fn of_a_pictures_progress_only_the_latest_counts() {
        check(
            vec![at(0, 1), seen(0, 1, false), at(0, 2), seen(0, 2, false)],
            &[(3, "0 at 2"), (4, "0 seen at 2")],
        );
        // What was asked for by number stays; the rest is outdated by the picture itself.
        check(
            vec![
                seen(0, 1, true),
                at(0, 2),
                seen(0, 2, true),
                seen(0, 3, false),
                drawn(0),
                ended(0),
            ],
            &[
                (1, "0 seen at 1"),
                (3, "0 seen at 2"),
                (5, "0 drawn"),
                (6, "0 ended"),
            ],
        );
        // Several choices go into one frame.
        check(
            vec![at(0, 1), at(1, 1), at(0, 2), drawn(1)],
            &[(4, "0 at 2"), (4, "1 drawn")],
        );
    }

    #[test]
    fn text_is_appended_and_takes_the_last_number() {
        check(
            vec![text(0, "a"), text(0, "b"), text(0, "c")],
            &[(3, "0:abc")],
        );
    }

    #[test]
    fn only_the_latest_place_in_the_queue_is_told() {
        check(
            vec![queued(3), queued(2), EventKind::Started, text(0, "a")],
            &[(2, "queued 2"), (3, "started"), (4, "0:a")],
        );
    }

    #[test]
    fn one_choice_keeps_the_numbers_apart() {
        check(
            vec![text(0, "a"), text(0, "b"), ended(0), finished()],
            &[(2, "0:ab"), (3, "0 ended"), (4, "end")],
        );
    }

    #[test]
    fn choices_that_cross_share_one_number() {
        check(
            vec![
                text(1, "x"),
                text(0, "a"),
                ended(1),
                text(0, "b"),
                ended(0),
                finished(),
            ],
            &[
                (5, "0:ab"),
                (5, "0 ended"),
                (5, "1:x"),
                (5, "1 ended"),
                (6, "end"),
            ],
        );
    }

    #[test]
    fn prompt_logprobs_are_appended() {
        let prompt = || EventKind::PromptLogprobs {
            logprobs: Vec::new(),
        };
        check(
            vec![prompt(), prompt(), text(0, "a")],
            &[(2, "prompt"), (3, "0:a")],
        );
        check(
            vec![text(1, "a"), prompt(), text(1, "b")],
            &[(3, "prompt"), (3, "1:ab")],
        );
    }

    /// Where things stand for whoever has heard these events in order.
    #[derive(Debug, Default, PartialEq)]
    struct State {
        /// The text and the tokens of each choice.
        texts: BTreeMap<u32, (String, Vec<u32>)>,
        /// Each picture's steps, until it is there or was given up.
        progress: BTreeMap<u32, u32>,
        /// What each unfinished picture looks like.
        preview: BTreeMap<u32, u32>,
        /// Previews that were asked for by number, and pictures, by choice and step.
        shown: BTreeSet<(u32, u32)>,
        drawn: BTreeSet<u32>,
        ends: BTreeSet<u32>,
        queued: Option<u32>,
    }

    impl State {
        fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
            let mut state = State::default();
            for event in events {
                state.hear(&event.kind);
            }
            state
        }

        fn hear(&mut self, kind: &EventKind) {
            match kind {
                EventKind::Text {
                    choice,
                    text,
                    tokens,
                    ..
                } => {
                    let entry = self.texts.entry(*choice).or_default();
                    entry.0.push_str(text);
                    entry.1.extend(tokens);
                }
                EventKind::Progress { choice, step, .. } => {
                    self.progress.insert(*choice, *step);
                }
                EventKind::Preview {
                    choice, step, kept, ..
                } => {
                    self.preview.insert(*choice, *step);
                    if *kept {
                        self.shown.insert((*choice, *step));
                    }
                }
                EventKind::Image { choice, .. } => {
                    self.progress.remove(choice);
                    self.preview.remove(choice);
                    self.drawn.insert(*choice);
                }
                EventKind::ChoiceFinished { choice, .. } => {
                    self.progress.remove(choice);
                    self.ends.insert(*choice);
                }
                EventKind::Queued { position, .. } => self.queued = Some(*position),
                _ => {}
            }
        }
    }

    fn kind() -> impl Strategy<Value = EventKind> {
        prop_oneof![
            (0u32..3, "[a-c]{0,2}").prop_map(|(choice, said)| text(choice, &said)),
            (0u32..3).prop_map(ended),
            (0u32..9).prop_map(queued),
            Just(EventKind::Started),
            picture_kind(),
            picture_kind(),
        ]
    }

    fn picture_kind() -> impl Strategy<Value = EventKind> {
        prop_oneof![
            (0u32..3, 1u32..30).prop_map(|(choice, step)| at(choice, step)),
            (0u32..3, 1u32..30, any::<bool>())
                .prop_map(|(choice, step, kept)| seen(choice, step, kept)),
            (0u32..3).prop_map(drawn),
        ]
    }

    /// What a reader hears who takes `events` in batches that end after these numbers.
    fn heard_in_batches(events: &[Event], cuts: &[u64]) -> Vec<Event> {
        let mut heard = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&u64::MAX]) {
            let batch = events
                .iter()
                .filter(|event| from < event.seq && event.seq <= to);
            heard.extend(coalesce(batch.cloned().collect()));
            from = to.max(from);
        }
        heard
    }

    proptest! {
        /// The promise of the module: whoever stops after any number of the result and goes on from
        /// there, has heard the same in the end, and nothing twice that may not be said twice.
        #[test]
        fn every_number_of_the_result_is_a_clean_cut(
            kinds in proptest::collection::vec(kind(), 0..40),
        ) {
            let events = numbered(kinds);
            let merged = coalesce(events.clone());
            prop_assert!(merged.is_sorted_by_key(|event| event.seq));
            prop_assert_eq!(State::of(&merged), State::of(&events));
            for cut in merged.iter().map(|event| event.seq) {
                let before = merged.iter().filter(|event| event.seq <= cut);
                let after: Vec<Event> = events
                    .iter()
                    .filter(|event| event.seq > cut)
                    .cloned()
                    .collect();
                let heard: Vec<Event> = before.cloned().chain(coalesce(after)).collect();
                prop_assert_eq!(State::of(&heard), State::of(&events));
                let once = |events: &[Event]| {
                    events
                        .iter()
                        .filter(|event| {
                            matches!(
                                event.kind,
                                EventKind::Image { .. }
                                    | EventKind::Preview { kept: true, .. }
                                    | EventKind::ChoiceFinished { .. }
                            )
                        })
                        .count()
                };
                prop_assert_eq!(once(&heard), once(&events));
                // What can be outdated aside, the cut itself is exact.
                let exact = |events: &[Event]| {
                    let state = State::of(events.iter().filter(|event| event.seq <= cut));
                    (state.texts, state.ends, state.shown, state.drawn)
                };
                prop_assert_eq!(exact(&merged), exact(&events));
            }
        }

        /// However a reader's batches fall, also when the log forgets what is outdated meanwhile.
        #[test]
        fn batches_and_forgetting_make_no_difference_in_the_end(
            kinds in proptest::collection::vec(kind(), 1..60),
            mut cuts in proptest::collection::vec(0u64..60, 0..6),
        ) {
            let events = numbered(kinds);
            let wanted = State::of(&events);
            cuts.sort_unstable();
            prop_assert_eq!(&State::of(&heard_in_batches(&events, &cuts)), &wanted);
            let mut log = EventLog::default();
            let (mut heard, mut next) = (Vec::new(), 1);
            for event in &events {
                log.append(event.at, event.kind.clone());
                if cuts.contains(&event.seq) {
                    heard.extend(coalesce(log.read_from(next, usize::MAX)));
                    next = log.last_seq() + 1;
                }
            }
            heard.extend(coalesce(log.read_from(next, usize::MAX)));
            prop_assert_eq!(&State::of(&heard), &wanted);
            // Whoever comes late, or comes again from any number that was said to them.
            for cut in heard.iter().map(|event| event.seq).chain([0]) {
                let before = heard.iter().filter(|event| event.seq <= cut).cloned();
                let again = coalesce(log.read_from(cut + 1, usize::MAX));
                let told: Vec<Event> = before.chain(again).collect();
                prop_assert_eq!(&State::of(&told), &wanted);
            }
        }
    }
}
