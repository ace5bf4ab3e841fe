//! What is refused, with the status and the field.

use girandole::api::EdgeConfig;
use serde_json::{Value, json};

use crate::PICTURES;
use crate::client::Gradio;
use crate::service::{Service, Setup};

const KEYS: &str = "alice alice-secret-0123456789\nbob bob-secret-0123456789ab";

async fn service(script: &'static str) -> Service {
    Service::start(Setup {
        script,
        ..Setup::default()
    })
    .await
}

#[tokio::test]
async fn wrong_arguments_are_named() {
    let service = service("").await;
    let gradio = Gradio::new(&service);
    let role = json!([{"role": "wizard", "content": "x"}]);
    for (endpoint, data, field) in [
        ("generate", json!([]), "prompt"),
        ("generate", json!([null, 3]), "prompt"),
        ("generate", json!([3]), "prompt"),
        ("generate", json!(["x", -1]), "max_tokens"),
        ("generate", json!(["x", 1.5]), "max_tokens"),
        ("generate", json!(["x", 0]), "max_tokens"),
        ("generate", json!(["x", 3, 9]), "temperature"),
        ("generate", json!(["x", 3, 1, 2]), "top_p"),
        ("generate", json!(["x", 3, 1, 1, "seed"]), "seed"),
        ("generate", json!(["x", 3, 1, 1, 1, 1]), "data"),
        ("generate", json!("x"), "data"),
        ("chat", json!(["", 3]), "system_message"),
        ("chat", json!(["x", "", 3, 1, 1, 1, "before"]), "history"),
        (
            "chat",
            json!(["x", "", 3, 1, 1, 1, role]),
            "history[0].role",
        ),
    ] {
        let reply = gradio.try_join(endpoint, data.clone()).await;
        assert_eq!(reply.status, 422, "{data}: {}", reply.body);
        let detail = &reply.body["detail"][0];
        assert_eq!(detail["parameter_name"], field, "{data}: {detail}");
        assert_eq!(
            (&detail["__type__"], &detail["is_valid"]),
            (&json!("validate"), &json!(false))
        );
        assert!(
            detail["message"].as_str().unwrap().starts_with(field),
            "{detail}"
        );
    }
    let body = json!({"prompt": "x", "colour": 1});
    let reply = gradio.post("/gradio_api/call/v2/generate", &body).await;
    assert_eq!(reply.body["field"], "colour");
}

#[tokio::test]
async fn wrong_pictures_are_named() {
    let service = service(PICTURES).await;
    let gradio = Gradio::new(&service);
    let id = "0123456789abcdef0123456789abcdef";
    for (endpoint, data, field) in [
        ("txt2img", json!(["x", null, 65]), "width"),
        ("txt2img", json!(["x", null, 64, 64, 0]), "steps"),
        (
            "txt2img",
            json!(["x", null, 64, 64, 3, 99]),
            "guidance_scale",
        ),
        (
            "txt2img",
            json!(["x", null, 64, 64, 3, 7, "karl"]),
            "schedule",
        ),
        (
            "txt2img",
            json!(["x", null, 64, 64, 3, 7, null, 1, 99]),
            "count",
        ),
        ("img2img", json!([null, "x"]), "image"),
        ("img2img", json!([3, "x"]), "image"),
        (
            "img2img",
            json!([{"path": "https://example.org/x.png"}, "x"]),
            "image",
        ),
        ("img2img", json!([{"path": "/etc/passwd"}, "x"]), "image"),
        ("img2img", json!([{"path": "uploads/x.png"}, "x"]), "image"),
        (
            "img2img",
            json!(["data:image/png;base64,AAAA", "x"]),
            "image",
        ),
    ] {
        let reply = gradio.try_join(endpoint, data.clone()).await;
        assert_eq!(reply.status, 422, "{data}: {}", reply.body);
        assert_eq!(reply.body["field"], field, "{data}");
    }
    for path in [
        format!("uploads/{id}.png"),
        format!("requests/{id}/images/0.png"),
    ] {
        let reply = gradio
            .try_join("img2img", json!([{"path": path}, "x"]))
            .await;
        assert_eq!((reply.status, &reply.body["field"]), (404, &json!("image")));
    }
}

