//! Flux and Stable Diffusion 3 against diffusers and transformers, and against themselves in other company.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use girandole::job::{ImageJob, Previews, PromptTokens, ScheduleName};
use girandole::model::diffusion::denoiser::{Conditioning, Denoiser, DenoiserRow, PromptSide};
use girandole::model::diffusion::flow::{
    FlowConfig, FlowDenoiser, FlowPrompts, TransformerConfig, is_flow_pipeline,
};
use girandole::model::diffusion::frontend::{DiffusionFrontend, PromptReader};
use girandole::model::diffusion::loader::load_assets;
use girandole::model::diffusion::schedule::{NoiseSchedule, ScheduleConfig, ScheduleOptions};
use girandole::model::diffusion::stable_diffusion::WeightsFrom;
use girandole::model::diffusion::vae::{DEFAULT_MEMORY_LIMIT, Vae};
use girandole::model::diffusion::weights::Weights;
use girandole::model::image_frontend::{Guidance, ImageFrontend};
use serde_json::Value;

const MODELS: [&str; 2] = ["flux-tiny", "sd3-tiny"];
/// Tokens that T5 reads in the goldens.
const T5_TOKENS: usize = 64;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion")
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(name), &Device::Cpu).expect(name)
}

/// As the goldens were made: T5 reads fewer tokens than in service.
fn config(folder: &Path) -> FlowConfig {
    let mut config = FlowConfig::read(folder).expect("a folder that can be read");
    config.t5_tokens = T5_TOKENS;
    config
}

struct Model {
    config: FlowConfig,
    denoiser: Box<dyn Denoiser>,
    prompts: FlowPrompts,
}

fn model_of(
    folder: &Path,
    config: FlowConfig,
    weights: WeightsFrom<'_>,
    dtype: Option<DType>,
) -> Model {
    let prompts = || FlowPrompts::read(folder, &config).expect("tokenizers");
    let schedule = std::fs::read_to_string(folder.join("scheduler/scheduler_config.json"));
    let schedule = ScheduleConfig::from_text(&schedule.expect("a file")).expect("a scheduler");
    let frontend = DiffusionFrontend::new(Box::new(prompts()), schedule, config.shape());
    let frontend = Arc::new(frontend);
    let denoiser = FlowDenoiser::load(&config, weights, dtype, &Device::Cpu, frontend);
    Model {
        denoiser: Box::new(denoiser.expect("weights")),
        prompts: prompts(),
        config,
    }
}

fn model_in(folder: &Path) -> Model {
    model_of(folder, config(folder), WeightsFrom::Folder(folder), None)
}

fn model(name: &str) -> Model {
    model_in(&fixtures().join(name))
}

impl Model {
    fn read(&self, prompt: &str) -> Conditioning {
        let tokens = self.prompts.tokenize(prompt, 1).expect("short enough");
        let read = self.denoiser.read(&job(1.0), &tokens, PromptSide::Positive);
        read.expect("readable")
    }
}

fn job(guidance_scale: f32) -> ImageJob {
    ImageJob {
        width: 32,
        height: 32,
        images: 1,
        prompt: Arc::from([]),
        negative: None,
        negative_given: false,
        guidance_scale,
        clip_skip: 0,
        steps: 4,
        schedule: ScheduleName::FlowMatchEuler,
        karras: false,
        eta: 0.0,
        seed: 0,
        source: None,
        previews: Previews::None,
    }
}

/// (rows, c, h, w) -> (rows, h, w, c)
fn channels_last(x: &Tensor) -> Tensor {
    let x = x.permute((0, 2, 3, 1)).expect("a picture");
    x.contiguous().expect("small")
}

fn values(x: &Tensor) -> Vec<f32> {
    let flat = x.flatten_all().and_then(|x| x.to_dtype(DType::F32));
    flat.and_then(|x| x.to_vec1()).expect("numbers")
}

fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

fn row(x: &Tensor, index: usize) -> Tensor {
    x.narrow(0, index, 1).expect("a row")
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, bound: f64, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let pairs = values(found).into_iter().zip(values(expected));
    let largest = pairs
        .map(|(a, b)| f64::from((a - b).abs()))
        // Not `max`, which passes over a NaN.
        .fold(0.0, |largest, d| if d <= largest { largest } else { d });
    assert!(
        largest < bound,
        "{what}: {largest:e} apart, {bound:e} allowed"
    );
}

