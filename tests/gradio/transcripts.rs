//! What a session's stream says, from the first message to the last.

use std::time::Duration;

use girandole::api::EdgeConfig;
use serde_json::{Value, json};

use crate::client::{Gradio, Message, Values, of};
use crate::service::{INSTANT, STEADY, Service, Setup, said};
use crate::{PICTURES, SLOW_PICTURES};

async fn service(script: &'static str) -> Service {
    Service::start(Setup {
        script,
        ..Setup::default()
    })
    .await
}

fn names(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(Message::name).collect()
}

#[tokio::test]
async fn a_text_from_joining_to_the_end() {
    let service = service(INSTANT).await;
    let gradio = Gradio::new(&service);
    let event_id = gradio.join("generate", json!(["hello", 36])).await;
    let messages = gradio.all().await;
    let mut values = Values::default();
    let last = messages.iter().filter_map(|one| values.take(one)).last();
    assert_eq!(last, Some(vec![said(36).into()]));
    let said_names = names(&messages);
    assert_eq!(said_names[0], "estimation", "{said_names:?}");
    assert_eq!(said_names[1], "process_starts");
    assert_eq!(
        said_names[said_names.len() - 2..],
        ["process_completed", "close_stream"]
    );
    assert!(messages.len() <= 8, "{said_names:?}");

    let estimation = &messages[0].data;
    assert_eq!(estimation["event_id"], event_id);
    assert!(estimation["rank"].is_u64() && estimation["queue_size"].is_u64());
    assert!(estimation.as_object().unwrap().contains_key("rank_eta"));
    let completed = &messages[messages.len() - 2].data;
    assert_eq!(completed["success"], true);
    assert_eq!(completed["output"]["data"], json!([said(36)]));
    assert_eq!(completed["output"]["is_generating"], false);
}

#[tokio::test]
async fn updates_come_twenty_times_a_second_and_nothing_is_lost() {
    let service = service(STEADY).await;
    let gradio = Gradio::new(&service);
    gradio.join("generate", json!(["hello", 400])).await;
    let messages = gradio.all().await;
    let mut values = Values::default();
    let texts: Vec<String> = messages
        .iter()
        .filter_map(|message| values.take(message))
        .map(|values| values[0].as_str().unwrap().to_owned())
        .collect();
    assert!(texts.windows(2).all(|pair| pair[1].starts_with(&pair[0])));
    assert_eq!(texts.last(), Some(&said(400)));
    // However long the machine takes for it: twenty in each second, and the first and last at once.
    let completed = &messages[messages.len() - 2].data;
    let seconds = completed["output"]["duration"].as_f64().unwrap();
    let most = 20.0 * seconds + 4.0;
    assert!(
        (texts.len() as f64) < most,
        "{} updates in {seconds} s",
        texts.len()
    );
    // All but the first are told as what was added.
    let sizes = messages
        .iter()
        .filter(|one| one.name() == "process_generating");
    assert!(
        sizes
            .skip(1)
            .all(|one| one.data["output"]["data"][0][0][0] == "append")
    );
}

#[tokio::test]
async fn a_chat_takes_what_was_said_before() {
    let service = service("[output]\nkind = \"echo\"").await;
    let gradio = Gradio::new(&service);
    let history = json!([
        {"role": "user", "content": "a", "metadata": null, "options": null},
        {"role": "assistant", "content": "b"},
    ]);
    let data = json!(["c", "s", 60.0, 0, 1.0, -1, history]);
    gradio.join("chat", data).await;
    let messages = gradio.all().await;
    let completed = &messages[messages.len() - 2].data;
    let text = completed["output"]["data"][0].as_str().unwrap();
    let prompt = "<system>s<user>a<assistant>b<user>c";
    assert!(text.starts_with(prompt), "{text}");
}

#[tokio::test]
async fn a_picture_with_progress_and_previews() {
    let service = service(SLOW_PICTURES).await;
    let gradio = Gradio::new(&service);
    let arguments = json!(["a circle", null, 64, 64, 12, null, null, 7, 2]);
    let event_id = gradio.join("txt2img", arguments).await;
    let messages = gradio.all().await;
    let mut values = Values::default();
    let galleries: Vec<Vec<Value>> = messages.iter().filter_map(|one| values.take(one)).collect();
    let last = galleries.last().expect("previews and pictures");
    assert!(galleries.len() >= 2, "{galleries:?}");
    assert_eq!(last[1], 7);
    let pictures = last[0].as_array().unwrap();
    let captions: Vec<_> = pictures.iter().map(|one| &one["caption"]).collect();
    assert_eq!(captions, ["seed 7", "seed 8"]);
    let completed = &messages[messages.len() - 2].data;
    assert_eq!(completed["output"]["data"], json!(last));

    let file = &pictures[1]["image"];
    assert_eq!(file["meta"], json!({"_type": "gradio.FileData"}));
    let path = file["path"].as_str().unwrap();
    assert_eq!(path, format!("requests/{event_id}/images/1.png"));
    let url = format!("http://{}/gradio_api/file={path}", service.address);
    assert_eq!(file["url"], url);
    let (status, kind, bytes) = gradio.file(path).await;
    assert_eq!((status, kind.as_str()), (200, "image/png"));
    assert!(bytes.starts_with(b"\x89PNG"));
    // A preview's path leads to what has become of it.
    let early = galleries[0][0][0]["image"]["path"].as_str().unwrap();
    assert!(early.contains("/previews/"), "{early}");
    assert_eq!(gradio.file(early).await.0, 200);

    let steps: Vec<u64> = messages
        .iter()
        .filter_map(|one| one.data["progress_data"][0]["index"].as_u64())
        .collect();
    assert!(steps.len() >= 3 && steps.is_sorted(), "{steps:?}");
}

