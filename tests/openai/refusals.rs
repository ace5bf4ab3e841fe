//! What is refused, field by field.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::service::{MAX_DEADLINE, Service};
use crate::{ECHO, SLOW};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// The smallest body that is served, with these fields put in.
fn body(path: &str, fields: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({"model": "model/one", "messages": [{"role": "user", "content": "hi"}]}),
        _ => json!({"model": "model/one", "prompt": "hi"}),
    };
    let members = body.as_object_mut().expect("an object");
    members.extend(fields.as_object().expect("an object").clone());
    body
}

fn field(name: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(name.to_owned(), value)]))
}

/// Sends a body that is refused with a 400, and checks which field and code it names.
async fn check(service: &Service, path: &str, fields: &Value, param: &str, code: &str) {
    let reply = service.post(path, body(path, fields).to_string()).await;
    let error = &reply.body["error"];
    let said = (
        reply.status,
        &error["param"],
        &error["code"],
        &error["type"],
    );
    let expected = (
        400,
        &json!(param),
        &json!(code),
        &json!("invalid_request_error"),
    );
    assert_eq!(said, expected, "{path} {fields}: {error}");
    let message = error["message"].as_str().expect("a message");
    let top = param.split('.').next().expect("a first part");
    assert!(message.contains(top), "{message} names {param}");
}

#[tokio::test]
async fn fields_that_ask_for_what_is_not_served() {
    let service = Service::start(ECHO).await;
    let format = json!({"type": "json_object"});
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (name, value) in [
        ("response_format", format.clone()),
        ("store", json!(true)),
        ("use_beam_search", json!(true)),
        ("length_penalty", json!(0.5)),
        ("bad_words", json!(["x"])),
        ("allowed_token_ids", json!([1])),
        ("structured_outputs", json!({"json": {}})),
        ("guided_json", json!({})),
        ("guided_regex", json!(".*")),
        ("return_token_ids", json!(true)),
    ] {
        for path in [CHAT, COMPLETIONS] {
            check(
                &service,
                path,
                &field(name, value.clone()),
                name,
                "unsupported_field",
            )
            .await;
        }
    }
    for (name, value) in [
        ("tools", tool.clone()),
        ("tool_choice", json!("required")),
        ("functions", tool),
        ("function_call", json!({"name": "f"})),
        ("parallel_tool_calls", json!(false)),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "alloy", "format": "wav"})),
        ("prediction", json!({"type": "content", "content": "x"})),
        ("web_search_options", json!({})),
        ("reasoning_effort", json!("high")),
        ("verbosity", json!("high")),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("chat_template", json!("{{ messages }}")),
    ] {
        check(
            &service,
            CHAT,
            &field(name, value),
            name,
            "unsupported_field",
        )
        .await;
    }
    check(
        &service,
        COMPLETIONS,
        &json!({"suffix": "x"}),
        "suffix",
        "unsupported_field",
    )
    .await;
}

#[tokio::test]
async fn fields_that_nobody_knows() {
    let service = Service::start(ECHO).await;
    for path in [CHAT, COMPLETIONS] {
        let code = "unknown_field";
        check(
            &service,
            path,
            &json!({"temprature": 1}),
            "temprature",
            code,
        )
        .await;
        let options = json!({"stream": true, "stream_options": {"usage": true}});
        check(&service, path, &options, "stream_options.usage", code).await;
    }
    check(
        &service,
        CHAT,
        &json!({"prompt": "x"}),
        "prompt",
        "unknown_field",
    )
    .await;
    check(
        &service,
        COMPLETIONS,
        &json!({"messages": []}),
        "messages",
        "unknown_field",
    )
    .await;
    let long = "x".repeat(10_000);
    let fields = field(&long, json!(1));
    check(&service, CHAT, &fields, &long[..64], "unknown_field").await;
}

