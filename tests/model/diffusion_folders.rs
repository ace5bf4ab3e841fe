//! What the small files of a diffusers folder may say: read in full, or refused when the model is loaded.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use girandole::job::ScheduleName;
use girandole::model::diffusion::loader::{DiffusionAssets, load_assets};
use girandole::model::image_frontend::ImageFrontend as _;
use serde_json::{Value, json};
use tempfile::TempDir;

const SCHEDULER: &str = "scheduler/scheduler_config.json";

fn fixture(model: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion");
    fixtures.join(model)
}

/// The fixture with another text in one of its files.
fn with_file(model: &str, file: &str, text: &str) -> TempDir {
    let (from, folder) = (fixture(model), TempDir::new().expect("a folder"));
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        for entry in fs::read_dir(from.join(&inside)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = inside.join(entry.file_name());
            if entry.path().is_dir() {
                fs::create_dir(folder.path().join(&path)).expect("a new folder");
                open.push(path);
            } else {
                symlink(entry.path(), folder.path().join(path)).expect("a link");
            }
        }
    }
    let changed = folder.path().join(file);
    fs::remove_file(&changed).expect("the fixture has the file");
    fs::write(changed, text).expect("a file");
    folder
}

/// The fixture with these fields in one of its files, beside those that it has.
fn with_fields(model: &str, file: &str, fields: &Value) -> TempDir {
    let text = fs::read_to_string(fixture(model).join(file)).expect("a file");
    let mut object: Value = serde_json::from_str(&text).expect("JSON");
    for (name, value) in fields.as_object().expect("fields") {
        object[name] = value.clone();
    }
    with_file(model, file, &object.to_string())
}

fn load(folder: &TempDir) -> Result<DiffusionAssets, String> {
    load_assets(folder.path(), None).map_err(|error| error.to_string())
}

fn refusal(folder: &TempDir) -> String {
    load(folder).err().expect("it is refused")
}

#[test]
fn a_schedule_may_hold_pythons_infinity() {
    let written_by_diffusers = r#"{
        "_class_name": "DPMSolverMultistepScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "lambda_min_clipped": -Infinity, "num_train_timesteps": 1000
    }"#;
    let assets = load(&with_file("sd15-tiny", SCHEDULER, written_by_diffusers)).expect("it loads");
    let chosen = assets.frontend.schedule(None);
    assert_eq!(chosen, Ok((ScheduleName::DpmPlusPlus2m, false)));
    let flow = r#"{
        "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "of_a_later_version": -Infinity
    }"#;
    load(&with_file("sd3-tiny", SCHEDULER, flow)).expect("so does a flow");
}

#[test]
fn a_schedule_goes_with_its_family() {
    let noise = json!({"_class_name": "DDIMScheduler"}).to_string();
    let flow = json!({"_class_name": "FlowMatchEulerDiscreteScheduler"}).to_string();
    for (model, schedule) in [
        ("sd3-tiny", &noise),
        ("flux-tiny", &noise),
        ("sd15-tiny", &flow),
        ("sdxl-tiny", &flow),
    ] {
        let error = refusal(&with_file(model, SCHEDULER, schedule));
        assert!(error.contains("scheduler_config.json"), "{model}: {error}");
        assert!(error.contains("prediction_type"), "{model}: {error}");
    }
    let solver = json!({
        "_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true,
        "prediction_type": "flow_prediction", "flow_shift": 3.0,
    });
    let assets = load(&with_file("sd3-tiny", SCHEDULER, &solver.to_string())).expect("it loads");
    let chosen = assets.frontend.schedule(None);
    assert_eq!(chosen, Ok((ScheduleName::FlowMatchEuler, false)));
}

#[test]
fn a_network_with_a_table_of_positions_says_how_far_it_reaches() {
    let file = "transformer/config.json";
    let assets = load(&with_fields(
        "sd3-tiny",
        file,
        &json!({"pos_embed_max_size": 96}),
    ));
    let assets = assets.expect("it loads");
    assert_eq!(assets.frontend.max_edge(), 96 * assets.size_factor);
    let flux = load_assets(&fixture("flux-tiny"), None).expect("it loads");
    assert_eq!(flux.frontend.max_edge(), u32::MAX);
}

#[test]
fn parts_that_do_not_fit_are_refused_with_the_field() {
    for (model, file, fields, named) in [
        (
            "sd15-tiny",
            "unet/config.json",
            json!({"in_channels": 9}),
            "in_channels is 9",
        ),
        (
            "sd15-tiny",
            "text_encoder/config.json",
            json!({"vocab_size": 400}),
            "vocab_size is 400",
        ),
        (
            "flux-tiny",
            "text_encoder_2/config.json",
            json!({"vocab_size": 20}),
            "vocab_size is 20",
        ),
        (
            "sdxl-tiny",
            "text_encoder_2/config.json",
            json!({"max_position_embeddings": 50}),
            "max_position_embeddings is 50",
        ),
        (
            "sd3-tiny",
            "text_encoder_2/config.json",
            json!({"max_position_embeddings": 50}),
            "max_position_embeddings is 50",
        ),
        (
            "sdxl-tiny",
            "unet/config.json",
            json!({"freq_shift": 4}),
            "freq_shift is 4",
        ),
        (
            "sd15-tiny",
            "unet/config.json",
            json!({"norm_num_groups": null}),
            "norm_num_groups is null",
        ),
        (
            "sd15-tiny",
            "vae/config.json",
            json!({"norm_num_groups": null}),
            "norm_num_groups is null",
        ),
    ] {
        let error = refusal(&with_fields(model, file, &fields));
        assert!(error.contains(named), "{model}: {error}");
    }
}
