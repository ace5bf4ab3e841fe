//! The pages, and the operator's API behind its own key.

use std::io::Read;
use std::time::Duration;

use girandole::api::admin::{History, Overview};
use girandole::api::native::wire::Reason;
use girandole::api::ops::Models;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::service::{INSTANT, Service, Setup, body, eventually};

const ADMIN: &str = "admin-secret-0123456789";
const ALICE: &str = "alice-secret-0123456789";

async fn guarded() -> Service {
    Service::start(Setup {
        keys: "alice alice-secret-0123456789",
        admin_keys: "operator admin-secret-0123456789",
        ..Setup::default()
    })
    .await
}

fn get(service: &Service, path: &str) -> RequestBuilder {
    service.client.call(Method::GET, path)
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

#[tokio::test]
async fn the_page_is_whole_strict_and_kept() {
    let service = guarded().await;
    // No key: the page is what asks for one.
    let page = get(&service, "/").send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    assert_eq!(header(&page, "cache-control"), "no-cache");
    let policy = header(&page, "content-security-policy").to_owned();
    for wanted in [
        "default-src 'none'",
        "script-src 'self'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(wanted), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let tag = header(&page, "etag").to_owned();
    let same = get(&service, "/")
        .header("if-none-match", &tag)
        .send()
        .await
        .unwrap();
    assert_eq!(same.status(), 304);

    let text = page.text().await.unwrap();
    let files: Vec<&str> = text
        .split("=\"")
        .filter_map(|rest| rest.split_once('"').map(|(value, _)| value))
        .filter(|value| value.starts_with("/assets/"))
        .collect();
    assert!(files.len() > 5, "{files:?}");
    for path in &files {
        let plain = get(&service, path).send().await.unwrap();
        assert_eq!(plain.status(), 200, "{path}");
        assert!(header(&plain, "cache-control").contains("immutable"));
        assert_eq!(header(&plain, "x-content-type-options"), "nosniff");
        let plain = plain.bytes().await.unwrap();
        let packed = get(&service, path).header("accept-encoding", "br, gzip");
        let packed = packed.send().await.unwrap();
        assert_eq!(header(&packed, "content-encoding"), "gzip");
        let packed = packed.bytes().await.unwrap();
        let mut unpacked = Vec::new();
        let mut reader = flate2::read::GzDecoder::new(&packed[..]);
        reader.read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain, "{path}");
    }
    // A page from before an update finds today's files, and does not keep them.
    let old = get(&service, "/assets/0123456789abcdef/app.js")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (old.status().as_u16(), header(&old, "cache-control")),
        (200, "no-cache")
    );
    let unknown = get(&service, "/assets/0123456789abcdef/x.js")
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), 404);
    let api = get(&service, "/api/v1/models").send().await.unwrap();
    assert_eq!(api.status(), 401);
}

#[tokio::test]
async fn models_say_what_a_form_needs_to_know() {
    let service = Service::start(Setup {
        script: "[image]",
        ..Setup::default()
    })
    .await;
    let models: Models = get(&service, "/api/v1/models")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let image = models.models[0].image.as_ref().unwrap();
    assert_eq!((image.width, image.height, image.size_factor), (64, 64, 8));
    assert!(
        image
            .schedules
            .iter()
            .any(|schedule| schedule.name == "euler")
    );
    assert!(models.models[0].text.is_none());
}

#[tokio::test]
async fn without_an_admin_key_there_is_no_operators_api() {
    let service = Service::start(Setup::default()).await;
    for path in ["overview", "history"] {
        let call = get(&service, &format!("/api/v1/admin/{path}")).bearer_auth(ADMIN);
        let response = call.send().await.unwrap();
        assert_eq!(response.status(), 404);
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], "admin_off");
    }
}

#[tokio::test]
async fn each_key_opens_its_own_door() {
    let service = guarded().await;
    let status = async |path: &str, key: &str| {
        let response = get(&service, path).bearer_auth(key).send().await.unwrap();
        response.status().as_u16()
    };
    assert_eq!(status("/api/v1/admin/overview", ADMIN).await, 200);
    assert_eq!(status("/api/v1/admin/overview", ALICE).await, 401);
    assert_eq!(status("/api/v1/admin/overview", "").await, 401);
    assert_eq!(status("/api/v1/models", ALICE).await, 200);
    assert_eq!(status("/api/v1/models", ADMIN).await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_cancels_and_drains() {
    let service = Service::start(Setup {
        admin_keys: "operator admin-secret-0123456789",
        batch_size: 1,
        ..Setup::default()
    })
    .await;
    let overview = async || -> Overview {
        let call = get(&service, "/api/v1/admin/overview").bearer_auth(ADMIN);
        let text = call.send().await.unwrap().text().await.unwrap();
        assert!(!text.contains("Burning"), "a prompt is shown: {text}");
        serde_json::from_str(&text).unwrap()
    };
    let running = service.submit(&body("Burning question", 8_000)).await;
    let waiting = service.submit(&body("Burning desire", 10)).await;
    eventually("one runs and one waits", async || {
        let requests = overview().await.requests;
        let places: Vec<_> = requests
            .iter()
            .map(|one| (one.state.as_str(), one.position))
            .collect();
        places == [("running", None), ("queued", Some(0))]
    })
    .await;
    let seen = overview().await;
    assert_eq!(
        (seen.requests[0].id.as_str(), seen.requests[1].id.as_str()),
        (&*running, &*waiting)
    );
    assert_eq!(
        (
            seen.models[0].task.as_str(),
            seen.models[0].load.running_rows
        ),
        ("text", 1)
    );

    let admin = async |method: Method, path: &str| {
        let call = service
            .client
            .call(method, &format!("/api/v1/admin/{path}"));
        call.bearer_auth(ADMIN)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(
        admin(Method::DELETE, &format!("requests/{}", "0".repeat(32))).await,
        404
    );
    assert_eq!(admin(Method::DELETE, "requests/x").await, 404);
    assert_eq!(
        admin(Method::DELETE, &format!("requests/{running}")).await,
        202
    );
    let ended = service.ended(&running).await;
    assert_eq!(ended.choices[0].finish_reason, Some(Reason::Cancelled));
    service.ended(&waiting).await;
    assert!(overview().await.requests.is_empty());

    assert_eq!(admin(Method::POST, "models/none/drain").await, 404);
    assert_eq!(admin(Method::POST, "models/scripted/drain").await, 202);
    eventually("drained", async || {
        overview().await.models[0].load.state == "stopped"
    })
    .await;
    assert!(service.client.submit(&body("Say", 1)).await.is_err());
}

#[tokio::test]
async fn the_history_names_every_model() {
    let service = Service::start(Setup {
        script: INSTANT,
        admin_keys: "operator admin-secret-0123456789",
        ..Setup::default()
    })
    .await;
    let call = get(&service, "/api/v1/admin/history").bearer_auth(ADMIN);
    let history: History = call.send().await.unwrap().json().await.unwrap();
    assert_eq!(
        history.resolution_ms,
        Duration::from_secs(10).as_millis() as u64
    );
    assert_eq!(history.models.len(), 1);
    assert_eq!(json!(history.models[0].name), json!("scripted"));
}