#[tokio::test]
async fn one_stream_carries_all_events_and_takes_in_newcomers() {
    let service = service(STEADY).await;
    let gradio = Gradio::new(&service);
    let mut ids = Vec::new();
    for number in 0..9 {
        ids.push(
            gradio
                .join("generate", json!([format!("{number}"), 40]))
                .await,
        );
    }
    let mut stream = gradio.stream().await;
    let mut messages = vec![stream.next().await.unwrap()];
    ids.push(gradio.join("generate", json!(["late", 40])).await);
    messages.extend(stream.rest().await);
    for id in &ids {
        let own = of(&messages, id);
        let ends = own.iter().filter(|one| one.name() == "process_completed");
        assert_eq!(ends.count(), 1, "{id}");
        let last = own.last().unwrap();
        assert_eq!(last.data["output"]["data"], json!([said(40)]));
    }
    let closing = names(&messages)
        .iter()
        .filter(|one| **one == "close_stream")
        .count();
    assert_eq!(
        (closing, names(&messages).last()),
        (1, Some(&"close_stream"))
    );
}

#[tokio::test]
async fn a_cancelled_event_says_its_last_values_and_the_others_go_on() {
    let service = Service::start(Setup {
        batch_size: 1,
        ..Setup::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    let running = gradio.join("generate", json!(["one", 300])).await;
    let queued = gradio.join("generate", json!(["two", 300])).await;
    let mut stream = gradio.stream().await;
    let mut messages = Vec::new();
    let mut values = Values::default();
    while messages.iter().filter_map(|one| values.take(one)).count() == 0 {
        messages.push(stream.next().await.unwrap());
        values = Values::default();
    }
    assert_eq!(gradio.cancel(&queued).await.body, json!({"success": true}));
    messages.extend(stream.rest().await);
    let cancelled = of(&messages, &queued);
    let last = &cancelled.last().unwrap().data;
    assert_eq!(
        (&last["msg"], &last["success"]),
        (&json!("process_completed"), &json!(true))
    );
    assert_eq!(last["output"]["data"], json!([""]));
    let whole = of(&messages, &running);
    assert_eq!(
        whole.last().unwrap().data["output"]["data"],
        json!([said(300)])
    );

    let id = gradio.join("generate", json!(["three", 7_000])).await;
    let mut stream = gradio.stream().await;
    let mut values = Values::default();
    let mut latest = None;
    let end = loop {
        let message = stream.next().await.unwrap();
        if message.name() == "process_completed" {
            break message;
        }
        latest = values.take(&message).or(latest);
        if latest.is_some() {
            assert_eq!(gradio.cancel(&id).await.status, 200);
            // Again does no harm.
            assert_eq!(gradio.cancel(&id).await.status, 200);
        }
    };
    assert_eq!(end.data["success"], true);
    assert_eq!(end.data["output"]["data"], json!(latest.unwrap()));
    let reply = gradio.cancel("0123456789abcdef0123456789abcdef").await;
    assert_eq!(reply.status, 404);
}

#[tokio::test]
async fn a_failed_event_says_why_and_the_session_goes_on() {
    const FAULTY: &str = "[[fault]]\nprompt_contains = \"poison\"\nnan_at_token = 3";
    let service = service(FAULTY).await;
    let gradio = Gradio::new(&service);
    let bad = gradio.join("generate", json!(["poison", 20])).await;
    let good = gradio.join("generate", json!(["fine", 20])).await;
    let messages = gradio.all().await;
    let end = &of(&messages, &bad).last().unwrap().data;
    let error = json!({
        "error": "the model's logits are not finite", "title": "Error", "duration": 10, "visible": true,
    });
    assert_eq!((&end["success"], &end["output"]), (&json!(false), &error));
    assert_eq!(of(&messages, &good).last().unwrap().data["success"], true);
}

#[tokio::test]
async fn what_was_said_before_the_stream_was_opened_is_in_it() {
    let service = service(PICTURES).await;
    let gradio = Gradio::new(&service);
    let id = gradio.join("txt2img", json!(["a circle"])).await;
    service.until_idle().await;
    let messages = gradio.all().await;
    assert_eq!(of(&messages, &id).last().unwrap().data["success"], true);
    // All has been told: another stream is over at once.
    assert_eq!(names(&gradio.all().await), ["close_stream"]);
}

#[tokio::test]
async fn silence_is_broken_by_heartbeats() {
    let edge = EdgeConfig {
        keep_alive: Duration::from_millis(100),
        ..EdgeConfig::default()
    };
    let service = Service::start(Setup {
        script: "[cost]\nbegin_token_micros = 100_000",
        edge,
        ..Setup::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    gradio.join("generate", json!(["0123456789", 3])).await;
    let messages = gradio.all().await;
    let beats: Vec<_> = messages
        .iter()
        .filter(|one| one.name() == "heartbeat")
        .collect();
    assert!(beats.len() >= 3, "{:?}", names(&messages));
    assert!(
        beats
            .iter()
            .all(|one| one.data == json!({"msg": "heartbeat"}))
    );
}
