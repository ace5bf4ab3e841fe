//! Around the requests: health, keys, limits, and answers to calls that make no sense.

use std::sync::atomic::Ordering;
use std::time::Duration;

use girandole::api::EdgeConfig;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::service::{INSTANT, Service, Setup, body, eventually};

async fn with_edge(edge: EdgeConfig) -> Service {
    Service::start(Setup {
        script: INSTANT,
        edge,
        ..Setup::default()
    })
    .await
}

async fn get(service: &Service, path: &str) -> (u16, String) {
    let response = service.client.call(Method::GET, path).send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.text().await.unwrap())
}

#[tokio::test]
async fn operators_can_see_how_it_is() {
    let service = with_edge(EdgeConfig::default()).await;
    assert_eq!(get(&service, "/health/live").await, (200, "ok\n".into()));
    let ready = service.client.readiness().await.unwrap();
    assert!(ready.ready);
    assert_eq!(ready.models[0].name, "scripted");
    let (status, metrics) = get(&service, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("test_frames_total"));
    let models = service.client.models().await.unwrap().models;
    assert_eq!(
        (models[0].name.as_str(), models[0].max_context),
        ("scripted", Some(8_192))
    );
    let load = service.client.load().await.unwrap();
    assert_eq!(load.models[0].slots, 16);
}

#[tokio::test]
async fn a_parameter_that_is_given_twice_is_refused() {
    let service = with_edge(EdgeConfig::default()).await;
    let id = service.submit(&body("Say", 5)).await;
    let (status, text) = get(&service, &format!("/api/v1/requests/{id}?wait=1&wait=0")).await;
    assert_eq!(status, 400);
    assert!(text.contains("wait is given twice"), "{text}");
}

