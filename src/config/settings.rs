//! Every setting, once: its name, its default and its help.
//!
//! From this one list come the flags (`--batch-size`), the environment variables
//! (`GIRANDOLE_BATCH_SIZE`), the keys of the TOML file (`batch_size`), the help and the report at
//! start. What the values mean, and how far they may go, stands in [`resolve`](super::resolve).

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Its name in TOML.
    pub key: &'static str,
    /// Under which heading the help shows it.
    pub section: &'static str,
    /// What its value is, for the help: a unit or the choices.
    pub value: &'static str,
    /// How many values it takes.
    pub kind: Kind,
    /// What it is when nobody sets it; empty for unset. Several values have commas between them.
    pub default: &'static str,
    /// One line.
    pub help: &'static str,
    /// Whether a `[[models]]` table may set it for one model.
    pub per_model: bool,
}

/// How many values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One.
    One,
    /// Any number: a flag that may be repeated, a TOML array, a comma-separated variable.
    Many,
    /// `true` or `false`; a flag without a value means `true`.
    Switch,
}

impl Setting {
    /// `batch_size` -> `batch-size`.
    pub(super) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }
    /// `batch_size` -> `GIRANDOLE_BATCH_SIZE`.
    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_uppercase())
    }

    const fn many(mut self) -> Self {
        self.kind = Kind::Many;
        self
    }
    const fn per_model(mut self) -> Self {
        self.per_model = true;
        self
    }
}

/// What the names of our environment variables begin with.
pub(super) const VARIABLE_PREFIX: &str = "GIRANDOLE_";
/// Variables that tests and scripts use among themselves; the program leaves them alone.
pub(super) const RESERVED_PREFIXES: [&str; 2] = ["GIRANDOLE_TEST_", "GIRANDOLE_CI_"];

/// The setting of this name.
pub(super) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

const fn one(
    section: &'static str,
    key: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        key,
        section,
        value,
        kind: Kind::One,
        default,
        help,
        per_model: false,
    }
}

const fn switch(section: &'static str, key: &'static str, help: &'static str) -> Setting {
    Setting {
        kind: Kind::Switch,
        ..one(section, key, "true|false", "false", help)
    }
}

/// The section of settings that every subcommand takes.
pub(super) const PROGRAM: &str = "Program";
/// The section of settings that every subcommand takes, too.
pub(super) const SOURCES: &str = "Where models come from";
/// The section of settings that say which model is meant, and how it is set up.
pub(super) const MODELS: &str = "Models";
const BATCHING: &str = "Batching";
/// The section of settings that say where a service listens, and to whom.
pub(super) const LISTENING: &str = "Listening";
const STREAMS: &str = "Streams and event logs";
const GRADIO: &str = "Gradio's clients";
const LIMITS: &str = "Limits of a request";

