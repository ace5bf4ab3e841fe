//! A client that knows no more than Gradio's: it joins, it reads `data:` lines, it applies diffs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};

use crate::service::Service;

pub(crate) struct Gradio {
    http: reqwest::Client,
    base: String,
    pub(crate) session: String,
    key: Option<&'static str>,
}

/// An answer that is no stream.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Value,
}

/// One message, with the id before it if there was one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

impl Message {
    pub(crate) fn name(&self) -> &str {
        self.data["msg"].as_str().expect("a message has a name")
    }
}

/// A session's stream, read message by message.
pub(crate) struct Stream {
    bytes: BoxStream<'static, reqwest::Result<axum::body::Bytes>>,
    buffer: String,
}

impl Gradio {
    pub(crate) fn new(service: &Service) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let http = reqwest::Client::builder();
        Gradio {
            http: http.timeout(Duration::from_secs(30)).build().unwrap(),
            base: format!("http://{}", service.address),
            session: format!("session-{number}"),
            key: None,
        }
    }

    pub(crate) fn with_key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn answered(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = self.authorized(request).send().await.expect("an answer");
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
        let text = response.text().await.expect("a whole body");
        Reply {
            status,
            retry_after,
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.answered(self.http.get(format!("{}{path}", self.base)))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let request = self.http.post(format!("{}{path}", self.base));
        self.answered(request.body(body.to_string())).await
    }

    /// Uploads a form of these files.
    pub(crate) async fn upload(&self, files: &[(&str, &[u8])]) -> Reply {
        let mut body = Vec::new();
        for (name, bytes) in files {
            let head = format!(
                "--XX\r\nContent-Disposition: form-data; name=\"files\"; filename=\"{name}\"\r\n\r\n"
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--XX--\r\n");
        let request = self.http.post(format!("{}/gradio_api/upload", self.base));
        let request = request.header("content-type", "multipart/form-data; boundary=XX");
        self.answered(request.body(body)).await
    }

    pub(crate) async fn file(&self, path: &str) -> (u16, String, Vec<u8>) {
        let url = format!("{}/gradio_api/file={path}", self.base);
        let response = self.authorized(self.http.get(url)).send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (status, kind, response.bytes().await.unwrap().to_vec())
    }

    /// The endpoint's number.
    pub(crate) async fn index(&self, api_name: &str) -> u64 {
        let config = self.get("/config").await.body;
        let all = config["dependencies"].as_array().unwrap().clone();
        let found = all.iter().find(|one| one["api_name"] == api_name);
        found.expect("it is served")["id"].as_u64().unwrap()
    }

    pub(crate) async fn try_join(&self, api_name: &str, data: Value) -> Reply {
        let fn_index = self.index(api_name).await;
        let body = json!({
            "data": data, "fn_index": fn_index, "session_hash": self.session,
            "event_data": null, "trigger_id": null,
        });
        self.post("/gradio_api/queue/join", &body).await
    }

    /// Joins; the event's id.
    pub(crate) async fn join(&self, api_name: &str, data: Value) -> String {
        let reply = self.try_join(api_name, data).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["event_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn cancel(&self, event_id: &str) -> Reply {
        let body = json!({"event_id": event_id, "session_hash": self.session, "fn_index": 0});
        self.post("/gradio_api/cancel", &body).await
    }

    pub(crate) async fn stream(&self) -> Stream {
        self.stream_with("", None).await
    }

    /// The session's stream, with more in its query, and from behind an id.
    pub(crate) async fn stream_with(&self, query: &str, last: Option<&str>) -> Stream {
        let (base, session) = (&self.base, &self.session);
        let url = format!("{base}/gradio_api/queue/data?session_hash={session}{query}");
        let mut request = self.authorized(self.http.get(url));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let head = response.headers();
        assert_eq!(head["content-type"], "text/event-stream");
        assert_eq!(head["cache-control"], "no-cache, no-transform");
        assert_eq!(head["x-accel-buffering"], "no");
        Stream {
            bytes: response.bytes_stream().boxed(),
            buffer: String::new(),
        }
    }

    /// Everything that is said until the stream's end.
    pub(crate) async fn all(&self) -> Vec<Message> {
        self.stream().await.rest().await
    }
}

impl Stream {
    /// The next message; `None` at the end. The framing is held to the letter: an id line or none, one
    /// `data:` line, an empty one.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let end = loop {
            match self.buffer.find("\n\n") {
                Some(end) => break end,
                None => match self.bytes.next().await {
                    Some(bytes) => {
                        let bytes = bytes.expect("the connection holds");
                        self.buffer.push_str(std::str::from_utf8(&bytes).unwrap());
                    }
                    None => {
                        assert_eq!(self.buffer, "", "the stream ends at a message's end");
                        return None;
                    }
                },
            }
        };
        let block: String = self.buffer.drain(..end + 2).collect();
        let mut lines = block.trim_end_matches('\n').split('\n');
        let first = lines.next().unwrap();
        let (id, data) = match first.strip_prefix("id: ") {
            Some(id) => (Some(id.to_owned()), lines.next().expect("a data line")),
            None => (None, first),
        };
        assert_eq!(lines.next(), None, "{block:?}");
        let data = data.strip_prefix("data: ").expect("a data line");
        let data = serde_json::from_str(data).expect("one line of JSON");
        Some(Message { id, data })
    }

    pub(crate) async fn rest(mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }
}

/// The messages of one event.
pub(crate) fn of<'a>(messages: &'a [Message], event_id: &str) -> Vec<&'a Message> {
    let all = messages.iter();
    all.filter(|one| one.data["event_id"] == event_id).collect()
}

