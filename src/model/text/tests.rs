//! Passes that fail. From outside there is no way to make one fail on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device};
use serde_json::json;

use super::options::TextOptions;
use super::weights::dummy::DummyWeights;
use super::*;
use crate::batch::{Emission, Phase};
use crate::kernels::attention::BLOCK_TOKENS;
use crate::model::device::DeviceSpec;

const PROMPT_TOKENS: u32 = 70;

fn model() -> TextModel {
    let config = config::hugging_face::parse(&json!({
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "num_hidden_layers": 2, "vocab_size": 272, "max_position_embeddings": 512,
    }))
    .expect("a known family");
    let options = TextOptions {
        batch_size: 2,
        ..TextOptions::default()
    };
    let kv = options.kv_shape(&config, DeviceSpec::Cpu).expect("valid");
    let mut source = DummyWeights::new(&config, 3, DType::F32, &Device::Cpu);
    let decoder = Decoder::load(&config, &mut source, &kv).expect("all weights");
    let tokenizer = Arc::new(TextTokenizer::bytes(272));
    TextModel::new(decoder, tokenizer, 2, &kv, kv.blocks)
}

fn job(prompt: Vec<u32>) -> TextJob {
    TextJob {
        ignore_eos: true,
        logprobs: Some(3),
        ..TextJob::greedy(prompt, 60)
    }
}

fn prompt() -> Vec<u32> {
    (0..PROMPT_TOKENS).collect()
}

fn planned(slot: u32, phase: Phase, work: u32) -> PlannedRow {
    PlannedRow {
        slot: Slot(slot),
        phase,
        work,
    }
}

/// Prompt tokens that the prefix cache would give a row that goes on after `tokens`.
fn known(model: &TextModel, tokens: &[u32]) -> usize {
    let mut chain = DigestChain::new(&job(vec![]).cache_salt);
    let and_one_more: Vec<u32> = tokens.iter().copied().chain([0]).collect();
    model.pool.prefixes().find(&and_one_more, &mut chain);
    chain.tokens()
}

/// How a pass goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Before anything is stored.
    Early,
    /// When all keys and values are stored.
    Late,
}

/// A pass for slot 0 that fails in one of the ways that devices have, through the model's own path.
fn fail(model: &mut TextModel, plan: PlannedRow, fault: Fault) {
    if fault == Fault::Late {
        let row = model.rows[0].as_ref().expect("it is there");
        let contribution = row.contribute(plan.phase, plan.work).expect("its phase");
        let count = contribution.tokens.len();
        let positions = (contribution.first_position..).map(|position| position as u32);
        let layout = TokenLayout::new(
            vec![0; count],
            positions.take(count).collect(),
            model.pool.tables().to_vec(),
        );
        let layout = layout.expect("every token has a block");
        let hidden = model.decoder.forward(&contribution.tokens, &layout, &[]);
        hidden.expect("a pass");
    }
    // A row with a token that the decoder has not fails every pass that it is in.
    let ill = job(vec![1_000]);
    model.pool.reserve(Slot(1), 1).expect("one block");
    model.rows[1] = Some(Row::new(&ill, 0, &model.tokenizer, 512, None));
    let failed = model.step(&[plan, planned(1, Phase::Begin, 1)]);
    failed.expect_err("the pass has a token without an embedding");
    model.retire(Slot(1));
}

/// All that a row says, with a fault before each pass of `chunk` prompt tokens or one new token.
fn said(model: &mut TextModel, chunk: u32, fault: Fault) -> (Vec<u32>, Vec<u32>) {
    let all = Arc::new(Job::Text(job(prompt())));
    let admitted = model.admit(Slot(0), &all, 0).expect("room for it");
    let mut left = PROMPT_TOKENS - admitted.begin_work_done;
    let (mut tokens, mut bits) = (Vec::new(), Vec::new());
    loop {
        let plan = match left {
            0 => planned(0, Phase::Iterate, 1),
            _ => planned(0, Phase::Begin, chunk.min(left)),
        };
        if fault != Fault::None {
            let stored: Vec<u32> = prompt().into_iter().chain(tokens.clone()).collect();
            let before = known(model, &stored);
            fail(model, plan, fault);
            assert_eq!(known(model, &stored), before, "it entered nothing");
        }
        let outcome = model.step(&[plan]).expect("a pass").remove(0);
        left -= plan.work.min(left);
        for emission in outcome.emitted {
            if let Emission::Text {
                tokens: new,
                logprobs,
                ..
            } = emission
            {
                tokens.extend(new);
                let top = logprobs.iter().flat_map(|entry| &entry.top);
                bits.extend(top.map(|(_, _, logprob)| logprob.to_bits()));
            }
        }
        if !matches!(outcome.next, Next::Continue(_)) {
            model.retire(Slot(0));
            return (tokens, bits);
        }
    }
}

