//! Each family against transformers: `tests/goldens/make_text_goldens.py` made the fixtures.

use std::path::{Path, PathBuf};

use candle_core::Device;
use girandole::batch::Slot;
use girandole::model::device::DeviceSpec;
use girandole::model::text::config::{DecoderConfig, hugging_face};
use girandole::model::text::decoder::{Decoder, KvShape};
use girandole::model::text::options::TextOptions;
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

fn load(family: &str, served_context: u64) -> Decoding {
    let config = config(family);
    let options = TextOptions {
        max_context: Some(served_context as u32),
        ..TextOptions::default()
    };
    let kv: KvShape = options
        .kv_shape(&config, DeviceSpec::Cpu)
        .expect("valid options");
    let mut source = SafetensorsWeights::open(&fixture(family), None, &Device::Cpu)
        .expect("the fixture has weights");
    let decoder = Decoder::load(&config, &mut source, &kv).expect("complete weights");
    Decoding::new(decoder, &kv, 1)
}

fn tokens(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

fn check(family: &str) {
    let golden = read_json(&fixture(family).join("golden.json"));
    let stride = golden["logit_stride"].as_u64().expect("a number") as usize;
    for case in golden["cases"].as_array().expect("a list") {
        let mut decoding = load(family, case["served_context"].as_u64().expect("a number"));
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
        let mut worst = 0f32;
        for (row, expected) in logits.iter().zip(&expected) {
            for (logit, expected) in row.iter().step_by(stride).zip(expected) {
                worst = worst.max((logit - expected).abs());
            }
        }
        assert_eq!(logits.len(), expected.len());
        assert!(
            worst <= TOLERANCE,
            "{family}, prompt of {}: logits differ by {worst}",
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
