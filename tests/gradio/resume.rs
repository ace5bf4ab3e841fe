//! Streams that are cut and go on, for clients that ask for ids.

use serde_json::{Value, json};

use crate::client::{Gradio, Message, Values};
use crate::service::{STEADY, Service, Setup, said};

/// Reads the session's stream with a cut after each `every` messages, and returns all that was read.
async fn read_with_cuts(gradio: &Gradio, every: usize) -> (Vec<Message>, usize) {
    let mut messages: Vec<Message> = Vec::new();
    let mut cuts = 0;
    loop {
        let last = messages.iter().rev().find_map(|one| one.id.clone());
        let mut stream = gradio.stream_with("&resume=1", last.as_deref()).await;
        for _ in 0..every {
            match stream.next().await {
                Some(message) => messages.push(message),
                None => panic!("a stream ends in close_stream"),
            }
            if messages
                .last()
                .is_some_and(|one| one.name() == "close_stream")
            {
                return (messages, cuts);
            }
        }
        cuts += 1;
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_again_and_again_loses_and_repeats_nothing() {
    let service = Service::start(Setup {
        script: STEADY,
        ..Setup::default()
    })
    .await;
    for every in [1, 2, 5] {
        let gradio = Gradio::new(&service);
        let mut ids = Vec::new();
        for number in 0..3 {
            let length = 100 + 50 * number;
            let data = json!([format!("{number}"), length]);
            ids.push((gradio.join("generate", data).await, length));
        }
        let (messages, cuts) = read_with_cuts(&gradio, every).await;
        assert!(cuts >= 3, "{cuts} cuts");
        let mut values = Values::default();
        let mut made: Vec<(String, Value)> = Vec::new();
        for message in &messages {
            if let Some(mut now) = values.take(message) {
                let id = message.data["event_id"].as_str().unwrap();
                made.push((id.to_owned(), now.remove(0)));
            }
        }
        for (id, length) in &ids {
            // A piece lost or said twice would show: each text is made of the edits that came.
            let last = made.iter().rev().find(|(one, _)| one == id);
            assert_eq!(
                last.map(|(_, text)| text),
                Some(&json!(said(*length as usize)))
            );
            let count = |name: &str| {
                let own = messages.iter().filter(|one| one.data["event_id"] == *id);
                own.filter(|one| one.name() == name).count()
            };
            assert_eq!(count("process_starts"), 1);
            assert_eq!(count("process_completed"), 1);
        }
        assert_eq!(messages.last().unwrap().name(), "close_stream");
    }
}

#[tokio::test]
async fn another_reader_gets_the_full_value_first() {
    let service = Service::start(Setup::default()).await;
    let gradio = Gradio::new(&service);
    let id = gradio.join("generate", json!(["hello", 200])).await;
    let mut first = gradio.stream().await;
    let mut values = Values::default();
    let mut before = Value::Null;
    for _ in 0..6 {
        let message = first.next().await.unwrap();
        if let Some(mut now) = values.take(&message) {
            before = now.remove(0);
        }
    }
    drop(first);
    // Without an id to go on from, it begins again: with all that there is.
    let mut values = Values::default();
    let mut texts = Vec::new();
    for message in gradio.all().await {
        texts.extend(values.take(&message));
        if message.name() == "process_completed" {
            assert_eq!(message.data["event_id"], id);
        }
    }
    let early = texts[0][0].as_str().unwrap();
    assert!(early.starts_with(before.as_str().unwrap_or_default()));
    assert_eq!(texts.last().unwrap()[0], said(200));
}

#[tokio::test]
async fn ids_come_only_when_they_are_asked_for() {
    let service = Service::start(Setup::default()).await;
    let gradio = Gradio::new(&service);
    gradio.join("generate", json!(["hello", 20])).await;
    assert!(gradio.all().await.iter().all(|one| one.id.is_none()));
    gradio.join("generate", json!(["hello", 20])).await;
    let stream = gradio.stream_with("&resume=1", None).await;
    let messages = stream.rest().await;
    assert!(messages.iter().all(|one| one.id.is_some()));
    // Whoever has heard everything is told that it is over, and nothing else.
    let last = messages.last().unwrap().id.clone();
    let again = gradio.stream_with("", last.as_deref()).await.rest().await;
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].name(), &again[0].id), ("close_stream", &last));
    // From the beginning of that event on, all of it is told once more, in fewer messages.
    let all = gradio.stream_with("", Some("1")).await.rest().await;
    let end = |messages: &[Message]| messages[messages.len() - 2].data["output"]["data"].clone();
    assert_eq!(end(&all), end(&messages));
    assert_eq!(end(&all), json!([said(20)]));
}
