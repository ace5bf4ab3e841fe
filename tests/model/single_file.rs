//! Single-file checkpoints draw what the folder draws whose weights they hold. Which tensor is called what there is told by
//! a table that `tests/goldens/diffusion/single_file.py` made, and that diffusers' own conversion has confirmed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor, safetensors};
use girandole::intake::{ImageDefaults, ImageDraft, ImageIntake, ImageLimits};
use girandole::job::Job;
use girandole::model::device::DeviceSpec;
use girandole::model::diffusion::DiffusionOptions;
use girandole::model::diffusion::loader::{ImageFiles, WeightsAt, build, load_files};
use girandole::model::image_frontend::{Guidance, ImageFrontend};
use girandole::model::manifest::ModelFiles;
use girandole::model::sources::{
    self, HubSettings, LoadFormat, ModelRef, SourceSettings, WeightsVariant,
};
use girandole::picture::Picture;
use serde_json::Value;

use crate::pictures::draw;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion")
}

/// The weights of a model's components, as `component/tensor`.
fn weights(model: &str) -> HashMap<String, Tensor> {
    let mut found = HashMap::new();
    for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let Ok(entries) = std::fs::read_dir(fixtures().join(model).join(component)) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("listed").path();
            if path
                .extension()
                .is_some_and(|ending| ending == "safetensors")
            {
                let tensors = safetensors::load(path, &Device::Cpu).expect("the fixture");
                let named = |(name, tensor)| (format!("{component}/{name}"), tensor);
                found.extend(tensors.into_iter().map(named));
            }
        }
    }
    found
}

/// The checkpoint of a model, by the table.
fn checkpoint(model: &str) -> HashMap<String, Tensor> {
    let text = std::fs::read_to_string(fixtures().join("single_file.json")).expect("the table");
    let tables: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(&text).expect("JSON");
    let weights = weights(model);
    let mut found = HashMap::new();
    for (name, source) in &tables[model] {
        let parts: Vec<&Tensor> = match source {
            Value::Array(parts) => parts
                .iter()
                .map(|part| &weights[part.as_str().unwrap()])
                .collect(),
            part => vec![&weights[part.as_str().expect("a name")]],
        };
        let mut tensor = Tensor::cat(&parts, 0).expect("of one width");
        if name.ends_with("text_projection") {
            tensor = tensor
                .t()
                .and_then(|tensor| tensor.contiguous())
                .expect("a matrix");
        }
        found.insert(name.clone(), tensor);
    }
    found
}

/// Copies the small files of a model's folder.
fn copy_without_weights(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("listed").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.extension() {
            _ if path.is_dir() => copy_without_weights(&path, &target),
            Some(ending) if ending == "safetensors" => {}
            _ => {
                std::fs::copy(&path, &target).expect("copied");
            }
        }
    }
}

fn settings(cache: &Path) -> SourceSettings {
    SourceSettings {
        cache_folder: cache.to_owned(),
        models_folder: cache.to_owned(),
        hub: HubSettings::from_environment(|name| {
            (name == "HF_HOME").then(|| cache.join("hub").display().to_string())
        }),
        offline: true,
        variant: WeightsVariant::Full,
    }
}

/// A guided picture of four steps.
fn picture(files: &ImageFiles, clip_skip: u64) -> Picture {
    let assets = load_files(files).expect("a sound model");
    let intake = ImageIntake {
        frontend: Arc::clone(&assets.frontend) as Arc<dyn ImageFrontend>,
        size_factor: assets.size_factor,
        defaults: ImageDefaults::default(),
        limits: ImageLimits::default(),
    };
    let edge = u64::from(8 * assets.size_factor);
    let job = intake
        .job(ImageDraft {
            negative_prompt: Some("blurry".to_owned()),
            width: Some(edge),
            height: Some(edge),
            steps: Some(4),
            guidance_scale: Some(5.0),
            clip_skip: Some(clip_skip),
            seed: Some(11),
            ..ImageDraft::new("a (red:1.2) apple")
        })
        .expect("a sound job");
    let options = DiffusionOptions {
        batch_size: 1,
        ..DiffusionOptions::default()
    };
    let mut model = build(&assets, DeviceSpec::Cpu, &options).expect("the weights fit");
    draw(&mut model, &Arc::new(Job::Image(job)), 0).0
}

#[test]
fn single_files_draw_what_their_folders_draw() {
    for model in ["sd15-tiny", "sd21-tiny", "sdxl-tiny"] {
        let temp = tempfile::tempdir().expect("a folder");
        let file = temp.path().join(format!("{model}.safetensors"));
        safetensors::save(&checkpoint(model), &file).expect("written");
        // The tiny shapes are nobody's: a folder beside the file has them.
        copy_without_weights(&fixtures().join(model), &temp.path().join(model));
        let found = sources::fetch(
            &ModelRef::Checkpoint(file.clone()),
            LoadFormat::Auto,
            &settings(temp.path()),
        )
        .expect("all is there");
        let single = ImageFiles::of(&found).expect("an image model");
        assert_eq!(single.weights, WeightsAt::Checkpoint(file));
        let whole = ImageFiles {
            folder: fixtures().join(model),
            weights: WeightsAt::Folder,
        };
        let expected = picture(&whole, 0);
        assert!(expected.rgb().iter().any(|byte| *byte != expected.rgb()[0]));
        assert_eq!(picture(&single, 0).rgb(), expected.rgb(), "{model}");
        // The tiny XL's second text encoder has no layer to spare.
        if model != "sdxl-tiny" {
            assert_ne!(picture(&single, 1).rgb(), expected.rgb(), "{model}");
        }
    }
}

#[test]
fn what_a_single_file_lacks_is_named_or_made() {
    let temp = tempfile::tempdir().expect("a folder");
    let file = temp.path().join("model.safetensors");
    let mut tensors = checkpoint("sd15-tiny");
    safetensors::save(&tensors, &file).expect("written");
    let fetch = || {
        let model = ModelRef::Checkpoint(file.clone());
        sources::fetch(&model, LoadFormat::Auto, &settings(temp.path()))
    };
    let error = fetch().expect_err("no vocabulary").to_string();
    assert!(
        error.contains("vocab.json") && error.contains("offline"),
        "{error}"
    );

    let tokenizer = temp.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).expect("made");
    for name in ["vocab.json", "merges.txt"] {
        let from = fixtures().join("sd15-tiny/tokenizer").join(name);
        std::fs::copy(from, tokenizer.join(name)).expect("copied");
    }
    let ModelFiles::Checkpoint { folder, .. } = fetch().expect("all is there") else {
        panic!("no checkpoint");
    };
    assert!(folder.starts_with(temp.path().join("checkpoints")));
    let files = ImageFiles::of(&ModelFiles::Checkpoint {
        file: file.clone(),
        folder,
    });
    let assets = load_files(&files.expect("an image model")).expect("sound");
    assert_eq!((assets.size, assets.size_factor), ((512, 512), 8));
    assert_eq!(assets.frontend.guidance(), Guidance::Classifier);
    // Its tensors are a tiny model's, and not of the published shape.
    let error = build(&assets, DeviceSpec::Cpu, &DiffusionOptions::default());
    let error = error.err().expect("another shape").to_string();
    assert!(error.contains("first_stage_model."), "{error}");

    tensors.retain(|name, _| !name.starts_with("cond_stage_model."));
    safetensors::save(&tensors, &file).expect("written");
    let error = fetch().expect_err("no text encoder").to_string();
    assert!(error.contains("text encoders"), "{error}");
}