/// All of them, in the order of the help. One line each is easier to compare than rustfmt's nine.
#[rustfmt::skip]
pub(super) const SETTINGS: &[Setting] = &[
    one(MODELS, "model", "[NAME=]MODEL", "smollm2-135m-instruct,tiny-sd",
        "A name (see `models list`), a .gguf file, a folder (of safetensors, or of an image model in diffusers' \
         layout), hf:OWNER/REPO[@REV][:FILE.gguf] or \
         scripted:FILE; repeat for several").many(),
    one(MODELS, "device", "cpu|cuda:N|metal:N", "cpu", "Where the model runs").per_model(),
    one(MODELS, "devices", "DEVICE,DEVICE...", "",
        "Several devices, each with the whole model and an engine of its own, behind one queue; instead of device. \
         cpu may stand there more than once: each gets its share of compute_threads").many().per_model(),
    one(MODELS, "dtype", "auto|f32|f16|bf16", "auto",
        "Type of weights that are not quantised; auto: as in the file").per_model(),
    one(MODELS, "kv_dtype", "auto|f32|f16|bf16", "auto",
        "Type of the KV cache; auto: f16").per_model(),
    one(MODELS, "load_format", "auto|dummy", "auto",
        "dummy: random weights from a config.json alone").per_model(),
    one(MODELS, "dummy_seed", "NUMBER", "0", "Seed of dummy weights").per_model(),
    one(MODELS, "max_context", "TOKENS", "",
        "Prompt and new tokens of a row [default: what the model was made for]").per_model(),
    one(MODELS, "kv_cache_tokens", "TOKENS", "",
        "Tokens of all running rows together [default: 2048 a row, within 4 GiB; on a card, what the weights leave]").per_model(),
    one(MODELS, "device_memory_share", "SHARE", "0.9",
        "Part of a card's memory that may be in use once the model is loaded, whoever uses it: the KV cache fills \
         what is left below, unless kv_cache_tokens is set").per_model(),
    one(MODELS, "cuda_graphs", "on|off", "on",
        "Steps on a card are recorded and launched whole; off: kernel by kernel, with the same results").per_model(),
    one(MODELS, "prefix_cache_tokens", "TOKENS", "",
        "Tokens of the KV cache kept for prompts that begin alike, when no row holds them any more; \
         0 switches prefix caching off [default: a quarter of it]").per_model(),
    one(MODELS, "decode_memory_bytes", "BYTES", "1073741824",
        "Memory for decoding one picture; larger ones are decoded in tiles").per_model(),
    one(MODELS, "prompt_cache_bytes", "BYTES", "67108864",
        "Memory for what an image model's text encoders made of prompts read lately").per_model(),
    one(MODELS, "preview_decoder", "FOLDER", "",
        "A small decoder (AutoencoderTiny, such as TAESD) that shows pictures while they are drawn [default: a \
         linear map]").per_model(),
    switch(MODELS, "deterministic",
        "Pictures have the same bits whatever their company, also on a GPU, where it costs speed; on the CPU \
         they always have").per_model(),
    one(MODELS, "compute_threads", "COUNT", "",
        "Threads for the models' arithmetic [default: the cores that the process may use, less one for \
         HTTP if they are three or more]"),
    one(MODELS, "isa", "auto|NAME", "auto",
        "Instructions of the CPU's kernels: portable, avx2, avx-vnni, avx512, neon or neon-dot; \
         auto: the best of this processor"),

    one(BATCHING, "batch_size", "ROWS", "16", "Rows that run at once").per_model(),
    one(BATCHING, "batching", "continuous|dynamic", "continuous",
        "Newcomers join at the next step, or when the batch has ended").per_model(),
    one(BATCHING, "max_queue_delay_ms", "MS", "5",
        "How long an idle engine waits for a batch to fill").per_model(),
    one(BATCHING, "step_budget_ms", "MS", "100",
        "How long a step may take: long prompts are cut to fit").per_model(),
    one(BATCHING, "max_rows_per_pass", "auto|ROWS", "auto",
        "Pictures of the model's own size in one denoising step, guided ones counting twice; more take turns. \
         auto: measured at start").per_model(),
    one(BATCHING, "max_queued_requests", "ROWS", "256",
        "Rows that may wait; more are refused with 429").per_model(),
    one(BATCHING, "max_queued_tokens", "TOKENS", "262144",
        "Prompt tokens that may be in the engine; more are refused with 429").per_model(),
    one(BATCHING, "max_queued_source_bytes", "BYTES", "268435456",
        "Size of the pictures, decoded, that requests in the engine begin from; more are refused with 429").per_model(),
    one(BATCHING, "max_waiting_per_user", "ROWS", "",
        "Rows of one user (a key, or without keys an address) that may wait; more are refused with 429 \
         [default: no limit of their own]").per_model(),
    one(BATCHING, "max_running_per_user", "ROWS", "",
        "Rows of one user that run at once; more wait [default: no limit of their own]").per_model(),
    one(BATCHING, "priority_ageing_s", "SECONDS", "30",
        "A class of priority in which somebody has waited so long takes turns with more urgent ones").per_model(),
    one(BATCHING, "max_remembered_users", "COUNT", "10000",
        "Users who had more than their turn and wait no more, remembered while others wait").per_model(),

    one(LISTENING, "host", "ADDRESS", "127.0.0.1", "Address to listen on"),
    one(LISTENING, "port", "PORT", "8080", "Port to listen on; 0 for any free one"),
    one(LISTENING, "api_key_file", "FILE", "",
        "Keys that callers must show, one a line, or sha256:DIGEST; each may have a name and a space before it"),
    one(LISTENING, "admin_key_file", "FILE", "",
        "Keys for the operator's page, /admin, and its API, in the same form; both are off without it"),
    switch(LISTENING, "allow_unauthenticated",
        "Listen beyond this machine without asking for keys"),
    one(LISTENING, "max_priority", "interactive|normal|batch", "normal",
        "The most urgent class that requests may ask for, unless priority=CLASS stands behind their key in its \
         file"),
    one(LISTENING, "trusted_proxies", "NETWORK", "",
        "Address or network of a proxy that is believed about its clients' addresses; repeat for several").many(),
    one(LISTENING, "client_address_header", "NAME", "x-forwarded-for",
        "Where trusted proxies tell it: x-forwarded-for, forwarded or x-real-ip; no other is read"),
    one(LISTENING, "cors_origin", "ORIGIN", "",
        "Origin that browsers may call from, or *; repeat for several").many(),
    one(LISTENING, "public_url", "URL", "",
        "Where clients reach the service, for links to files [default: as each request's Host header says, \
         by http]"),
    one(LISTENING, "max_connections", "COUNT", "4096", "Connections open at once"),
    one(LISTENING, "max_body_bytes", "BYTES", "8388608", "Size of a request's body"),
    one(LISTENING, "max_body_bytes_in_flight", "BYTES", "536870912",
        "Size of all bodies that are being read or worked on"),
    one(LISTENING, "max_concurrent_intake", "COUNT", "2",
        "Prompts tokenized and pictures decoded at once; more wait, so that the models keep their cores"),
    one(LISTENING, "max_concurrent_encodings", "COUNT", "2",
        "Pictures written as files at once; more wait"),
    one(LISTENING, "max_header_bytes", "BYTES", "16384", "Size of a request's head"),
    one(LISTENING, "max_headers", "COUNT", "64", "Header lines of a request"),
    one(LISTENING, "header_timeout_ms", "MS", "10000",
        "How long a request's head may take to arrive"),
    one(LISTENING, "body_timeout_ms", "MS", "30000",
        "How long a request's body may take to arrive"),
    switch(LISTENING, "stop_with_stdin",
        "Stop at once when stdin ends: for a program that starts the service and holds the other end"),

    one(STREAMS, "max_frames_per_second", "COUNT", "20", "Frames a stream shows in any second"),
    one(STREAMS, "max_stream_requests", "COUNT", "64", "Requests that one stream of several follows"),
    one(STREAMS, "keep_alive_ms", "MS", "10000", "A silent stream says something this often"),
    one(STREAMS, "native_grace_ms", "MS", "30000",
        "A native request that nobody reads is cancelled after this"),
    one(STREAMS, "openai_grace_ms", "MS", "5000",
        "The same for OpenAI's dialect and the web UI's, whose clients seldom come back"),
    one(STREAMS, "max_stream_age_s", "SECONDS", "",
        "A stream of events ends after this, between two messages, and its client goes on with another; for proxies that \
         cut long answers [default: when all is said]"),
    one(STREAMS, "openai_max_stream_age_s", "SECONDS", "",
        "The same for streams that answer a POST in OpenAI's dialect, whose clients do not go on by themselves \
         [default: when all is said]"),
    one(STREAMS, "max_wait_s", "SECONDS", "60", "The longest ?wait= of a poll"),
    one(STREAMS, "max_deadline_s", "SECONDS", "86400",
        "The longest deadline a request may ask for"),
    one(STREAMS, "event_retention_s", "SECONDS", "600", "How long finished logs are kept"),
    one(STREAMS, "event_store_max_bytes", "BYTES", "536870912", "Size of all logs together"),
    one(STREAMS, "event_store_max_requests", "COUNT", "10000", "Finished logs kept"),
    one(STREAMS, "event_store_max_expired", "COUNT", "100000",
        "Forgotten requests remembered, to answer 410 and not 404"),

    one(GRADIO, "gradio_grace_ms", "MS", "30000",
        "An event whose session nobody reads is cancelled after this"),
    one(GRADIO, "gradio_linger_ms", "MS", "100",
        "A session's stream stays open for so long when all its events have ended"),
    one(GRADIO, "gradio_max_sessions", "COUNT", "10000", "Sessions remembered"),
    one(GRADIO, "gradio_max_session_events", "COUNT", "64",
        "Events of a session that have not been told to their end; more are refused with 503"),
    one(GRADIO, "gradio_session_ttl_s", "SECONDS", "600", "How long a session without a reader is remembered"),
    one(GRADIO, "gradio_max_uploads", "COUNT", "1024", "Uploaded pictures kept"),
    one(GRADIO, "gradio_max_upload_bytes", "BYTES", "268435456", "Size of all uploaded pictures"),
    one(GRADIO, "gradio_upload_ttl_s", "SECONDS", "600", "How long an uploaded picture is kept"),

    one(LIMITS, "max_choices", "COUNT", "32", "n and best_of").per_model(),
    one(LIMITS, "max_prompts", "COUNT", "32", "Prompts of one completion request").per_model(),
    one(LIMITS, "max_prompt_bytes", "BYTES", "4194304", "Text of a prompt or chat").per_model(),
    one(LIMITS, "max_messages", "COUNT", "1024", "Messages of a chat").per_model(),
    one(LIMITS, "max_new_tokens", "TOKENS", "",
        "New tokens a row [default: what the context leaves]").per_model(),
    one(LIMITS, "default_max_tokens", "TOKENS", "",
        "New tokens of a request that does not say [default: the manifest's word, else what the \
         context leaves]").per_model(),
    one(LIMITS, "max_stop_strings", "COUNT", "16", "Stop strings").per_model(),
    one(LIMITS, "max_stop_bytes", "BYTES", "1024", "Size of a stop string").per_model(),
    one(LIMITS, "max_stop_token_ids", "COUNT", "128", "Stop token ids").per_model(),
    one(LIMITS, "max_logit_bias", "COUNT", "1024", "Entries of logit_bias").per_model(),
    one(LIMITS, "max_top_logprobs", "COUNT", "20",
        "Alternatives reported for each token").per_model(),
    one(LIMITS, "max_temperature", "NUMBER", "2", "The highest temperature").per_model(),
    one(LIMITS, "default_steps", "COUNT", "",
        "Denoising steps of a request that does not say [default: what the model's kind needs, else 20]").per_model(),
    one(LIMITS, "default_guidance_scale", "NUMBER", "",
        "Guidance of a request that does not say; 1 or less switches it off [default: what the model's \
         kind needs, else 7.5]").per_model(),
    one(LIMITS, "max_images", "COUNT", "10", "Pictures of one request").per_model(),
    one(LIMITS, "max_image_pixels", "PIXELS", "1048576",
        "Width times height of a picture to be drawn").per_model(),
    one(LIMITS, "max_guidance_scale", "NUMBER", "30", "The highest guidance of a picture").per_model(),
    one(LIMITS, "max_steps", "COUNT", "150", "Denoising steps").per_model(),
    one(LIMITS, "max_previews", "COUNT", "50",
        "States of one picture that a request may ask to be shown, and kept").per_model(),
    one(LIMITS, "max_prompt_chunks", "COUNT", "3",
        "Windows of 75 tokens that the prompt of a picture may take").per_model(),
    one(LIMITS, "max_source_pixels", "PIXELS", "16777216",
        "Size of a picture that a client sends").per_model(),

    one(SOURCES, "models_dir", "FOLDER", "",
        "Manifests of more models, and their local files [default: `models` beside the file \
         given with --config, if it exists]"),
    one(SOURCES, "cache_dir", "FOLDER", "",
        "Where fetched models are kept [default: girandole in XDG_CACHE_HOME or ~/.cache]"),
    one(SOURCES, "weights_variant", "full|fp16", "full",
        "Which weights of an image model are fetched from the hub where there is a choice"),
    switch(SOURCES, "offline", "Use models that are on this machine only"),

    one(PROGRAM, "config", "FILE", "",
        "Settings in TOML, under the names of these flags with _ for -"),
    one(PROGRAM, "drain_timeout_ms", "MS", "30000",
        "How long running requests may go on after SIGTERM; a second signal stops at once"),
    one(PROGRAM, "admin_history_s", "SECONDS", "3600",
        "How far back the operator's plots go, in points of 10 s; kept only with admin_key_file"),
    one(PROGRAM, "log_format", "text|json", "text", "How log lines look"),
    one(PROGRAM, "log_level", "FILTER", "info",
        "error, warn, info, debug or trace, or a filter such as girandole=debug,info; RUST_LOG \
         stands in for it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        for (index, setting) in SETTINGS.iter().enumerate() {
            let key = setting.key;
            assert!(
                key.bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')),
                "{key}"
            );
            assert!(
                SETTINGS[..index].iter().all(|other| other.key != key),
                "{key}"
            );
        }
    }
}
