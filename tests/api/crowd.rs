//! Many users: turns between them, limits of their own, who is who behind a proxy, and classes of priority.

use std::sync::atomic::Ordering;
use std::time::Duration;

use girandole::api::{AddressHeader, EdgeConfig, Proxies};
use girandole::client::{Client, EventStream, StreamEvent};
use girandole::events::EventKind;
use girandole::events::store::Lookup;
use girandole::job::Priority;
use girandole::scheduler::Fairness;
use girandole::time::Time;
use reqwest::Method;
use serde_json::{Value, json};

use crate::service::{INSTANT, Service, Setup, Sum, body, eventually, said};

const REQUESTS: &str = "/api/v1/requests";

/// The tests themselves are the proxy.
fn behind_a_proxy() -> EdgeConfig {
    EdgeConfig {
        proxies: Proxies {
            trusted: vec!["127.0.0.0/8".parse().expect("a network")],
            header: AddressHeader::ForwardedFor,
        },
        ..EdgeConfig::default()
    }
}

/// Submits for whoever `forwarded` says; the status, `Retry-After` and the body of the answer.
async fn post(client: &Client, forwarded: &str, body: &Value) -> (u16, Option<String>, Value) {
    let call = client.call(Method::POST, REQUESTS).json(body);
    let response = call
        .header("x-forwarded-for", forwarded)
        .send()
        .await
        .unwrap();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    (status, retry_after, response.json().await.unwrap())
}

fn tokens(count: u64) -> Value {
    json!({"prompt": "Say", "max_tokens": count, "detach": true})
}

/// Acceptance line 8 of the hosted demo, over HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_users_with_one_request_go_before_the_rest_of_two_hundred() {
    const SLOTS: u32 = 4;
    let service = Service::start(Setup {
        batch_size: SLOTS,
        max_queued_requests: 300,
        edge: behind_a_proxy(),
        ..Setup::default()
    })
    .await;
    let accepted = async |forwarded: &str| {
        let (status, _, answer) = post(&service.client, forwarded, &tokens(10)).await;
        assert_eq!(status, 201, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    };
    let mut heavy = Vec::new();
    for _ in 0..200 {
        heavy.push(accepted("192.0.2.1").await);
    }
    let mut fifty = Vec::new();
    for number in 0..50 {
        fifty.push(accepted(&format!("198.51.100.{number}")).await);
    }
    service.until_idle().await;
    let moment = |id: &str, wanted: fn(&EventKind) -> bool| {
        let Lookup::Found(log) = service.state.store.get(id.parse().expect("an id")) else {
            panic!("{id} is forgotten");
        };
        let events = log.read_from(1);
        let event = events.into_iter().find(|event| wanted(&event.kind));
        event.expect("it came to that").at
    };
    let came = |id: &String| moment(id, |kind| matches!(kind, EventKind::Queued { .. }));
    let started = |id: &String| moment(id, |kind| matches!(kind, EventKind::Started));
    let turns: Vec<Time> = heavy.iter().map(started).collect();
    for id in &fifty {
        let waited = came(id)..started(id);
        let turns = turns.iter().filter(|turn| waited.contains(turn)).count();
        assert!(
            turns <= 1,
            "{turns} turns of the one user while another waited"
        );
    }
    let last = fifty.iter().map(started).max().expect("there are fifty");
    let later = turns.iter().filter(|turn| **turn > last).count();
    assert!(later > 100, "the fifty overtook {later}");
}

#[tokio::test]
async fn one_user_is_refused_and_the_next_is_not() {
    let service = Service::start(Setup {
        batch_size: 2,
        fairness: Fairness {
            max_waiting_per_user: Some(1),
            max_running_per_user: Some(1),
            ..Fairness::default()
        },
        edge: behind_a_proxy(),
        ..Setup::default()
    })
    .await;
    let mut statuses = Vec::new();
    for forwarded in [
        "192.0.2.1",
        "192.0.2.1",
        // The same, whatever it says of those before it.
        "203.0.113.9, 192.0.2.1",
        // Another, and one whose address cannot be read: the proxy stands for all of these.
        "192.0.2.2",
        "nonsense",
        // Two addresses of one network of the sixth version, and another.
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8::3",
        "2001:db8:0:1::3",
    ] {
        let (status, retry_after, answer) = post(&service.client, forwarded, &tokens(8_000)).await;
        if status == 429 {
            assert_eq!(answer["error"]["code"], "user_queue_full", "{answer}");
            assert!(retry_after.is_some_and(|seconds| seconds.parse::<u32>().unwrap() >= 1));
        }
        statuses.push(status);
    }
    assert_eq!(statuses, [201, 201, 429, 201, 201, 201, 201, 429, 201]);
}

#[tokio::test]
async fn a_header_of_nobody_trusted_changes_nothing() {
    let service = Service::start(Setup {
        fairness: Fairness {
            max_waiting_per_user: Some(0),
            max_running_per_user: Some(1),
            ..Fairness::default()
        },
        ..Setup::default()
    })
    .await;
    let (first, ..) = post(&service.client, "192.0.2.1", &tokens(8_000)).await;
    let (second, ..) = post(&service.client, "192.0.2.2", &tokens(8_000)).await;
    assert_eq!((first, second), (201, 429));
}

