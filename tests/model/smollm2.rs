//! The real SmolLM2: `GIRANDOLE_TEST_GGUF` names its file, or the program fetches it into its cache,
//! as it does for anybody.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use candle_core::{Device, IndexOp, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use girandole::batch::{FinishReason, Next};
use girandole::job::TextJob;
use girandole::model::device::{DeviceSpec, FloatType};
use girandole::model::loader::{TextAssets, build, load_assets};
use girandole::model::manifest::ModelFiles;
use girandole::model::text::config;
use girandole::model::text::decoder::{Decoder, KvShape};
use girandole::model::text::options::TextOptions;
use girandole::model::text::weights::gguf::{GgufFile, GgufWeights};

use crate::decoding::{Decoding, argmax};
use crate::prefixes::found;
use crate::serving::{Guest, alone, options, plain_options, run};

fn file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| match std::env::var_os("GIRANDOLE_TEST_GGUF") {
        Some(path) => PathBuf::from(path),
        None => pull("smollm2-135m-instruct"),
    })
}

/// The model's file, by way of `girandole models pull`.
fn pull(name: &str) -> PathBuf {
    let pulled = Command::new(env!("CARGO_BIN_EXE_girandole"))
        .args(["models", "pull", name])
        .output()
        .expect("the program starts");
    let said = String::from_utf8(pulled.stdout).expect("UTF-8");
    let told = said.trim_end().split_once(" is in ");
    let (_, path) = told.unwrap_or_else(|| {
        panic!("not fetched:\n{}", String::from_utf8_lossy(&pulled.stderr));
    });
    PathBuf::from(path)
}

fn load(path: &Path) -> (Decoder, KvShape) {
    let file = GgufFile::open(path).expect("a GGUF file");
    let factors = file.rope_factors().expect("readable");
    let config = config::gguf::parse(file.content(), &factors).expect("a known family");
    // The reference computes in f32.
    let options = TextOptions {
        kv_dtype: Some(FloatType::F32),
        ..TextOptions::default()
    };
    let kv = options.kv_shape(&config, DeviceSpec::Cpu).expect("valid");
    let mut source = GgufWeights::new(&file, None, &Device::Cpu);
    (
        Decoder::load(&config, &mut source, &kv).expect("complete"),
        kv,
    )
}

fn assets(path: &Path) -> TextAssets {
    load_assets(&ModelFiles::Gguf(path.to_path_buf())).expect("a known family")
}

/// A user's message as the model's chat template writes it.
fn chat(assets: &TextAssets, message: &str) -> Vec<u32> {
    let text = format!("<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n");
    assets.tokenizer.encode(&text, true).expect("plain text")
}

#[test]
fn greedy_tokens_equal_candles_stock_model() {
    let path = file();
    let prompt = chat(&assets(path), "Why is the sky blue?");
    let (decoder, kv) = load(path);
    let ours = Decoding::new(decoder, &kv, 1).greedy(&prompt, 24);

    let mut reader = File::open(path).expect("there");
    let content = candle_core::quantized::gguf_file::Content::read(&mut reader).expect("GGUF");
    let mut stock = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).expect("llama");
    let mut stock_tokens = vec![];
    let mut next = prompt;
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

#[test]
fn it_answers_a_question() {
    let path = file();
    let assets = assets(path);
    let mut model = build(&assets, DeviceSpec::Cpu, &options(1)).expect("weights");
    let prompt = chat(&assets, "What is the capital of France?");
    let said = alone(&mut *model, TextJob::greedy(prompt, 40));
    assert_eq!(said.text, "The capital of France is Paris.");
    assert_eq!(said.end, Some(Next::Finish(FinishReason::Stop)));
}

#[test]
fn a_chat_that_goes_on_says_the_same_with_and_without_the_prefix_cache() {
    let path = file();
    let assets = assets(path);
    let model = |prefix_cache_tokens| {
        let options = TextOptions {
            prefix_cache_tokens,
            ..options(1)
        };
        build(&assets, DeviceSpec::Cpu, &options).expect("weights")
    };
    let (mut caching, mut plain) = (model(None), model(Some(0)));
    let story = "Tell me about lamps and candles. ".repeat(8);
    let mut prompt = chat(&assets, &story);
    for question in ["And then?", "Why?", "Who said so?"] {
        let job = TextJob {
            logprobs: Some(2),
            ..TextJob::greedy(prompt.clone(), 20)
        };
        let first = alone(&mut *caching, job.clone());
        assert_eq!(first, alone(&mut *plain, job.clone()));
        // What was just said is found again, but for its last token, which was never fed to the model.
        prompt.extend(&first.tokens);
        let stored = prompt.len() - 1;
        prompt.extend(chat(&assets, question));
        let next = TextJob {
            prompt: prompt.clone().into(),
            ..job
        };
        let found = found(&mut *caching, &next) as usize;
        assert_eq!(found, stored / 32 * 32);
    }
}

#[test]
fn eight_prompts_together_say_what_each_says_alone() {
    let path = file();
    let assets = assets(path);
    let mut model = build(&assets, DeviceSpec::Cpu, &options(8)).expect("weights");
    let mut plain = build(&assets, DeviceSpec::Cpu, &plain_options(1)).expect("weights");
    let guests: Vec<Guest> = (0..8)
        .map(|slot| {
            let message = "Tell me more about lamps and candles. ".repeat(1 + slot as usize * 3);
            let job = TextJob {
                logprobs: Some(2),
                ..TextJob::greedy(chat(&assets, &message), 10)
            };
            Guest {
                chunk: 32,
                arrival: slot as usize,
                ..Guest::new(slot, job)
            }
        })
        .collect();
    let together = run(&mut *model, &guests, |_| {});
    for (guest, together) in guests.iter().zip(together) {
        let job = guest.job.text();
        assert_eq!(together, alone(&mut *plain, job.clone()));
    }
}
