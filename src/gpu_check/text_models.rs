//! Whole text models of every family, small and random: what they say on a device and on the processor.
//!
//! In f32 the tokens that greedy rows choose must be the same. In 16 bits they may part where two tokens are nearly
//! as probable, so there the log-probabilities of a given text are compared instead.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::check::{Check, Group, Place, Twin};
use crate::batch::{Emission, Next, Phase, PlannedRow, RowOutcome, Slot};
use crate::job::{Job, TextJob};
use crate::model::device::FloatType;
use crate::model::loader;
use crate::model::manifest::ModelFiles;
use crate::model::text::TextModel;
use crate::model::text::options::TextOptions;
use crate::model::{Model, ModelError};

/// Log-probabilities in f32: rounding over a few layers.
const F32: f64 = 1e-4;
/// The same with weights, keys and values in 16 bits.
const HALF: f64 = 5e-2;
/// Prompts of the rows, in tokens: within a block, across one, over several.
const PROMPTS: [u32; 3] = [5, 40, 130];
/// Prompt tokens of a row in a pass: prompts come in chunks that end within blocks.
const CHUNK: u32 = 48;
/// New tokens of a row.
const NEW_TOKENS: u32 = 40;
const VOCABULARY: u32 = 320;

/// Llama's.
pub(super) fn plain_shape() -> Value {
    families().remove(0).1
}

/// The families, each with what sets it apart.
fn families() -> Vec<(&'static str, Value)> {
    let with = |family: &str, more: Value| {
        let mut config = json!({
            "model_type": family, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
        });
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        config
    };
    vec![
        ("llama", with("llama", json!({"head_dim": 64}))),
        ("mistral", with("mistral", json!({"sliding_window": 33}))),
        ("qwen2", with("qwen2", json!({}))),
        (
            "qwen3",
            with(
                "qwen3",
                json!({"head_dim": 128, "tie_word_embeddings": true}),
            ),
        ),
        ("phi3", with("phi3", json!({"sliding_window": 70}))),
        (
            "gemma2",
            with(
                "gemma2",
                json!({
                    "head_dim": 32, "sliding_window": 40, "query_pre_attn_scalar": 32, "rms_norm_eps": 1e-6,
                    "attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0,
                    "hidden_activation": "gelu_pytorch_tanh",
                }),
            ),
        ),
        (
            "gemma3",
            with(
                "gemma3_text",
                json!({
                    "head_dim": 256, "sliding_window": 40, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
                    "sliding_window_pattern": 3, "rope_local_base_freq": 10000.0,
                    "hidden_activation": "gelu_pytorch_tanh",
                }),
            ),
        ),
    ]
}

/// The checks; the models' shapes are written below `folder`.
///
/// # Errors
/// The folder cannot be written to.
pub(super) fn checks(folder: &Path) -> std::io::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (family, config) in families() {
        let path = write(folder, family, &config)?;
        let model = |name: String, allowed, run| Check {
            group: Group::Model,
            name,
            allowed,
            run,
            twin: Twin::Processor,
        };
        let shape = path.clone();
        checks.push(model(
            format!("{family}: greedy tokens of three rows, f32"),
            0.0,
            Box::new(move |place| Ok(say(&mut build(place, &shape, FloatType::F32, 3)?)?.0)),
        ));
        let shape = path.clone();
        checks.push(model(
            format!("{family}: their log-probabilities, f32"),
            F32,
            Box::new(move |place| Ok(say(&mut build(place, &shape, FloatType::F32, 3)?)?.1)),
        ));
        for dtype in [FloatType::F16, FloatType::BF16] {
            let shape = path.clone();
            checks.push(model(
                format!("{family}: log-probabilities of a text, {dtype}"),
                HALF,
                Box::new(move |place| score(&mut build(place, &shape, dtype, 1)?)),
            ));
        }
    }
    Ok(checks)
}

/// Writes a shape where a loader finds it.
pub(super) fn write(folder: &Path, name: &str, config: &Value) -> std::io::Result<PathBuf> {
    let folder = folder.join(name);
    fs::create_dir(&folder)?;
    let path = folder.join("config.json");
    fs::write(&path, config.to_string())?;
    Ok(path)
}

/// A model of this shape, as it is served.
fn build(
    place: &Place,
    config: &Path,
    dtype: FloatType,
    rows: u32,
) -> Result<TextModel, ModelError> {
    build_with(place, config, dtype, rows, true)
}

/// The same with captured graphs or without. Keys and values are in f32 with weights in f32, else in f16.
pub(super) fn build_with(
    place: &Place,
    config: &Path,
    dtype: FloatType,
    rows: u32,
    cuda_graphs: bool,
) -> Result<TextModel, ModelError> {
    let files = ModelFiles::Dummy {
        config: config.to_owned(),
        seed: 1,
    };
    let options = TextOptions {
        batch_size: rows,
        kv_cache_tokens: Some(2048),
        cuda_graphs,
        prefix_cache_tokens: Some(0),
        dtype: Some(dtype),
        kv_dtype: Some(match dtype {
            FloatType::F32 => FloatType::F32,
            FloatType::F16 | FloatType::BF16 => FloatType::F16,
        }),
        ..TextOptions::default()
    };
    loader::build_text(&loader::load_assets(&files)?, place.spec, &options)
}