#[tokio::test]
async fn values_beyond_their_limits() {
    let service = Service::start(ECHO).await;
    let huge = json!(1_000_000_000_000_000_000_u64);
    let beyond_deadline = json!(MAX_DEADLINE.as_millis() as u64 + 1);
    let invalid = "invalid_value";
    for (name, values) in [
        (
            "temperature",
            vec![json!(-1), json!(2.5), json!("hot"), json!(1e300)],
        ),
        ("top_p", vec![json!(0), json!(1.5), json!("NaN")]),
        ("top_k", vec![json!(-2), json!(1_000_000), huge.clone()]),
        (
            "n",
            vec![json!(0), json!(-1), json!(1_000_000_000), json!(1.5)],
        ),
        ("seed", vec![json!("1"), json!(0.5)]),
        ("stop", vec![json!(""), json!(5), json!(vec!["x"; 100])]),
        (
            "logit_bias",
            vec![json!({"x": 1}), json!({"1": 101}), json!({"257": 1})],
        ),
        ("min_tokens", vec![json!(-1), huge.clone()]),
        ("prompt_logprobs", vec![json!(6), huge.clone()]),
        (
            "deadline_ms",
            vec![json!(0), json!(-1), beyond_deadline, huge.clone()],
        ),
        ("stream", vec![json!(1), json!("yes")]),
        (
            "stream_options",
            vec![json!({"include_usage": true}), json!({})],
        ),
        ("user", vec![json!(1)]),
        ("metadata", vec![json!("x")]),
    ] {
        for value in values {
            for path in [CHAT, COMPLETIONS] {
                check(&service, path, &field(name, value.clone()), name, invalid).await;
            }
        }
    }
    for (fields, param) in [
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 6}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": huge}),
            "top_logprobs",
        ),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (
            json!({"max_completion_tokens": 1, "max_tokens": 2}),
            "max_completion_tokens",
        ),
        (json!({"chat_template_kwargs": "x"}), "chat_template_kwargs"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
        ),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
    ] {
        check(&service, CHAT, &fields, param, invalid).await;
    }
    for (fields, param) in [
        (json!({"logprobs": true}), "logprobs"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"best_of": 1_000_000_000}), "best_of"),
        (json!({"n": 3, "best_of": 2}), "best_of"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": ["a", 5]}), "prompt"),
        (json!({"prompt": [5, "a"]}), "prompt"),
        (json!({"prompt": [[5], [-1]]}), "prompt"),
        (json!({"prompt": [257]}), "prompt"),
        (json!({"prompt": [1e10]}), "prompt"),
        (json!({"prompt": ["a", "b", "c", "d"]}), "prompt"),
    ] {
        check(&service, COMPLETIONS, &fields, param, invalid).await;
    }
}

#[tokio::test]
async fn combinations_that_cannot_be_streamed() {
    let service = Service::start(ECHO).await;
    let unsupported = "unsupported_field";
    for (fields, param) in [
        (json!({"stream": true, "best_of": 2}), "best_of"),
        (
            json!({"stream": true, "prompt_logprobs": 1}),
            "prompt_logprobs",
        ),
        (json!({"stream": true, "prompt": ["a", "b"]}), "prompt"),
        (
            json!({"stream": true, "echo": true, "logprobs": 1, "n": 2}),
            "n",
        ),
        (
            json!({"echo": true, "truncate_prompt_tokens": 1}),
            "truncate_prompt_tokens",
        ),
    ] {
        check(&service, COMPLETIONS, &fields, param, unsupported).await;
    }
    let options = json!({"stream": true, "stream_options": {"include_obfuscation": true}});
    let param = "stream_options.include_obfuscation";
    check(&service, CHAT, &options, param, unsupported).await;
}

#[tokio::test]
async fn what_does_not_fit_the_context() {
    let service = Service::start(ECHO).await;
    let code = "context_length_exceeded";
    let long = "x".repeat(401);
    check(
        &service,
        COMPLETIONS,
        &json!({"prompt": long}),
        "prompt",
        code,
    )
    .await;
    check(
        &service,
        COMPLETIONS,
        &json!({"max_tokens": 399}),
        "max_tokens",
        code,
    )
    .await;
    let huge = json!({"max_tokens": 1_000_000_000_000_000_000_u64});
    check(&service, COMPLETIONS, &huge, "max_tokens", code).await;
    let messages = json!({"messages": [{"role": "user", "content": long}]});
    check(&service, CHAT, &messages, "messages", code).await;
    let most = json!({"max_completion_tokens": 400});
    check(&service, CHAT, &most, "max_completion_tokens", code).await;
}

