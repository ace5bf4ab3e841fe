//! One stream of several requests: what it says, that nothing is lost or said twice, and whose it is.

use std::collections::BTreeMap;
use std::time::Duration;

use girandole::api::EdgeConfig;
use girandole::api::native::wire::{GoneBody, SessionFrame};
use girandole::client::{EventStream, StreamEvent};
use girandole::events::store::Retention;
use girandole::time::RealClock;
use reqwest::{Method, Response};
use serde_json::json;

use crate::pictures;
use crate::service::{INSTANT, Service, Setup, Sum, body, said};

async fn call(service: &Service, query: &str, header: Option<&str>) -> Response {
    let path = format!("/api/v1/events?{query}");
    let mut call = service.client.call(Method::GET, &path);
    if let Some(header) = header {
        call = call.header("Last-Event-ID", header);
    }
    call.send().await.unwrap()
}

/// What a reader has heard of each request: the frames as the request's own stream would tell them.
#[derive(Default)]
struct Heard(BTreeMap<String, Vec<StreamEvent>>);

impl Heard {
    /// Takes a frame of the stream in; its `id` is `Last-Event-ID`'s word and not read here.
    fn take(&mut self, block: &str) {
        let line = |name: &str| {
            let mut values = block.lines().filter_map(|line| line.strip_prefix(name));
            values.next().unwrap_or_default().to_owned()
        };
        let frame: SessionFrame = serde_json::from_str(&line("data: ")).unwrap();
        self.0.entry(frame.request).or_default().push(StreamEvent {
            id: Some(frame.seq),
            event: line("event: "),
            data: frame.data.to_string(),
        });
    }

    fn after(&self, id: &str) -> u64 {
        let events = self.0.get(id).and_then(|events| events.last());
        events.and_then(|event| event.id).unwrap_or(0)
    }

    fn is_over(&self, id: &str) -> bool {
        let events = self.0.get(id).and_then(|events| events.last());
        events.is_some_and(|event| ["finished", "failed"].contains(&event.event.as_str()))
    }

    fn cursors(&self, ids: &[String]) -> String {
        let each = ids.iter().map(|id| format!("{id}:{}", self.after(id)));
        each.collect::<Vec<_>>().join(",")
    }
}

/// The next `frames` frames, or all; with the last one's `id`.
async fn read(mut response: Response, frames: usize, heard: &mut Heard) -> Option<String> {
    assert_eq!(response.status(), 200);
    let mut rest = String::new();
    let mut last = None;
    let mut count = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        rest.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((block, after)) = rest.split_once("\n\n") {
            if let Some(id) = block.strip_prefix("id: ") {
                heard.take(block);
                last = id.lines().next().map(str::to_owned);
                count += 1;
            }
            rest = after.to_owned();
            if count == frames {
                return last;
            }
        }
    }
    last
}

/// Numbers that look random and are the same in every run.
fn dice(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |sides| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % sides
    }
}

#[tokio::test]
async fn a_session_reads_like_this() {
    let service = Service::start(Setup {
        script: INSTANT,
        ..Setup::default()
    })
    .await;
    let one = service.submit(&body("Say", 5)).await;
    let other = service.submit(&body("Say", 2)).await;
    service.ended(&one).await;
    service.ended(&other).await;
    let response = call(&service, &format!("requests={one}:8,{other}:5"), None).await;
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert_eq!(
        response.text().await.unwrap(),
        format!(
            "id: 9.5\nevent: finished\ndata: {{\"request\":\"{one}\",\"seq\":9,\"data\":{{\"usage\":\
             {{\"prompt_tokens\":3,\"cached_tokens\":0,\"completion_tokens\":5}}}}}}\n\n\
             id: 9.6\nevent: finished\ndata: {{\"request\":\"{other}\",\"seq\":6,\"data\":{{\"usage\":\
             {{\"prompt_tokens\":3,\"cached_tokens\":0,\"completion_tokens\":2}}}}}}\n\n"
        )
    );
    let seen = call(&service, &format!("requests={one}:9,{other}:6"), None).await;
    assert_eq!(seen.status(), 204);
    service.stop().await;
}