#[tokio::test]
async fn wrong_calls_are_answered_before_any_stream() {
    let service = service("").await;
    let gradio = Gradio::new(&service);
    let join = "/gradio_api/queue/join";
    let unknown = "0123456789abcdef0123456789abcdef";
    for (path, body, status) in [
        (join, json!({"data": ["x"], "fn_index": 0}), 400),
        (
            join,
            json!({"data": ["x"], "fn_index": 9, "session_hash": "a"}),
            404,
        ),
        (join, json!({"data": ["x"], "session_hash": "a"}), 422),
        (join, json!([]), 400),
        ("/gradio_api/call/nothing", json!({"data": []}), 404),
        ("/gradio_api/run/nothing", json!({"data": []}), 404),
        ("/gradio_api/call/v2/generate", json!([]), 400),
        ("/gradio_api/cancel", json!({"event_id": unknown}), 404),
        ("/gradio_api/cancel", json!({"event_id": null}), 404),
        ("/gradio_api/upload", json!({}), 422),
        ("/gradio_api/reset", json!({"event_id": unknown}), 200),
    ] {
        let reply = gradio.post(path, &body).await;
        assert_eq!(reply.status, status, "{path} {body}: {}", reply.body);
    }
    for (path, status) in [
        ("/gradio_api/queue/data", 400),
        ("/gradio_api/queue/data?session_hash=nobody", 404),
        (&*format!("/gradio_api/call/generate/{unknown}"), 404),
        ("/gradio_api/call/generate/x", 404),
        ("/gradio_api/file=/etc/passwd", 404),
        ("/gradio_api/file=..%2F..%2Fetc%2Fpasswd", 404),
        ("/gradio_api/nothing", 404),
    ] {
        let reply = gradio.get(path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        assert!(reply.body["detail"].is_string(), "{path}: {}", reply.body);
    }
}

#[tokio::test]
async fn keys_keep_callers_apart() {
    let service = Service::start(Setup {
        script: PICTURES,
        keys: KEYS,
        edge: EdgeConfig::default(),
        ..Setup::default()
    })
    .await;
    let nobody = Gradio::new(&service);
    for path in [
        "/config",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=a",
    ] {
        let reply = nobody.get(path).await;
        assert_eq!(reply.status, 401, "{path}");
        assert!(reply.body["detail"].is_string());
    }
    let alice = Gradio::new(&service).with_key("alice-secret-0123456789");
    let mut bob = Gradio::new(&service).with_key("bob-secret-0123456789ab");
    bob.session.clone_from(&alice.session);
    let id = alice.join("txt2img", json!(["x"])).await;
    let path = format!("/gradio_api/queue/data?session_hash={}", bob.session);
    assert_eq!(
        bob.get(&path).await.status,
        404,
        "sessions are their caller's"
    );
    assert_eq!(bob.cancel(&id).await.status, 404);
    assert_eq!(alice.all().await.last().unwrap().name(), "close_stream");
    let file = format!("requests/{id}/images/0.png");
    assert_eq!(bob.file(&file).await.0, 404);
    assert_eq!(alice.file(&file).await.0, 200);
    let uploaded = alice
        .upload(&[("a.png", &alice.file(&file).await.2)])
        .await
        .body;
    let uploaded = uploaded[0].as_str().unwrap();
    assert_eq!(
        (alice.file(uploaded).await.0, bob.file(uploaded).await.0),
        (200, 404)
    );
    let mine = json!([{"path": uploaded, "meta": {"_type": "gradio.FileData"}}, "x"]);
    assert_eq!(bob.try_join("img2img", mine).await.status, 404);

    // The Python client's `token` comes in a header of its own.
    let url = format!("http://{}/config", service.address);
    let request = reqwest::Client::new().get(url);
    let request = request.header("x-hf-authorization", "Bearer alice-secret-0123456789");
    let config: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(config["protocol"], "sse_v3");
}
