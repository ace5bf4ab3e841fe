//! Streams, cut ones too.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::Service;
use crate::{ECHO, SLOW, VARIED};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(fields: &Value) -> Value {
    let mut body = json!({
        "model": "model/one", "stream": true,
        "messages": [{"role": "user", "content": "hé"}],
    });
    let members = body.as_object_mut().expect("an object");
    members.extend(fields.as_object().expect("an object").clone());
    body
}

/// What the frames say of each choice: text and reason. The last one is `[DONE]`.
fn said(frames: &[(u64, Value)]) -> BTreeMap<u64, (String, Vec<Value>)> {
    let (last, chunks) = frames.split_last().expect("some frames");
    assert_eq!(last.1, "[DONE]");
    let mut said: BTreeMap<u64, (String, Vec<Value>)> = BTreeMap::new();
    for (_, chunk) in chunks {
        for choice in chunk["choices"].as_array().expect("choices") {
            let (text, reasons) = said
                .entry(choice["index"].as_u64().expect("a number"))
                .or_default();
            let more = choice["text"]
                .as_str()
                .or(choice["delta"]["content"].as_str());
            text.push_str(more.unwrap_or_default());
            if !choice["finish_reason"].is_null() {
                reasons.push(choice["finish_reason"].clone());
            }
        }
    }
    said
}

#[tokio::test]
async fn a_chat_stream_says_what_the_whole_reply_says() {
    let service = Service::start(VARIED).await;
    let fields = json!({"n": 2, "seed": 3, "max_tokens": 50,
                        "stream_options": {"include_usage": true}});
    let (id, frames) = service.stream(CHAT, &chat(&fields)).await;
    let mut whole = chat(&json!({"n": 2, "seed": 3, "max_tokens": 50}));
    whole["stream"] = json!(false);
    let whole = service.post(CHAT, whole.to_string()).await.body;

    for (index, (text, reasons)) in said(&frames) {
        let choice = &whole["choices"][index as usize];
        assert_eq!(choice["message"]["content"], json!(text));
        assert_eq!(reasons, [choice["finish_reason"].clone()]);
    }
    let roles = frames
        .iter()
        .flat_map(|(_, chunk)| chunk["choices"].as_array().into_iter().flatten())
        .filter(|choice| choice["delta"]["role"] == "assistant");
    assert_eq!(roles.count(), 2, "each choice's role is said once");
    assert_eq!(frames[0].1["choices"][0]["delta"]["role"], "assistant");
    let usage = &frames[frames.len() - 2].1;
    assert_eq!(
        (&usage["choices"], &usage["usage"]),
        (&json!([]), &whole["usage"])
    );
    for (_, chunk) in &frames[..frames.len() - 1] {
        assert_eq!(chunk["id"], json!(format!("chatcmpl-{id}")));
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["model"], "model/one");
    }
    let ids: Vec<u64> = frames.iter().map(|(id, _)| *id).collect();
    assert!(ids.is_sorted(), "{ids:?}");
}

#[tokio::test]
async fn a_completion_stream_echoes_once() {
    let service = Service::start(ECHO).await;
    let body = json!({"model": "model/one", "prompt": "hé!", "stream": true, "echo": true});
    let (_, frames) = service.stream(COMPLETIONS, &body).await;
    let expected = ("hé!hé!".to_owned(), vec![json!("stop")]);
    assert_eq!(said(&frames), BTreeMap::from([(0, expected)]));
    assert!(frames[0].1.get("usage").is_none(), "nobody asked for usage");
}

/// One generation; read again from after each of its frames, the rest is the same.
#[tokio::test]
async fn a_cut_stream_goes_on_where_it_stopped() {
    let service = Service::start("[cost]\ntokens_per_second = 100.0").await;
    let fields = json!({"n": 2, "max_tokens": 40, "logprobs": true, "top_logprobs": 1,
                        "stream_options": {"include_usage": true}});
    let (id, frames) = service.stream(CHAT, &chat(&fields)).await;
    let whole = said(&frames);
    let (last, before) = frames.split_last().expect("some frames");
    assert!(before.len() >= 4, "it came in pieces: {}", before.len());
    for (index, (seq, _)) in before.iter().enumerate() {
        let mut joined = before[..=index].to_vec();
        let rest = service.resume(&id, *seq).await;
        assert_eq!(rest.last(), Some(last), "cut after frame {index}");
        joined.extend(rest);
        assert_eq!(said(&joined), whole, "cut after frame {index}");
        let usages = joined
            .iter()
            .filter(|(_, chunk)| chunk["usage"].is_object());
        assert_eq!(usages.count(), 1, "cut after frame {index}");
    }
    assert_eq!(
        &service.resume(&id, last.0).await[..],
        std::slice::from_ref(last)
    );
    assert_eq!(said(&service.resume(&id, 0).await), whole);
}

#[tokio::test]
async fn a_failure_within_a_stream_is_told_before_its_end() {
    let service = Service::start("[[fault]]\nnan_at_token = 4").await;
    let (_, frames) = service.stream(CHAT, &chat(&json!({}))).await;
    let [.., (_, error), (_, done)] = &frames[..] else {
        panic!("two frames at least: {frames:?}");
    };
    assert_eq!(error["error"]["code"], "row_failed");
    assert_eq!(error["error"]["type"], "server_error");
    assert_eq!(done, "[DONE]");
}

#[tokio::test]
async fn a_cancel_within_a_stream_is_told_before_its_end() {
    let service = Service::start(SLOW).await;
    let native = json!({"model": "model/one", "prompt": "a", "max_tokens": 300});
    let made = service.post("/api/v1/requests", native.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let id = made.body["id"].as_str().expect("an id").to_owned();
    let cancel = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let status = service.delete(&format!("/api/v1/requests/{id}")).await;
        assert!((200..300).contains(&status), "{status}");
    };
    let (frames, ()) = tokio::join!(service.resume(&id, 0), cancel);
    let [.., (_, error), (_, done)] = &frames[..] else {
        panic!("two frames at least: {frames:?}");
    };
    assert_eq!(error["error"]["code"], "request_cancelled");
    assert_eq!(done, "[DONE]");
    assert_eq!(frames[0].1["object"], "chat.completion.chunk");
}
