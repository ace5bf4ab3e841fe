//! Passes that fail, which from outside cannot be made to on the CPU; and steps begun ahead, which the CPU does not
//! do by itself.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device};
use serde_json::json;

use super::options::TextOptions;
use super::row::Contribution;
use super::weights::dummy::DummyWeights;
use super::*;
use crate::batch::{Emission, Phase};
use crate::kernels::attention::{BLOCK_TOKENS, TokenLayout};
use crate::model::device::DeviceSpec;

const PROMPT_TOKENS: u32 = 70;

fn model() -> TextModel {
    model_with(2)
}

/// The same, which begins steps ahead.
fn hasty_model(slots: u32) -> TextModel {
    let model = model_with(slots).with_steps_ahead(true);
    model.expect("little memory")
}

fn model_with(slots: u32) -> TextModel {
    model_of(slots, "qwen3", false)
}

fn model_of(slots: u32, family: &str, fused: bool) -> TextModel {
    let config = config::hugging_face::parse(&json!({
        "model_type": family, "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "num_hidden_layers": 2, "vocab_size": 272, "max_position_embeddings": 512,
        "query_pre_attn_scalar": 16, "sliding_window": 40,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }))
    .expect("a known family");
    let options = TextOptions {
        batch_size: slots,
        ..TextOptions::default()
    };
    let kv = options.kv_shape(&config, DeviceSpec::Cpu).expect("valid");
    let mut source = DummyWeights::new(&config, 3, DType::F32, &Device::Cpu);
    let decoder = Decoder::load(&config, &mut source, &kv).expect("all weights");
    let decoder = match fused {
        true => decoder.fused(),
        false => decoder,
    };
    let tokenizer = Arc::new(TextTokenizer::bytes(272));
    TextModel::new(decoder, tokenizer, slots, &kv, kv.blocks)
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
        let both = [model as fn() -> TextModel, || hasty_model(2)];
        for (chunk, model) in [PROMPT_TOKENS, 32, 27]
            .iter()
            .flat_map(|chunk| both.map(|model| (*chunk, model)))
        {
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

/// Five rows that differ in everything: the second is penalised, the third draws, the fourth must not end soon.
fn company() -> Vec<Arc<Job>> {
    let jobs = (0..5u32).map(|row| {
        let mut job = TextJob {
            logprobs: Some(2 * (row % 2)),
            ..TextJob::greedy((row..row + 5 + 17 * row).collect::<Vec<u32>>(), 9 + 7 * row)
        };
        job.ignore_eos = row != 3;
        job.min_tokens = if row == 3 { 12 } else { 0 };
        job.sampling.repetition_penalty = if row == 1 { 1.3 } else { 1.0 };
        job.sampling.temperature = if row == 2 { 0.8 } else { 0.0 };
        job.sampling.seed = 77;
        Arc::new(Job::Text(job))
    });
    jobs.collect()
}

/// What a row has said: tokens, and the bits of their log-probabilities.
type Said = (Vec<u32>, Vec<u32>);

fn listen(said: &mut Said, emitted: Vec<Emission>) {
    for emission in emitted {
        if let Emission::Text {
            tokens, logprobs, ..
        } = emission
        {
            said.0.extend(tokens);
            let top = logprobs.iter().flat_map(|entry| &entry.top);
            let own = logprobs.iter().map(|entry| entry.logprob);
            said.1.extend(
                own.chain(top.map(|(_, _, logprob)| *logprob))
                    .map(f32::to_bits),
            );
        }
    }
}

/// What each row says where it comes three steps after the one before, takes its prompt in chunks, is left out of
/// every fifth step, and where the row in slot 2 is given up in step 14 and begins again in step 16.
fn said_in_company(model: &mut TextModel) -> Vec<Said> {
    let jobs = company();
    let mut left: Vec<Option<u32>> = vec![None; jobs.len()];
    let mut said = vec![Said::default(); jobs.len()];
    let mut ended = vec![false; jobs.len()];
    for step in 0..90 {
        for slot in 0..jobs.len() {
            let comes = step == 3 * slot || (step == 16 && slot == 2);
            if comes {
                let admitted = model
                    .admit(Slot(slot as u32), &jobs[slot], 0)
                    .expect("room");
                let prompt = jobs[slot].text().prompt.len() as u32;
                left[slot] = Some(prompt - admitted.begin_work_done);
                said[slot] = Said::default();
            }
        }
        if step == 14 {
            model.retire(Slot(2));
            left[2] = None;
        }
        let plan: Vec<PlannedRow> = (0..jobs.len())
            .filter(|slot| (step + slot) % 5 != 0)
            .filter_map(|slot| {
                Some(match left[slot]? {
                    0 => planned(slot as u32, Phase::Iterate, 1),
                    left => planned(slot as u32, Phase::Begin, left.min(13)),
                })
            })
            .collect();
        if plan.is_empty() {
            continue;
        }
        for (outcome, planned) in model.step(&plan).expect("a pass").into_iter().zip(&plan) {
            let slot = outcome.slot.index();
            if planned.phase == Phase::Begin {
                left[slot] = left[slot].map(|left| left - planned.work);
            }
            listen(&mut said[slot], outcome.emitted);
            if !matches!(outcome.next, Next::Continue(_)) {
                model.retire(outcome.slot);
                left[slot] = None;
                ended[slot] = true;
            }
        }
    }
    assert!(ended.iter().all(|ended| *ended), "{ended:?}");
    assert_eq!(model.pool.free(), model.pool.total(), "blocks are held");
    said
}

#[test]
fn steps_begun_ahead_in_padded_passes_change_nothing() {
    let expected = said_in_company(&mut model_with(5));
    let counts: Vec<usize> = expected.iter().map(|(tokens, _)| tokens.len()).collect();
    assert_eq!(
        [counts[0], counts[1], counts[2], counts[4]],
        [9, 16, 23, 37]
    );
    let mut hasty = hasty_model(5);
    assert_eq!(said_in_company(&mut hasty), expected);
    // And once more, with what is left of the last time.
    assert_eq!(said_in_company(&mut hasty), expected);
}

#[test]
fn a_step_is_begun_when_the_one_before_is_told_and_forgotten_with_its_row() {
    let mut model = hasty_model(3);
    for (slot, job) in (0..3).zip(company()) {
        model.admit(Slot(slot), &job, 0).expect("room");
        let prompt = job.text().prompt.len() as u32;
        model
            .step(&[planned(slot, Phase::Begin, prompt)])
            .expect("a pass");
    }
    let has = |model: &TextModel| {
        [0, 1, 2].map(|slot| {
            model
                .ahead
                .as_ref()
                .is_some_and(|ahead| ahead.has(Slot(slot)))
        })
    };
    assert_eq!(has(&model), [true; 3]);
    model.retire(Slot(1));
    assert_eq!(has(&model), [true, false, true]);
    // Who is left out of a step keeps what was computed for it.
    model
        .step(&[planned(2, Phase::Iterate, 1)])
        .expect("a pass");
    assert_eq!(has(&model), [true, false, true]);
    model.retire(Slot(2));
    model.retire(Slot(0));
    assert_eq!(has(&model), [false; 3]);
}

#[test]
fn a_pass_as_cards_run_it_gives_the_same_bits() {
    // With and without norms of single heads, and with norms behind the projections and capped logits.
    for family in ["qwen3", "llama", "gemma2"] {
        let expected = said_in_company(&mut model_of(5, family, false));
        let found = said_in_company(&mut model_of(5, family, true));
        assert_eq!(found, expected, "{family}");
        let hasty = model_of(5, family, true).with_steps_ahead(true);
        let found = said_in_company(&mut hasty.expect("little memory"));
        assert_eq!(found, expected, "{family}, ahead");
    }
}

#[test]
fn tokens_that_the_device_chooses_are_those_of_the_host() {
    let expected = said_in_company(&mut model_with(5));
    let mut model = model_with(5);
    let pass = decode_pass::DecodePass::new(&model.decoder, 5, model.served_context, false);
    model.ahead = Some(ahead::Ahead::new(pass.expect("little memory").sampling()));
    let found = said_in_company(&mut model);
    for (row, ((tokens, bits), (expected_tokens, expected_bits))) in
        found.iter().zip(&expected).enumerate()
    {
        assert_eq!(tokens, expected_tokens, "row {row}");
        assert_eq!(bits.len(), expected_bits.len(), "row {row}");
        for (found, expected) in bits.iter().zip(expected_bits) {
            // Their sums are in another order.
            let apart = f32::from_bits(*found) - f32::from_bits(*expected);
            assert!(apart.abs() < 1e-4, "row {row}: {apart}");
        }
    }
}
