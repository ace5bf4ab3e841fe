//! Each family against transformers: `tests/goldens/make_text_goldens.py` made the fixtures.

use std::path::{Path, PathBuf};

use candle_core::Device;
use girandole::batch::Slot;
use girandole::model::device::{DeviceSpec, FloatType};
use girandole::model::text::config::{Activation, DecoderConfig, hugging_face};
use girandole::model::text::decoder::{Decoder, KvShape};
use girandole::model::text::options::TextOptions;
use girandole::model::text::rope::RopeScaling;
use girandole::model::text::weights::safetensors::SafetensorsWeights;
use serde_json::Value;

use crate::decoding::{Decoding, Part};

/// Largest difference of a logit. Both sides compute in f32, in another order; logits reach ± 10.
const TOLERANCE: f32 = 1e-4;

pub(crate) fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(family)
}

pub(crate) fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

pub(crate) fn config(family: &str) -> DecoderConfig {
    hugging_face::parse(&read_json(&fixture(family).join("config.json"))).expect("a known family")
}

fn load(family: &str, config: &DecoderConfig, served_context: u64) -> Decoding {
    let options = TextOptions {
        max_context: Some(served_context as u32),
        // The reference computes in f32.
        kv_dtype: Some(FloatType::F32),
        ..TextOptions::default()
    };
    let kv: KvShape = options
        .kv_shape(config, DeviceSpec::Cpu)
        .expect("valid options");
    let mut source = SafetensorsWeights::open(&fixture(family), None, &Device::Cpu)
        .expect("the fixture has weights");
    let decoder = Decoder::load(config, &mut source, &kv).expect("complete weights");
    Decoding::new(decoder, &kv, 1)
}

fn tokens(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

/// The largest difference between the decoder's logits for a case's prompt and the recorded ones.
fn logit_difference(decoding: &mut Decoding, golden: &Value, case: &Value) -> f32 {
    let stride = golden["logit_stride"].as_u64().expect("a number") as usize;
    let prompt = tokens(&case["prompt"]);
    let expected: Vec<Vec<f32>> =
        serde_json::from_value(case["logits"].clone()).expect("rows of logits");
    decoding
        .pool
        .reserve(Slot(0), prompt.len())
        .expect("enough blocks");
    let logits = decoding.pass(&[Part {
        slot: 0,
        first_position: 0,
        tokens: &prompt,
    }]);
    assert_eq!(logits.len(), expected.len());
    let differences = logits.iter().zip(&expected).flat_map(|(row, expected)| {
        let recorded = row.iter().step_by(stride).zip(expected);
        recorded.map(|(logit, expected)| (logit - expected).abs())
    });
    differences.fold(0.0, f32::max)
}

fn check(family: &str) {
    let golden = read_json(&fixture(family).join("golden.json"));
    for case in golden["cases"].as_array().expect("a list") {
        let served_context = case["served_context"].as_u64().expect("a number");
        let mut decoding = load(family, &config(family), served_context);
        let difference = logit_difference(&mut decoding, &golden, case);
        let prompt = tokens(&case["prompt"]);
        assert!(
            difference <= TOLERANCE,
            "{family}, prompt of {}: logits differ by {difference}",
            prompt.len()
        );
        let greedy = tokens(&case["greedy"]);
        assert_eq!(
            decoding.greedy(&prompt, greedy.len()),
            greedy,
            "{family}, prompt of {}",
            prompt.len()
        );
    }
}

/// A golden proves a switch only if it notices when the switch is wrong.
#[test]
fn the_goldens_notice_each_switch() {
    type Change = fn(&mut DecoderConfig);
    let changes: [(&str, &str, Change); 14] = [
        ("llama", "scale", |c| c.attention_scale *= 1.1),
        ("llama", "eps", |c| c.norm_eps = 1e-2),
        ("llama3-rope", "rope", |c| {
            c.ropes[0].scaling = RopeScaling::None
        }),
        ("llama-linear-rope", "rope", |c| {
            c.ropes[0].scaling = RopeScaling::None
        }),
        ("llama-yarn", "rope", |c| {
            c.ropes[0].scaling = RopeScaling::None
        }),
        ("mistral", "window", |c| c.layers[1].window = Some(8)),
        ("phi3", "partial rope", |c| c.ropes[0].rotary_dim = 8),
        ("phi3-longrope", "rope", |c| {
            c.ropes[0].scaling = RopeScaling::None
        }),
        ("gemma2", "attention softcap", |c| {
            c.attention_softcap = None
        }),
        ("gemma2", "logit softcap", |c| c.logit_softcap = None),
        ("gemma2", "window", |c| c.layers[0].window = None),
        ("gemma2", "activation", |c| c.activation = Activation::Silu),
        ("gemma3", "embedding scale", |c| c.embedding_scale = None),
        ("gemma3", "local rope", |c| c.layers[0].rope = 0),
    ];
    for (family, switch, change) in changes {
        let golden = read_json(&fixture(family).join("golden.json"));
        let mut config = config(family);
        change(&mut config);
        let mut decoding = load(family, &config, 256);
        let longest = &golden["cases"][2];
        let difference = logit_difference(&mut decoding, &golden, longest);
        assert!(
            difference > 10.0 * TOLERANCE,
            "{family}, {switch}: {difference}"
        );
    }
}

macro_rules! goldens {
    ($($name:ident: $family:literal,)*) => {
        $(#[test]
        fn $name() {
            check($family);
        })*
    };
}

goldens! {
    llama: "llama",
    llama_with_tied_head_and_biases: "llama-tied-bias",
    llama_with_llama3_rope: "llama3-rope",
    llama_with_linear_rope: "llama-linear-rope",
    llama_with_yarn: "llama-yarn",
    llama_in_bf16: "llama-bf16",
    mistral_with_a_window_and_shards: "mistral",
    qwen2: "qwen2",
    qwen3: "qwen3",
    phi3_with_a_window_and_partial_rope: "phi3",
    phi3_with_longrope: "phi3-longrope",
    gemma2: "gemma2",
    gemma3: "gemma3",
}
