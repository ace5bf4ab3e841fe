//! Whole streams from hand-made events.

use serde_json::{Value, json};

use super::*;
use crate::api::openai::reply::Echo;
use crate::events::{EventKind, Failure, FailureKind};
use crate::job::RequestId;
use crate::time::Time;

fn shape(endpoint: Endpoint) -> StreamShape {
    StreamShape {
        endpoint,
        include_usage: false,
        top_logprobs: None,
        prompt_logprobs: None,
        echo: None,
    }
}

fn dialect(shape: &StreamShape, choices: u32) -> ChunkDialect {
    let head = Head::new(
        shape.endpoint,
        RequestId::from_u128(0xabc),
        1_700_000_000,
        "m",
    );
    ChunkDialect::new(head, shape.clone(), choices)
}

fn text(choice: u32, text: &str) -> EventKind {
    EventKind::Text {
        choice,
        text: text.to_owned(),
        tokens: vec![1],
        logprobs: Vec::new(),
    }
}

fn scored(choice: u32, text: &str) -> EventKind {
    EventKind::Text {
        choice,
        text: text.to_owned(),
        tokens: vec![1],
        logprobs: vec![logprob(text)],
    }
}

fn logprob(text: &str) -> TokenLogprob {
    TokenLogprob {
        token: 1,
        bytes: text.as_bytes().to_vec(),
        logprob: -0.5,
        top: vec![(2, b"z".to_vec(), -0.25)],
    }
}

fn ended(choice: u32, reason: FinishReason) -> EventKind {
    EventKind::ChoiceFinished {
        choice,
        reason,
        cumulative_logprob: 0.0,
        completion_tokens: 1,
    }
}

fn finished() -> EventKind {
    EventKind::Finished {
        usage: Usage {
            prompt_tokens: 5,
            cached_tokens: 2,
            completion_tokens: 3,
            ..Usage::default()
        },
    }
}

/// Numbers the events from 1 on.
fn log(kinds: impl IntoIterator<Item = EventKind>) -> Vec<Event> {
    (1..)
        .zip(kinds)
        .map(|(seq, kind)| Event {
            seq,
            at: Time::ZERO,
            kind,
        })
        .collect()
}

fn queued() -> EventKind {
    EventKind::Queued {
        position: 0,
        waiting: 1,
        eta: None,
    }
}

/// The frames, one flush for each event.
fn told(dialect: &mut ChunkDialect, events: &[Event]) -> Vec<(u64, Value)> {
    events
        .chunks(1)
        .flat_map(|flush| dialect.frames(flush))
        .map(|frame| {
            assert_eq!(frame.event, None, "OpenAI's frames have no event names");
            let data = serde_json::from_str(&frame.data).unwrap_or(json!(frame.data));
            (frame.id, data)
        })
        .collect()
}

fn chat_chunk(choices: Value) -> Value {
    json!({
        "id": "chatcmpl-00000000000000000000000000000abc",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "m",
        "choices": choices,
    })
}

fn completion_chunk(choices: Value) -> Value {
    json!({
        "id": "cmpl-00000000000000000000000000000abc",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": choices,
    })
}

#[test]
fn a_chat_stream_has_role_texts_reason_and_done() {
    let events = log([
        queued(),
        EventKind::Started,
        text(0, "Hel"),
        text(0, ""),
        text(0, "lo"),
        ended(0, FinishReason::Stop),
        finished(),
    ]);
    let delta = |delta: Value, reason: Value| {
        chat_chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]))
    };
    assert_eq!(
        told(&mut dialect(&shape(Endpoint::Chat), 1), &events),
        [
            (
                3,
                delta(json!({"role": "assistant", "content": "Hel"}), Value::Null)
            ),
            (5, delta(json!({"content": "lo"}), Value::Null)),
            (6, delta(json!({}), json!("stop"))),
            (7, json!("[DONE]")),
        ]
    );
}

#[test]
fn one_flush_is_one_chunk_for_all_choices_then_usage_and_done() {
    let events = log([
        text(0, "a"),
        text(1, "b"),
        ended(1, FinishReason::Length),
        text(0, "c"),
        ended(0, FinishReason::Stop),
        finished(),
    ]);
    let shape = StreamShape {
        include_usage: true,
        ..shape(Endpoint::Chat)
    };
    let mut dialect = dialect(&shape, 2);
    let frames = dialect.frames(&events);
    let ids: Vec<u64> = frames.iter().map(|frame| frame.id).collect();
    assert_eq!(ids, [5, 6, 6]);
    assert!(frames.len() <= dialect.terminal_frames() as usize);
    let chunk: Value = serde_json::from_str(&frames[0].data).expect("JSON");
    assert_eq!(
        chunk["choices"],
        json!([
            {"index": 0, "delta": {"role": "assistant", "content": "ac"}, "logprobs": null, "finish_reason": "stop"},
            {"index": 1, "delta": {"role": "assistant", "content": "b"}, "logprobs": null, "finish_reason": "length"},
        ])
    );
    assert_eq!(
        chunk.get("usage"),
        Some(&Value::Null),
        "null until it is told"
    );
    let usage: Value = serde_json::from_str(&frames[1].data).expect("JSON");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(
        usage["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
               "prompt_tokens_details": {"cached_tokens": 2}})
    );
    assert_eq!(frames[2].data, "[DONE]");
    let after = dialect.after_end();
    assert_eq!((after[0].id, after[0].data.as_str()), (6, "[DONE]"));
}

