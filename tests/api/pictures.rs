//! Pictures through the native API: events, files, pace, resuming, leaving.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use girandole::api::EdgeConfig;
use girandole::api::native::wire::{FinishedFrame, Reason, State};
use girandole::api::native::wire_image::{
    DrawnImage, ImageSubmitBody, ImagesFrame, PreviewBody, ProgressBody,
};
use girandole::client::StreamEvent;
use girandole::events::store::Retention;
use girandole::time::RealClock;
use reqwest::Method;
use reqwest::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use serde_json::{Value, json};

use crate::service::{Service, Setup, eventually, refusal};

/// Draws at once.
pub(crate) const DRAWS: &str = "[image]";
/// Draws, at 200 steps a second.
const DRAWS_SLOWLY: &str = "[image]\n[cost]\ntokens_per_second = 200.0";

pub(crate) async fn start(script: &'static str) -> Service {
    Service::start(Setup {
        script,
        ..Setup::default()
    })
    .await
}

pub(crate) fn body(n: u64, steps: u64) -> ImageSubmitBody {
    ImageSubmitBody {
        prompt: "a fox".to_owned(),
        n: Some(n),
        steps: Some(steps),
        seed: Some(7),
        ..ImageSubmitBody::default()
    }
}

async fn submit(service: &Service, body: &ImageSubmitBody) -> String {
    service
        .client
        .submit_images(body)
        .await
        .expect("accepted")
        .id
}

fn names(events: &[StreamEvent]) -> Vec<&str> {
    events.iter().map(|event| event.event.as_str()).collect()
}

/// The news of all events of this name.
fn news<T: serde::de::DeserializeOwned>(events: &[StreamEvent], name: &str) -> Vec<T> {
    events
        .iter()
        .filter(|event| event.event == name)
        .flat_map(|event| event.json::<ImagesFrame<T>>().expect(name).images)
        .collect()
}

#[tokio::test]
async fn a_picture_is_announced_previewed_and_fetched() {
    let service = start(DRAWS_SLOWLY).await;
    let asked = ImageSubmitBody {
        width: Some(96),
        height: Some(40),
        previews: Some(json!(true)),
        ..body(1, 30)
    };
    let id = submit(&service, &asked).await;
    let events = service.events(&id, 0).await;
    let names = names(&events);
    assert_eq!(
        names[names.len() - 3..],
        ["image", "choice_finished", "finished"]
    );
    for wanted in ["started", "progress", "preview"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
    let ids: Vec<u64> = events.iter().filter_map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len());
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    for progress in news::<ProgressBody>(&events, "progress") {
        assert_eq!((progress.index, progress.steps), (0, 30));
    }
    let preview = news::<PreviewBody>(&events, "preview").remove(0);
    assert_eq!((preview.width, preview.height), (12, 5));
    let data = preview
        .url
        .strip_prefix("data:image/png;base64,")
        .expect("a data URL");
    let file = STANDARD.decode(data).expect("Base64");
    let shown = image::load_from_memory(&file).expect("a PNG");
    assert_eq!((shown.width(), shown.height()), (12, 5));

    let drawn = news::<DrawnImage>(&events, "image");
    let url = format!("/api/v1/requests/{id}/images/0");
    let expected = DrawnImage {
        index: 0,
        url: url.clone(),
        width: 96,
        height: 40,
        seed: 7,
    };
    assert_eq!(drawn, [expected]);
    let last: FinishedFrame = events.last().expect("an end").json().expect("usage");
    assert_eq!((last.usage.images, last.usage.denoising_steps), (1, 30));
    assert!(last.usage.prompt_tokens > 0);

    let status = service.ended(&id).await;
    assert_eq!((status.state, status.choices.len()), (State::Finished, 0));
    let image = &status.images.expect("images")[0];
    assert_eq!(image.url.as_deref(), Some(url.as_str()));
    assert_eq!((image.step, image.steps, image.seed), (30, 30, 7));
    assert_eq!(image.finish_reason, Some(Reason::Stop));
    let file = service.client.file(&url).await.expect("a file");
    let picture = image::load_from_memory(&file).expect("a PNG");
    assert_eq!((picture.width(), picture.height()), (96, 40));
}

