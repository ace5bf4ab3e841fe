//! Readers that leave: the request waits for them for a while, and touches nobody else.

use std::time::Duration;

use girandole::api::EdgeConfig;
use girandole::api::native::wire::{State, Status, SubmitBody};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::service::{Service, Setup, body, eventually, said};

const GRACE: Duration = Duration::from_millis(300);

async fn service() -> Service {
    Service::start(Setup {
        edge: EdgeConfig {
            native_grace: GRACE,
            openai_grace: GRACE,
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await
}

/// Without any grace a request still has a reader from its acceptance on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_several_prompts_reads_them_all() {
    let service = Service::start(Setup {
        edge: EdgeConfig {
            openai_grace: Duration::ZERO,
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    let call = service.client.call(Method::POST, "/v1/completions");
    let call = call.json(&json!({
        "model": "scripted",
        "prompt": ["one", "two", "three"],
        "max_tokens": 20,
    }));
    let response = call.send().await.unwrap();
    assert_eq!(response.status(), 200);
}

fn assert_abandoned(status: &Status) {
    assert_eq!(status.state, State::Failed);
    assert_eq!(status.error.as_ref().unwrap()["code"], "abandoned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_reads_is_given_up_and_no_other() {
    let service = service().await;
    let unread = service.submit(&body("Unread", 4_000)).await;
    let detached = service
        .submit(&SubmitBody {
            detach: Some(true),
            ..body("Detached", 200)
        })
        .await;
    let watched = service.submit(&body("Watched", 200)).await;
    let watching = service.client.events(&watched, 0).await.unwrap();
    tokio::time::sleep(3 * GRACE).await;
    let status = service
        .client
        .status(&unread, Duration::ZERO)
        .await
        .unwrap();
    assert_abandoned(&status);
    let last = watching.collect().await.unwrap().pop().unwrap();
    assert_eq!(last.event, "finished");
    eventually("the detached request ends by itself", async || {
        let load = service.client.load().await.unwrap().models.remove(0);
        load.running_rows == 0
    })
    .await;
    let status = service.client.status(&detached, Duration::ZERO).await;
    assert_eq!(status.unwrap().choices[0].text, said(200));
    service.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_request_gives_its_idempotency_key_back() {
    let service = service().await;
    let post = async || {
        let call = service.client.call(Method::POST, "/api/v1/requests");
        let call = call.header("Idempotency-Key", "one");
        let response = call.json(&body("Unread", 4_000)).send().await.unwrap();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let answer: Value = response.json().await.unwrap();
        (replayed, answer["id"].clone())
    };
    let (_, first) = post().await;
    assert_eq!(post().await, (true, first.clone()));
    tokio::time::sleep(3 * GRACE).await;
    let (replayed, second) = post().await;
    assert!(!replayed && second != first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polling_counts_as_reading() {
    let service = service().await;
    let id = service.submit(&body("Polled", 250)).await;
    loop {
        let status = service.client.status(&id, Duration::ZERO).await.unwrap();
        match status.state {
            State::Finished => break assert_eq!(status.choices[0].text, said(250)),
            State::Failed => panic!("given up while it was polled: {:?}", status.error),
            State::Queued | State::Running => tokio::time::sleep(GRACE / 6).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_may_come_back_within_the_grace_time() {
    let service = service().await;
    let id = service.submit(&body("Return", 250)).await;
    for _ in 0..3 {
        let mut stream = service.client.events(&id, 0).await.unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        tokio::time::sleep(GRACE / 4).await;
    }
    let events = service.events(&id, 0).await;
    assert_eq!(events.last().unwrap().event, "finished");

    let left = service.submit(&body("Leave", 4_000)).await;
    let mut stream = service.client.events(&left, 0).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    tokio::time::sleep(3 * GRACE).await;
    assert_abandoned(&service.client.status(&left, Duration::ZERO).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_gives_its_request_up() {
    let service = service().await;
    for stream in [false, true] {
        let call = json!({
            "model": "scripted", "prompt": "Dropped", "max_tokens": 4_000, "stream": stream,
        });
        let call = call.to_string();
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n",
            call.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(call.as_bytes()).await.unwrap();
        eventually("it runs", async || {
            service.client.load().await.unwrap().models[0].running_rows == 1
        })
        .await;
        drop(socket);
        service.until_idle().await;
    }
}