/// Cutting a stream after any event and resuming must tell the same, for every shape.
#[test]
fn a_resumed_stream_goes_on_with_the_same_frames() {
    let echo = Echo {
        text: "pé ".into(),
        hidden_tokens: 0,
    };
    let shapes = [
        shape(Endpoint::Chat),
        StreamShape {
            include_usage: true,
            top_logprobs: Some(1),
            ..shape(Endpoint::Chat)
        },
        StreamShape {
            top_logprobs: Some(1),
            echo: Some(echo),
            ..shape(Endpoint::Completions)
        },
    ];
    let events = log([
        EventKind::Started,
        EventKind::PromptLogprobs {
            logprobs: vec![logprob("pé"), logprob(" ")],
        },
        scored(0, "a"),
        scored(0, "é"),
        scored(0, "b"),
        ended(0, FinishReason::Stop),
        finished(),
    ]);
    for shape in &shapes {
        let whole = told(&mut dialect(shape, 1), &events);
        for cut in 0..events.len() {
            let mut first = told(&mut dialect(shape, 1), &events[..cut]);
            let mut second = dialect(shape, 1);
            second.frames(&events[..cut]);
            first.extend(told(&mut second, &events[cut..]));
            assert_eq!(first, whole, "cut after {cut} events");
        }
    }
}

#[test]
fn echo_comes_once_with_its_logprobs_and_offsets_go_on() {
    let shape = StreamShape {
        top_logprobs: Some(0),
        echo: Some(Echo {
            text: "hé".into(),
            hidden_tokens: 1,
        }),
        ..shape(Endpoint::Completions)
    };
    let events = log([
        EventKind::PromptLogprobs {
            logprobs: vec![
                TokenLogprob {
                    logprob: f32::NAN,
                    ..logprob("<s>")
                },
                logprob("hé"),
            ],
        },
        scored(0, "!!"),
        scored(0, "?"),
        ended(0, FinishReason::Length),
        finished(),
    ]);
    let logprobs = |tokens: Value, values: Value, top: Value, offsets: Value| json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets});
    let choice = |text: &str, logprobs: Value, reason: Value| {
        completion_chunk(
            json!([{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}]),
        )
    };
    assert_eq!(
        told(&mut dialect(&shape, 1), &events),
        [
            (
                1,
                choice(
                    "hé",
                    logprobs(
                        json!(["<s>", "hé"]),
                        json!([null, -0.5]),
                        json!([null, {"hé": -0.5}]),
                        json!([0, 0])
                    ),
                    Value::Null
                )
            ),
            (
                2,
                choice(
                    "!!",
                    logprobs(
                        json!(["!!"]),
                        json!([-0.5]),
                        json!([{"!!": -0.5}]),
                        json!([2])
                    ),
                    Value::Null
                )
            ),
            (
                3,
                choice(
                    "?",
                    logprobs(
                        json!(["?"]),
                        json!([-0.5]),
                        json!([{"?": -0.5}]),
                        json!([4])
                    ),
                    Value::Null
                )
            ),
            (4, choice("", Value::Null, json!("length"))),
            (5, json!("[DONE]")),
        ]
    );
}

#[test]
fn a_prompt_scored_for_another_reason_is_not_shown() {
    let events = log([
        EventKind::PromptLogprobs {
            logprobs: vec![logprob("x")],
        },
        ended(0, FinishReason::Length),
    ]);
    let frames = told(&mut dialect(&shape(Endpoint::Completions), 1), &events);
    assert_eq!(
        frames,
        [(
            2,
            completion_chunk(
                json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": "length"}])
            )
        )]
    );
}

#[test]
fn a_stream_that_goes_wrong_ends_with_an_error_and_done() {
    let failed = EventKind::Failed {
        failure: Failure {
            kind: FailureKind::DeadlineExceeded,
            message: "the deadline of 5 ms has passed".into(),
        },
        usage: Usage::default(),
    };
    let error = |message: &str, kind: &str, code: &str| json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    for (events, expected) in [
        (
            log([queued(), failed]),
            error(
                "the deadline of 5 ms has passed",
                "server_error",
                "deadline_exceeded",
            ),
        ),
        (
            log([ended(0, FinishReason::Cancelled), finished()]),
            error(
                "the request was cancelled",
                "invalid_request_error",
                "request_cancelled",
            ),
        ),
    ] {
        let shape = StreamShape {
            include_usage: true,
            ..shape(Endpoint::Completions)
        };
        let mut dialect = dialect(&shape, 1);
        let frames = told(&mut dialect, &events);
        let end = &frames[frames.len() - 2..];
        assert_eq!(end, [(2, expected), (2, json!("[DONE]"))]);
        assert_eq!(dialect.after_end().len(), 1);
    }
}