#[tokio::test]
async fn a_file_has_a_format_a_tag_and_an_owner() {
    let service = Service::start(Setup {
        script: DRAWS,
        keys: "first-key-of-the-test\nsecond-key-of-the-test",
        ..Setup::default()
    })
    .await;
    let client = service.client.clone().with_key("first-key-of-the-test");
    let other = service.client.clone().with_key("second-key-of-the-test");
    let submitted = client.submit_images(&body(2, 2)).await.expect("accepted");
    let status = client.status(&submitted.id, Duration::from_secs(20)).await;
    let images = status.expect("it is there").images.expect("images");
    let url = images[1].url.clone().expect("it is drawn");
    let get = async |path: &str| {
        client
            .call(Method::GET, path)
            .send()
            .await
            .expect("an answer")
    };
    let mut tags = Vec::new();
    for (query, media_type) in [
        ("", "image/png"),
        ("?format=png", "image/png"),
        ("?format=webp", "image/webp"),
        ("?format=jpeg", "image/jpeg"),
        ("?format=jpg&quality=1", "image/jpeg"),
    ] {
        let response = get(&format!("{url}{query}")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], media_type);
        assert_eq!(
            response.headers()[CACHE_CONTROL],
            "private, max-age=86400, immutable"
        );
        assert_eq!(response.headers()["x-request-id"], submitted.id.as_str());
        let tag = response.headers()[ETAG].clone();
        let again = client.call(Method::GET, &format!("{url}{query}"));
        let again = again
            .header(IF_NONE_MATCH, &tag)
            .send()
            .await
            .expect("an answer");
        assert_eq!(
            (again.status().as_u16(), again.headers()[ETAG].clone()),
            (304, tag.clone())
        );
        assert!(again.bytes().await.expect("a body").is_empty());
        tags.push(tag);
    }
    assert_eq!(tags[0], tags[1]);
    tags.remove(0);
    tags.dedup();
    assert_eq!(tags.len(), 4);

    for (query, field) in [
        ("?format=gif", "format"),
        ("?format=jpeg&quality=0", "quality"),
        ("?format=jpeg&quality=101", "quality"),
        ("?format=jpeg&quality=best", "quality"),
        ("?quality=50", "quality"),
        ("?size=5", "size"),
    ] {
        let refused = refusal(client.file(&format!("{url}{query}")).await);
        assert_eq!(
            refused,
            (400, "invalid_value".into(), Some(field.into())),
            "{query}"
        );
    }
    let base = format!("/api/v1/requests/{}/images", submitted.id);
    for (path, code) in [
        (format!("{base}/2"), "image_not_found"),
        (format!("{base}/x"), "image_not_found"),
        (format!("{base}/-1"), "image_not_found"),
        (
            format!("/api/v1/requests/{}/images/0", "0".repeat(32)),
            "request_not_found",
        ),
        (
            "/api/v1/requests/x/images/0".to_owned(),
            "request_not_found",
        ),
    ] {
        assert_eq!(
            refusal(client.file(&path).await),
            (404, code.into(), None),
            "{path}"
        );
    }
    let stolen = refusal(other.file(&url).await);
    assert_eq!(stolen, (404, "request_not_found".into(), None));
}

#[tokio::test]
async fn a_file_is_not_there_before_nor_for_ever() {
    let service = Service::start(Setup {
        script: "[image]\n[cost]\ntokens_per_second = 20.0",
        retention: Retention {
            max_age: Duration::from_millis(400),
            ..Retention::default()
        },
        ..Setup::default()
    })
    .await;
    let id = submit(&service, &body(1, 10)).await;
    let url = format!("/api/v1/requests/{id}/images/0");
    let early = refusal(service.client.file(&url).await);
    assert_eq!(early, (404, "image_not_ready".into(), None));
    service.ended(&id).await;
    assert!(service.client.file(&url).await.is_ok());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let late = refusal(service.client.file(&url).await);
    assert_eq!(late, (410, "request_expired".into(), None));
}

/// A script of 200 steps a second, and 20 frames: the latest state wins, the last always comes.
#[tokio::test]
async fn twenty_frames_a_second_and_the_end_at_once() {
    let service = start(DRAWS_SLOWLY).await;
    let asked = ImageSubmitBody {
        previews: Some(json!(true)),
        ..body(2, 150)
    };
    let id = submit(&service, &asked).await;
    let mut stream = service.client.events(&id, 0).await.expect("a stream");
    let clock = RealClock::start();
    let mut said = Vec::new();
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.expect("sound") {
        said.push(clock.elapsed());
        events.push(event);
    }
    for (first, start) in said.iter().enumerate() {
        let within = said[first..]
            .iter()
            .take_while(|at| **at - *start < Duration::from_secs(1));
        assert!(within.count() <= 20);
    }
    let progress = news::<ProgressBody>(&events, "progress");
    assert!(
        progress.len() > 4 && progress.len() < 150,
        "{}",
        progress.len()
    );
    for index in 0..2 {
        let steps: Vec<u32> = progress
            .iter()
            .filter(|news| news.index == index)
            .map(|news| news.step)
            .collect();
        assert!(steps.is_sorted(), "{steps:?}");
    }
    let mut drawn: Vec<u32> = news::<DrawnImage>(&events, "image")
        .iter()
        .map(|image| image.index)
        .collect();
    drawn.sort_unstable();
    assert_eq!(drawn, [0, 1]);
    assert_eq!(names(&events).last(), Some(&"finished"));
}