/// Five requests of different lengths on one connection, cut at random places and resumed by the query and by the
/// header in turns, one more of the requests each time at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_at_random_and_joined_late_nothing_is_lost_or_twice() {
    const LENGTHS: [u64; 5] = [40, 120, 7, 200, 90];
    for seed in 0..4 {
        let mut dice = dice(seed);
        let service = Service::start(Setup::default()).await;
        let mut ids: Vec<String> = Vec::new();
        let mut heard = Heard::default();
        let mut cuts = 0;
        while ids.len() < LENGTHS.len() || !ids.iter().all(|id| heard.is_over(id)) {
            if ids.len() < LENGTHS.len() {
                ids.push(service.submit(&body("Say", LENGTHS[ids.len()])).await);
            }
            let query = format!("requests={}", heard.cursors(&ids));
            let response = call(&service, &query, None).await;
            let last = read(response, 1 + dice(6) as usize, &mut heard).await;
            // As a browser's `EventSource` would: the old query, the new numbers.
            if dice(2) == 0 && ids.iter().any(|id| !heard.is_over(id)) {
                let response = call(&service, &query, last.as_deref()).await;
                read(response, 1 + dice(6) as usize, &mut heard).await;
                cuts += 1;
            }
            cuts += 1;
        }
        assert!(cuts > 10, "{cuts} cuts");
        for (id, length) in ids.iter().zip(LENGTHS) {
            let expected = Sum {
                texts: vec![said(length as usize)],
                tokens: vec![length],
                reasons: vec![Some("length".into())],
                end: "finished".into(),
            };
            assert_eq!(Sum::of(&heard.0[id]), expected, "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_paced_for_itself() {
    let service = Service::start(Setup {
        script: "[cost]\ntokens_per_second = 400.0",
        ..Setup::default()
    })
    .await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(service.submit(&body("Say", 800)).await);
    }
    let clock = RealClock::start();
    let mut heard = Heard::default();
    let query = format!("requests={}", heard.cursors(&ids));
    read(call(&service, &query, None).await, usize::MAX, &mut heard).await;
    // However long it took: twenty in any second, and as many again for the second that has just begun.
    let most = 20.0 * (clock.elapsed().as_secs_f64() + 1.0);
    for id in &ids {
        let frames = heard.0[id].len();
        assert!(frames >= 5 && frames as f64 <= most, "{frames} frames");
        assert_eq!(Sum::of(&heard.0[id]).tokens, [800]);
    }
    service.until_idle().await;
    let open = &service.counters.open_streams;
    crate::service::eventually("streams closed", async || {
        open.load(std::sync::atomic::Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_told_and_disturbs_nobody() {
    let service = Service::start(Setup {
        script: INSTANT,
        keys: "alice alice-secret-0123456789\nbob bob-secret-0123456789",
        retention: Retention {
            max_logs: 2,
            ..Retention::default()
        },
        ..Setup::default()
    })
    .await;
    let submit = async |key: &str| {
        let call = service.client.call(Method::POST, "/api/v1/requests");
        let call = call.bearer_auth(key).json(&body("Say", 3));
        let answer: serde_json::Value = call.send().await.unwrap().json().await.unwrap();
        let id = answer["id"].as_str().unwrap().to_owned();
        let path = format!("/api/v1/requests/{id}?wait=10");
        let ended = service.client.call(Method::GET, &path).bearer_auth(key);
        assert_eq!(ended.send().await.unwrap().status(), 200);
        id
    };
    let (alice, bob) = ("alice-secret-0123456789", "bob-secret-0123456789");
    let forgotten = submit(alice).await;
    let bobs = submit(bob).await;
    let mine = submit(alice).await;
    let nobodys = "0".repeat(32);
    let path = format!("/api/v1/events?requests={forgotten}:2,{bobs},{nobodys},{mine}");
    let call = service.client.call(Method::GET, &path).bearer_auth(alice);
    let mut heard = Heard::default();
    read(call.send().await.unwrap(), usize::MAX, &mut heard).await;
    for (id, status, code, seq) in [
        (&forgotten, 410, "request_expired", 2),
        (&bobs, 404, "request_not_found", 0),
        (&nobodys, 404, "request_not_found", 0),
    ] {
        let [event] = &heard.0[id][..] else {
            panic!("{:?}", heard.0[id]);
        };
        let gone: GoneBody = event.json().unwrap();
        assert_eq!((event.event.as_str(), event.id), ("gone", Some(seq)));
        assert_eq!((gone.status, &gone.error["code"]), (status, &json!(code)));
    }
    assert_eq!(Sum::of(&heard.0[&mine]).tokens, [3]);
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let service = Service::start(Setup {
        script: INSTANT,
        edge: EdgeConfig {
            max_stream_requests: 2,
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    let id = service.submit(&body("Say", 5)).await;
    let last = service.ended(&id).await.last_seq;
    let other = "0".repeat(32);
    let third = "1".repeat(32);
    let beyond = last + 1;
    for (query, header, field) in [
        (String::new(), None, "requests"),
        ("requests=".into(), None, "requests"),
        ("requests=x".into(), None, "requests"),
        (format!("requests={id}:-1"), None, "requests"),
        (format!("requests={id}:{beyond}"), None, "requests"),
        (format!("requests={id},{id}"), None, "requests"),
        (format!("requests={id},{other},{third}"), None, "requests"),
        (format!("requests={id}&after=1"), None, "after"),
        (format!("requests={id}"), Some("1.2"), "Last-Event-ID"),
        (format!("requests={id}"), Some("x"), "Last-Event-ID"),
    ] {
        let response = call(&service, &query, header).await;
        let status = response.status();
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(
            (status.as_u16(), &body["error"]["field"]),
            (400, &json!(field)),
            "{query}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_counts_as_a_reader_and_is_kept_alive() {
    let service = Service::start(Setup {
        edge: EdgeConfig {
            keep_alive: Duration::from_millis(100),
            native_grace: Duration::from_millis(300),
            ..EdgeConfig::default()
        },
        batch_size: 1,
        ..Setup::default()
    })
    .await;
    let running = service.submit(&body("Run", 200)).await;
    let waiting = service.submit(&body("Wait", 1)).await;
    // The one that runs is read by its own stream, the one that waits by the session alone: for longer than the
    // grace time, in which nobody else reads it.
    let own = service.client.events(&running, 0).await.unwrap();
    let own = tokio::spawn(own.collect());
    let response = call(&service, &format!("requests={waiting}"), None).await;
    let text = response.text().await.unwrap();
    assert!(text.contains(": keep-alive\n\n"), "{text}");
    assert!(text.contains("event: finished\n"), "{text}");
    assert_eq!(Sum::of(&own.await.unwrap().unwrap()).tokens, [200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_and_pictures_previews_and_all() {
    let service = pictures::start("[image]\n[cost]\ntokens_per_second = 200.0").await;
    let asked = girandole::api::native::wire_image::ImageSubmitBody {
        previews: Some(json!(true)),
        ..pictures::body(2, 20)
    };
    let id = service.client.submit_images(&asked).await.unwrap().id;
    let mut heard = Heard::default();
    let ids = [id.clone()];
    // Frames that say together what happened up to one event may be heard again behind a cut between them; the
    // end comes once.
    for frames in (1..=6).cycle() {
        let query = format!("requests={}", heard.cursors(&ids));
        read(call(&service, &query, None).await, frames, &mut heard).await;
        if heard.is_over(&id) {
            break;
        }
    }
    let names: Vec<&str> = heard.0[&id]
        .iter()
        .map(|event| event.event.as_str())
        .collect();
    for wanted in [
        "progress",
        "preview",
        "image",
        "choice_finished",
        "finished",
    ] {
        assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }
    let own = service
        .client
        .call(Method::GET, &format!("/api/v1/requests/{id}/events"));
    let own = EventStream::of(own.send().await.unwrap())
        .collect()
        .await
        .unwrap();
    assert_eq!(own.last(), heard.0[&id].last());
}