/// A prompt of so many tokens, of which no two rows have the same.
pub(super) fn prompt(row: u32, tokens: u32) -> Vec<u32> {
    (0..tokens)
        .map(|at| (at * 131 + row * 57 + at * at) % VOCABULARY)
        .collect()
}

/// What greedy rows say in company, beginning one after another: tokens, and their log-probabilities. The rows begin
/// while others decode, so that passes are mixed.
pub(super) fn say(model: &mut TextModel) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
    let mut left = Vec::new();
    for (row, tokens) in (0..).zip(PROMPTS) {
        let job = TextJob {
            ignore_eos: true,
            logprobs: Some(0),
            ..TextJob::greedy(prompt(row, tokens), NEW_TOKENS)
        };
        model.admit(Slot(row), &Arc::new(Job::Text(job)), 0)?;
        left.push(tokens);
    }
    let mut said = vec![(Vec::new(), Vec::new()); PROMPTS.len()];
    let mut running: VecDeque<u32> = (0..PROMPTS.len() as u32).collect();
    while !running.is_empty() {
        // One row begins at a time, the others go on.
        let beginner = running.iter().copied().find(|row| left[*row as usize] > 0);
        let plan: Vec<PlannedRow> = running
            .iter()
            .filter(|row| left[**row as usize] == 0 || Some(**row) == beginner)
            .map(|&row| PlannedRow {
                slot: Slot(row),
                phase: match left[row as usize] {
                    0 => Phase::Iterate,
                    _ => Phase::Begin,
                },
                work: left[row as usize].clamp(1, CHUNK),
            })
            .collect();
        let outcomes = model.step(&plan)?;
        for (planned, outcome) in plan.iter().zip(outcomes) {
            let row = planned.slot.index();
            if planned.phase == Phase::Begin {
                left[row] -= planned.work;
            }
            take(&outcome, &mut said[row])?;
            if matches!(outcome.next, Next::Finish(_)) {
                model.retire(planned.slot);
                running.retain(|running| *running as usize != row);
            }
        }
    }
    let (tokens, logprobs): (Vec<_>, Vec<_>) = said.into_iter().unzip();
    Ok((tokens.concat(), logprobs.concat()))
}

/// Log-probabilities of a text's tokens, in one pass.
fn score(model: &mut TextModel) -> Result<Vec<f32>, ModelError> {
    let tokens = PROMPTS[2];
    let job = TextJob {
        ignore_eos: true,
        prompt_logprobs: Some(0),
        ..TextJob::greedy(prompt(0, tokens), 1)
    };
    model.admit(Slot(0), &Arc::new(Job::Text(job)), 0)?;
    let outcomes = model.step(&[PlannedRow {
        slot: Slot(0),
        phase: Phase::Begin,
        work: tokens,
    }])?;
    let mut logprobs = Vec::new();
    for emission in outcomes.iter().flat_map(|outcome| &outcome.emitted) {
        if let Emission::PromptLogprobs(entries) = emission {
            logprobs.extend(entries.iter().map(|entry| entry.logprob));
        }
    }
    // The first token has none.
    Ok(logprobs.split_off(1.min(logprobs.len())))
}

fn take(outcome: &RowOutcome, said: &mut (Vec<f32>, Vec<f32>)) -> Result<(), ModelError> {
    for emission in &outcome.emitted {
        if let Emission::Text {
            tokens, logprobs, ..
        } = emission
        {
            said.0.extend(tokens.iter().map(|token| *token as f32));
            said.1.extend(logprobs.iter().map(|entry| entry.logprob));
        }
    }
    match &outcome.next {
        Next::Fail(why) => Err(ModelError::Device(why.clone())),
        Next::Continue(_) | Next::Finish(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_all_their_tokens_and_not_the_same_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "llama", &plain_shape()).unwrap();
        let mut model = build(&Place::cpu(), &path, FloatType::F32, 3).unwrap();
        let (tokens, logprobs) = say(&mut model).unwrap();
        assert_eq!(tokens.len(), PROMPTS.len() * NEW_TOKENS as usize);
        assert_eq!(logprobs.len(), tokens.len());
        assert!(logprobs.iter().all(|logprob| *logprob <= 0.0));
        let (first, second) = tokens.split_at(NEW_TOKENS as usize);
        assert_ne!(first, &second[..NEW_TOKENS as usize]);
        // Tokens that vary: a model that repeats itself would hide a wrong position.
        let mut kinds: Vec<u32> = tokens.iter().map(|token| *token as u32).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert!(kinds.len() > 10, "{kinds:?}");
        let mut model = build(&Place::cpu(), &path, FloatType::BF16, 1).unwrap();
        assert_eq!(score(&mut model).unwrap().len() as u32, PROMPTS[2] - 1);
    }
}
