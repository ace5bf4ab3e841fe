//! How many steps and how much guidance a model needs is told from its files.

use std::path::{Path, PathBuf};

use girandole::model::diffusion::advice::Advice;
use girandole::model::diffusion::loader::load_assets;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("listed").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &target),
            false => {
                std::fs::copy(&path, &target).expect("copied");
            }
        }
    }
}

/// What is advised for a model of the fixtures, once fields of its files have been changed.
fn advice(model: &str, changes: &[(&str, &str, Value)]) -> Advice {
    let temp = tempfile::tempdir().expect("a folder");
    copy(&fixtures().join(model), temp.path());
    for (file, field, value) in changes {
        let path = temp.path().join(file);
        let text = std::fs::read_to_string(&path).expect("the fixture");
        let mut json: Value = serde_json::from_str(&text).expect("JSON");
        json[field] = value.clone();
        std::fs::write(&path, json.to_string()).expect("written");
    }
    load_assets(temp.path(), Some(0))
        .expect("a sound model")
        .advice
}

fn check(model: &str, changes: &[(&str, &str, Value)], expected: (Option<u32>, Option<f32>)) {
    let found = advice(model, changes);
    assert_eq!(
        (found.steps, found.guidance_scale),
        expected,
        "{model} {changes:?}"
    );
}

const SCHEDULER: &str = "scheduler/scheduler_config.json";

fn class(name: &str) -> (&'static str, &'static str, Value) {
    (SCHEDULER, "_class_name", json!(name))
}

#[test]
fn ordinary_models_are_left_to_the_service() {
    check("sd15-tiny", &[], (None, None));
    check("sd21-tiny", &[], (None, None));
    check("sdxl-tiny", &[], (None, Some(5.0)));
    // It begins at the last training step since that was mended, and predicts the velocity.
    let trailing = (SCHEDULER, "timestep_spacing", json!("trailing"));
    check(
        "sd21-tiny",
        &[class("EulerDiscreteScheduler"), trailing],
        (None, None),
    );
}

#[test]
fn few_step_models_are_told_by_how_they_sample() {
    let trailing = || (SCHEDULER, "timestep_spacing", json!("trailing"));
    for name in ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"] {
        check(
            "sd15-tiny",
            &[class(name), trailing()],
            (Some(4), Some(0.0)),
        );
        check(
            "sdxl-tiny",
            &[class(name), trailing()],
            (Some(4), Some(0.0)),
        );
    }
    let origin = (
        "model_index.json",
        "_name_or_path",
        json!("someone/SDXL-Lightning"),
    );
    check("sdxl-tiny", &[origin], (Some(4), Some(0.0)));
    check("sd15-tiny", &[class("LCMScheduler")], (Some(4), Some(1.0)));
    let embedded = ("unet/config.json", "time_cond_proj_dim", json!(32));
    check(
        "sd15-tiny",
        &[class("LCMScheduler"), embedded],
        (Some(4), Some(8.5)),
    );
}

#[test]
fn flows_are_told_by_their_networks() {
    check("flux-tiny", &[], (Some(4), Some(0.0)));
    let dev = ("transformer/config.json", "guidance_embeds", json!(true));
    check("flux-tiny", &[dev], (Some(28), Some(3.5)));
    let expected = advice("sd3-tiny", &[]);
    assert_eq!(expected.steps, Some(28));
    let norm = |value| ("transformer/config.json", "qk_norm", value);
    check("sd3-tiny", &[norm(Value::Null)], (Some(28), Some(7.0)));
    check(
        "sd3-tiny",
        &[norm(json!("rms_norm"))],
        (Some(28), Some(4.5)),
    );
    let turbo = (
        "model_index.json",
        "_name_or_path",
        json!("sd3.5-large-turbo"),
    );
    check("sd3-tiny", &[turbo], (Some(4), Some(0.0)));
}