/// What is held while pictures are drawn is the request, not the body that it came in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_counts_until_it_has_been_read() {
    let service = Service::start(Setup {
        script: "image = {}\ncost = { step_micros = 100000 }",
        edge: EdgeConfig {
            max_body_bytes_in_flight: 3_000,
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await;
    let draw = || {
        let call = service.client.call(Method::POST, "/v1/images/generations");
        let body = format!("{{\"prompt\": \"a fox\"{}}}", " ".repeat(2_000));
        let call = call.header("content-type", "application/json");
        tokio::spawn(call.body(body).send())
    };
    let first = draw();
    eventually("the first is drawn", async || {
        service.counters.started.load(Ordering::SeqCst) == 1
    })
    .await;
    let second = draw();
    for reply in [first, second] {
        assert_eq!(reply.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_model_that_cannot_load_is_not_ready() {
    let service = Service::start(Setup {
        script: "[model]\nfail_load = \"no weights\"",
        ..Setup::default()
    })
    .await;
    let (status, text) = get(&service, "/health/ready").await;
    assert_eq!(status, 503);
    assert!(text.contains("no weights"), "{text}");
    assert_eq!(get(&service, "/health/live").await.0, 200);
    let call = service.client.submit(&body("Say", 5)).await;
    assert_eq!(crate::service::refusal(call).0, 503);
}

#[tokio::test]
async fn keys_guard_everything_but_health() {
    let service = Service::start(Setup {
        keys: "a-secret-of-some-length",
        ..Setup::default()
    })
    .await;
    for path in [
        "/load",
        "/metrics",
        "/api/v1/models",
        "/v1/models",
        "/openapi.json",
        "/x",
    ] {
        assert_eq!(get(&service, path).await.0, 401, "{path}");
    }
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(get(&service, path).await.0, 200, "{path}");
    }
    let client = service.client.clone().with_key("a-secret-of-some-length");
    assert_eq!(client.models().await.unwrap().models.len(), 1);
    let client = service.client.clone().with_key("a-secret-of-some-lengtX");
    assert!(client.models().await.is_err());
}

#[tokio::test]
async fn wrong_paths_and_methods_are_answered_in_the_callers_shape() {
    let service = with_edge(EdgeConfig::default()).await;
    let check = async |method: Method, path: &str, status: u16, code: &str, native: bool| {
        let response = service.client.call(method, path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert!(response.headers().contains_key("x-request-id"));
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], code);
        assert_eq!(body["error"].get("field").is_some(), native, "{body}");
        assert_eq!(body["error"].get("param").is_some(), !native, "{body}");
    };
    check(Method::GET, "/nothing", 404, "path_not_found", true).await;
    check(Method::GET, "/v1/nothing", 404, "path_not_found", false).await;
    check(
        Method::PUT,
        "/api/v1/requests",
        405,
        "method_not_allowed",
        true,
    )
    .await;
    check(
        Method::GET,
        "/v1/completions",
        405,
        "method_not_allowed",
        false,
    )
    .await;
}

#[tokio::test]
async fn a_callers_own_id_comes_back_if_it_is_harmless() {
    let service = with_edge(EdgeConfig::default()).await;
    let echoed = async |id: &str| {
        let call = service.client.call(Method::GET, "/health/live");
        let response = call.header("x-request-id", id).send().await.unwrap();
        response.headers()["x-request-id"] == id
    };
    assert!(echoed("trace-1_2.3:4").await);
    assert!(!echoed("a b").await);
    assert!(!echoed(&"a".repeat(65)).await);
}

#[tokio::test]
async fn browsers_may_call_from_named_origins_only() {
    let header = async |service: &Service, origin: &str| {
        let call = service.client.call(Method::GET, "/health/live");
        let response = call.header("origin", origin).send().await.unwrap();
        let allowed = response
            .headers()
            .get("access-control-allow-origin")
            .cloned();
        allowed.map(|value| value.to_str().unwrap().to_owned())
    };
    let closed = with_edge(EdgeConfig::default()).await;
    assert_eq!(header(&closed, "https://a.example").await, None);
    let open = with_edge(EdgeConfig {
        cors_origins: vec!["https://a.example".into()],
        ..EdgeConfig::default()
    })
    .await;
    let allowed = header(&open, "https://a.example").await;
    assert_eq!(allowed.as_deref(), Some("https://a.example"));
    assert_eq!(header(&open, "https://b.example").await, None);
}

/// Everything that the service answers to raw bytes until it closes the connection.
async fn raw(service: &Service, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let reading = socket.read_to_end(&mut answer);
    let ended = tokio::time::timeout(Duration::from_secs(5), reading).await;
    // A reset after the answer is as good as an end.
    let _ = ended.expect("the connection is closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_bodies_have_limits_in_size_and_time() {
    let service = with_edge(EdgeConfig {
        max_body_bytes: 1_000,
        header_read_timeout: Duration::from_millis(200),
        body_read_timeout: Duration::from_millis(200),
        ..EdgeConfig::default()
    })
    .await;
    const POST: &str = "POST /api/v1/requests HTTP/1.1\r\nhost: test\r\nconnection: close\r\n";

    let announced = raw(
        &service,
        format!("{POST}content-length: 1001\r\n\r\n").as_bytes(),
    )
    .await;
    assert!(announced.starts_with("HTTP/1.1 413"), "{announced}");
    assert!(announced.contains("max_body_bytes"), "{announced}");

    let chunk = format!(
        "{POST}transfer-encoding: chunked\r\n\r\n3e9\r\n{}\r\n",
        "x".repeat(1_001)
    );
    let chunked = raw(&service, chunk.as_bytes()).await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");

    let slow_body = raw(
        &service,
        format!("{POST}content-length: 10\r\n\r\n{{").as_bytes(),
    )
    .await;
    assert!(slow_body.starts_with("HTTP/1.1 408"), "{slow_body}");
    assert!(slow_body.contains("body_too_slow"), "{slow_body}");

    let slow_head = raw(&service, b"GET /health/live HTTP/1.1\r\nhost:").await;
    assert!(!slow_head.starts_with("HTTP/1.1 200"), "{slow_head}");

    let large = format!(
        "GET /health/live HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let large_head = raw(&service, large.as_bytes()).await;
    assert!(large_head.starts_with("HTTP/1.1 431"), "{large_head}");

    let many: String = (0..100)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let many = format!("GET /health/live HTTP/1.1\r\nhost: test\r\n{many}\r\n");
    let many_headers = raw(&service, many.as_bytes()).await;
    assert!(many_headers.starts_with("HTTP/1.1 431"), "{many_headers}");

    assert_eq!(get(&service, "/health/live").await.0, 200);
}

#[tokio::test]
async fn bodies_share_a_budget() {
    let service = with_edge(EdgeConfig {
        max_body_bytes_in_flight: 100,
        ..EdgeConfig::default()
    })
    .await;
    let call = service.client.submit(&body(&"x".repeat(200), 5)).await;
    assert_eq!(
        crate::service::refusal(call),
        (503, "bodies_full".to_owned(), None)
    );
    service.submit(&body("x", 5)).await;
}

#[tokio::test]
async fn the_api_describes_itself_offline() {
    let service = with_edge(EdgeConfig::default()).await;
    let (status, text) = get(&service, "/openapi.json").await;
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    for path in [
        "/api/v1/requests",
        "/api/v1/requests/{id}",
        "/api/v1/requests/{id}/events",
        "/api/v1/events",
        "/api/v1/admin/overview",
        "/api/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/load",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let (status, page) = get(&service, "/docs/").await;
    assert_eq!(status, 200);
    assert!(page.contains("swagger-ui"), "{page}");
    assert!(
        !page.contains("//cdn") && !page.contains("src=\"http"),
        "{page}"
    );
    assert_eq!(get(&service, "/docs/swagger-ui-bundle.js").await.0, 200);
}
