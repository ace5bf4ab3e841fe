//! Whole pictures: goldens of diffusers' pipelines, and the law that company changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, safetensors};
use girandole::batch::{Emission, Next, Phase, PlannedRow, RowOutcome, Slot};
use girandole::job::{ImageJob, Job, Previews, PromptTokens, SourceImage};
use girandole::model::Model;
use girandole::model::device::DeviceSpec;
use girandole::model::diffusion::config::StableDiffusionConfig;
use girandole::model::diffusion::frontend::{ClipPrompts, DiffusionFrontend, FlowShape};
use girandole::model::diffusion::loader::{build, load_assets};
use girandole::model::diffusion::random::NoiseUse;
use girandole::model::diffusion::schedule::ScheduleConfig;
use girandole::model::diffusion::{DiffusionModel, DiffusionOptions};
use girandole::model::image_frontend::ImageFrontend;
use girandole::picture::{Mask, Picture};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion")
}

pub(crate) fn options(batch_size: u32) -> DiffusionOptions {
    DiffusionOptions {
        batch_size,
        ..DiffusionOptions::default()
    }
}

/// Draws one job alone: its picture, and the events on the way.
pub(crate) fn draw(model: &mut dyn Model, job: &Arc<Job>, choice: u32) -> (Picture, Vec<Emission>) {
    let slot = Slot(0);
    model.admit(slot, job, choice).expect("room");
    let cost = model.cost(job);
    let phases = std::iter::once((Phase::Begin, cost.begin_work))
        .chain((0..cost.max_iterations).map(|_| (Phase::Iterate, cost.iterate_work)))
        .chain([(Phase::Finish, cost.finish_work)]);
    let mut said = Vec::new();
    let mut last = None;
    for (phase, work) in phases {
        let planned = [PlannedRow { slot, phase, work }];
        let mut outcomes = model.step(&planned).expect("a pass");
        let RowOutcome { emitted, next, .. } = outcomes.remove(0);
        said.extend(emitted);
        last = Some(next);
    }
    model.retire(slot);
    assert!(matches!(last, Some(Next::Finish(_))), "{last:?}");
    let Some(Emission::Image { picture, .. }) = said.last() else {
        panic!("a row ends with its picture");
    };
    let picture = Picture::new(picture.width(), picture.height(), picture.rgb().to_vec());
    (picture, said)
}

/// One model of the fixtures, with a case's schedule and a reference's noise.
struct Reference {
    name: &'static str,
    tensors: BTreeMap<String, Tensor>,
}

impl Reference {
    fn read(name: &'static str) -> (Self, Value) {
        let file = |end: &str| fixtures().join(format!("{name}.pipelines.{end}"));
        let tensors = safetensors::load(file("safetensors"), &Device::Cpu)
            .expect("the fixture is there")
            .into_iter()
            .collect();
        let text = std::fs::read_to_string(file("json")).expect("the fixture is there");
        let json = serde_json::from_str(&text).expect("it is JSON");
        (Reference { name, tensors }, json)
    }

    fn bytes(&self, name: &str) -> (u32, u32, Vec<u8>) {
        let tensor = &self.tensors[name];
        let dims = tensor.dims();
        let bytes = tensor.flatten_all().unwrap().to_vec1().unwrap();
        (dims[1] as u32, dims[0] as u32, bytes)
    }

    /// (n, c, h, w) as rows of h * w * c.
    fn noise(&self, name: &str) -> Vec<Vec<f32>> {
        let tensor = self.tensors[name].to_dtype(DType::F32).unwrap();
        let tensor = tensor.permute((0, 2, 3, 1)).unwrap();
        let rows = tensor.dim(0).unwrap();
        (0..rows)
            .map(|row| {
                let row = tensor.get(row).unwrap().contiguous().unwrap();
                row.flatten_all().unwrap().to_vec1().unwrap()
            })
            .collect()
    }

