//! What a row says and how it ends, as its job asks.

use std::sync::Arc;

use girandole::batch::{FinishReason, Next, Phase, PlannedRow, Slot};
use girandole::job::{Job, TextJob};
use girandole::model::ModelError;
use girandole::model::device::{DeviceSpec, FloatType};
use girandole::model::loader::build;
use girandole::model::text::options::TextOptions;

use crate::serving::{Guest, alone, dummy_assets, dummy_model, run};

const STOP: Option<Next> = Some(Next::Finish(FinishReason::Stop));
const LENGTH: Option<Next> = Some(Next::Finish(FinishReason::Length));

fn prompt(text: &str) -> Arc<[u32]> {
    text.bytes().map(u32::from).collect()
}

fn job(max_tokens: u32) -> TextJob {
    TextJob {
        // The random model may hit its end-of-text token at any time.
        ignore_eos: true,
        ..TextJob::greedy(prompt("Once upon a time"), max_tokens)
    }
}

#[test]
fn a_row_ends_at_its_length_and_its_tokens_are_its_text() {
    let mut model = dummy_model(FloatType::F32, 1);
    let said = alone(&mut *model, job(20));
    assert_eq!(said.end, LENGTH);
    assert_eq!(said.tokens.len(), 20);
    assert!(said.prompt.is_empty() && said.logprob_bits.is_empty());
}

#[test]
fn a_stop_token_ends_the_row_and_stays_out_of_its_text() {
    let mut model = dummy_model(FloatType::F32, 1);
    let free = alone(&mut *model, job(20));
    let stop = free.tokens[7];
    let first = free.tokens.iter().position(|&token| token == stop);
    let stopped = alone(
        &mut *model,
        TextJob {
            stop_token_ids: Arc::from([stop]),
            ..job(20)
        },
    );
    assert_eq!(stopped.end, STOP);
    assert_eq!(Some(stopped.tokens.len() - 1), first);
    assert_eq!(stopped.tokens.last(), Some(&stop), "it counts as a token");
    assert!(free.text.starts_with(&stopped.text));
    assert!(free.text.len() > stopped.text.len());

    let held_back = alone(
        &mut *model,
        TextJob {
            stop_token_ids: Arc::from([stop]),
            min_tokens: 15,
            ..job(20)
        },
    );
    assert!(held_back.tokens.len() >= 15, "{}", held_back.tokens.len());
}

#[test]
fn a_stop_string_ends_the_row() {
    let mut model = dummy_model(FloatType::F32, 1);
    let free = alone(&mut *model, job(200));
    // A stretch of text from the middle, found at its first occurrence.
    let characters: Vec<char> = free.text.chars().collect();
    let middle = characters.len() / 2;
    let stop: String = characters[middle..middle + 2].iter().collect();
    let stopped = alone(
        &mut *model,
        TextJob {
            stop: Arc::from([stop.clone()]),
            ..job(200)
        },
    );
    assert_eq!(stopped.end, STOP);
    let before = free.text.find(&stop).expect("taken from it");
    assert_eq!(stopped.text, free.text[..before]);
}

#[test]
fn the_end_of_the_context_ends_the_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let assets = dummy_assets(folder.path());
    let options = TextOptions {
        max_context: Some(40),
        ..crate::serving::options(1)
    };
    let mut model = build(&assets, DeviceSpec::Cpu, &options).expect("weights");
    let said = alone(&mut *model, job(1000));
    assert_eq!(said.end, LENGTH);
    assert_eq!(said.tokens.len(), 40 - job(1).prompt.len());
}

#[test]
fn scoring_a_prompt_alone_makes_no_tokens() {
    let mut model = dummy_model(FloatType::F32, 1);
    let score = TextJob {
        prompt_logprobs: Some(2),
        ..job(0)
    };
    let said = alone(&mut *model, score.clone());
    assert_eq!(said.end, LENGTH);
    assert!(said.tokens.is_empty() && said.text.is_empty());
    assert_eq!(said.prompt.len(), score.prompt.len());
    assert!(f32::from_bits(said.prompt[0].bits).is_nan());
    for (scored, token) in said.prompt.iter().zip(score.prompt.iter()) {
        assert_eq!(scored.token, *token);
    }
    for scored in &said.prompt[1..] {
        assert!(f32::from_bits(scored.bits) < 0.0);
        assert_eq!(scored.top.len(), 2);
    }
    // In pieces it says the same.
    let in_pieces = Guest {
        chunk: 3,
        ..Guest::new(0, score)
    };
    assert_eq!(run(&mut *model, &[in_pieces], |_| {}), [said]);
}

#[test]
fn a_long_prompt_is_scored_to_its_end() {
    let mut model = dummy_model(FloatType::F32, 1);
    let long: Arc<[u32]> = (0..300).map(|i| i % 256).collect();
    let said = alone(
        &mut *model,
        TextJob {
            prompt: long.clone(),
            prompt_logprobs: Some(0),
            ..job(4)
        },
    );
    assert_eq!(said.prompt.len(), 300);
    assert_eq!(said.tokens.len(), 4);
}

#[test]
fn what_cannot_be_admitted_is_refused_and_takes_nothing() {
    let mut model = dummy_model(FloatType::F32, 2);
    let mut refuse = |slot, job: TextJob| {
        let refused = model.admit(Slot(slot), &Arc::new(Job::Text(job)), 0);
        refused.expect_err("not admissible").to_string()
    };
    let unknown_token = TextJob {
        prompt: Arc::from([1, 272]),
        ..job(4)
    };
    assert_eq!(
        refuse(0, unknown_token),
        "the prompt holds token 272; the model has 272 tokens"
    );
    let too_long = TextJob {
        prompt: vec![1; 513].into(),
        ..job(4)
    };
    assert_eq!(
        refuse(0, too_long),
        "the prompt has 513 tokens; it must have 1 to 512"
    );
    assert_eq!(refuse(2, job(4)), "there is no slot 2");
    assert_eq!(alone(&mut *model, job(4)).tokens.len(), 4);
}

#[test]
fn blocks_return_when_a_row_retires_whatever_it_was_doing() {
    let folder = tempfile::tempdir().expect("a folder");
    let assets = dummy_assets(folder.path());
    let options = TextOptions {
        kv_cache_tokens: Some(128),
        ..crate::serving::options(4)
    };
    let mut model = build(&assets, DeviceSpec::Cpu, &options).expect("weights");
    let whole = Arc::new(Job::Text(job(128 - 16)));
    assert_eq!(
        model.cost(&whole).memory_units,
        model.capacity().memory_units
    );
    for round in 0..3 {
        model
            .admit(Slot(1), &whole, 0)
            .expect("all blocks are free");
        let refused = model.admit(Slot(2), &whole, 0).expect_err("none is free");
        assert!(matches!(refused, ModelError::OutOfMemory(_)), "{refused}");
        // Retired before prefill, during it, and after a step that failed.
        let plan = |slot, phase| PlannedRow {
            slot: Slot(slot),
            phase,
            work: 5,
        };
        match round {
            0 => {}
            1 => assert!(model.step(&[plan(1, Phase::Begin)]).is_ok()),
            _ => assert!(
                model
                    .step(&[plan(1, Phase::Begin), plan(3, Phase::Iterate)])
                    .is_err()
            ),
        }
        model.retire(Slot(1));
        model.retire(Slot(2));
    }
    assert_eq!(alone(&mut *model, job(112)).tokens.len(), 112);
}
