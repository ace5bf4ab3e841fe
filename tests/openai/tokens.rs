//! Tokenizing and templates.

use serde_json::{Value, json};

use crate::ECHO;
use crate::service::Service;

async fn ask(service: &Service, path: &str, body: Value) -> Value {
    let reply = service.post(path, body.to_string()).await;
    assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
    reply.body
}

#[tokio::test]
async fn texts_and_chats_are_tokenized() {
    let service = Service::start(ECHO).await;
    assert_eq!(
        ask(&service, "/tokenize", json!({"prompt": "hé"})).await,
        json!({"count": 3, "max_model_len": 400, "tokens": [104, 195, 169], "token_strs": null})
    );
    let body = json!({"model": "model/one", "prompt": "", "return_token_strs": true});
    assert_eq!(
        ask(&service, "/tokenize", body).await,
        json!({"count": 0, "max_model_len": 400, "tokens": [], "token_strs": []})
    );
    let body = json!({"messages": [{"role": "user", "content": "x"}], "return_token_strs": true,
                      "add_generation_prompt": false, "add_special_tokens": false});
    let reply = ask(&service, "/tokenize", body).await;
    assert_eq!(
        reply["token_strs"],
        json!(["<", "u", "s", "e", "r", ">", "x", "|"])
    );
}

#[tokio::test]
async fn tokens_become_text_again() {
    let service = Service::start(ECHO).await;
    let body = json!({"tokens": [104, 195, 169, 256]});
    assert_eq!(
        ask(&service, "/detokenize", body).await,
        json!({"prompt": "hé<|endoftext|>"})
    );
}

#[tokio::test]
async fn a_template_is_applied() {
    let service = Service::start(ECHO).await;
    let body = json!({"messages": [{"role": "developer", "content": "x"}],
                      "chat_template_kwargs": {"extra": "!"}});
    assert_eq!(
        ask(&service, "/apply-template", body).await,
        json!({"prompt": "<system>x|<assistant>!"})
    );
}

#[tokio::test]
async fn limits_and_types_hold_here_too() {
    let service = Service::start(ECHO).await;
    let long = "x".repeat(5 << 20);
    for (path, body, field) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 1}), "prompt"),
        ("/tokenize", json!({"prompt": long}), "prompt"),
        (
            "/tokenize",
            json!({"prompt": "x", "messages": []}),
            "messages",
        ),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/tokenize", json!({"prompt": "x", "n": 1}), "n"),
        (
            "/tokenize",
            json!({"prompt": "x", "chat_template_kwargs": {}}),
            "chat_template_kwargs",
        ),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [257]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        ("/apply-template", json!({}), "messages"),
        ("/apply-template", json!({"messages": "x"}), "messages"),
        (
            "/apply-template",
            json!({"messages": [{"role": "user", "content": "x"}], "x": 1}),
            "x",
        ),
    ] {
        let reply = service.post(path, body.to_string()).await;
        let error = &reply.body["error"];
        assert_eq!(
            (reply.status, &error["param"]),
            (400, &json!(field)),
            "{path}: {error}"
        );
    }
    let reply = service
        .post("/tokenize", r#"{"model": "other", "prompt": "x"}"#)
        .await;
    assert_eq!(
        (reply.status, &reply.body["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}