    fn model(&self, case: &Value) -> (DiffusionModel, Arc<DiffusionFrontend>) {
        let folder = fixtures().join(self.name);
        let mut assets = load_assets(&folder, None).expect("the model is sound");
        let config = StableDiffusionConfig::read(&folder).expect("the model is sound");
        let schedule = ScheduleConfig::from_json(&case["scheduler"]).expect("a schedule");
        let prompts = ClipPrompts::read(&folder, &config).expect("tokenizers");
        let frontend = DiffusionFrontend::new(Box::new(prompts), schedule, FlowShape::default());
        assets.frontend = Arc::new(frontend);
        let frontend = Arc::clone(&assets.frontend);
        let model = build(&assets, DeviceSpec::Cpu, &options(1)).expect("the model loads");
        let shape = case["latent_shape"].as_str().expect("a shape").to_owned();
        let start = self.noise(&format!("{shape}.start")).remove(0);
        let steps = self.noise(&format!("{shape}.noise"));
        let encode = self
            .tensors
            .contains_key(&format!("{shape}.encode"))
            .then(|| self.noise(&format!("{shape}.encode")).remove(0));
        let noise = move |_seed: u64, purpose: NoiseUse, values: &mut [f32]| {
            values.copy_from_slice(match purpose {
                NoiseUse::Initial => &start,
                NoiseUse::Step(step) => &steps[step as usize],
                NoiseUse::Encode => encode.as_ref().expect("the case encodes a picture"),
            });
        };
        (model.with_noise(Box::new(noise)), frontend)
    }

    fn job(&self, case: &Value, frontend: &DiffusionFrontend) -> ImageJob {
        let read = |name: &str| -> Option<Arc<[PromptTokens]>> {
            let text = case[name].as_str()?;
            Some(frontend.tokenize(text, 3).expect("a prompt").into())
        };
        let number = |name: &str| case[name].as_f64();
        let guidance_scale = number("guidance_scale").expect("a scale") as f32;
        let negative = (guidance_scale > 1.0).then(|| {
            read("negative_prompt").unwrap_or_else(|| frontend.tokenize("", 3).unwrap().into())
        });
        let (schedule, karras) = frontend.schedule(None).expect("its own");
        let shape = case["latent_shape"].as_str().expect("a shape");
        let source = (case["kind"] != "txt2img").then(|| {
            let (width, height, rgb) = self.bytes(&format!("{shape}.image"));
            let mask = (case["kind"] == "inpaint").then(|| {
                let (width, height, values) = self.bytes(&format!("{shape}.mask"));
                Arc::new(Mask::new(width, height, values))
            });
            SourceImage {
                picture: Arc::new(Picture::new(width, height, rgb)),
                strength: number("strength").expect("a strength"),
                mask,
            }
        });
        ImageJob {
            width: number("width").unwrap() as u32,
            height: number("height").unwrap() as u32,
            images: 1,
            prompt: read("prompt").expect("a prompt"),
            negative,
            negative_given: case["negative_prompt"].is_string(),
            guidance_scale,
            clip_skip: number("clip_skip").unwrap_or(0.0) as u32,
            steps: number("steps").unwrap() as u32,
            schedule,
            karras,
            eta: number("eta").unwrap_or(0.0),
            seed: 0,
            source,
            previews: Previews::Latest,
        }
    }
}

/// Every case of a model: no byte of a picture may be further off than this.
const MOST_OFF: u8 = 2;