/// Predicts rows of a golden call, each with its own timestep, text and guidance scale.
fn predict_rows(
    denoiser: &dyn Denoiser,
    goldens: &HashMap<String, Tensor>,
    size: &str,
    scales: [f32; 2],
    order: &[usize],
) -> Tensor {
    let timesteps: Vec<f32> = goldens["transformer.timesteps"].to_vec1().expect("numbers");
    let jobs = scales.map(job);
    let conditionings: Vec<Conditioning> = (0..2)
        .map(|index| Conditioning {
            context: row(&goldens["transformer.states"], index),
            pooled: Some(row(&goldens["transformer.pooled"], index)),
        })
        .collect();
    let rows: Vec<DenoiserRow<'_>> = order
        .iter()
        .map(|&index| DenoiserRow {
            job: &jobs[index],
            timestep: f64::from(timesteps[index]),
            conditioning: &conditionings[index],
        })
        .collect();
    let sample = channels_last(&goldens[&format!("transformer.{size}.sample")]);
    let samples: Vec<Tensor> = order.iter().map(|&index| row(&sample, index)).collect();
    let x = Tensor::cat(&samples, 0).expect("rows of one shape");
    denoiser.predict(&x, &rows).expect("a prediction")
}

/// A few times what diffusers in f32 is off.
fn bound(notes: &Value, output: &str) -> f64 {
    let f32 = notes["outputs"][output]["f32"].as_f64().expect(output);
    (6.0 * f32).max(2e-6)
}

#[test]
fn flows_are_known_by_their_class() {
    assert!(is_flow_pipeline("FluxPipeline"));
    assert!(is_flow_pipeline("StableDiffusion3Img2ImgPipeline"));
    assert!(!is_flow_pipeline("StableDiffusionPipeline"));
    let error = FlowConfig::read(&fixtures().join("sd15-tiny")).expect_err("no flow");
    assert!(
        error.to_string().contains("StableDiffusionPipeline"),
        "{error}"
    );
    for name in MODELS {
        let folder = fixtures().join(name);
        let config = FlowConfig::read(&folder).expect(name);
        assert_eq!(config.t5_tokens, 256);
        assert_eq!(config.transformer.latent_channels(), 16);
        let assets = load_assets(&folder, None).expect(name);
        assert_eq!(assets.size_factor, 8, "two latent pixels of four");
        let (size, guidance) = match name {
            "flux-tiny" => (512, Guidance::None),
            _ => (32, Guidance::Classifier),
        };
        assert_eq!(assets.size, (size, size));
        assert_eq!(assets.frontend.guidance(), guidance);
    }
}

#[test]
fn prompts_become_the_tokens_of_transformers() {
    for name in MODELS {
        let goldens = tensors(&format!("{name}.components.safetensors"));
        let notes = json(&format!("{name}.components.json"));
        let mut config = config(&fixtures().join(name));
        let ids = |name: &str, index: usize| -> Vec<u32> {
            let ids = goldens[name].to_dtype(DType::U32).expect("ids");
            ids.get(index).and_then(|ids| ids.to_vec1()).expect("ids")
        };
        let prompts = notes["prompts"].as_array().expect("prompts");
        let prompts: Vec<&str> = prompts.iter().filter_map(Value::as_str).collect();
        let reader = FlowPrompts::read(&fixtures().join(name), &config).expect(name);
        let clips = config.clips.len();
        for (index, prompt) in prompts[..2].iter().enumerate() {
            let entries = reader.tokenize(prompt, 1).expect("short");
            assert_eq!(entries.len(), clips + 1);
            assert_eq!(entries[clips].chunks.len(), 1);
            assert_eq!(
                entries[clips].chunks[0].tokens,
                ids("t5.ids", index),
                "{prompt}"
            );
            for (clip, golden) in ["text.ids", "text_2.ids"][..clips].iter().enumerate() {
                assert_eq!(
                    entries[clip].chunks[0].tokens,
                    ids(golden, index),
                    "{prompt}"
                );
            }
        }
        // diffusers cuts it off and says so in its log.
        let error = reader.tokenize(prompts[2], 9).expect_err("too long");
        assert!(error.contains("of 63 tokens; at most 1"), "{error}");
        config.t5_tokens = 512;
        let reader = FlowPrompts::read(&fixtures().join(name), &config).expect(name);
        let long = reader.tokenize(prompts[2], 9).expect("fits");
        assert_eq!(long[clips].chunks[0].tokens[..63], ids("t5.ids", 2)[..63]);
        assert_eq!(long[clips].chunks[0].tokens.len(), 512);
        let mut short = reader.tokenize(prompts[0], 9).expect("fits");
        let chunks = |entries: &[PromptTokens]| -> Vec<usize> {
            entries.iter().map(|entry| entry.chunks.len()).collect()
        };
        if clips == 1 {
            assert_eq!(chunks(&long), [1, 1]);
        } else {
            assert!(chunks(&long)[0] > 1 && chunks(&long)[0] == chunks(&long)[1]);
            let error = reader.tokenize(prompts[2], 1);
            let error = error.expect_err("too long for clip");
            assert!(error.contains("of 75 tokens; at most 1"), "{error}");
        }
        let most = chunks(&long)[0];
        for (encoder, entry) in short.iter_mut().enumerate() {
            reader.pad(encoder, entry, most);
        }
        assert_eq!(chunks(&short), chunks(&long));
    }
}