/// What clients make of the `process_generating` messages of each event: its values after each of them.
#[derive(Default)]
pub(crate) struct Values(HashMap<String, Vec<Value>>);

impl Values {
    /// The values after this message, if it is one that generates.
    pub(crate) fn take(&mut self, message: &Message) -> Option<Vec<Value>> {
        if message.name() != "process_generating" {
            return None;
        }
        let event_id = message.data["event_id"].as_str().unwrap().to_owned();
        let data = message.data["output"]["data"].as_array().unwrap().clone();
        let values = match self.0.remove(&event_id) {
            None => data,
            Some(before) => before
                .into_iter()
                .zip(data)
                .map(|(value, edits)| applied(value, edits.as_array().expect("edits")))
                .collect(),
        };
        self.0.insert(event_id, values.clone());
        Some(values)
    }
}

/// As both clients apply edits.
fn applied(mut value: Value, edits: &[Value]) -> Value {
    for edit in edits {
        let path = edit[1].as_array().expect("a path");
        let mut place = &mut value;
        let whole = path.is_empty();
        for step in path.iter().take(path.len().saturating_sub(1)) {
            place = match step.as_str() {
                Some(key) => &mut place[key],
                None => &mut place[step.as_u64().unwrap() as usize],
            };
        }
        match (
            edit[0].as_str().unwrap(),
            path.last().unwrap_or(&Value::Null),
        ) {
            ("append", _) if whole => {
                let text = place.as_str().unwrap().to_owned() + edit[2].as_str().unwrap();
                *place = text.into();
            }
            ("replace", _) if whole => *place = edit[2].clone(),
            ("add", Value::Number(at)) => {
                let list = place.as_array_mut().unwrap();
                list.insert(at.as_u64().unwrap() as usize, edit[2].clone());
            }
            ("replace" | "add", Value::String(key)) => place[key.as_str()] = edit[2].clone(),
            ("append", Value::String(key)) => {
                let text = place[key.as_str()].as_str().unwrap().to_owned();
                place[key.as_str()] = (text + edit[2].as_str().unwrap()).into();
            }
            other => panic!("{other:?} is not expected here"),
        }
    }
    value
}
