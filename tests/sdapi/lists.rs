//! What there is to choose from, and the choice of a model.

use serde_json::{Value, json};

use crate::INSTANT;
use crate::service::Service;

#[tokio::test]
async fn samplers_and_models_are_listed() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let samplers = client.get("/sdapi/v1/samplers").await.body;
    assert_eq!(
        samplers[2],
        json!({"name": "Euler a", "aliases": ["euler-ancestral"], "options": {}})
    );
    let schedulers = client.get("/sdapi/v1/schedulers").await.body;
    assert_eq!(schedulers[1]["label"], "Karras");
    let models = client.get("/sdapi/v1/sd-models").await.body;
    let names: Vec<_> = models.as_array().expect("a list").iter().collect();
    assert_eq!(
        names.len(),
        2,
        "the model for texts is not listed: {models}"
    );
    assert_eq!(names[0]["title"], "pictures");
    assert_eq!(names[1]["model_name"], "more/pictures");
    assert_eq!(
        client.get("/sdapi/v1/embeddings").await.body["loaded"],
        json!({})
    );
    assert_eq!(
        client.get("/sdapi/v1/scripts").await.body["txt2img"],
        json!([])
    );
    assert!(client.get("/sdapi/v1/memory").await.body["ram"].is_object());
    assert_eq!(client.get("/sdapi/v1/cmd-flags").await.body["api"], true);
    assert_eq!(client.get("/internal/ping").await.status, 200);
    for name in ["sd-vae", "upscalers", "loras", "hypernetworks"] {
        let list = client.get(&format!("/sdapi/v1/{name}")).await;
        assert_eq!((list.status, list.body), (200, json!([])), "{name}");
    }
    // Each sampler that is listed can be used.
    for sampler in samplers.as_array().expect("a list") {
        let body = json!({"prompt": "a fox", "sampler_name": sampler["name"]});
        let reply = client.draw(&body).await;
        assert_eq!(reply.info()["sampler_name"], sampler["name"]);
    }
}

#[tokio::test]
async fn a_caller_chooses_the_model_for_itself_alone() {
    let service = Service::start(INSTANT).await;
    let near = service.client(1, None);
    let far = service.client(2, None);
    let model = async |client: &crate::service::Client| {
        let options = client.get("/sdapi/v1/options").await.body;
        options["sd_model_checkpoint"].clone()
    };
    assert_eq!(model(&near).await, "pictures");
    let choice = json!({"sd_model_checkpoint": "more/pictures", "CLIP_stop_at_last_layers": 1});
    let reply = near.post("/sdapi/v1/options", &choice).await;
    assert_eq!((reply.status, reply.body), (200, Value::Null));
    assert_eq!(model(&near).await, "more/pictures");
    assert_eq!(model(&far).await, "pictures");
    let fox = json!({"prompt": "a fox"});
    assert_eq!(
        near.draw(&fox).await.info()["sd_model_name"],
        "more/pictures"
    );
    assert_eq!(far.draw(&fox).await.info()["sd_model_name"], "pictures");
    let once = json!({"prompt": "a fox", "override_settings": {"sd_model_checkpoint": "pictures"}});
    assert_eq!(near.draw(&once).await.info()["sd_model_name"], "pictures");
    assert_eq!(model(&near).await, "more/pictures");

    for (body, status, field) in [
        (
            json!({"sd_model_checkpoint": "nothing"}),
            404,
            "sd_model_checkpoint",
        ),
        (
            json!({"sd_model_checkpoint": "words"}),
            404,
            "sd_model_checkpoint",
        ),
        (
            json!({"CLIP_stop_at_last_layers": 2}),
            400,
            "CLIP_stop_at_last_layers",
        ),
        (json!({"what": 1}), 400, "what"),
    ] {
        let reply = near.post("/sdapi/v1/options", &body).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        assert_eq!(reply.body["field"], field, "{body}");
    }
    assert_eq!(
        model(&near).await,
        "more/pictures",
        "a refusal changes nothing"
    );
    // What is told is accepted again.
    let options = near.get("/sdapi/v1/options").await.body;
    assert_eq!(near.post("/sdapi/v1/options", &options).await.status, 200);
}