#[test]
fn text_states_equal_those_of_transformers() {
    for name in MODELS {
        let goldens = tensors(&format!("{name}.components.safetensors"));
        let notes = json(&format!("{name}.components.json"));
        let model = model(name);
        let prompts = notes["prompts"].as_array().expect("prompts");
        for (index, prompt) in prompts[..2].iter().enumerate() {
            let found = model.read(prompt.as_str().expect("a text"));
            let context = &found.context;
            let pooled = found.pooled.as_ref().expect("pooled");
            let words = row(&goldens["t5.states"], index);
            let tokens = context.dim(1).expect("tokens");
            let read = context
                .narrow(1, tokens - T5_TOKENS, T5_TOKENS)
                .expect("words");
            assert_close(&read, &words, bound(&notes, "t5.states"), name);
            match model.config.transformer {
                TransformerConfig::Flux(_) => {
                    assert_eq!(tokens, T5_TOKENS);
                    let expected = row(&goldens["text.pooled"], index);
                    assert_close(pooled, &expected, bound(&notes, "text.pooled"), name);
                }
                TransformerConfig::Sd3(_) => {
                    assert_eq!(tokens, 77 + T5_TOKENS);
                    let parts =
                        ["text.embeds", "text_2.embeds"].map(|name| row(&goldens[name], index));
                    let expected = Tensor::cat(&parts, 1).expect("side by side");
                    assert_close(pooled, &expected, bound(&notes, "text.embeds"), name);
                    let parts = ["text.penultimate", "text_2.penultimate"];
                    let parts = parts.map(|name| row(&goldens[name], index));
                    let states = Tensor::cat(&parts, 2).expect("side by side");
                    let width = context.dim(2).expect("width") - states.dim(2).expect("width");
                    let expected = states.pad_with_zeros(D::Minus1, 0, width).expect("zeros");
                    let read = context.narrow(1, 0, 77).expect("clip");
                    assert_close(&read, &expected, bound(&notes, "text.penultimate"), name);
                }
            }
        }
    }
}

#[test]
fn transformers_equal_diffusers_at_two_timesteps_in_one_call() {
    for name in MODELS {
        let goldens = tensors(&format!("{name}.components.safetensors"));
        let notes = json(&format!("{name}.components.json"));
        let model = model(name);
        for size in ["8x8", "6x10"] {
            let found = predict_rows(&*model.denoiser, &goldens, size, [1.0; 2], &[0, 1]);
            let output = format!("transformer.{size}.output");
            let expected = channels_last(&goldens[&output]);
            assert_close(&found, &expected, bound(&notes, &output), name);
        }
    }
}

/// A copy of a model whose transformer has other settings and tensors.
fn changed(
    name: &str,
    settings: &[(&str, Value)],
    change: impl Fn(&mut HashMap<String, Tensor>),
) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    copy_folder(&fixtures().join(name), copy.path());
    let folder = copy.path().join("transformer");
    let mut config = json(&format!("{name}/transformer/config.json"));
    for (key, value) in settings {
        config[key] = value.clone();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let file = folder.join("diffusion_pytorch_model.safetensors");
    let mut weights = candle_core::safetensors::load(&file, &Device::Cpu).expect("weights");
    change(&mut weights);
    candle_core::safetensors::save(&weights, &file).expect("written");
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let (path, target) = {
            let entry = entry.expect("an entry");
            (entry.path(), to.join(entry.file_name()))
        };
        match path.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(std::fs::copy(&path, &target).expect("a copy")),
        }
    }
}

