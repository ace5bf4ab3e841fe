//! The prefix cache as clients and operators see it, with a real decoder: one with random weights.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, Service};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
    "vocab_size": 272, "max_position_embeddings": 512}"#;
const ALICE: &str = "alice-secret-0123456789";
const BOB: &str = "bob-secret-0123456789";
/// Its tokens are its bytes: three whole blocks, and some.
const PROMPT_TOKENS: u64 = 100;

struct Client {
    service: Service,
    http: reqwest::Client,
}

impl Client {
    async fn start(sandbox: &Sandbox, flags: &str) -> Self {
        sandbox.write("config.json", CONFIG);
        sandbox.write("keys", format!("alice {ALICE}\nbob {BOB}\n"));
        let line = format!(
            "--port 0 --model tiny=config.json --load-format dummy --api-key-file keys {flags}"
        );
        let client = Client {
            service: Service::start(&mut sandbox.command(&line)),
            http: reqwest::Client::new(),
        };
        // It listens before its model is loaded.
        for _ in 0..1_000 {
            let (status, _) = client
                .answer(client.http.get(client.url("/health/ready")))
                .await;
            if status == 200 {
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("it was never ready");
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.service.port)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> (u16, String) {
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, response.text().await.expect("a whole answer"))
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let request = self.http.post(self.url(path)).bearer_auth(key).json(body);
        let (status, text) = self.answer(request).await;
        (status, serde_json::from_str(&text).expect("JSON"))
    }

    /// What a completion says, and how many of its prompt's tokens were cached.
    async fn complete(&self, key: &str, fields: Value) -> (Value, u64) {
        let mut body = json!({
            "model": "tiny", "prompt": "a".repeat(PROMPT_TOKENS as usize), "max_tokens": 10,
            "temperature": 0, "ignore_eos": true, "logprobs": 3,
        });
        let members = body.as_object_mut().expect("an object");
        members.extend(fields.as_object().expect("an object").clone());
        let (status, reply) = self.post("/v1/completions", key, &body).await;
        assert_eq!(status, 200, "{reply}");
        let usage = &reply["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        (reply["choices"].clone(), cached.expect("a number"))
    }

    /// Waits until a metric has this value, at most ten seconds.
    async fn until(&self, name: &str, value: f64) {
        for _ in 0..1_000 {
            if self.metric(name).await == value {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{name} is {} and never {value}", self.metric(name).await);
    }

    async fn metric(&self, name: &str) -> f64 {
        let request = self.http.get(self.url("/metrics")).bearer_auth(ALICE);
        let (_, page) = self.answer(request).await;
        let device = match name.starts_with("girandole_kv_blocks") {
            true => ",device=\"cpu\"",
            false => "",
        };
        let series = format!("{name}{{model=\"tiny\"{device}}} ");
        let mut values = page.lines().filter_map(|line| line.strip_prefix(&series));
        values
            .next()
            .expect("it is there")
            .parse()
            .expect("a number")
    }
}

#[tokio::test]
async fn cached_tokens_show_in_usage_and_metrics() {
    let sandbox = Sandbox::new();
    let client = Client::start(&sandbox, "").await;
    let (first, cached) = client.complete(ALICE, json!({})).await;
    assert_eq!(cached, 0);
    let (second, cached) = client.complete(ALICE, json!({})).await;
    assert_eq!((&second, cached), (&first, 96));

    // The native API counts the same.
    let body = json!({"prompt": "a".repeat(PROMPT_TOKENS as usize), "max_tokens": 1});
    let (status, submitted) = client.post("/api/v1/requests", ALICE, &body).await;
    assert_eq!(status, 201, "{submitted}");
    let id = submitted["id"].as_str().expect("an id");
    let path = format!("/api/v1/requests/{id}?wait=10");
    let request = client.http.get(client.url(&path)).bearer_auth(ALICE);
    let (_, text) = client.answer(request).await;
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status["usage"]["prompt_tokens"], PROMPT_TOKENS);
    assert_eq!(status["usage"]["cached_tokens"], 96);

    assert_eq!(client.metric("girandole_cached_tokens_total").await, 192.0);
    assert_eq!(client.metric("girandole_prompt_tokens_total").await, 300.0);
    // The engine reports these at the end of the pass and of the turn, after the answer.
    client.until("girandole_prefill_tokens_total", 108.0).await;
    client.until("girandole_kv_blocks_cached", 3.0).await;
    assert_eq!(
        client.metric("girandole_kv_blocks_evicted_total").await,
        0.0
    );
}

#[tokio::test]
async fn neither_another_key_nor_another_salt_finds_anything() {
    let sandbox = Sandbox::new();
    let client = Client::start(&sandbox, "").await;
    let (said, cached) = client.complete(ALICE, json!({})).await;
    assert_eq!(cached, 0);
    let cases = [
        (BOB, json!({})),
        (ALICE, json!({"cache_salt": "pepper"})),
        (BOB, json!({"cache_salt": "pepper"})),
        (ALICE, json!({"cache_salt": "paprika"})),
    ];
    for expected in [0, 96] {
        for (key, fields) in &cases {
            let (same, cached) = client.complete(key, fields.clone()).await;
            assert_eq!((&same, cached), (&said, expected), "{fields}");
        }
    }
    for salt in [json!(""), json!("s".repeat(257)), json!(7)] {
        let chat = json!({"model": "tiny", "cache_salt": salt,
            "messages": [{"role": "user", "content": "hello"}]});
        let (status, reply) = client.post("/v1/chat/completions", ALICE, &chat).await;
        assert_eq!(
            (status, &reply["error"]["param"]),
            (400, &json!("cache_salt"))
        );
        let native = json!({"prompt": "hello", "cache_salt": salt});
        let (status, reply) = client.post("/api/v1/requests", ALICE, &native).await;
        assert_eq!(
            (status, &reply["error"]["field"]),
            (400, &json!("cache_salt"))
        );
    }
    client.service.signal("TERM");
    let (_, stderr) = client.service.end();
    assert!(
        !stderr.contains("pepper") && !stderr.contains("paprika"),
        "{stderr}"
    );
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let sandbox = Sandbox::new();
    let client = Client::start(&sandbox, "--prefix-cache-tokens 0").await;
    let (first, cached) = client.complete(ALICE, json!({})).await;
    assert_eq!(cached, 0);
    let (second, cached) = client.complete(ALICE, json!({})).await;
    assert_eq!((&second, cached), (&first, 0));
    assert_eq!(client.metric("girandole_cached_tokens_total").await, 0.0);
    assert_eq!(client.metric("girandole_kv_blocks_cached").await, 0.0);
}
