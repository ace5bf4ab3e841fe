//! Settings of the HTTP edge.

use std::time::Duration;

use super::{DAY_S, HOUR_MS, MAX_BYTES, MAX_COUNT};
use crate::api::gradio::GradioConfig;
use crate::api::{AddressHeader, EdgeConfig, Proxies};
use crate::config::ConfigError;
use crate::config::layers::Values;
use crate::job::Priority;

pub(super) fn edge(values: &Values) -> Result<EdgeConfig, ConfigError> {
    Ok(EdgeConfig {
        max_frames_per_second: values.number("max_frames_per_second", 1..=1_000)?,
        max_stream_requests: values.number("max_stream_requests", 1..=256)?,
        keep_alive: values.millis("keep_alive_ms", 100..=HOUR_MS)?,
        // Between the acceptance and the first look at the events nobody reads a native request.
        native_grace: values.millis("native_grace_ms", 1_000..=HOUR_MS)?,
        openai_grace: values.millis("openai_grace_ms", 0..=HOUR_MS)?,
        max_wait: values.seconds("max_wait_s", 0..=3_600)?,
        max_deadline: values.seconds("max_deadline_s", 1..=7 * DAY_S)?,
        max_connections: values.number("max_connections", 1..=MAX_COUNT)?,
        max_body_bytes: values.number("max_body_bytes", 1_024..=1 << 30)?,
        max_body_bytes_in_flight: values.number("max_body_bytes_in_flight", 1_024..=MAX_BYTES)?,
        max_concurrent_intake: values.number("max_concurrent_intake", 1..=1_024)?,
        max_concurrent_encodings: values.number("max_concurrent_encodings", 1..=1_024)?,
        max_header_bytes: values.number("max_header_bytes", 8_192..=1 << 20)?,
        max_headers: values.number("max_headers", 8..=1_024)?,
        header_read_timeout: values.millis("header_timeout_ms", 10..=HOUR_MS)?,
        body_read_timeout: values.millis("body_timeout_ms", 10..=HOUR_MS)?,
        max_stream_age: stream_age(values, "max_stream_age_s")?,
        openai_max_stream_age: stream_age(values, "openai_max_stream_age_s")?,
        proxies: proxies(values)?,
        max_priority: values.choice(
            "max_priority",
            &Priority::ALL.map(|class| (class.name(), class)),
        )?,
        cors_origins: cors_origins(values)?,
        public_url: public_url(values)?,
        gradio: gradio(values)?,
        drain_timeout: values.millis("drain_timeout_ms", 0..=HOUR_MS)?,
    })
}

fn stream_age(values: &Values, key: &str) -> Result<Option<Duration>, ConfigError> {
    let seconds = values.optional_number(key, 1..=DAY_S)?;
    Ok(seconds.map(Duration::from_secs))
}

fn proxies(values: &Values) -> Result<Proxies, ConfigError> {
    const KEY: &str = "trusted_proxies";
    let networks = values.list(KEY).iter().filter(|text| !text.is_empty());
    let trusted = networks
        .map(|text| {
            text.parse()
                .map_err(|error| values.refuse(KEY, text, error))
        })
        .collect::<Result<_, _>>()?;
    Ok(Proxies {
        trusted,
        header: values.choice("client_address_header", &AddressHeader::ALL)?,
    })
}

fn gradio(values: &Values) -> Result<GradioConfig, ConfigError> {
    Ok(GradioConfig {
        // Clients open their stream only when they know that they have joined.
        grace: values.millis("gradio_grace_ms", 1_000..=HOUR_MS)?,
        linger: values.millis("gradio_linger_ms", 0..=60_000)?,
        max_sessions: values.number("gradio_max_sessions", 1..=MAX_COUNT)?,
        max_session_events: values.number("gradio_max_session_events", 1..=MAX_COUNT)?,
        session_ttl: values.seconds("gradio_session_ttl_s", 1..=DAY_S)?,
        max_uploads: values.number("gradio_max_uploads", 0..=MAX_COUNT)?,
        max_upload_bytes: values.number("gradio_max_upload_bytes", 0..=MAX_BYTES)?,
        upload_ttl: values.seconds("gradio_upload_ttl_s", 1..=DAY_S)?,
    })
}

fn public_url(values: &Values) -> Result<Option<String>, ConfigError> {
    let Some(url) = values.text("public_url").filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !url.contains(['?', '#', ' ']) => {
            Ok(Some(url.trim_end_matches('/').to_owned()))
        }
        _ => {
            let must = "an address such as https://example.org/demo";
            Err(values.refuse("public_url", url, must))
        }
    }
}

fn cors_origins(values: &Values) -> Result<Vec<String>, ConfigError> {
    let origins = values.list("cors_origin");
    for origin in origins {
        let (scheme, rest) = origin.split_once("://").unwrap_or_default();
        let exact = ["http", "https"].contains(&scheme) && !rest.is_empty() && !rest.contains('/');
        if origin != "*" && !exact {
            let must = "* or an exact origin such as https://example.org";
            return Err(values.refuse("cors_origin", origin, must));
        }
    }
    Ok(origins.to_vec())
}
