//! What a server tells about itself.

use serde_json::Value;

use super::counters::Counters;
use super::{Target, TargetConfig};
use crate::bench::results::Task;

/// Bytes that are read of a page.
const MAX_PAGE: usize = 4 << 20;

/// What was told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The `Server` header.
    pub server_header: Option<String>,
    /// The body of `/health`, or of our `/health/ready`.
    pub health: Value,
    /// The body of `/v1/models`.
    pub models: Value,
    /// The body of llama.cpp's `/props`.
    pub props: Value,
    /// The body of vLLM's `/version`.
    pub version: Value,
    /// Its metrics.
    pub counters: Counters,
}

impl Told {
    /// The models served, the first of which is the default, with what they make if that is told.
    pub fn served(&self) -> Vec<(String, Option<Task>)> {
        let entries = self.models["data"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let task = |entry: &Value| match entry["task"].as_str() {
            Some("image") => Some(Task::Image),
            Some("text") => Some(Task::Text),
            _ => None,
        };
        let named = |entry: &Value| Some((entry["id"].as_str()?.to_owned(), task(entry)));
        entries.iter().filter_map(named).collect()
    }

    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.counters
            .iter()
            .any(|(name, _)| name.starts_with("girandole_"))
    }

    /// What it calls itself, and its version.
    pub fn software(&self) -> (Option<String>, Option<String>) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let build = self.counters.iter().find_map(|(name, _)| {
            let labels = name.strip_prefix("girandole_build_info{version=\"")?;
            Some(labels.split('"').next()?.to_owned())
        });
        match build {
            Some(version) => (Some("girandole".to_owned()), Some(version)),
            None => {
                let version = text(&self.version["version"]).or(text(&self.props["build_info"]));
                (self.server_header.clone(), version)
            }
        }
    }
}

impl Target {
    /// Asks a server about itself. What it does not tell is left out.
    pub async fn probe(&self) -> Told {
        let (models, server_header) = self.json("/v1/models").await;
        let (mut health, _) = self.json("/health/ready").await;
        if health.is_null() {
            (health, _) = self.json("/health").await;
        }
        Told {
            server_header,
            health,
            models,
            props: self.json("/props").await.0,
            version: self.json("/version").await.0,
            counters: self.counters().await.unwrap_or_default(),
        }
    }

    /// Its metrics; `None` if it has none.
    pub async fn counters(&self) -> Option<Counters> {
        let counters = Counters::read(&self.page("/metrics").await?.0);
        (!counters.is_empty()).then_some(counters)
    }

    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> bool {
        match self
            .call(reqwest::Method::GET, "/health/ready")
            .send()
            .await
        {
            Ok(response) if response.status() == 404 => true,
            Ok(response) => response.status().is_success(),
            Err(_) => false,
        }
    }

    async fn json(&self, path: &str) -> (Value, Option<String>) {
        match self.page(path).await {
            Some((text, header)) => (serde_json::from_str(&text).unwrap_or(Value::Null), header),
            None => (Value::Null, None),
        }
    }

    async fn page(&self, path: &str) -> Option<(String, Option<String>)> {
        let call = self.call(reqwest::Method::GET, path);
        let mut response = call
            .timeout(std::time::Duration::from_secs(5))
            .send()
            .await
            .ok()?;
        if !response.status().is_success() {
            return None;
        }
        let header = response.headers().get("server");
        let header = header
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut page = Vec::new();
        while let Some(chunk) = response.chunk().await.ok()? {
            page.extend_from_slice(&chunk);
            if page.len() > MAX_PAGE {
                return None;
            }
        }
        Some((String::from_utf8_lossy(&page).into_owned(), header))
    }
}

impl TargetConfig {
    /// The URL without user and password, for the report.
    pub fn shown_url(&self) -> String {
        match self
            .url
            .split_once("://")
            .map(|(scheme, rest)| (scheme, rest.rsplit_once('@')))
        {
            Some((scheme, Some((_, host)))) => format!("{scheme}://{host}"),
            _ => self.url.clone(),
        }
    }

    /// Whether it runs on this machine.
    pub fn is_local(&self) -> bool {
        let shown = self.shown_url();
        let host = shown
            .split_once("://")
            .map_or(shown.as_str(), |(_, rest)| rest);
        ["127.", "localhost", "[::1]"]
            .iter()
            .any(|local| host.starts_with(local))
    }
}
