//! `bench`, as a user meets it.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::sandbox::{Ended, Sandbox};

/// A small decoder with random weights and room for 64 positions a row.
const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "vocab_size": 272, "max_position_embeddings": 64}"#;

const QUICK: &str = "--load-format dummy --model tiny/config.json --compute-threads 1 --prefill 4,65 \
                     --rows 1,3 --context 5 --steps 2 --repeats 3";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("tiny/config.json", TINY);
    sandbox
}

fn engine(sandbox: &Sandbox, line: &str) -> Ended {
    sandbox.run(&format!("bench engine {line}"))
}

/// A number of the report, at a path like `/limits/memory/buffer_bytes`.
#[track_caller]
fn number(report: &Value, path: &str) -> f64 {
    let found = report.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} in\n{report:#}"))
}

#[test]
fn the_json_holds_every_figure() {
    let sandbox = sandbox();
    let ended = engine(&sandbox, &format!("{QUICK} --format json"));
    ended.expect(0, &[]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["schema"], "girandole.bench.engine");
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["setup"]["load_format"], "dummy");
    assert_eq!(report["setup"]["rows"], serde_json::json!([1, 3]));
    assert_eq!(number(&report, "/setup/compute_threads"), 1.0);
    assert_eq!(number(&report, "/setup/served_context"), 64.0);

    // Two layers of query, key, value, output, gate, up and down, and the head; in f32.
    let products = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 272;
    assert_eq!(
        number(&report, "/demand/weight_bytes_per_pass"),
        f64::from(products * 4)
    );
    assert_eq!(
        number(&report, "/demand/operations_per_token"),
        f64::from(products * 2)
    );
    for limit in [
        "memory/bytes_per_second",
        "weights/bytes_per_second",
        "float_operations_per_second",
        "integer_operations_per_second",
    ] {
        assert!(number(&report, &format!("/limits/{limit}")) > 0.0);
    }
    for (level, size, time) in [
        ("/prefill/0", "tokens", "pass_ms"),
        ("/decode/0", "rows", "step_ms"),
        ("/decode/1", "rows", "step_ms"),
    ] {
        assert!(number(&report, &format!("{level}/{size}")) > 0.0);
        for spread in ["tokens_per_second", time] {
            let [min, median, max] = ["min", "median", "max"]
                .map(|value| number(&report, &format!("{level}/{spread}/{value}")));
            assert!(0.0 < min && min <= median && median <= max);
        }
        for share in ["memory", "arithmetic"] {
            assert!(number(&report, &format!("{level}/shares/{share}")) > 0.0);
        }
        let nearer = report.pointer(&format!("{level}/shares/nearer")).unwrap();
        assert!(nearer == "memory" || nearer == "arithmetic", "{nearer}");
        check_parts(&report, level);
    }
    // Three steps of warming up, then three repeats of two.
    assert_eq!(number(&report, "/decode/1/first_context"), 9.0);
    assert_eq!(number(&report, "/decode/1/last_context"), 14.0);
}

/// Every part is there, those that this model has have run, and together they make the step.
fn check_parts(report: &Value, level: &str) {
    let parts = report.pointer(&format!("{level}/parts")).unwrap();
    let parts = parts.as_array().unwrap();
    let names: Vec<&str> = parts
        .iter()
        .map(|part| part["part"].as_str().unwrap())
        .collect();
    for name in ["embedding", "norm", "rope", "attention", "head", "sampling"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert_eq!(names.last(), Some(&"everything else"));
    for part in parts.iter().filter(|part| part["part"] != "residual") {
        assert!(part["ms"].as_f64().unwrap() > 0.0, "{part} did not run");
    }
    let total: f64 = parts
        .iter()
        .map(|part| part["share"].as_f64().unwrap())
        .sum();
    assert!((total - 1.0).abs() < 1e-6, "shares make {total}");
}

#[test]
fn a_level_that_does_not_fit_is_skipped_with_its_reason() {
    let sandbox = sandbox();
    let ended = engine(
        &sandbox,
        &format!("{QUICK} --kv-cache-tokens 64 --json out.json"),
    );
    ended.expect(0, &[]);
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(sandbox.path("out.json")).unwrap()).unwrap();
    let prompt = "a row needs 66 positions and has 64 (max_context)";
    let rows = "the rows need 3 K/V blocks and there are 2 (kv_cache_tokens)";
    assert_eq!(report["prefill"][1]["skipped"], prompt);
    assert_eq!(report["decode"][1]["skipped"], rows);
    for expected in [
        &format!("65 is skipped: {prompt}"),
        &format!("3 is skipped: {rows}"),
        "tok/s",
        "nearer limit",
        "random weights",
        "Parts of a decode step: ms and share",
    ] {
        assert!(
            ended.stdout.contains(expected),
            "{expected} is not in\n{}",
            ended.stdout
        );
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let sandbox = sandbox();
    sandbox.write("script.toml", "");
    engine(&sandbox, "--rows 0").expect(2, &["--rows", "1..=4096"]);
    engine(&sandbox, "--kv-dtype f8").expect(2, &["kv_dtype", "one of auto, f32, f16, bf16"]);
    engine(&sandbox, "--device-memory-share 1.5").expect(
        2,
        &["device_memory_share", "1.5", "a number from 0.01 to 1"],
    );
    engine(&sandbox, "--cuda-graphs maybe").expect(2, &["cuda_graphs", "one of on, off"]);
    engine(&sandbox, "--model scripted:script.toml").expect(1, &["script.toml is a script"]);
    engine(
        &sandbox,
        "--model scripted:script.toml --model b=scripted:script.toml",
    )
    .expect(1, &["measures one model and 2 are configured"]);
    let line = format!("{QUICK} --max-context 65");
    engine(&sandbox, &line).expect(1, &["max_context is 65; the model allows 64"]);
}

#[test]
fn a_report_that_cannot_go_to_one_place_still_goes_to_the_other() {
    let sandbox = sandbox();
    let line = format!("{QUICK} --json no/such/folder/out.json");
    let ended = engine(&sandbox, &line);
    ended.expect(1, &["--json no/such/folder/out.json"]);
    assert!(ended.stdout.contains("tok/s"), "{}", ended.stdout);

    let mut command = sandbox.command(&format!("bench engine {QUICK} --json out.json"));
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = piped.spawn().unwrap();
    // Nobody reads.
    drop(running.stdout.take());
    let ended = Ended::from(running.wait_with_output().unwrap());
    ended.expect(1, &["cannot write to stdout"]);
    let written = std::fs::read_to_string(sandbox.path("out.json")).unwrap();
    let report: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(report["schema"], "girandole.bench.engine");
}

/// An image model with random weights: JSON files, and the tokenizer of another one.
fn image_model() -> Sandbox {
    let sandbox = Sandbox::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion/sd15-tiny");
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    ] {
        let text = std::fs::read_to_string(fixture.join(file)).expect("the fixture is there");
        sandbox.write(&format!("pictures/{file}"), &text);
    }
    sandbox
}