fn check(name: &'static str) {
    let (reference, json) = Reference::read(name);
    let cases = json["cases"].as_object().expect("cases");
    let mut wrong = Vec::new();
    for (title, case) in cases {
        // Sizes other than the picture's own cannot be asked for.
        if case.get("sizes").is_some() {
            continue;
        }
        let (mut model, frontend) = reference.model(case);
        let job = Arc::new(Job::Image(reference.job(case, &frontend)));
        let (picture, said) = draw(&mut model, &job, 0);
        let (width, height, expected) = reference.bytes(&format!("{title}.picture"));
        assert_eq!((picture.width(), picture.height()), (width, height));
        let off = picture
            .rgb()
            .iter()
            .zip(&expected)
            .map(|(one, other)| one.abs_diff(*other))
            .max()
            .unwrap_or(0);
        let previews = said
            .iter()
            .filter(|said| matches!(said, Emission::Preview { .. }))
            .count();
        assert_eq!(previews, job.image().iterations() as usize, "{title}");
        if off > MOST_OFF {
            wrong.push(format!("{title}: {off}/255"));
        }
    }
    assert!(cases.len() > 10, "the fixture has cases");
    assert!(wrong.is_empty(), "{name}: {}", wrong.join(", "));
}

#[test]
fn pictures_of_the_first_generation_are_diffusers_pictures() {
    check("sd15-tiny");
}

#[test]
fn pictures_of_the_second_generation_are_diffusers_pictures() {
    check("sd21-tiny");
}

#[test]
fn pictures_of_xl_are_diffusers_pictures() {
    check("sdxl-tiny");
}

/// A case's model and job.
fn example(name: &'static str, case: &str) -> (DiffusionModel, Arc<Job>) {
    let (reference, json) = Reference::read(name);
    let case = &json["cases"][case];
    let (model, frontend) = reference.model(case);
    (model, Arc::new(Job::Image(reference.job(case, &frontend))))
}

#[test]
fn predictions_of_a_fixed_number_of_rows_are_the_same() {
    for case in ["txt2img-euler-7.5", "txt2img-euler_a-1.0"] {
        let (mut model, job) = example("sd15-tiny", case);
        let (expected, _) = draw(&mut model, &job, 0);
        for rows in [1, 2, 3] {
            let (model, job) = example("sd15-tiny", case);
            let (found, _) = draw(&mut model.with_fixed_rows(rows), &job, 0);
            assert_eq!(found.rgb(), expected.rgb(), "{case}, {rows} rows");
        }
    }
}

#[test]
fn a_small_decoder_shows_previews_of_the_full_size() {
    let options = |folder: &str| DiffusionOptions {
        preview_decoder: Some(fixtures().join(folder)),
        ..options(1)
    };
    let model = |name: &str, decoder: &str| {
        let assets = load_assets(&fixtures().join(name), None).expect("a sound model");
        build(&assets, DeviceSpec::Cpu, &options(decoder))
    };
    let (_, job) = example("sdxl-tiny", "txt2img-euler-1.0");
    let mut shown = model("sdxl-tiny", "taesd-tiny").expect("both are for 4 pixels");
    let (picture, said) = draw(&mut shown, &job, 0);
    let previews: Vec<_> = said
        .iter()
        .filter_map(|said| match said {
            Emission::Preview { picture, .. } => Some(picture),
            _ => None,
        })
        .collect();
    assert_eq!(previews.len(), 5);
    for preview in &previews {
        assert_eq!(
            (preview.width(), preview.height()),
            (picture.width(), picture.height())
        );
    }
    assert_ne!(previews[0].rgb(), previews[4].rgb());
    // Previews change no picture.
    let assets = load_assets(&fixtures().join("sdxl-tiny"), None).expect("a sound model");
    let mut plain = build(&assets, DeviceSpec::Cpu, &super::pictures::options(1)).expect("sound");
    assert_eq!(draw(&mut plain, &job, 0).0.rgb(), picture.rgb());
    for (name, decoder, what) in [
        ("sd15-tiny", "taesd-tiny", "4 pixels"),
        ("sdxl-tiny", "nowhere", "nowhere"),
        ("sdxl-tiny", "sd15-tiny/vae", "_class_name"),
    ] {
        let error = model(name, decoder).err().expect("no fit").to_string();
        assert!(error.contains(what), "{error}");
    }
}
