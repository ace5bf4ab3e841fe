//! Whole replies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::service::{Reply, Service};
use crate::{ECHO, SLOW, VARIED};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn complete(service: &Service, mut fields: Value) -> Value {
    fields["model"] = json!("model/one");
    let reply = service.post(COMPLETIONS, fields.to_string()).await;
    assert_eq!(reply.status, 200, "{fields}: {}", reply.body);
    reply.body
}

/// The reply without what differs from call to call.
fn settled(reply: &Reply, prefix: &str) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut body = reply.body.clone();
    let id = body["id"].take();
    assert_eq!(id, json!(format!("{prefix}-{}", reply.request_id)));
    let created = body["created"].take();
    assert!(created.as_u64().expect("seconds") > 1_700_000_000);
    body
}

#[tokio::test]
async fn a_chat_is_rendered_and_answered() {
    let service = Service::start(ECHO).await;
    let body = json!({
        "model": "model/one",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hé"}]},
        ],
        "user": "someone", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "none",
        "modalities": ["text"], "parallel_tool_calls": true, "temperature": null,
    });
    let reply = service.post(CHAT, body.to_string()).await;
    // Each byte of it is a token.
    let rendered = "<system>be brief|<user>hé|<assistant>";
    assert_eq!(
        settled(&reply, "chatcmpl"),
        json!({
            "id": null,
            "object": "chat.completion",
            "created": null,
            "model": "model/one",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": rendered, "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 38, "completion_tokens": 38, "total_tokens": 76,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
}

#[tokio::test]
async fn a_chat_may_be_rendered_otherwise() {
    let service = Service::start(ECHO).await;
    let render = async |fields: Value| {
        let mut body = json!({
            "model": "model/one",
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        });
        let members = body.as_object_mut().expect("an object");
        members.extend(fields.as_object().expect("an object").clone());
        let reply = service.post(CHAT, body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(render(json!({})).await, "<user>a|<assistant>b|<assistant>");
    assert_eq!(
        render(json!({"add_generation_prompt": false})).await,
        "<user>a|<assistant>b|"
    );
    assert_eq!(
        render(json!({"continue_final_message": true})).await,
        "<user>a|<assistant>b"
    );
    assert_eq!(
        render(json!({"chat_template_kwargs": {"extra": "!"}})).await,
        "<user>a|<assistant>b|<assistant>!"
    );
}

#[tokio::test]
async fn a_completion_is_answered_up_to_sixteen_tokens() {
    let service = Service::start(VARIED).await;
    let body = json!({"model": "model/one", "prompt": "abc"});
    let reply = service.post(COMPLETIONS, body.to_string()).await;
    let mut settled = settled(&reply, "cmpl");
    let text = settled["choices"][0]["text"].take();
    assert_eq!(text.as_str().map(str::len), Some(16));
    assert_eq!(
        settled,
        json!({
            "id": null,
            "object": "text_completion",
            "created": null,
            "model": "model/one",
            "choices": [{"index": 0, "text": null, "logprobs": null, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
}

#[tokio::test]
async fn the_seed_decides_and_choices_differ() {
    let service = Service::start(VARIED).await;
    let texts = async |fields: Value| -> Vec<String> {
        let body = complete(&service, fields).await;
        let choices = body["choices"].as_array().expect("choices").clone();
        assert!(
            (0..)
                .zip(&choices)
                .all(|(index, choice)| choice["index"] == index)
        );
        choices
            .iter()
            .map(|choice| choice["text"].as_str().expect("a text").to_owned())
            .collect()
    };
    let three = texts(json!({"prompt": "a", "n": 3, "seed": 7})).await;
    assert_eq!(three.len(), 3);
    assert!(three[0] != three[1] && three[1] != three[2]);
    assert_eq!(
        texts(json!({"prompt": "a", "n": 3, "seed": 7})).await,
        three
    );
    assert_ne!(
        texts(json!({"prompt": "a", "n": 3, "seed": 8})).await,
        three
    );
    assert_ne!(texts(json!({"prompt": "a", "n": 3})).await, three);
    // `best_of` ranks what `n` would have shown.
    let all = texts(json!({"prompt": "a", "n": 4, "seed": 7})).await;
    let best = texts(json!({"prompt": "a", "best_of": 4, "n": 2, "seed": 7})).await;
    assert_eq!(best.len(), 2);
    assert!(best.iter().all(|text| all.contains(text)));
}

#[tokio::test]
async fn best_of_is_the_best_by_its_own_logprobs() {
    let service = Service::start(VARIED).await;
    let mean = |choice: &Value| -> f64 {
        let values = choice["logprobs"]["token_logprobs"]
            .as_array()
            .expect("some");
        let sum: f64 = values
            .iter()
            .map(|value| value.as_f64().expect("a number"))
            .sum();
        sum / values.len() as f64
    };
    let fields = json!({"prompt": "a", "n": 5, "seed": 7, "logprobs": 0});
    let body = complete(&service, fields).await;
    let means: Vec<f64> = body["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(mean)
        .collect();
    let best = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let fields = json!({"prompt": "a", "best_of": 5, "seed": 7, "logprobs": 0});
    let ranked = complete(&service, fields).await;
    assert!((mean(&ranked["choices"][0]) - best).abs() < 1e-6);
    assert_eq!(ranked["choices"].as_array().map(Vec::len), Some(1));
    assert_eq!(ranked["usage"]["completion_tokens"], 5 * 16);
    let fields = json!({"prompt": "a", "best_of": 5, "seed": 7});
    let silent = complete(&service, fields).await;
    assert_eq!(
        silent["choices"][0]["logprobs"],
        Value::Null,
        "nobody asked to see them"
    );
    assert_eq!(silent["choices"][0]["text"], ranked["choices"][0]["text"]);
}

#[tokio::test]
async fn several_prompts_are_answered_in_their_order() {
    let service = Service::start(ECHO).await;
    let texts = async |prompt: Value, n: u32| -> Vec<String> {
        let body = complete(&service, json!({"prompt": prompt, "n": n, "echo": true})).await;
        let choices = body["choices"].as_array().expect("choices").clone();
        assert!(
            (0..)
                .zip(&choices)
                .all(|(index, choice)| choice["index"] == index)
        );
        choices
            .iter()
            .map(|choice| choice["text"].as_str().expect("a text").to_owned())
            .collect()
    };
    assert_eq!(
        texts(json!(["ab", "c", "d"]), 2).await,
        ["abab", "abab", "cc", "cc", "dd", "dd"]
    );
    assert_eq!(texts(json!([97, 98]), 1).await, ["abab"]);
    assert_eq!(texts(json!([[97], [98, 99]]), 1).await, ["aa", "bcbc"]);
    let body = complete(&service, json!({"prompt": ["ab", "c"], "n": 2})).await;
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
               "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[tokio::test]
async fn an_echoed_prompt_is_scored_like_the_answer() {
    let service = Service::start(ECHO).await;
    let fields = json!({"prompt": "aé", "echo": true, "logprobs": 2, "max_tokens": 1});
    let body = complete(&service, fields).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "aéa");
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["a", "bytes:\\xc3", "bytes:\\xa9", "a"])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 2]));
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert!(logprobs["token_logprobs"][3].is_number());
    assert_eq!(
        logprobs["top_logprobs"][3]
            .as_object()
            .map(serde_json::Map::len),
        Some(2)
    );
    // Only to be scored: nothing new is made.
    let fields = json!({"prompt": "ab", "echo": true, "logprobs": 0, "max_tokens": 0});
    let body = complete(&service, fields).await;
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("ab"), &json!("length"))
    );
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn logprobs_come_in_each_endpoints_shape() {
    let service = Service::start(ECHO).await;
    let body = json!({
        "model": "model/one", "messages": [{"role": "user", "content": "a"}],
        "logprobs": true, "top_logprobs": 2, "prompt_logprobs": 1, "max_completion_tokens": 3,
    });
    let reply = service.post(CHAT, body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let content = reply.body["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("tokens");
    let tokens: Vec<&Value> = content.iter().map(|entry| &entry["token"]).collect();
    assert_eq!(tokens, ["<", "u", "s"]);
    assert!(
        content
            .iter()
            .all(|entry| entry["top_logprobs"].as_array().map(Vec::len) == Some(2))
    );
    let prompt = reply.body["prompt_logprobs"]
        .as_array()
        .expect("one for each token");
    assert_eq!(prompt.len(), "<user>a|<assistant>".len());
    assert_eq!(prompt[0], Value::Null);
    assert_eq!(prompt[1]["117"]["decoded_token"], "u");
    let fields = json!({"prompt": "ab", "prompt_logprobs": 0});
    let body = complete(&service, fields).await;
    assert_eq!(
        body["choices"][0]["prompt_logprobs"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert_eq!(body["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test]
async fn failures_have_the_status_of_their_kind() {
    let script = "[[fault]]\nprompt_contains = \"nan\"\nnan_at_token = 2\n\
        [[fault]]\nprompt_contains = \"broken\"\nfail_step_at = 2\n\
        [cost]\ntokens_per_second = 50.0\n";
    let service = Service::start(script).await;
    for (fields, status, code) in [
        (json!({"prompt": "nan"}), 500, "row_failed"),
        (json!({"prompt": ["fine", "nan"]}), 500, "row_failed"),
        (json!({"prompt": "broken"}), 500, "step_failed"),
        (
            json!({"prompt": "late", "max_tokens": 100, "deadline_ms": 60}),
            504,
            "deadline_exceeded",
        ),
    ] {
        let mut body = fields.clone();
        body["model"] = json!("model/one");
        let reply = service.post(COMPLETIONS, body.to_string()).await;
        let error = &reply.body["error"];
        assert_eq!(
            (reply.status, &error["code"]),
            (status, &json!(code)),
            "{fields}"
        );
        assert_eq!(error["type"], "server_error");
        assert_eq!(reply.request_id.len(), 32);
    }
    complete(&service, json!({"prompt": "fine"})).await;
}

#[tokio::test]
async fn a_repeated_key_leads_to_the_same_request() {
    let service = Service::start(SLOW).await;
    let key = ("idempotency-key", "k");
    let body = json!({"model": "model/one", "prompt": "a", "max_tokens": 20});
    let first = service.post_with(COMPLETIONS, key, &body);
    let second = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        service.post_with(COMPLETIONS, key, &body).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.request_id, second.request_id);
    assert_eq!(first.body, second.body);
    let other = json!({"model": "model/one", "prompt": "b", "max_tokens": 20});
    let clash = service.post_with(COMPLETIONS, key, &other).await;
    let code = &clash.body["error"]["code"];
    assert_eq!(
        (clash.status, code),
        (422, &json!("idempotency_key_reused"))
    );
}

#[tokio::test]
async fn models_are_listed_and_found_by_name() {
    let service = Service::start(ECHO).await;
    let model = json!({
        "id": "model/one", "object": "model", "created": 1_700_000_000,
        "owned_by": "girandole", "task": "text", "max_model_len": 400,
    });
    let list = service.get("/v1/models").await;
    assert_eq!(list.body, json!({"object": "list", "data": [model]}));
    for path in ["/v1/models/model/one", "/v1/models/model%2Fone"] {
        let one = service.get(path).await;
        assert_eq!((one.status, &one.body), (200, &model), "{path}");
    }
}