#[test]
fn guidance_is_an_input_of_flux_dev() {
    let variants = tensors("flow-variants.components.safetensors");
    let settings = [("guidance_embeds", Value::from(true))];
    let folder = changed("flux-tiny", &settings, |weights| {
        for (name, tensor) in &variants {
            if let Some(name) = name.strip_prefix("guidance.time_text_embed") {
                weights.insert(format!("time_text_embed{name}"), tensor.clone());
            }
        }
    });
    let read = FlowConfig::read(folder.path()).expect("valid");
    assert_eq!(read.t5_tokens, 512, "dev reads longer prompts than schnell");
    let model = model_in(folder.path());
    let goldens = tensors("flux-tiny.components.safetensors");
    let scales: Vec<f32> = variants["guidance.scales"].to_vec1().expect("numbers");
    let scales = [scales[0], scales[1]];
    let found = predict_rows(&*model.denoiser, &goldens, "8x8", scales, &[0, 1]);
    let notes = json("flow-variants.components.json");
    let expected = channels_last(&variants["guidance.output"]);
    assert_close(&found, &expected, bound(&notes, "guidance.output"), "dev");
}

#[test]
fn stable_diffusion_3_has_neither_norms_nor_a_second_attention() {
    let settings = [
        ("qk_norm", Value::Null),
        ("dual_attention_layers", Value::Array(Vec::new())),
    ];
    let folder = changed("sd3-tiny", &settings, |weights| {
        weights.retain(|name, _| !name.contains("attn2") && !name.contains(".attn.norm_"));
        for (name, tensor) in weights.iter_mut() {
            if name.starts_with("transformer_blocks.0.norm1.linear.") {
                let six = tensor.dim(0).expect("nine parts") / 9 * 6;
                *tensor = tensor
                    .narrow(0, 0, six)
                    .and_then(|x| x.contiguous())
                    .expect("six");
            }
        }
    });
    let model = model_in(folder.path());
    let goldens = tensors("sd3-tiny.components.safetensors");
    let found = predict_rows(&*model.denoiser, &goldens, "8x8", [1.0; 2], &[0, 1]);
    let variants = tensors("flow-variants.components.safetensors");
    let notes = json("flow-variants.components.json");
    let expected = channels_last(&variants["plain.output"]);
    assert_close(&found, &expected, bound(&notes, "plain.output"), "sd3");
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for name in MODELS {
        let goldens = tensors(&format!("{name}.components.safetensors"));
        let model = model(name);
        let predict =
            |order: &[usize]| predict_rows(&*model.denoiser, &goldens, "6x10", [1.0, 4.0], order);
        let alone = [predict(&[0]), predict(&[1])];
        for order in [&[0, 1][..], &[1, 1, 0], &[0, 1, 0, 0, 1], &[1; 9]] {
            let together = predict(order);
            for (place, &index) in order.iter().enumerate() {
                let found = row(&together, place);
                assert!(
                    bits(&found) == bits(&alone[index]),
                    "{name}: {place} of {order:?}"
                );
            }
        }
    }
}

#[test]
fn weights_in_f16_and_f32_predict_the_same_on_the_cpu() {
    for name in MODELS {
        let goldens = tensors(&format!("{name}.components.safetensors"));
        let folder = fixtures().join(name);
        let weights = WeightsFrom::Folder(&folder);
        let wide = model_of(&folder, config(&folder), weights, Some(DType::F32)).denoiser;
        let found = predict_rows(&*wide, &goldens, "8x8", [1.0; 2], &[0, 1]);
        let as_in_file = predict_rows(&*model(name).denoiser, &goldens, "8x8", [1.0; 2], &[0, 1]);
        assert!(bits(&found) == bits(&as_in_file), "{name}");
    }
}

#[test]
fn random_weights_predict_finite_numbers_and_depend_on_the_seed() {
    for name in MODELS {
        let goldens = tensors(&format!("{name}.components.safetensors"));
        let predict = |seed| {
            let folder = fixtures().join(name);
            let config = config(&folder);
            let denoiser = model_of(&folder, config, WeightsFrom::Seed(seed), None).denoiser;
            values(&predict_rows(
                &*denoiser,
                &goldens,
                "8x8",
                [1.0; 2],
                &[0, 1],
            ))
        };
        let found = predict(1);
        assert!(found.iter().all(|value| value.is_finite()), "{name}");
        assert!(found == predict(1) && found != predict(2), "{name}");
    }
}