#[test]
fn a_pass_that_failed_can_be_run_again_and_enters_nothing() {
    let expected = said(&mut model(), PROMPT_TOKENS, Fault::None);
    assert_eq!((expected.0.len(), expected.1.len()), (60, 180));
    for fault in [Fault::Early, Fault::Late] {
        for chunk in [PROMPT_TOKENS, 32, 27] {
            let mut model = model();
            assert_eq!(said(&mut model, chunk, fault), expected);
            let all: Vec<u32> = prompt().into_iter().chain(expected.0.clone()).collect();
            let stored = all.len() - 1;
            let whole_blocks = stored / BLOCK_TOKENS * BLOCK_TOKENS;
            assert_eq!(known(&model, &all), whole_blocks);
            // And now with what it has left there.
            assert_eq!(said(&mut model, chunk, fault), expected);
        }
    }
}

/// A model whose slot 0 holds a row with two full blocks that were entered, and six tokens to read.
fn model_with_known_blocks() -> (TextModel, PlannedRow) {
    let mut model = model();
    let all = Arc::new(Job::Text(job(prompt())));
    model.admit(Slot(0), &all, 0).expect("room for it");
    model.step(&[planned(0, Phase::Begin, 64)]).expect("a pass");
    assert_eq!(known(&model, &prompt()), 64);
    (model, planned(0, Phase::Begin, PROMPT_TOKENS - 64))
}

#[test]
fn a_row_that_ends_with_a_failed_pass_leaves_nothing_to_be_found() {
    for fault in [Fault::Early, Fault::Late] {
        let (mut model, rest) = model_with_known_blocks();
        fail(&mut model, rest, fault);
        model.retire(Slot(0));
        assert_eq!(known(&model, &prompt()), 0);
        assert_eq!(model.cache_report(), CacheReport::default());
        let said = said(&mut model, PROMPT_TOKENS, Fault::None);
        assert_eq!(said.0.len(), 60);
        assert_eq!(known(&model, &prompt()), 64, "the slot is above suspicion");
    }
}

#[test]
fn a_row_that_ends_with_a_panic_leaves_nothing_to_be_found() {
    let (mut model, rest) = model_with_known_blocks();
    // It says that it has read more than its prompt.
    let mut chain = DigestChain::new(&job(vec![]).cache_salt);
    for token in 0..40 {
        chain.push(token);
    }
    let impossible = Row::new(&job(vec![1]), 0, &model.tokenizer, 512, Some(chain));
    model.rows[1] = Some(impossible);
    let step = AssertUnwindSafe(|| model.step(&[rest, planned(1, Phase::Begin, 1)]));
    assert!(catch_unwind(step).is_err(), "it panics");
    model.retire(Slot(0));
    model.retire(Slot(1));
    assert_eq!(known(&model, &prompt()), 0);
    assert_eq!(model.pool.free(), model.pool.total());
}

#[test]
fn a_row_that_ends_after_a_pass_that_went_well_leaves_its_blocks() {
    let (mut model, rest) = model_with_known_blocks();
    fail(&mut model, rest, Fault::Early);
    model.step(&[rest]).expect("a pass");
    model.retire(Slot(0));
    assert_eq!(known(&model, &prompt()), 64);
}

#[test]
fn a_plan_that_cannot_be_takes_no_row() {
    let expected = said(&mut model(), PROMPT_TOKENS, Fault::None);
    let mut model = model();
    let all = Arc::new(Job::Text(job(prompt())));
    model.admit(Slot(0), &all, 0).expect("room for it");
    let whole = planned(0, Phase::Begin, PROMPT_TOKENS);
    for wrong in [
        planned(0, Phase::Begin, 1),
        planned(1, Phase::Begin, 1),
        planned(2, Phase::Begin, 1),
    ] {
        let refused = model.step(&[whole, wrong]).expect_err("no such row");
        let slot = format!("slot {} was planned for Begin", wrong.slot.0);
        assert!(refused.to_string().starts_with(&slot), "{refused}");
    }
    let outcome = model.step(&[whole]).expect("a pass").remove(0);
    let [Emission::Text { tokens, .. }] = &outcome.emitted[..] else {
        panic!("{:?}", outcome.emitted);
    };
    assert_eq!(tokens[..], expected.0[..1]);
}

#[test]
fn behind_a_gap_nothing_is_entered() {
    let model = model();
    let chain = DigestChain::new(&job(vec![]).cache_salt);
    let mut row = Row::new(&job(prompt()), 0, &model.tokenizer, 512, Some(chain));
    let part = |first_position: usize, count: u32| Contribution {
        tokens: (0..count).collect(),
        first_position,
        wanted: 0..0,
    };
    assert_eq!(row.stored(&part(0, 33)).len(), 1);
    assert!(row.stored(&part(34, 36)).is_empty());
    assert!(row.stored(&part(70, 60)).is_empty());
}
