//! Requests: what is accepted, what is refused by name, and what can be asked of them.

use std::time::Duration;

use girandole::api::native::wire::{Reason, State, SubmitBody};
use girandole::client::Client;
use girandole::events::store::{Lookup, Retention};
use reqwest::Method;
use serde_json::{Value, json};

use crate::service::{INSTANT, Service, Setup, body, refusal, said};

async fn instant() -> Service {
    Service::start(Setup {
        script: INSTANT,
        ..Setup::default()
    })
    .await
}

/// Status, code and field of the answer to a raw body.
async fn post(client: &Client, body: &str) -> (u16, String, String) {
    let call = client.call(Method::POST, "/api/v1/requests");
    let response = call.body(body.to_owned()).send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("field"))
}

#[tokio::test]
async fn the_edges_of_every_field_are_refused_by_name() {
    const NUMBERS: [&str; 18] = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "max_tokens",
        "min_tokens",
        "n",
        "best_of",
        "logprobs",
        "prompt_logprobs",
        "truncate_prompt_tokens",
        "deadline_ms",
        "detach",
    ];
    const ALWAYS_WRONG: [&str; 8] = [
        "\"x\"",
        "[]",
        "{}",
        "1e308",
        "-1e308",
        "1e999",
        "99999999999999999999999",
        "-99999999999999999999999",
    ];
    let service = instant().await;
    for field in NUMBERS {
        for value in ALWAYS_WRONG {
            let body = format!(r#"{{"prompt": "hi", "{field}": {value}}}"#);
            let (status, _, named) = post(&service.client, &body).await;
            assert_eq!((status, named.as_str()), (400, field), "{body}");
        }
    }
    for (field, value) in [
        ("temperature", "-0.1"),
        ("temperature", "2.1"),
        ("temperature", "true"),
        ("top_p", "0"),
        ("top_p", "1.01"),
        ("top_k", "1.5"),
        ("min_p", "-0.01"),
        ("typical_p", "0"),
        ("presence_penalty", "2.01"),
        ("frequency_penalty", "-2.01"),
        ("repetition_penalty", "0"),
        ("seed", "0.5"),
        ("max_tokens", "-1"),
        ("max_tokens", "1.5"),
        ("max_tokens", "9000"),
        ("min_tokens", "-1"),
        ("n", "0"),
        ("n", "33"),
        ("best_of", "0"),
        ("logprobs", "-1"),
        ("logprobs", "21"),
        ("prompt_logprobs", "21"),
        ("deadline_ms", "0"),
        ("deadline_ms", "-5"),
        ("deadline_ms", "86400001"),
        ("detach", "1"),
        ("detach", "\"true\""),
        ("ignore_eos", "1"),
        ("stop", "[\"\"]"),
        ("stop", "7"),
        ("stop_token_ids", "[-1]"),
        ("stop_token_ids", "[300]"),
        ("model", "7"),
        ("prompt", "7"),
        ("priority", "1"),
        ("temprature", "1"),
    ] {
        let body = match field {
            "prompt" => format!(r#"{{"prompt": {value}}}"#),
            _ => format!(r#"{{"prompt": "hi", "{field}": {value}}}"#),
        };
        let (status, _, named) = post(&service.client, &body).await;
        assert_eq!((status, named.as_str()), (400, field), "{body}");
    }
}

#[tokio::test]
async fn a_body_that_makes_no_sense_is_refused() {
    let service = instant().await;
    let check = async |body: &str, code: &str, field: &str| {
        let answer = post(&service.client, body).await;
        let expected = (400, code.to_owned(), field.to_owned());
        assert_eq!(answer, expected, "{body}");
    };
    check("", "invalid_body", "").await;
    check("{", "invalid_body", "").await;
    check("[]", "invalid_body", "").await;
    check("{}", "missing_field", "prompt").await;
    check(
        r#"{"prompt": "a", "tokens": [1]}"#,
        "invalid_value",
        "tokens",
    )
    .await;
    check(r#"{"tokens": []}"#, "invalid_value", "tokens").await;
    check(r#"{"tokens": [4294967296]}"#, "invalid_value", "tokens").await;
    let deep = format!(
        r#"{{"prompt": "a", "x": {}1{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    check(&deep, "invalid_body", "").await;
    let (status, code, field) = post(&service.client, r#"{"prompt": "a", "model": "x"}"#).await;
    assert_eq!(
        (status, code.as_str(), field.as_str()),
        (404, "model_not_found", "model")
    );
}

#[tokio::test]
async fn the_status_tells_the_whole_result() {
    let service = instant().await;
    let call = service.client.call(Method::POST, "/api/v1/requests");
    let response = call.json(&body("Say", 5)).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let header_id = response.headers()["x-request-id"].clone();
    let submitted: Value = response.json().await.unwrap();
    let id = submitted["id"].as_str().unwrap();
    assert_eq!(header_id, id);
    assert_eq!(location, format!("/api/v1/requests/{id}"));

    let status = service.ended(id).await;
    assert_eq!(status.state, State::Finished);
    assert_eq!(status.model, "scripted");
    assert_eq!(status.queue, None);
    let choice = &status.choices[0];
    assert_eq!(choice.text, "Light");
    assert_eq!(choice.tokens, b"Light".map(u32::from));
    assert_eq!(choice.finish_reason, Some(Reason::Length));
    assert_eq!(choice.logprobs, None);
    let usage = status.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 5));
    let times = status.timings;
    assert!(times.queued_ms <= times.first_token_ms && times.first_token_ms <= times.total_ms);
    assert!(times.queued_ms.is_some());
}

#[tokio::test]
async fn a_prompt_may_be_text_or_tokens_or_a_chat() {
    let service = instant().await;
    for (prompt, tokens) in [
        (json!({"prompt": "Say"}), 3),
        (json!({"tokens": [1, 2, 3, 4]}), 4),
        (json!({"messages": [{"role": "user", "content": "Say"}]}), 9),
    ] {
        let mut call = prompt;
        call["max_tokens"] = json!(1);
        let sent = service.client.call(Method::POST, "/api/v1/requests");
        let answer = sent.json(&call).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{call}");
        let submitted: Value = answer.json().await.unwrap();
        let status = service.ended(submitted["id"].as_str().unwrap()).await;
        assert_eq!(status.usage.unwrap().prompt_tokens, tokens, "{call}");
    }
}

#[tokio::test]
async fn log_probabilities_come_as_asked() {
    let service = instant().await;
    let id = service
        .submit(&SubmitBody {
            logprobs: Some(0),
            ..body("Say", 5)
        })
        .await;
    let status = service.ended(&id).await;
    let logprobs = status.choices[0].logprobs.as_ref().unwrap();
    assert_eq!(logprobs.len(), 5);
    assert_eq!(logprobs[0].own.token, u32::from(b'L'));
}

#[tokio::test]
async fn the_best_of_several_answers_are_kept() {
    let service = instant().await;
    let id = service
        .submit(&SubmitBody {
            n: Some(2),
            best_of: Some(5),
            ..body("Say", 5)
        })
        .await;
    let status = service.ended(&id).await;
    assert_eq!(status.choices.len(), 2);
    assert_eq!(status.choices[0].logprobs, None);
    assert_eq!(status.usage.unwrap().completion_tokens, 25);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_waits_for_the_end_or_its_time() {
    let service = Service::start(Setup::default()).await;
    let id = service.submit(&body("Say", 100)).await;
    let early = service.client.status(&id, Duration::from_millis(150)).await;
    assert_eq!(early.unwrap().state, State::Running);
    let status = service.client.status(&id, Duration::from_secs(10)).await;
    let status = status.unwrap();
    assert_eq!(status.state, State::Finished);
    assert_eq!(status.choices[0].text, said(100));
    for wait in ["-1", "61", "NaN", "inf", "x", ""] {
        let path = format!("/api/v1/requests/{id}?wait={wait}");
        let response = service
            .client
            .call(Method::GET, &path)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 400, "{wait}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["field"], "wait");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_one_request_and_no_other() {
    let service = Service::start(Setup {
        batch_size: 2,
        ..Setup::default()
    })
    .await;
    let running = service.submit(&body("Run", 5_000)).await;
    let sibling = service.submit(&body("Sibling", 100)).await;
    let queued = service.submit(&body("Queued", 5_000)).await;
    let mut stream = service.client.events(&running, 0).await.unwrap();
    while stream.next().await.unwrap().unwrap().event != "text" {}
    for id in [&running, &queued] {
        service.client.cancel(id).await.unwrap();
        let status = service.client.status(id, Duration::from_secs(1)).await;
        let status = status.unwrap();
        assert_eq!(status.state, State::Finished);
        assert_eq!(status.choices[0].finish_reason, Some(Reason::Cancelled));
        service.client.cancel(id).await.unwrap();
    }
    let rest = stream.collect().await.unwrap();
    assert_eq!(rest.last().unwrap().event, "finished");
    let status = service.ended(&sibling).await;
    assert_eq!(status.choices[0].text, said(100));
    assert_eq!(status.choices[0].finish_reason, Some(Reason::Length));
    service.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_makes_one_request() {
    let service = Service::start(Setup::default()).await;
    let post = async |key: &str, prompt: &str| {
        let call = service.client.call(Method::POST, "/api/v1/requests");
        let call = call.header("Idempotency-Key", key);
        let response = call.json(&body(prompt, 5)).send().await.unwrap();
        let status = response.status().as_u16();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let answer: Value = response.json().await.unwrap();
        (status, replayed, answer)
    };
    let (status, replayed, first) = post("one", "Say").await;
    assert_eq!((status, replayed), (201, false));
    let (status, replayed, again) = post("one", "Say").await;
    assert_eq!((status, replayed), (201, true));
    assert_eq!(first, again);
    let (status, _, other) = post("two", "Say").await;
    assert_eq!(status, 201);
    assert_ne!(first["id"], other["id"]);
    let (status, _, mismatch) = post("one", "Say more").await;
    assert_eq!(status, 422);
    assert_eq!(mismatch["error"]["code"], "idempotency_key_reused");
    assert_eq!(mismatch["error"]["field"], "Idempotency-Key");
    assert_eq!(post(&"k".repeat(256), "Say").await.0, 400);
    assert_eq!(post("", "Say").await.0, 400);

    let storm = futures_util::future::join_all((0..20).map(|_| post("three", "Say"))).await;
    let mut ids: Vec<&Value> = storm
        .iter()
        .filter(|(status, ..)| *status == 201)
        .map(|(_, _, answer)| &answer["id"])
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{storm:?}");
    for (status, _, answer) in &storm {
        assert!([201, 409].contains(status), "{answer}");
    }
}

#[tokio::test]
async fn a_key_of_a_forgotten_request_is_free_though_a_slow_reader_holds_its_log() {
    let service = Service::start(Setup {
        script: INSTANT,
        retention: Retention {
            max_age: Duration::ZERO,
            ..Retention::default()
        },
        ..Setup::default()
    })
    .await;
    let post = async || {
        let call = service.client.call(Method::POST, "/api/v1/requests");
        let call = call.header("Idempotency-Key", "one");
        let response = call.json(&body("Say", 5)).send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    let (status, first) = post().await;
    assert_eq!(status, 201);
    let id = first["id"].as_str().unwrap().parse().unwrap();
    let Lookup::Found(log) = service.state.store.get(id) else {
        // It has ended and gone already, which the slow reader was to prevent.
        return;
    };
    log.until_closed().await;
    let (status, second) = post().await;
    assert_eq!(status, 201, "{second}");
    assert_ne!(first["id"], second["id"]);
}

#[tokio::test]
async fn a_refused_request_gives_its_idempotency_key_back() {
    let service = instant().await;
    let post = async |body: Value| {
        let call = service.client.call(Method::POST, "/api/v1/requests");
        let call = call.header("Idempotency-Key", "one").json(&body);
        call.send().await.unwrap().status().as_u16()
    };
    assert_eq!(
        post(json!({"prompt": "Say", "max_tokens": 9_000})).await,
        400
    );
    assert_eq!(post(json!({"prompt": "Say", "max_tokens": 5})).await, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_fails_says_so_and_harms_nobody() {
    let service = Service::start(Setup {
        script: "[cost]\ntokens_per_second = 200.0\n[[fault]]\nprompt_contains = \"poison\"\nnan_at_token = 3",
        ..Setup::default()
    })
    .await;
    let poisoned = service.submit(&body("poison", 50)).await;
    let healthy = service.submit(&body("healthy", 50)).await;
    let events = service.events(&poisoned, 0).await;
    let last = events.last().unwrap();
    assert_eq!(last.event, "failed");
    let data: Value = last.json().unwrap();
    assert_eq!(data["error"]["code"], "row_failed");
    let status = service
        .client
        .status(&poisoned, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(status.state, State::Failed);
    assert_eq!(status.error.unwrap()["code"], "row_failed");
    assert_eq!(service.ended(&healthy).await.choices[0].tokens.len(), 50);
}

#[tokio::test]
async fn nobody_else_sees_a_request() {
    let service = Service::start(Setup {
        script: INSTANT,
        keys: "alice alice-secret-0123456789\nbob bob-secret-0123456789ab",
        ..Setup::default()
    })
    .await;
    let alice = service.client.clone().with_key("alice-secret-0123456789");
    let bob = service.client.clone().with_key("bob-secret-0123456789ab");
    assert_eq!(
        refusal(service.client.submit(&body("Say", 5)).await),
        (401, "invalid_api_key".to_owned(), None)
    );
    let id = alice.submit(&body("Say", 5)).await.unwrap().id;
    let unknown = (404, "request_not_found".to_owned(), None);
    assert_eq!(refusal(bob.status(&id, Duration::ZERO).await), unknown);
    assert_eq!(refusal(bob.events(&id, 0).await.map(|_| ())), unknown);
    assert_eq!(refusal(bob.cancel(&id).await), unknown);
    let status = alice.status(&id, Duration::from_secs(5)).await.unwrap();
    assert_eq!(status.choices[0].finish_reason, Some(Reason::Length));
}