#[tokio::test]
async fn bodies_that_are_none() {
    let service = Service::start(ECHO).await;
    for (body, param, code) in [
        ("", Value::Null, "invalid_body"),
        ("[]", Value::Null, "invalid_body"),
        (r#"{"model": "model/one", "#, Value::Null, "invalid_body"),
        ("{}", json!("model"), "missing_field"),
        (r#"{"model": 5}"#, json!("model"), "invalid_value"),
        (
            r#"{"model": "model/one", "temperature": NaN}"#,
            json!("temperature"),
            "invalid_value",
        ),
        (
            r#"{"model": "model/one", "top_p": -Infinity}"#,
            json!("top_p"),
            "invalid_value",
        ),
        (
            r#"{"model": "model/one", "n": 1e999}"#,
            json!("n"),
            "invalid_value",
        ),
    ] {
        for path in [CHAT, COMPLETIONS] {
            let reply = service.post(path, body).await;
            let error = &reply.body["error"];
            assert_eq!(
                (reply.status, &error["param"], &error["code"]),
                (400, &param, &json!(code)),
                "{path} {body:?}"
            );
        }
    }
    let reply = service.post(CHAT, br#"{"model": "model/one"}"#).await;
    assert_eq!(reply.body["error"]["param"], "messages");
    let reply = service
        .post(COMPLETIONS, br#"{"model": "model/one"}"#)
        .await;
    assert_eq!(reply.body["error"]["param"], "prompt");
}

#[tokio::test]
async fn a_large_body_is_read_before_it_is_judged() {
    let service = Service::start(ECHO).await;
    // Above what axum takes by default, below our own limits.
    let fields = json!({"prompt": "x".repeat(3 << 20)});
    check(
        &service,
        COMPLETIONS,
        &fields,
        "prompt",
        "context_length_exceeded",
    )
    .await;
    let fields = json!({"prompt": "x".repeat(5 << 20)});
    check(&service, COMPLETIONS, &fields, "prompt", "invalid_value").await;
}

#[tokio::test]
async fn models_and_paths_that_are_not_there() {
    let service = Service::start(ECHO).await;
    for path in [CHAT, COMPLETIONS] {
        let reply = service
            .post(path, body(path, &json!({"model": "other"})).to_string())
            .await;
        let error = &reply.body["error"];
        assert_eq!(reply.status, 404);
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "model");
        assert_eq!(error["type"], "not_found_error");
    }
    let reply = service.get("/v1/models/other").await;
    assert_eq!(
        (reply.status, &reply.body["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let reply = service.post("/v1/embeddings", "{}").await;
    assert_eq!(reply.status, 404);
    assert!(reply.body["error"]["message"].is_string(), "{}", reply.body);
    let reply = service.get(CHAT).await;
    assert_eq!(reply.status, 405);
    assert!(reply.body["error"]["message"].is_string(), "{}", reply.body);
}

#[tokio::test]
async fn callers_without_the_key() {
    let service = Service::start_with_key(ECHO, "sesame-open-sesame").await;
    let reply = service.get_without_key("/v1/models").await;
    let error = &reply.body["error"];
    assert_eq!(
        (reply.status, &error["code"]),
        (401, &json!("invalid_api_key"))
    );
    assert_eq!(error["type"], "authentication_error");
    assert_eq!(service.get("/v1/models").await.status, 200);
}

/// The engine takes 16 rows; three requests of 6 are two too many.
#[tokio::test]
async fn more_than_the_queue_takes() {
    let service = Service::start(SLOW).await;
    let fields = json!({"n": 6, "max_tokens": 20});
    let post = || service.post(COMPLETIONS, body(COMPLETIONS, &fields).to_string());
    let replies = <[_; 3]>::from(tokio::join!(post(), post(), post()));
    let mut refused = replies.iter().filter(|reply| reply.status != 200);
    let one = refused.next().expect("one is refused");
    assert!(refused.next().is_none(), "and only one");
    assert_eq!(
        (one.status, &one.body["error"]["code"]),
        (429, &json!("queue_full"))
    );
    assert_eq!(one.body["error"]["type"], "rate_limit_error");
    let seconds: u64 = one
        .retry_after
        .as_ref()
        .expect("when to come back")
        .parse()
        .expect("whole seconds");
    assert!((1..=60).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn more_than_the_queue_could_ever_take() {
    let service = Service::start(SLOW).await;
    let fields = json!({"prompt": ["a", "b", "c"], "n": 6, "max_tokens": 1});
    let reply = service
        .post(COMPLETIONS, body(COMPLETIONS, &fields).to_string())
        .await;
    assert_eq!(
        (reply.status, &reply.body["error"]["param"]),
        (400, &json!("prompt"))
    );
}

/// With several prompts, those that were taken before the queue was full are given up again.
#[tokio::test]
async fn a_call_that_is_taken_in_part_is_given_up_as_a_whole() {
    let service = Service::start(SLOW).await;
    let post = async |fields: Value| {
        let fields = body(COMPLETIONS, &fields).to_string();
        service.post(COMPLETIONS, fields).await
    };
    // The engine takes 16 rows: 6, and then 6 of 12.
    let earlier = post(json!({"n": 6, "max_tokens": 20}));
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        post(json!({"prompt": ["a", "b"], "n": 6, "max_tokens": 300})).await
    };
    let (earlier, later) = tokio::join!(earlier, later);
    assert_eq!((earlier.status, later.status), (200, 429));
    // At 20 tokens a second they would keep the engine busy for 15 s; a cancel takes one step.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let fields = json!({"n": 6, "max_tokens": 1});
    let post = || service.post(COMPLETIONS, body(COMPLETIONS, &fields).to_string());
    let (one, other) = tokio::join!(post(), post());
    assert_eq!(
        (one.status, other.status),
        (200, 200),
        "{} {}",
        one.body,
        other.body
    );
}
