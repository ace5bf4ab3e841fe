//! From a folder to a model, and what is said when something is missing.

use std::fs;
use std::path::Path;

use girandole::job::TextJob;
use girandole::model::device::{DeviceSpec, FloatType};
use girandole::model::loader::{GenerationDefaults, build, load_assets};
use girandole::model::manifest::ModelFiles;
use serde_json::json;

use crate::goldens::{fixture, read_json};
use crate::serving::{alone, dummy_assets, options};

const TOKENIZER: &str = r#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
}"#;

/// A copy of the sharded fixture that may be changed, with a tokenizer.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(fixture("mistral")).expect("the fixture is there") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("writable");
    }
    fs::write(folder.path().join("tokenizer.json"), TOKENIZER).expect("writable");
    folder
}

fn load(folder: &Path) -> Result<(), String> {
    let files = ModelFiles::Folder(folder.to_path_buf());
    let assets = load_assets(&files).map_err(|error| error.to_string())?;
    build(&assets, DeviceSpec::Cpu, &options(1))
        .map(drop)
        .map_err(|error| error.to_string())
}

#[test]
fn a_folder_is_served_with_its_tokenizer() {
    let folder = folder();
    let assets = load_assets(&ModelFiles::Folder(folder.path().to_path_buf())).expect("whole");
    let prompt = assets.tokenizer.encode("aba", true).expect("plain text");
    assert_eq!(prompt, [2, 0]);
    assert_eq!(
        assets.served_context(&options(1), DeviceSpec::Cpu).ok(),
        Some(256)
    );
    let mut model = build(&assets, DeviceSpec::Cpu, &options(1)).expect("whole");
    assert_eq!(
        alone(&mut *model, TextJob::greedy(prompt, 9)).tokens.len(),
        9
    );
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    type Change = fn(&Path);
    let cases: [(&str, Change); 8] = [
        ("holds no tokenizer.json", |folder| {
            fs::remove_file(folder.join("tokenizer.json")).expect("there");
        }),
        ("config.json: ", |folder| {
            fs::remove_file(folder.join("config.json")).expect("there");
        }),
        ("config.json: expected ident", |folder| {
            fs::write(folder.join("config.json"), "not JSON").expect("writable");
        }),
        (
            "architecture \"mamba\" is not supported; supported are llama, mistral",
            |folder| change_config(folder, "model_type", json!("mamba")),
        ),
        (
            "tensor model.embed_tokens.weight has shape [320, 32]; expected [321, 32]",
            |folder| change_config(folder, "vocab_size", json!(321)),
        ),
        (
            "the model has no tensor model.layers.2.input_layernorm.weight",
            |folder| change_config(folder, "num_hidden_layers", json!(3)),
        ),
        (
            "the model has 9 tensors that mistral does not know: model.layers.1.",
            |folder| change_config(folder, "num_hidden_layers", json!(1)),
        ),
        (
            "model.safetensors.index.json: the shard model-00002-of-00003.safetensors is missing",
            |folder| {
                fs::remove_file(folder.join("model-00002-of-00003.safetensors")).expect("there");
            },
        ),
    ];
    for (message, change) in cases {
        let folder = folder();
        assert_eq!(load(folder.path()), Ok(()));
        change(folder.path());
        let error = load(folder.path()).expect_err(message);
        assert!(error.contains(message), "{error:?} says {message:?}");
    }
}

fn change_config(folder: &Path, field: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config = read_json(&path);
    config[field] = value;
    fs::write(path, config.to_string()).expect("writable");
}

#[test]
fn an_index_does_not_lead_out_of_its_folder() {
    let folder = folder();
    let index = folder.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).expect("readable");
    for outside in ["../model.safetensors", "/model.safetensors", ".."] {
        let changed = text.replace("model-00002-of-00003.safetensors", outside);
        fs::write(&index, changed).expect("writable");
        let error = load(folder.path()).expect_err("not a file of the folder");
        assert!(error.contains("is not a file name"), "{error}");
    }
}

#[test]
fn the_makers_advice_on_sampling_is_read() {
    let folder = folder();
    let advice = |json: serde_json::Value| {
        let path = folder.path().join("generation_config.json");
        fs::write(path, json.to_string()).expect("writable");
        let files = ModelFiles::Folder(folder.path().to_path_buf());
        load_assets(&files).expect("whole").defaults
    };
    let given = advice(json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20}));
    assert_eq!(
        given,
        GenerationDefaults {
            temperature: Some(0.6),
            top_p: Some(0.9),
            top_k: Some(20),
            ..GenerationDefaults::default()
        }
    );
    let unused = advice(json!({"do_sample": false, "temperature": 0.6}));
    assert_eq!(unused, GenerationDefaults::default());
}

#[test]
fn random_weights_depend_on_their_seed_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = |seed| {
        dummy_assets(folder.path());
        let config = folder.path().join("config.json");
        let assets = load_assets(&ModelFiles::Dummy { config, seed }).expect("a known family");
        let mut model = build(&assets, DeviceSpec::Cpu, &options(1)).expect("weights");
        let job = TextJob {
            ignore_eos: true,
            ..TextJob::greedy(vec![1, 2, 3], 16)
        };
        alone(&mut *model, job).tokens
    };
    assert_eq!(said(3), said(3));
    assert_ne!(said(3), said(4));
}

#[test]
fn weights_are_converted_where_that_is_asked() {
    let folder = folder();
    let assets = load_assets(&ModelFiles::Folder(folder.path().to_path_buf())).expect("whole");
    for dtype in [FloatType::F16, FloatType::BF16] {
        let options = girandole::model::text::options::TextOptions {
            dtype: Some(dtype),
            ..options(1)
        };
        let mut model = build(&assets, DeviceSpec::Cpu, &options).expect("convertible");
        let said = alone(&mut *model, TextJob::greedy(vec![1, 2], 5));
        assert_eq!(said.tokens.len(), 5, "{dtype:?}");
    }
}