#[test]
fn without_t5_stable_diffusion_3_reads_zeros() {
    let folder = fixtures().join("sd3-tiny");
    let with = model("sd3-tiny");
    let config = FlowConfig {
        t5: None,
        ..config(&folder)
    };
    let without = model_of(&folder, config, WeightsFrom::Folder(&folder), None);
    let prompt = "a red apple";
    assert_eq!(without.prompts.tokenize(prompt, 1).expect("short").len(), 2);
    let (with, without) = (with.read(prompt), without.read(prompt));
    let part = |x: &Conditioning, start, len| values(&x.context.narrow(1, start, len).expect("in"));
    assert_eq!(part(&with, 0, 77), part(&without, 0, 77));
    assert!(
        part(&without, 77, T5_TOKENS)
            .iter()
            .all(|value| *value == 0.0)
    );
    assert!(part(&with, 77, T5_TOKENS).iter().any(|value| *value != 0.0));
}

#[test]
fn both_prompts_of_a_job_are_read_equally_long() {
    let model = model("sd3-tiny");
    let config = FlowConfig {
        t5_tokens: 512,
        ..model.config
    };
    let folder = fixtures().join("sd3-tiny");
    let model = model_of(&folder, config, WeightsFrom::Folder(&folder), None);
    let long = "a red apple on a white table, ".repeat(12);
    let mut job = job(7.0);
    job.prompt = model.prompts.tokenize(&long, 9).expect("fits").into();
    let negative: Arc<[PromptTokens]> = model.prompts.tokenize("", 9).expect("fits").into();
    job.negative = Some(Arc::clone(&negative));
    let read = |prompt: &[PromptTokens], side| {
        let found = model.denoiser.read(&job, prompt, side).expect("readable");
        found.context.dims().to_vec()
    };
    let positive = read(&job.prompt, PromptSide::Positive);
    assert_eq!(positive, read(&negative, PromptSide::Negative));
    let chunks = job.prompt[0].chunks.len();
    assert!(chunks > 1);
    assert_eq!(positive, [1, 77 * chunks + 512, 64]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    for name in MODELS {
        let model = model(name);
        let conditioning = model.read("a red apple");
        let job = job(1.0);
        let row = DenoiserRow {
            job: &job,
            timestep: 500.0,
            conditioning: &conditioning,
        };
        let predict = |shape: (usize, usize, usize, usize), rows: &[DenoiserRow<'_>]| {
            let x = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("small");
            model
                .denoiser
                .predict(&x, rows)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert!(predict((1, 4, 4, 16), &[row]).is_ok());
        for (shape, rows, what) in [
            ((1, 5, 4, 16), &[row][..], "2x2"),
            ((1, 0, 4, 16), &[row], "2x2"),
            ((1, 4, 4, 4), &[row], "16 channels"),
            ((2, 4, 4, 16), &[row], "1 rows"),
        ] {
            let error = predict(shape, rows).expect_err(what);
            assert!(error.contains(what), "{name}: {error}");
        }
        if name == "sd3-tiny" {
            let error = predict((1, 26, 4, 16), &[row]).expect_err("past the table");
            assert!(error.contains("24x24"), "{error}");
        }
        let read = model.denoiser.read(&job, &[], PromptSide::Positive);
        assert!(
            read.expect_err("no prompt")
                .to_string()
                .contains("text encoders")
        );
    }
}

/// Draws as diffusers' pipeline did, from its random numbers; the latents after every step and the picture.
fn draw(
    model: &Model,
    vae: &Vae,
    case: &Value,
    given: &HashMap<String, Tensor>,
) -> (Tensor, Tensor) {
    let size = case["latent_shape"].as_str().expect("a size");
    let start = channels_last(&given[&format!("{size}.start")]);
    let (_, height, width, _) = start.dims4().expect("a latent");
    let config = ScheduleConfig::from_json(&case["scheduler"]).expect("a scheduler");
    let patch = model.config.token_pixels() / model.config.vae.factor();
    let options = ScheduleOptions {
        strength: case["strength"].as_f64(),
        flow_levels: model.config.shape().levels,
        dynamic_shift: config.dynamic_shift(height * width / (patch * patch)),
        ..ScheduleOptions::new(
            ScheduleName::FlowMatchEuler,
            case["steps"].as_u64().expect("steps") as usize,
        )
    };
    let schedule = NoiseSchedule::new(&config, options).expect("a schedule");
    let begin = schedule.begin();
    let mut x = (start * begin.noise).expect("small");
    if begin.signal > 0.0 {
        let pixels = given[&format!("{size}.image")]
            .to_dtype(DType::F32)
            .expect("pixels");
        let pixels = pixels
            .affine(2.0 / 255.0, -1.0)
            .and_then(|x| x.unsqueeze(0));
        let moments = vae.encode(&pixels.expect("a picture")).expect("latents");
        let deviation = (moments.log_variance * 0.5)
            .and_then(|x| x.exp())
            .expect("small");
        let noise = channels_last(&given[&format!("{size}.encode")]);
        let latent = (moments.mean + (deviation * noise).expect("small")).expect("small");
        let latent = vae.scale(&latent).expect("small");
        x = (x + (latent * begin.signal).expect("small")).expect("small");
    }
    let scale = case["guidance_scale"].as_f64().unwrap_or(1.0);
    let job = job(scale as f32);
    let positive = model.read(case["prompt"].as_str().expect("a prompt"));
    let negative = model.read(case["negative_prompt"].as_str().unwrap_or(""));
    let mut history = schedule.history(x.elem_count());
    let mut latents = Vec::new();
    for (index, step) in schedule.steps().iter().enumerate() {
        let row = |conditioning| DenoiserRow {
            job: &job,
            timestep: step.timestep,
            conditioning,
        };
        let output = if scale > 1.0 {
            let both = Tensor::cat(&[&x, &x], 0).expect("two rows");
            let rows = [row(&negative), row(&positive)];
            let both = model.denoiser.predict(&both, &rows).expect("a prediction");
            let (away, towards) = (both.get(0).expect("a row"), both.get(1).expect("a row"));
            (((towards - &away).expect("small") * scale).expect("small") + away).expect("small")
        } else {
            model
                .denoiser
                .predict(&x, &[row(&positive)])
                .expect("a prediction")
        };
        let mut numbers = values(&x);
        let stepped = schedule.step(index, &mut numbers, &values(&output), &mut history, None);
        stepped.expect("a step");
        x = Tensor::from_vec(numbers, x.shape(), &Device::Cpu).expect("small");
        latents.push(x.clone());
    }
    let picture = vae
        .decode(&vae.unscale(&x).expect("small"))
        .expect("a picture");
    let picture = picture
        .affine(127.5, 127.5)
        .and_then(|x| x.clamp(0f32, 255f32));
    let picture = picture.and_then(|x| x.round()).and_then(|x| x.squeeze(0));
    let latents = Tensor::cat(&latents, 0).expect("steps");
    (latents, picture.expect("a picture"))
}

#[test]
fn pipelines_draw_what_diffusers_draws() {
    for name in MODELS {
        let model = model(name);
        let weights = Weights::open(&fixtures().join(name).join("vae"), None, &Device::Cpu);
        let vae = Vae::new(
            &model.config.vae,
            &weights.expect(name),
            DEFAULT_MEMORY_LIMIT,
        );
        let vae = vae.expect(name);
        let given = tensors(&format!("{name}.pipelines.safetensors"));
        let notes = json(&format!("{name}.pipelines.json"));
        let cases = notes["cases"].as_object().expect("cases");
        assert_eq!(cases.len(), if name == "flux-tiny" { 4 } else { 5 });
        for (case_name, case) in cases {
            let what = format!("{name} {case_name}");
            let (latents, picture) = draw(&model, &vae, case, &given);
            let expected = channels_last(&given[&format!("{case_name}.latents")]);
            // Some timesteps fall between two f32, and diffusers takes the other one: a change of up to 4e-5 in a
            // prediction, which guidance multiplies.
            let scale = case["guidance_scale"].as_f64().unwrap_or(1.0);
            assert_close(&latents, &expected, 5e-5 * scale, &what);
            let expected = given[&format!("{case_name}.picture")].to_dtype(DType::F32);
            assert_close(&picture, &expected.expect("pixels"), 2.5, &what);
        }
    }
}
