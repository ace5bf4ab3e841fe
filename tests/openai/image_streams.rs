//! Pictures in streams: names, order, pictures, resuming.

use serde_json::{Value, json};

use crate::images::{EDITS, GENERATIONS, data_url, decoded, kind, png};
use crate::service::Service;
use crate::{DRAWS, DRAWS_SLOWLY};
use image::ImageFormat;

fn names(frames: &[(u64, Value)]) -> Vec<&str> {
    frames
        .iter()
        .map(|(_, data)| data["type"].as_str().expect("a name"))
        .collect()
}

#[tokio::test]
async fn partial_images_come_before_the_picture() {
    let service = Service::start(DRAWS_SLOWLY).await;
    let body = json!({"prompt": "a", "seed": 1, "steps": 20, "stream": true, "partial_images": 3, "size": "64x48"});
    let (_, frames) = service.stream(GENERATIONS, &body).await;
    let partial = "image_generation.partial_image";
    assert_eq!(
        names(&frames),
        [partial, partial, partial, "image_generation.completed"]
    );
    assert!(frames.is_sorted_by(|one, next| one.0 < next.0));
    for (index, (_, data)) in frames.iter().enumerate() {
        let file = decoded(&data["b64_json"]);
        assert_eq!(kind(&file), (64, 48, ImageFormat::Png));
        if index < 3 {
            assert_eq!(data["partial_image_index"], json!(index));
        }
    }
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    whole["partial_images"] = json!(null);
    let reply = service.post(GENERATIONS, whole.to_string()).await;
    let last = &frames[3].1;
    assert_eq!(reply.body["data"][0]["b64_json"], last["b64_json"]);
    assert_eq!(reply.body["usage"], last["usage"]);
}

#[tokio::test]
async fn an_edit_has_names_of_its_own_and_progress_is_told_on_demand() {
    let service = Service::start(DRAWS_SLOWLY).await;
    let body = json!({
        "prompt": "a", "steps": 100, "stream": true, "strength": 0.25,
        "image": data_url(&png(32, 32, [5, 5, 5, 255])),
        "stream_options": {"include_progress": true},
    });
    // 50 steps at most.
    let reply = service.post(EDITS, body.to_string()).await;
    assert_eq!(reply.body["error"]["param"], json!("steps"));
    let mut body = body;
    body["steps"] = json!(48);
    let (_, frames) = service.stream(EDITS, &body).await;
    let names = names(&frames);
    assert_eq!(names.last(), Some(&"image_edit.completed"));
    assert!(names.contains(&"image_edit.started"), "{names:?}");
    let steps: Vec<u64> = frames
        .iter()
        .filter(|(_, data)| data["type"] == json!("image_edit.progress"))
        .map(|(_, data)| {
            assert_eq!(data["steps"], json!(12));
            data["step"].as_u64().expect("a number")
        })
        .collect();
    assert!(!steps.is_empty() && steps.is_sorted(), "{steps:?}");
}

/// Wherever a stream is cut, what was not covered comes again, and nothing is lost.
#[tokio::test]
async fn a_stream_of_several_pictures_is_resumed_anywhere() {
    let service = Service::start(DRAWS).await;
    let body =
        json!({"prompt": "a", "seed": 1, "n": 3, "steps": 8, "stream": true, "partial_images": 2});
    let (id, frames) = service.stream(GENERATIONS, &body).await;
    let key = |data: &Value| {
        let name = data["type"].as_str().expect("a name").to_owned();
        let number = |name: &str| data.get(name).and_then(Value::as_u64);
        (name, number("image_index"), number("partial_image_index"))
    };
    let mut all: Vec<_> = frames.iter().map(|(_, data)| key(data)).collect();
    all.sort();
    let mut unique = all.clone();
    unique.dedup();
    assert_eq!(unique, all, "nothing comes twice");
    assert_eq!(all.len(), 9);
    assert!(frames.is_sorted_by_key(|(id, _)| *id));
    for cut in 0..frames.len() {
        let after = if cut == 0 { 0 } else { frames[cut - 1].0 };
        let mut told: Vec<_> = frames[..cut].iter().map(|(_, data)| key(data)).collect();
        let resumed = service.resume(&id, after).await;
        told.extend(resumed.iter().map(|(_, data)| key(data)));
        told.sort();
        told.dedup();
        assert_eq!(told, all, "cut at {cut}, after {after}");
    }
}
