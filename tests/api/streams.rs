//! Streams: what they say, how fast, and that none of it is ever lost.

use std::sync::atomic::Ordering;
use std::time::Duration;

use girandole::api::EdgeConfig;
use girandole::api::native::wire::SubmitBody;
use girandole::client::{EventStream, StreamEvent};
use girandole::events::store::Retention;
use girandole::time::{Clock, RealClock, Time};
use reqwest::Method;

use crate::service::{INSTANT, Service, Setup, Sum, body, refusal, said};

/// The stream's bytes, with times replaced.
async fn transcript(service: &Service, path: &str) -> String {
    let response = service.client.call(Method::GET, path).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| match line.split_once("\"eta_ms\":") {
            Some((before, after)) => {
                let after = after.trim_start_matches(|digit: char| digit.is_ascii_alphanumeric());
                format!("{before}\"eta_ms\":?{after}")
            }
            None => line.to_owned(),
        })
        .collect();
    lines.join("\n")
}

#[tokio::test]
async fn a_stream_reads_like_this() {
    let service = Service::start(Setup {
        script: INSTANT,
        ..Setup::default()
    })
    .await;
    let id = service.submit(&body("Say", 5)).await;
    service.ended(&id).await;
    let path = format!("/api/v1/requests/{id}/events");
    assert_eq!(
        transcript(&service, &path).await,
        "\
id: 1
event: queued
data: {\"position\":0,\"waiting\":1,\"eta_ms\":?}

id: 2
event: started
data: {}

id: 7
event: text
data: {\"choices\":[{\"index\":0,\"text\":\"Light\",\"tokens\":[76,105,103,104,116],\"finish_reason\":null}]}

id: 8
event: choice_finished
data: {\"choices\":[{\"index\":0,\"text\":\"\",\"tokens\":[],\"finish_reason\":\"length\",\"cumulative_logprob\":0.0}]}

id: 9
event: finished
data: {\"usage\":{\"prompt_tokens\":3,\"cached_tokens\":0,\"completion_tokens\":5}}

"
    );
    assert_eq!(
        transcript(&service, &format!("{path}?from=5")).await,
        "\
id: 7
event: text
data: {\"choices\":[{\"index\":0,\"text\":\"ht\",\"tokens\":[104,116],\"finish_reason\":null}]}

id: 8
event: choice_finished
data: {\"choices\":[{\"index\":0,\"text\":\"\",\"tokens\":[],\"finish_reason\":\"length\",\"cumulative_logprob\":0.0}]}

id: 9
event: finished
data: {\"usage\":{\"prompt_tokens\":3,\"cached_tokens\":0,\"completion_tokens\":5}}

"
    );
    service.stop().await;
}

#[tokio::test]
async fn the_head_says_what_proxies_need() {
    let service = Service::start(Setup::default()).await;
    let id = service.submit(&body("Say", 5)).await;
    let stream = service.client.events(&id, 0).await.unwrap();
    let header = |name: &str| stream.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-cache, no-transform");
    assert_eq!(header("x-accel-buffering"), "no");
    assert_eq!(header("x-request-id"), id);
}

/// Cuts a finished stream behind every event, by header and by query, and compares with the uncut.
async fn check_every_cut(wanted: SubmitBody) {
    let service = Service::start(Setup {
        script: INSTANT,
        ..Setup::default()
    })
    .await;
    let id = service.submit(&wanted).await;
    let answers = wanted.n.unwrap_or(1) as usize;
    let uncut = Sum::of(&service.events(&id, 0).await);
    assert_eq!(uncut.end, "finished");
    assert_eq!(uncut.texts, vec![said(30); answers]);
    assert_eq!(uncut.reasons, vec![Some("length".to_owned()); answers]);

    let last = service.ended(&id).await.last_seq;
    assert!(last > 30 * answers as u64);
    for cut in 0..last {
        let by_query = service.events(&id, cut).await;
        let rest = Sum::of(&by_query);
        assert_eq!(rest.end, "finished", "cut behind {cut}");
        for (whole, part) in uncut.texts.iter().zip(&rest.texts) {
            assert!(whole.ends_with(part), "cut behind {cut}: {part}");
        }
        let path = format!("/api/v1/requests/{id}/events");
        let call = service.client.call(Method::GET, &path);
        let response = call.header("Last-Event-ID", cut).send().await.unwrap();
        let by_header = EventStream::of(response).collect().await.unwrap();
        assert_eq!(by_header, by_query);
    }
    assert_eq!(service.counters.started.load(Ordering::SeqCst), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cut_behind_any_event_goes_on_there() {
    check_every_cut(body("Say", 30)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_of_several_answers() {
    check_every_cut(SubmitBody {
        n: Some(3),
        ..body("Say", 30)
    })
    .await;
}

/// Reads a live stream in pieces of `frames` frames, each on its own connection.
async fn in_pieces(service: &Service, id: &str, frames: usize) -> Vec<StreamEvent> {
    let mut events: Vec<StreamEvent> = Vec::new();
    loop {
        let after = events.last().and_then(|event| event.id).unwrap_or(0);
        let mut stream = service.client.events(id, after).await.unwrap();
        for _ in 0..frames {
            events.push(stream.next().await.unwrap().expect("a terminal event"));
            let name = &events.last().unwrap().event;
            if name == "finished" || name == "failed" {
                return events;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_stream_cut_behind_each_frame_loses_nothing() {
    let service = Service::start(Setup::default()).await;
    let wanted = SubmitBody {
        n: Some(2),
        ..body("Say", 150)
    };
    let id = service.submit(&wanted).await;
    let (ones, threes, whole) = tokio::join!(
        in_pieces(&service, &id, 1),
        in_pieces(&service, &id, 3),
        service.events(&id, 0),
    );
    let expected = Sum {
        texts: vec![said(150); 2],
        tokens: vec![150; 2],
        reasons: vec![Some("length".into()); 2],
        end: "finished".into(),
    };
    for events in [ones, threes, whole] {
        assert_eq!(Sum::of(&events), expected);
    }
    assert_eq!(service.counters.started.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_twenty_frames_a_second_and_both_ends_at_once() {
    let service = Service::start(Setup {
        script: "[cost]\ntokens_per_second = 400.0",
        ..Setup::default()
    })
    .await;
    let clock = RealClock::start();
    let id = service.submit(&body("Say", 1_000)).await;
    let mut stream = service.client.events(&id, 0).await.unwrap();
    let mut frames: Vec<(Time, StreamEvent)> = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        frames.push((clock.now(), event));
    }
    let busiest = frames
        .iter()
        .map(|(start, _)| {
            let within = |time: &Time| *time >= *start && *time - *start < Duration::from_secs(1);
            frames.iter().filter(|(time, _)| within(time)).count()
        })
        .max();
    assert!(busiest <= Some(20), "{busiest:?} frames in a second");
    // 2.5 s of text: some 40 frames, on a machine that is not too busy to send them.
    assert!((20..=60).contains(&frames.len()), "{}", frames.len());
    let texts = |(_, event): &&(Time, StreamEvent)| event.event == "text";
    let first: Vec<u64> = frames
        .iter()
        .filter(texts)
        .take(1)
        .map(|(_, event)| event.json::<serde_json::Value>().unwrap())
        .map(|data| data["choices"][0]["tokens"].as_array().unwrap().len() as u64)
        .collect();
    assert!(first[0] <= 20, "the first text waited for {first:?} tokens");
    assert_eq!(
        Sum::of(frames.iter().map(|(_, event)| event)).tokens,
        [1_000]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_sleeps_misses_nothing() {
    let service = Service::start(Setup::default()).await;
    let id = service.submit(&body("Say", 300)).await;
    let mut stream = service.client.events(&id, 0).await.unwrap();
    let mut events = vec![stream.next().await.unwrap().unwrap()];
    tokio::time::sleep(Duration::from_secs(2)).await;
    events.extend(stream.collect().await.unwrap());
    assert_eq!(Sum::of(&events).texts, [said(300)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_is_kept_alive_and_then_ends() {
    let edge = EdgeConfig {
        keep_alive: Duration::from_millis(100),
        ..EdgeConfig::default()
    };
    let service = Service::start(Setup {
        edge,
        batch_size: 1,
        ..Setup::default()
    })
    .await;
    let running = service.submit(&body("Run", 8_000)).await;
    let waiting = service.submit(&body("Wait", 1)).await;
    let path = format!("/api/v1/requests/{waiting}/events");
    let reading = tokio::spawn(service.client.call(Method::GET, &path).send());
    tokio::time::sleep(Duration::from_millis(700)).await;
    service.client.cancel(&running).await.unwrap();
    let text = reading.await.unwrap().unwrap().text().await.unwrap();
    let comments = text.matches(": keep-alive\n\n").count();
    assert!((2..=7).contains(&comments), "{comments} comments: {text}");
    assert!(text.contains("event: queued\n"), "{text}");
    assert!(text.contains("event: finished\n"), "{text}");
}

#[tokio::test]
async fn a_wrong_place_to_go_on_is_named() {
    let service = Service::start(Setup {
        script: INSTANT,
        ..Setup::default()
    })
    .await;
    let id = service.submit(&body("Say", 5)).await;
    let last = service.ended(&id).await.last_seq;
    let call = async |query: &str, header: Option<&str>| {
        let path = format!("/api/v1/requests/{id}/events{query}");
        let mut call = service.client.call(Method::GET, &path);
        if let Some(header) = header {
            call = call.header("Last-Event-ID", header);
        }
        let response = call.send().await.unwrap();
        let status = response.status().as_u16();
        let body: serde_json::Value = response.json().await.unwrap_or_default();
        let field = body["error"]["field"].as_str().unwrap_or_default();
        (status, field.to_owned())
    };
    let wrong = |field: &str| (400, field.to_owned());
    for text in ["-1", "%2B1", "x", "", "1.0", "99999999999999999999"] {
        assert_eq!(call(&format!("?from={text}"), None).await, wrong("from"));
    }
    let beyond = (last + 1).to_string();
    assert_eq!(call(&format!("?from={beyond}"), None).await, wrong("from"));
    assert_eq!(call("", Some(&beyond)).await, wrong("Last-Event-ID"));
    assert_eq!(call("", Some("abc")).await, wrong("Last-Event-ID"));
    assert_eq!(call("?from=3", Some("4")).await, wrong("from"));
    assert_eq!(call("?form=3", None).await, wrong("form"));
    assert_eq!(call("?dialect=latin", None).await, wrong("dialect"));
    assert_eq!(call("?from=3", Some("3")).await.0, 200);
    assert_eq!(call(&format!("?from={last}"), None).await.0, 204);
}

#[tokio::test]
async fn unknown_is_404_and_forgotten_is_410() {
    let service = Service::start(Setup {
        script: INSTANT,
        retention: Retention {
            max_logs: 1,
            ..Retention::default()
        },
        ..Setup::default()
    })
    .await;
    let first = service.submit(&body("Say", 5)).await;
    service.ended(&first).await;
    let second = service.submit(&body("Say", 5)).await;
    service.ended(&second).await;
    let check = async |id: &str, status: u16, code: &str| {
        let expected = (status, code.to_owned(), None);
        let events = service.client.events(id, 0).await.map(|_| ());
        assert_eq!(refusal(events), expected, "{id}");
        let shown = service.client.status(id, Duration::ZERO).await;
        assert_eq!(refusal(shown), expected, "{id}");
        assert_eq!(refusal(service.client.cancel(id).await), expected, "{id}");
    };
    check(&first, 410, "request_expired").await;
    check(&"0".repeat(32), 404, "request_not_found").await;
    check("no-id", 404, "request_not_found").await;
    service.ended(&second).await;
}

#[tokio::test]
async fn any_request_can_be_read_in_openais_words() {
    let service = Service::start(Setup {
        script: INSTANT,
        ..Setup::default()
    })
    .await;
    let id = service.submit(&body("Say", 5)).await;
    let last = service.ended(&id).await.last_seq;
    let read = async |from: u64| {
        let path = format!("/api/v1/requests/{id}/events?dialect=openai&from={from}");
        let response = service.client.call(Method::GET, &path).send().await;
        EventStream::of(response.unwrap()).collect().await.unwrap()
    };
    let frames = read(0).await;
    assert!(frames.iter().all(|frame| frame.id.is_some()));
    assert_eq!(frames.last().unwrap().data, "[DONE]");
    let chunk: serde_json::Value = frames[0].json().unwrap();
    assert!(chunk["choices"][0].is_object(), "{chunk}");
    let after_end = read(last).await;
    assert_eq!(after_end.len(), 1);
    assert_eq!(after_end[0].data, "[DONE]");
}
