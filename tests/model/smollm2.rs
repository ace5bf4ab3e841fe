//! The real SmolLM2, where its file is at hand: `GIRANDOLE_TEST_GGUF` names it. Without the file these
//! tests only say so; `.ci/run` fetches it first.

use std::fs::File;
use std::path::PathBuf;

use candle_core::{Device, IndexOp, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use girandole::model::device::DeviceSpec;
use girandole::model::text::config;
use girandole::model::text::decoder::{Decoder, KvShape};
use girandole::model::text::options::TextOptions;
use girandole::model::text::weights::gguf::{GgufFile, GgufWeights};

use crate::decoding::{Decoding, argmax};

fn file() -> Option<PathBuf> {
    let path = std::env::var_os("GIRANDOLE_TEST_GGUF").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: GIRANDOLE_TEST_GGUF names no file");
    }
    path
}

fn load(path: &std::path::Path) -> (Decoder, KvShape) {
    let file = GgufFile::open(path).expect("a GGUF file");
    let factors = file.rope_factors().expect("readable");
    let config = config::gguf::parse(file.content(), &factors).expect("a known family");
    let kv = TextOptions::default()
        .kv_shape(&config, DeviceSpec::Cpu)
        .expect("valid");
    let mut source = GgufWeights::new(&file, None, &Device::Cpu);
    (
        Decoder::load(&config, &mut source, &kv).expect("complete"),
        kv,
    )
}

/// "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
const PROMPT: [u32; 17] = [
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198, 198,
];

#[test]
fn greedy_tokens_equal_candles_stock_model() {
    let Some(path) = file() else { return };
    let (decoder, kv) = load(&path);
    let ours = Decoding::new(decoder, &kv, 1).greedy(&PROMPT, 24);

    let mut reader = File::open(&path).expect("there");
    let content = candle_core::quantized::gguf_file::Content::read(&mut reader).expect("GGUF");
    let mut stock = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).expect("llama");
    let mut stock_tokens = vec![];
    let mut next = PROMPT.to_vec();
    let mut position = 0;
    while stock_tokens.len() < 24 {
        let input = Tensor::new(next.as_slice(), &Device::Cpu)
            .and_then(|ids| ids.unsqueeze(0))
            .expect("ids");
        let logits = stock.forward(&input, position).expect("a pass");
        let logits: Vec<f32> = logits.i(0).and_then(|row| row.to_vec1()).expect("logits");
        position += next.len();
        let best = argmax(&logits);
        stock_tokens.push(best);
        next = vec![best];
    }
    assert_eq!(ours, stock_tokens);
}
