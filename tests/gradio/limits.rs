//! What is bounded, and what becomes of events that nobody reads.

use std::time::Duration;

use girandole::api::EdgeConfig;
use girandole::api::gradio::GradioConfig;
use serde_json::json;

use crate::client::Gradio;
use crate::service::{Service, Setup, eventually};

const LONG: u64 = 7_000;

fn edge(gradio: GradioConfig) -> EdgeConfig {
    EdgeConfig {
        gradio,
        ..EdgeConfig::default()
    }
}

async fn running_rows(service: &Service) -> (u32, u32) {
    let load = service.client.load().await.unwrap().models.remove(0);
    (load.running_rows, load.waiting_rows)
}

#[tokio::test]
async fn a_full_queue_is_503_by_every_way_in() {
    let service = Service::start(Setup {
        batch_size: 1,
        max_queued_requests: 2,
        ..Setup::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    let mut ids = vec![gradio.join("generate", json!(["x", LONG])).await];
    eventually("the first runs", async || {
        running_rows(&service).await.0 == 1
    })
    .await;
    for _ in 0..2 {
        ids.push(gradio.join("generate", json!(["x", LONG])).await);
    }
    let _stream = gradio.stream().await;
    eventually("both that wait are told", async || {
        gradio.get("/gradio_api/queue/status").await.body["queue_size"] == 2
    })
    .await;
    let body = json!({"data": ["x", 3]});
    // When the next would start can be told once some steps have been measured and the queue surveyed.
    eventually("a refusal tells when there may be a place", async || {
        let reply = gradio.post("/gradio_api/run/generate", &body).await;
        reply.body["eta"].is_number()
    })
    .await;
    for (path, body) in [
        ("/gradio_api/run/generate", body.clone()),
        ("/gradio_api/api/generate", body.clone()),
        ("/gradio_api/call/generate", body),
        ("/gradio_api/call/v2/generate", json!({"prompt": "x"})),
    ] {
        let reply = gradio.post(path, &body).await;
        assert_eq!(reply.status, 503, "{path}");
        assert!(reply.retry_after.is_some(), "{path}");
        let (position, size) = (&reply.body["position"], &reply.body["size"]);
        assert_eq!((position, size), (&json!(2), &json!(2)), "{path}");
        let eta = reply.body["eta"].as_f64().expect("steps were measured");
        assert!(eta > 0.0, "{path}: {eta} s");
    }
    let reply = gradio.try_join("generate", json!(["x", 3])).await;
    assert_eq!(
        (reply.status, &reply.body["code"]),
        (503, &json!("queue_full"))
    );
    assert!(
        reply.body["detail"].as_str().unwrap().contains("queue"),
        "{}",
        reply.body
    );
    // What does not reach the model goes on, whatever waits.
    for path in ["/config", "/gradio_api/info", "/gradio_api/queue/status"] {
        assert_eq!(gradio.get(path).await.status, 200, "{path}");
    }
    for id in ids {
        assert_eq!(gradio.cancel(&id).await.status, 200);
    }
    service.until_idle().await;
}

#[tokio::test]
async fn a_hundred_at_once_fill_a_queue_to_its_last_place() {
    let service = Service::start(Setup {
        batch_size: 1,
        max_queued_requests: 20,
        ..Setup::default()
    })
    .await;
    let sessions: Vec<Gradio> = (0..100).map(|_| Gradio::new(&service)).collect();
    let joins = sessions
        .iter()
        .map(|gradio| gradio.try_join("generate", json!(["x", LONG])));
    let replies = futures_util::future::join_all(joins).await;
    let with = |status| {
        replies
            .iter()
            .filter(|reply| reply.status == status)
            .count()
    };
    // One runs, beside those that wait.
    assert_eq!((with(200), with(503)), (21, 79));
    for (gradio, reply) in sessions.iter().zip(&replies) {
        if let Some(id) = reply.body["event_id"].as_str() {
            gradio.cancel(id).await;
        }
    }
    service.until_idle().await;
}

#[tokio::test]
async fn abandoned_events_give_up_their_places() {
    let grace = Duration::from_millis(300);
    let service = Service::start(Setup {
        batch_size: 1,
        edge: edge(GradioConfig {
            grace,
            ..GradioConfig::default()
        }),
        ..Setup::default()
    })
    .await;
    // Joined and never opened; and with a reader that leaves.
    let never = Gradio::new(&service);
    let gone = Gradio::new(&service);
    for _ in 0..3 {
        never.join("generate", json!(["x", LONG])).await;
        gone.join("generate", json!(["x", LONG])).await;
    }
    let mut stream = gone.stream().await;
    stream.next().await.unwrap();
    drop(stream);
    service.until_idle().await;
    // Their ends are told to whoever comes back.
    let messages = gone.all().await;
    let ends = messages
        .iter()
        .filter(|one| one.name() == "process_completed");
    assert_eq!(ends.count(), 3);
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_nobody() {
    let service = Service::start(Setup::default()).await;
    let gradio = Gradio::new(&service);
    for number in 0..4 {
        gradio
            .join("generate", json!([format!("{number}"), 100]))
            .await;
    }
    let stalled = gradio.stream().await;
    let other = Gradio::new(&service);
    other.join("generate", json!(["other", 100])).await;
    assert_eq!(other.all().await.last().unwrap().name(), "close_stream");
    service.until_idle().await;
    let messages = stalled.rest().await;
    let ends = messages
        .iter()
        .filter(|one| one.name() == "process_completed");
    assert_eq!(ends.count(), 4);
}

#[tokio::test]
async fn sessions_and_their_events_are_bounded() {
    let service = Service::start(Setup {
        edge: edge(GradioConfig {
            max_sessions: 1,
            max_session_events: 2,
            ..GradioConfig::default()
        }),
        ..Setup::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    for _ in 0..2 {
        gradio.join("generate", json!(["x", 20])).await;
    }
    let reply = gradio.try_join("generate", json!(["x", 20])).await;
    assert_eq!(
        (reply.status, &reply.body["code"]),
        (503, &json!("session_full"))
    );
    let other = Gradio::new(&service);
    let reply = other.try_join("generate", json!(["x", 20])).await;
    assert_eq!(
        (reply.status, &reply.body["code"]),
        (503, &json!("sessions_full"))
    );
    assert!(reply.retry_after.is_some());
    // A refusal takes no place.
    let reply = gradio.try_join("generate", json!([7])).await;
    assert_eq!(reply.status, 503, "the places are still taken");
    gradio.all().await;
    let reply = gradio.try_join("generate", json!([7])).await;
    assert_eq!(reply.status, 422);
    for _ in 0..2 {
        gradio.join("generate", json!(["x", 20])).await;
    }
}

#[tokio::test]
async fn a_newcomer_never_falls_between_two_streams() {
    let service = Service::start(Setup {
        script: "",
        edge: edge(GradioConfig {
            linger: Duration::from_millis(5),
            ..GradioConfig::default()
        }),
        ..Setup::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    let generate = gradio.index("generate").await;
    let body = json!({"data": ["x", 1], "fn_index": generate, "session_hash": gradio.session});
    // As clients do: a stream is opened when the one before was told to be over.
    let mut stream = None;
    for round in 0..60u64 {
        let reply = gradio.post("/gradio_api/queue/join", &body).await;
        let id = reply.body["event_id"].clone();
        let mut open = match stream.take() {
            Some(stream) => stream,
            None => gradio.stream().await,
        };
        loop {
            let message = open.next().await.expect("the end of every event is told");
            match message.name() {
                "process_completed" if message.data["event_id"] == id => {
                    stream = Some(open);
                    break;
                }
                "close_stream" => open = gradio.stream().await,
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_micros(round * 200)).await;
    }
}
