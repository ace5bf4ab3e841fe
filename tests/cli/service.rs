//! How the service starts and ends.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use crate::sandbox::{Sandbox, Service, wait_until};

/// Sends a request and returns the connection, to read the answer from.
fn request(port: u16, head: &str, body: &str) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    write!(
        socket,
        "{head} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    BufReader::new(socket)
}

/// The lines of an answer until one contains `wanted`.
fn read_until(answer: &mut BufReader<TcpStream>, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let before = text.len();
        answer.read_line(&mut text).unwrap();
        assert!(text.len() > before, "{wanted:?} never came:\n{text}");
    }
    text
}

const STREAM: &str = r#"{"model": "slow", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "stream": true}"#;

fn started(sandbox: &Sandbox, flags: &str) -> Service {
    sandbox.write("slow.toml", "[cost]\ntokens_per_second = 40.0\n");
    let line = format!("serve --port 0 --model scripted:slow.toml {flags}");
    let service = Service::start(&mut sandbox.command(&line));
    // It listens before its model is loaded.
    wait_until(|| {
        let mut answer = String::new();
        let mut ready = request(service.port, "GET /health/ready", "");
        ready.read_line(&mut answer).is_ok() && answer.contains(" 200 ")
    });
    service
}

#[test]
fn what_was_resolved_is_printed_without_secrets() {
    let sandbox = Sandbox::new();
    sandbox.write("script.toml", "");
    sandbox.write("keys", "me=a-very-secret-key\n");
    sandbox.write(
        "girandole.toml",
        "batch_size = 2\nbatching = \"dynamic\"\nport = 1\n",
    );
    let line = "--config girandole.toml --port 0 --model scripted:script.toml --api-key-file keys";
    let mut command = sandbox.command(line);
    command
        .env("GIRANDOLE_BATCH_SIZE", "3")
        .env("HF_TOKEN", "hf_verysecret")
        .env("HF_ENDPOINT", "http://me:verysecret@127.0.0.1:1");
    let service = Service::start(&mut command);
    service.signal("TERM");
    let (code, stderr) = service.end();
    assert_eq!(code, Some(0), "{stderr}");
    for expected in [
        "port=0 (flag)",
        "batch_size=3 (environment)",
        "batching=dynamic (file)",
        "max_queue_delay_ms=5 ",
        "api_key_file=keys (flag)",
        "token=(hidden)",
    ] {
        assert!(stderr.contains(expected), "{expected} is not in\n{stderr}");
    }
    assert!(!stderr.contains("secret"), "{stderr}");
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_start() {
    let sandbox = Sandbox::new();
    sandbox.write("bad.toml", "[model]\nfail_load = \"no weights\"\n");
    sandbox.write("good.toml", "");
    sandbox
        .run("--port 0 --model scripted:good.toml --model scripted:bad.toml")
        .expect(1, &["model bad: the model cannot be loaded: no weights"]);
    sandbox
        .run("--port 0 --model scripted:missing.toml")
        .expect(1, &["cannot serve model missing", "missing.toml"]);
}

#[test]
fn a_stream_that_runs_is_finished_before_the_end() {
    let sandbox = Sandbox::new();
    let service = started(&sandbox, "");
    let mut stream = request(service.port, "POST /v1/chat/completions", STREAM);
    read_until(&mut stream, "delta");
    service.signal("TERM");
    let text = read_until(&mut stream, "data: [DONE]");
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    let (code, stderr) = service.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("draining"), "{stderr}");
}

#[test]
fn two_devices_are_named_served_from_and_drained() {
    let sandbox = Sandbox::new();
    let service = started(&sandbox, "--devices cpu,cpu");
    let mut load = request(service.port, "GET /load", "");
    let load = read_until(&mut load, "cpu:1");
    assert!(load.contains("cpu:0"), "{load}");
    let mut first = request(service.port, "POST /v1/chat/completions", STREAM);
    let mut second = request(service.port, "POST /v1/chat/completions", STREAM);
    for stream in [&mut first, &mut second] {
        read_until(stream, "delta");
    }
    // One on each: an idle device goes before one at work.
    for device in ["cpu:0", "cpu:1"] {
        let mut metrics = request(service.port, "GET /metrics", "");
        let wanted = format!("girandole_rows_running{{model=\"slow\",device=\"{device}\"}} 1\n");
        read_until(&mut metrics, &wanted);
    }
    service.signal("TERM");
    for stream in [&mut first, &mut second] {
        let text = read_until(stream, "data: [DONE]");
        assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    }
    let (code, stderr) = service.end();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn the_deadline_of_the_drain_ends_what_is_left() {
    let sandbox = Sandbox::new();
    let service = started(&sandbox, "--drain-timeout-ms 100");
    let mut stream = request(service.port, "POST /v1/chat/completions", STREAM);
    read_until(&mut stream, "delta");
    service.signal("TERM");
    let text = read_until(&mut stream, "error");
    assert!(!text.contains("\"finish_reason\":\"length\""), "{text}");
    let (code, stderr) = service.end();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn a_second_signal_stops_at_once() {
    let sandbox = Sandbox::new();
    let service = started(&sandbox, "");
    let endless = STREAM.replace("40", "4000");
    let mut stream = request(service.port, "POST /v1/chat/completions", &endless);
    read_until(&mut stream, "delta");
    service.signal("TERM");
    let mut refused = request(service.port, "POST /v1/chat/completions", STREAM);
    read_until(&mut refused, " 503 ");
    service.signal("INT");
    let (_, stderr) = service.end();
    assert!(stderr.contains("stopping at once"), "{stderr}");
}

#[test]
fn readiness_goes_with_the_drain() {
    let sandbox = Sandbox::new();
    let service = started(&sandbox, "");
    let mut stream = request(service.port, "POST /v1/chat/completions", STREAM);
    read_until(&mut stream, "delta");
    read_until(&mut request(service.port, "GET /health/ready", ""), " 200 ");
    service.signal("TERM");
    read_until(&mut stream, "delta");
    read_until(&mut request(service.port, "GET /health/ready", ""), " 503 ");
    read_until(&mut request(service.port, "GET /health/live", ""), " 200 ");
}