#[tokio::test]
async fn a_class_is_asked_for_within_what_is_allowed() {
    const KEYS: &str = "alice alice-secret-0123456789 priority=interactive\n\
                        bob bobs-secret-0123456789\n\
                        carol carols-secret-0123456789 priority=batch\n";
    let service = Service::start(Setup {
        script: INSTANT,
        keys: KEYS,
        ..Setup::default()
    })
    .await;
    let base = format!("http://{}", service.address);
    let of = |name: &str| Client::new(base.clone()).with_key(format!("{name}-secret-0123456789"));
    let native = async |client: &Client, class: Priority| {
        let mut asked = tokens(1);
        asked["priority"] = json!(class.name());
        let (status, _, answer) = post(client, "", &asked).await;
        (status, answer["error"]["code"].as_str().map(str::to_owned))
    };
    let refused = (403, Some("priority_not_allowed".to_owned()));
    let (alice, bob, carol) = (of("alice"), of("bobs"), of("carols"));
    assert_eq!(native(&alice, Priority::Interactive).await, (201, None));
    assert_eq!(native(&bob, Priority::Interactive).await, refused);
    assert_eq!(native(&bob, Priority::Batch).await, (201, None));
    assert_eq!(native(&carol, Priority::Normal).await, refused);
    assert_eq!(post(&carol, "", &tokens(1)).await.0, 201);

    let openai = async |client: &Client, more: Value| {
        let mut asked = json!({"model": "scripted", "prompt": "Say", "max_tokens": 1});
        asked
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let call = client.call(Method::POST, "/v1/completions").json(&asked);
        call.send().await.unwrap().status().as_u16()
    };
    assert_eq!(
        openai(&alice, json!({"service_tier": "priority"})).await,
        200
    );
    assert_eq!(openai(&alice, json!({"priority": -3})).await, 200);
    assert_eq!(openai(&bob, json!({"service_tier": "priority"})).await, 403);
    assert_eq!(openai(&bob, json!({"priority": -1})).await, 403);
    for same in [
        json!({"service_tier": "flex"}),
        json!({"service_tier": "auto", "priority": 7}),
        json!({"service_tier": "flex", "priority": 7}),
        json!({"service_tier": "default", "priority": 0}),
    ] {
        assert_eq!(openai(&bob, same).await, 200);
    }
    assert_eq!(
        openai(&bob, json!({"service_tier": "flex", "priority": 0})).await,
        400
    );
    assert_eq!(openai(&bob, json!({"service_tier": "best"})).await, 400);
    assert_eq!(openai(&bob, json!({"priority": "high"})).await, 400);
}

/// A stream that the service ends now and then: what a client that comes back has in the end, and how often it
/// came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_by_age_is_whole_in_the_end() {
    let service = Service::start(Setup {
        edge: EdgeConfig {
            max_stream_age: Some(Duration::from_millis(400)),
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    // Two seconds at least, so four cuts at least.
    let id = service.submit(&body("Say", 400)).await;
    let (mut events, mut last, mut streams) = (Vec::new(), 0, 0);
    let is_over =
        |events: &[StreamEvent]| events.last().is_some_and(|last| last.event == "finished");
    while !is_over(&events) {
        let mut stream = service.client.events(&id, last).await.expect("a stream");
        // To the end of the body, between two messages.
        while let Some(event) = stream.next().await.expect("a whole message") {
            last = event.id.expect("an id");
            events.push(event);
        }
        streams += 1;
    }
    assert!(streams >= 4, "{streams} streams");
    assert_eq!(Sum::of(&events).texts, [said(400)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_openai_stream_is_cut_where_that_is_asked_for_and_can_be_gone_on_with() {
    let service = Service::start(Setup {
        edge: EdgeConfig {
            openai_max_stream_age: Some(Duration::from_millis(300)),
            max_stream_age: Some(Duration::from_millis(300)),
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    let asked = json!({"model": "scripted", "prompt": "Say", "max_tokens": 300, "stream": true});
    let call = service
        .client
        .call(Method::POST, "/v1/completions")
        .json(&asked);
    let response = call.send().await.unwrap();
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let (mut text, mut last, mut streams) = (String::new(), 0, 1);
    let mut stream = EventStream::of(response);
    'whole: loop {
        while let Some(event) = stream.next().await.expect("a whole message") {
            last = event.id.expect("an id");
            if event.data == "[DONE]" {
                break 'whole;
            }
            let chunk: Value = event.json().unwrap();
            text += chunk["choices"][0]["text"].as_str().unwrap_or_default();
        }
        let path = format!("{REQUESTS}/{id}/events?dialect=openai&from={last}");
        let response = service
            .client
            .call(Method::GET, &path)
            .send()
            .await
            .unwrap();
        stream = EventStream::of(response);
        streams += 1;
    }
    assert!(streams >= 4, "{streams} streams");
    assert_eq!(text, said(300));
}

#[tokio::test]
async fn a_cut_by_age_is_no_error_to_a_waiting_client() {
    let service = Service::start(Setup {
        batch_size: 1,
        edge: EdgeConfig {
            max_stream_age: Some(Duration::from_millis(200)),
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    let running = service.submit(&body("Run", 8_000)).await;
    let waiting = service.submit(&body("Wait", 1)).await;
    // Nothing is said but that it waits; the stream ends all the same, and the request goes on.
    let stream = service.client.events(&waiting, 0).await.unwrap();
    let events = stream.collect().await.expect("a whole stream");
    assert!(
        events.iter().all(|event| event.event == "queued"),
        "{events:?}"
    );
    service.client.cancel(&running).await.unwrap();
    service.ended(&waiting).await;
    eventually("no stream is open", async || {
        service.counters.open_streams.load(Ordering::SeqCst) == 0
    })
    .await;
}
