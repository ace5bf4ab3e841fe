//! Calls without a session, and what the application says of itself.

use serde_json::{Value, json};

use crate::PICTURES;
use crate::client::Gradio;
use crate::service::{INSTANT, STEADY, Service, Setup, said};

async fn service(script: &'static str) -> Service {
    Service::start(Setup {
        script,
        ..Setup::default()
    })
    .await
}

/// `(event, data)` of a stream as text.
fn frames(text: &str) -> Vec<(String, Value)> {
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    blocks
        .map(|block| {
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().to_owned()
            };
            let data = serde_json::from_str(&field("data: ")).unwrap();
            (field("event: "), data)
        })
        .collect()
}

#[tokio::test]
async fn a_call_streams_full_values_with_place_and_progress() {
    let service = service(STEADY).await;
    let gradio = Gradio::new(&service);
    let by_position = ("/gradio_api/call/generate", json!({"data": ["x", 60]}));
    let by_name = (
        "/gradio_api/call/v2/generate",
        json!({"max_tokens": 60, "prompt": "x"}),
    );
    for (path, body) in [by_position, by_name] {
        let reply = gradio.post(path, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let id = reply.body["event_id"].as_str().unwrap();
        let stream = gradio.get(&format!("{path}/{id}")).await.body;
        let frames = frames(stream.as_str().unwrap());
        assert_eq!(frames[0].0, "estimation");
        assert!(frames[0].1["rank"].is_u64());
        let generating: Vec<_> = frames.iter().filter(|one| one.0 == "generating").collect();
        let texts: Vec<_> = generating
            .iter()
            .map(|one| one.1[0].as_str().unwrap())
            .collect();
        assert!(texts.windows(2).all(|pair| pair[1].starts_with(pair[0])));
        assert_eq!(
            frames.last().unwrap(),
            &("complete".into(), json!([said(60)]))
        );
        // It can be read again.
        let again = gradio.get(&format!("{path}/{id}")).await.body;
        assert!(
            again
                .as_str()
                .unwrap()
                .ends_with(&format!("data: [\"{}\"]\n\n", said(60)))
        );
    }
}

#[tokio::test]
async fn a_run_answers_with_the_result_or_the_error() {
    let service = service("[[fault]]\nprompt_contains = \"poison\"\nnan_at_token = 1").await;
    let gradio = Gradio::new(&service);
    let run = async |prompt: &str| {
        let body = json!({"data": [prompt, 8]});
        gradio.post("/gradio_api/run/generate", &body).await
    };
    let good = run("x").await;
    assert_eq!(
        (good.status, good.body["data"][0].as_str().unwrap().len()),
        (200, 8)
    );
    assert!(good.body["duration"].as_f64().unwrap() >= 0.0);
    let bad = run("poison").await;
    assert_eq!(
        (bad.status, &bad.body["error"]),
        (500, &json!("the model's logits are not finite"))
    );
}

#[tokio::test]
async fn the_application_describes_itself() {
    let service = service(PICTURES).await;
    let gradio = Gradio::new(&service);
    let config = gradio.get("/config").await.body;
    assert_eq!(config["protocol"], "sse_v3");
    assert_eq!(config["api_prefix"], "/gradio_api");
    assert_eq!(config["connect_heartbeat"], false);
    let dependencies = config["dependencies"].as_array().unwrap();
    let names: Vec<_> = dependencies.iter().map(|one| &one["api_name"]).collect();
    assert_eq!(names, ["txt2img", "img2img"]);
    let components = config["components"].as_array().unwrap();
    let info = gradio.get("/gradio_api/info?serialize=False").await.body;
    for (index, one) in dependencies.iter().enumerate() {
        assert_eq!(one["id"], index);
        let name = format!("/{}", one["api_name"].as_str().unwrap());
        let described = &info["named_endpoints"][&name];
        for (ids, kinds) in [("inputs", "parameters"), ("outputs", "returns")] {
            let ids = one[ids].as_array().unwrap();
            let kinds = described[kinds].as_array().unwrap();
            assert_eq!(ids.len(), kinds.len());
            for (id, kind) in ids.iter().zip(kinds) {
                let component = &components[id.as_u64().unwrap() as usize];
                let shown = kind["component"].as_str().unwrap().to_lowercase();
                assert_eq!((&component["id"], &component["type"]), (id, &json!(shown)));
            }
        }
    }
    let app_id = gradio.get("/gradio_api/app_id").await.body;
    assert_eq!(app_id["app_id"], config["app_id"]);
    assert_eq!(gradio.get("/gradio_api/startup-events").await.body, false);
}

#[tokio::test]
async fn a_repeated_key_is_the_same_event() {
    let service = service(INSTANT).await;
    let http = reqwest::Client::new();
    let url = format!("http://{}/gradio_api/call/generate", service.address);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let request = http.post(&url).header("idempotency-key", "again");
        let reply = request.body(r#"{"data": ["x", 5]}"#).send().await.unwrap();
        ids.push(reply.json::<Value>().await.unwrap());
    }
    assert_eq!(ids[0], ids[1]);
}
