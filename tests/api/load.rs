//! Too much of everything: full queues, passed deadlines, readers that do not read, shutdown.

use std::time::Duration;

use girandole::api::native::wire::{State, SubmitBody};
use girandole::client::ClientError;
use girandole::time::{Clock, RealClock};
use reqwest::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::service::{Service, Setup, Sum, body, eventually, refusal, said};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_answers_at_once_with_a_time_to_come_back() {
    let service = Service::start(Setup {
        batch_size: 1,
        max_queued_requests: 2,
        ..Setup::default()
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(service.submit(&body("Hold", 5_000)).await);
    }
    let clock = RealClock::start();
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let began = clock.now();
        match service.client.submit(&body("More", 5)).await {
            Err(ClientError::Refused {
                status,
                code,
                retry_after,
                ..
            }) => {
                assert_eq!((status.as_u16(), code.as_str()), (429, "queue_full"));
                assert!(retry_after >= Some(Duration::from_secs(1)));
            }
            other => panic!("not refused: {other:?}"),
        }
        quickest = quickest.min(clock.now() - began);
    }
    assert!(quickest < Duration::from_millis(20), "{quickest:?}");
    // A prompt of a megabyte is refused as fast as a short one: nothing is tokenized.
    let long = body(&"long ".repeat(200_000), 5);
    assert_eq!(refusal(service.client.submit(&long).await).0, 429);
    for id in held {
        service.client.cancel(&id).await.unwrap();
    }
    service.until_idle().await;
    let id = service.submit(&body("Again", 5)).await;
    service.ended(&id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_the_waiting_and_the_running() {
    let service = Service::start(Setup {
        batch_size: 1,
        ..Setup::default()
    })
    .await;
    let with_deadline = |prompt: &str, deadline_ms: u64| SubmitBody {
        deadline_ms: Some(deadline_ms),
        ..body(prompt, 5_000)
    };
    let running = service.submit(&with_deadline("Run", 400)).await;
    let waiting = service.submit(&with_deadline("Wait", 200)).await;
    for (id, deadline_ms) in [(waiting, 200), (running, 400)] {
        let status = service.ended(&id).await;
        assert_eq!(status.state, State::Failed);
        assert_eq!(status.error.unwrap()["code"], "deadline_exceeded");
        let took = status.timings.total_ms.unwrap();
        assert!((deadline_ms..deadline_ms + 500).contains(&took), "{took}");
    }
    service.until_idle().await;
}

/// Bytes of memory that this process holds.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1_024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_readers_that_do_not_read_cost_next_to_nothing() {
    const READERS: usize = 100;
    let service = Service::start(Setup {
        script: "[cost]\ntokens_per_second = 2000.0\n[output]\nkind = \"text\"\ntext = \"Light upon light. \"",
        ..Setup::default()
    })
    .await;
    let wanted = body("Say", 6_000);
    let id = service.submit(&wanted).await;
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        let call = format!("GET /api/v1/requests/{id}/events HTTP/1.1\r\nhost: test\r\n\r\n");
        socket.write_all(call.as_bytes()).await.unwrap();
        stalled.push(socket);
    }
    let open = || {
        service
            .counters
            .open_streams
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    eventually("all streams are open", async || open() == READERS as i64).await;
    let before = resident_bytes();
    let events = service.events(&id, 0).await;
    assert_eq!(Sum::of(&events).texts, [said(6_000)]);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 50 << 20, "memory grew by {grown} bytes");
    drop(stalled);
    eventually("streams end with their connections", async || open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_is_open_and_refuses_what_is_new() {
    let service = Service::start(Setup::default()).await;
    let id = service.submit(&body("Say", 200)).await;
    let client = service.client.clone();
    let streams: Vec<_> = (0..50)
        .map(|_| {
            let (client, id) = (client.clone(), id.clone());
            tokio::spawn(async move { client.events(&id, 0).await?.collect().await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let engine = service.state.models[0].engine.clone();
    engine.drain(service.state.clock.now() + Duration::from_secs(30));

    match service.client.submit(&body("Late", 5)).await {
        Err(ClientError::Refused {
            status,
            code,
            retry_after,
            ..
        }) => {
            assert_eq!((status.as_u16(), code.as_str()), (503, "draining"));
            assert!(retry_after.is_some());
        }
        other => panic!("not refused: {other:?}"),
    }
    let ready = service.client.call(Method::GET, "/health/ready").send();
    assert_eq!(ready.await.unwrap().status(), 503);
    assert_eq!(
        service.client.readiness().await.unwrap().models[0].state,
        "draining"
    );

    engine.until_stopped().await;
    service.stop().await;
    for stream in streams {
        let events = stream.await.unwrap().unwrap();
        let sum = Sum::of(&events);
        assert_eq!((sum.texts, sum.end.as_str()), (vec![said(200)], "finished"));
    }
}
