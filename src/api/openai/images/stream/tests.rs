use std::time::Duration;

use super::*;
use crate::batch::Usage;
use crate::events::coalesce::coalesce;
use crate::events::{Failure, FailureKind};
use crate::picture::PictureFormat;

fn dialect(images: u32, is_edit: bool, include_progress: bool) -> ImageDialect {
    let shape = ImageShape {
        is_edit,
        format: PictureFormat::Jpeg,
        quality: 100,
        include_progress,
    };
    let parameters = PictureParameters {
        images,
        ..PictureParameters::example()
    };
    ImageDialect::new(
        shape,
        Arc::new(parameters),
        1_700_000_000,
        Time::from_millis(500),
    )
}

fn picture() -> Arc<Picture> {
    Arc::new(Picture::new(1, 1, vec![0; 3]))
}

fn preview(choice: u32, step: u32, kept: bool) -> EventKind {
    EventKind::Preview {
        choice,
        step,
        picture: picture(),
        kept,
    }
}

fn progress(choice: u32, step: u32) -> EventKind {
    EventKind::Progress {
        choice,
        step,
        steps: 20,
        eta: Some(Duration::from_millis(70)),
    }
}

fn image(choice: u32) -> EventKind {
    EventKind::Image {
        choice,
        picture: picture(),
        seed: 5,
    }
}

fn ended(choice: u32, reason: FinishReason) -> EventKind {
    EventKind::ChoiceFinished {
        choice,
        reason,
        cumulative_logprob: 0.0,
        completion_tokens: 0,
    }
}

fn finished() -> EventKind {
    EventKind::Finished {
        usage: Usage::default(),
    }
}

fn numbered_events(kinds: Vec<EventKind>) -> Vec<Event> {
    (1..)
        .zip(kinds)
        .map(|(seq, kind)| Event {
            seq,
            at: Time::from_millis(1_000 * seq),
            kind,
        })
        .collect()
}

/// `id name index` of each frame; the index is the picture's, and then the partial image's.
fn told(frames: &[Frame]) -> Vec<String> {
    let told = |frame: &Frame| {
        let data: Value = serde_json::from_str(&frame.data).expect("JSON");
        assert_eq!(data["type"], json!(frame.event.expect("a name")));
        let numbers: Vec<String> = ["image_index", "partial_image_index"]
            .iter()
            .filter_map(|name| data.get(name).map(Value::to_string))
            .collect();
        let name = frame.event.and_then(|name| name.split('.').next_back());
        format!(
            "{} {} {}",
            frame.id,
            name.unwrap_or_default(),
            numbers.join(" ")
        )
    };
    frames.iter().map(told).collect()
}

#[test]
fn payloads_are_openais() {
    let mut dialect = dialect(1, false, false);
    let frames = dialect.frames(&numbered_events(vec![
        preview(0, 5, true),
        image(0),
        finished(),
    ]));
    assert_eq!(frames.len(), 2);
    let common = json!({
        "type": "image_generation.partial_image",
        "b64_json": PICTURE,
        "created_at": 1_700_000_000,
        "size": "512x768",
        "quality": "auto",
        "background": "opaque",
        "output_format": "jpeg",
        "image_index": 0,
    });
    let data = |frame: &Frame| serde_json::from_str::<Value>(&frame.data).expect("JSON");
    let mut expected = common.clone();
    expected["partial_image_index"] = json!(0);
    assert_eq!(data(&frames[0]), expected);
    let mut expected = common;
    expected["type"] = json!("image_generation.completed");
    expected["created_at"] = json!(1_700_000_001);
    expected["seed"] = json!(5);
    expected["usage"] = json!({
        "input_tokens": 77,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 77},
        "output_tokens": 20,
        "total_tokens": 97,
    });
    assert_eq!(data(&frames[1]), expected);
    // A partial image has the size that is told; the picture has it by itself.
    let (_, encoding) = &frames[0].pictures[0];
    assert_eq!((encoding.size, encoding.quality), (Some((512, 768)), 90));
    let (_, encoding) = &frames[1].pictures[0];
    assert_eq!((encoding.size, encoding.quality), (None, 100));
}

#[test]
fn progress_is_told_to_those_who_ask() {
    let events = || {
        numbered_events(vec![
            EventKind::Queued {
                position: 1,
                waiting: 2,
                eta: None,
            },
            EventKind::Started,
            progress(0, 1),
            preview(0, 1, false),
        ])
    };
    assert_eq!(told(&dialect(1, true, false).frames(&events())), [""; 0]);
    let frames = dialect(1, true, true).frames(&events());
    assert_eq!(told(&frames), ["1 queued ", "2 started ", "3 progress 0"]);
    assert_eq!(
        frames[2].data,
        "{\"type\":\"image_edit.progress\",\"image_index\":0,\"step\":1,\"steps\":20,\"eta_ms\":70}"
    );
}

#[test]
fn only_the_last_of_frames_that_belong_together_bears_their_number() {
    let events = numbered_events(vec![
        preview(0, 5, true),
        preview(1, 5, true),
        preview(0, 9, true),
        image(1),
        ended(1, FinishReason::Stop),
    ]);
    let mut dialect = dialect(2, false, false);
    assert_eq!(
        told(&dialect.frames(&coalesce(events))),
        [
            "0 partial_image 0 0",
            "0 partial_image 0 1",
            "0 partial_image 1 0",
            "5 completed 1"
        ]
    );
    let mut last = numbered_events(vec![image(0), ended(0, FinishReason::Stop), finished()]);
    for event in &mut last {
        event.seq += 5;
    }
    assert_eq!(told(&dialect.frames(&coalesce(last))), ["6 completed 0"]);
}

/// Wherever a stream is cut and resumed, the same frames come, whatever was gathered into one flush.
#[test]
fn a_resumed_stream_goes_on_with_the_same_frames() {
    let events = numbered_events(vec![
        EventKind::Started,
        progress(0, 1),
        preview(0, 1, true),
        progress(0, 2),
        preview(0, 2, true),
        image(0),
        ended(0, FinishReason::Stop),
        finished(),
    ]);
    let whole = told(&dialect(1, false, false).frames(&events));
    for cut in 0..events.len() {
        let (seen, rest) = events.split_at(cut);
        let mut first = told(&dialect(1, false, false).frames(&coalesce(seen.to_vec())));
        let mut second = dialect(1, false, false);
        second.frames(&coalesce(seen.to_vec()));
        first.extend(told(&second.frames(&coalesce(rest.to_vec()))));
        assert_eq!(first, whole, "cut at {cut}");
    }
}

#[test]
fn a_stream_that_did_not_go_well_ends_with_an_error() {
    let failure = EventKind::Failed {
        failure: Failure {
            kind: FailureKind::Step,
            message: "a reason".to_owned(),
        },
        usage: Usage::default(),
    };
    let frames = dialect(1, false, false).frames(&numbered_events(vec![failure]));
    assert_eq!(told(&frames), ["1 error "]);
    assert_eq!(
        serde_json::from_str::<Value>(&frames[0].data).expect("JSON"),
        json!({"type": "error", "error": {
            "message": "a reason", "type": "server_error", "param": null, "code": "step_failed",
        }})
    );
    let cancelled = vec![ended(0, FinishReason::Cancelled), finished()];
    let frames = dialect(1, false, false).frames(&numbered_events(cancelled));
    assert_eq!(told(&frames), ["2 error "]);
    assert!(frames[0].data.contains("request_cancelled"));
}