/// Numbered previews are kept, wherever the stream is cut.
#[tokio::test]
async fn a_cut_stream_goes_on_without_a_gap() {
    let service = start(DRAWS).await;
    let asked = ImageSubmitBody {
        previews: Some(json!(4)),
        ..body(3, 10)
    };
    let id = submit(&service, &asked).await;
    service.ended(&id).await;
    let whole = service.events(&id, 0).await;
    let told = |events: &[StreamEvent]| {
        let mut told: Vec<(String, u32, u32)> = Vec::new();
        for preview in news::<PreviewBody>(events, "preview") {
            told.push(("preview".into(), preview.index, preview.step));
        }
        for image in news::<DrawnImage>(events, "image") {
            told.push(("image".into(), image.index, 0));
        }
        told
    };
    let mut all = told(&whole);
    all.sort();
    assert_eq!(all.len(), 3 * 5);
    for cut in 0..whole.len() - 1 {
        let after = if cut == 0 {
            0
        } else {
            whole[cut - 1].id.expect("an id")
        };
        let mut both = told(&whole[..cut]);
        both.extend(told(&service.events(&id, after).await));
        both.sort();
        both.dedup();
        assert_eq!(both, all, "cut at {cut}, after {after}");
    }
    // What was made by one dialect can be read in another's words.
    let path = format!("/api/v1/requests/{id}/events?dialect=openai");
    let text = service
        .client
        .call(Method::GET, &path)
        .send()
        .await
        .expect("an answer");
    let text = text.text().await.expect("a stream");
    assert_eq!(
        text.matches("event: image_generation.partial_image\n")
            .count(),
        12
    );
    assert_eq!(
        text.matches("event: image_generation.completed\n").count(),
        3
    );
}

#[tokio::test]
async fn a_cancelled_request_shows_it_and_has_no_files() {
    let service = start("[image]\n[cost]\ntokens_per_second = 10.0").await;
    let id = submit(&service, &body(1, 100)).await;
    eventually("running", async || {
        let status = service
            .client
            .status(&id, Duration::ZERO)
            .await
            .expect("there");
        status.images.expect("images")[0].step > 0
    })
    .await;
    service.client.cancel(&id).await.expect("cancelled");
    let status = service.ended(&id).await;
    let image = &status.images.expect("images")[0];
    assert_eq!(
        (image.url.clone(), image.finish_reason),
        (None, Some(Reason::Cancelled))
    );
    let refused = refusal(
        service
            .client
            .file(&format!("/api/v1/requests/{id}/images/0"))
            .await,
    );
    assert_eq!(refused, (404, "image_not_found".into(), None));
    let path = format!("/api/v1/requests/{id}/events?dialect=openai");
    let text = service
        .client
        .call(Method::GET, &path)
        .send()
        .await
        .expect("an answer");
    let text = text.text().await.expect("a stream");
    assert!(
        text.contains("event: error\n") && text.contains("request_cancelled"),
        "{text}"
    );
}

#[tokio::test]
async fn a_request_that_nobody_reads_is_given_up() {
    let service = Service::start(Setup {
        script: "[image]\n[cost]\ntokens_per_second = 20.0",
        edge: EdgeConfig {
            native_grace: Duration::from_millis(200),
            openai_grace: Duration::from_millis(200),
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    let id = submit(&service, &body(1, 150)).await;
    let mut stream = service.client.events(&id, 0).await.expect("a stream");
    stream.next().await.expect("sound").expect("an event");
    drop(stream);
    service.until_idle().await;

    let json = json!({"prompt": "x", "steps": 150, "stream": true,
        "stream_options": {"include_progress": true}});
    let call = service.client.call(Method::POST, "/v1/images/generations");
    let mut response = call.json(&json).send().await.expect("an answer");
    response.chunk().await.expect("sound").expect("an event");
    drop(response);
    service.until_idle().await;
}

/// A reader that takes nothing for a while holds nobody up, and then is told the latest.
#[tokio::test]
async fn a_slow_reader_misses_nothing_that_counts() {
    let service = start(DRAWS_SLOWLY).await;
    let asked = ImageSubmitBody {
        width: Some(512),
        height: Some(512),
        previews: Some(json!(true)),
        ..body(1, 100)
    };
    let slow = submit(&service, &asked).await;
    let mut stream = service.client.events(&slow, 0).await.expect("a stream");
    stream.next().await.expect("sound").expect("an event");
    let clock = RealClock::start();
    let quick = submit(&service, &body(1, 20)).await;
    service.ended(&quick).await;
    assert!(clock.elapsed() < Duration::from_secs(5));
    service.ended(&slow).await;
    let rest = stream.collect().await.expect("a whole stream");
    assert_eq!(names(&rest).last(), Some(&"finished"));
    assert_eq!(news::<DrawnImage>(&rest, "image").len(), 1);
}

#[tokio::test]
async fn every_dialect_gives_the_same_file() {
    let service = start(DRAWS).await;
    let id = submit(&service, &body(1, 5)).await;
    service.ended(&id).await;
    let native = service
        .client
        .file(&format!("/api/v1/requests/{id}/images/0"))
        .await;
    let json = json!({"prompt": "a fox", "steps": 5, "seed": 7, "size": "64x64"});
    let call = service
        .client
        .call(Method::POST, "/v1/images/generations")
        .json(&json);
    let reply: Value = call
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let text = reply["data"][0]["b64_json"].as_str().expect("a string");
    assert_eq!(
        STANDARD.decode(text).expect("Base64"),
        native.expect("a file")
    );
}