const PICTURES: &str =
    "--load-format dummy --model pictures --compute-threads 1 --rows 1,2,3 --steps 2";

#[test]
fn an_image_model_is_measured_at_each_size() {
    let sandbox = image_model();
    let line = format!("{PICTURES} --size 64x64 --size 64x96 --format json");
    let ended = engine(&sandbox, &line);
    ended.expect(0, &[]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["schema"], "girandole.bench.engine.images");
    assert_eq!(report["setup"]["load_format"], "dummy");
    assert!(number(&report, "/load/seconds") > 0.0);
    assert!(number(&report, "/float_operations_per_second") > 0.0);
    assert_eq!(number(&report, "/sizes/1/height"), 96.0);
    let adds = |size: u32| number(&report, &format!("/sizes/{size}/multiply_adds/decode"));
    assert!(adds(1) > 1.5 * adds(0), "half as much again, and attention");
    for point in [
        "/text",
        "/sizes/0/decode",
        "/sizes/1/encode",
        "/sizes/0/steps/0",
        "/sizes/1/steps/2",
    ] {
        let [min, median, max] = ["min", "median", "max"]
            .map(|value| number(&report, &format!("{point}/seconds/{value}")));
        assert!(0.0 < min && min <= median && median <= max, "{point}");
        assert_eq!(number(&report, &format!("{point}/samples")), 2.0);
        assert_eq!(
            report.pointer(&format!("{point}/warmed_up")),
            Some(&Value::Bool(true))
        );
        let arithmetic = report.pointer(&format!("{point}/arithmetic")).unwrap();
        assert_eq!(arithmetic.is_number(), point != "/text", "{point}");
    }
    for (level, rows) in [(0, 1.0), (1, 2.0), (2, 3.0)] {
        let level = format!("/sizes/0/steps/{level}");
        let rate = number(&report, &format!("{level}/row_steps_per_second"));
        let median = number(&report, &format!("{level}/seconds/median"));
        assert!((rate * median / rows - 1.0).abs() < 1e-9);
        let pictures = report
            .pointer(&format!("{level}/pictures_per_minute"))
            .unwrap();
        assert_eq!(
            pictures.is_number(),
            rows == 2.0,
            "guidance takes pairs of rows"
        );
    }
}

#[test]
fn the_table_of_an_image_model_has_its_own_size_and_its_time() {
    let sandbox = image_model();
    let ended = engine(
        &sandbox,
        &format!("{PICTURES} --point-seconds 1 --json out.json"),
    );
    ended.expect(0, &[]);
    for expected in [
        "64 x 64: rows of a denoising step",
        "random weights",
        "decode",
        "pictures/min",
        "resident once loaded",
    ] {
        assert!(
            ended.stdout.contains(expected),
            "{expected} is not in\n{}",
            ended.stdout
        );
    }
    let wrong = engine(&sandbox, &format!("{PICTURES} --size 66x64"));
    wrong.expect(1, &["--size 66x64", "multiples of"]);
    engine(&sandbox, &format!("{PICTURES} --size 64")).expect(2, &["--size", "WIDTHxHEIGHT"]);
}
