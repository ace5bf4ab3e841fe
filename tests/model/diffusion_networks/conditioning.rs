//! Prompts as UNets are conditioned on them.

use girandole::job::PromptTokens;
use girandole::model::diffusion::conditioning::TextConditioner;
use girandole::model::diffusion::config::TEXT_FOLDERS;
use girandole::model::diffusion::prompt::{PromptOptions, tokenize};
use girandole::model::diffusion::tokenizer::ClipTokenizer;

use super::fixture::{Goldens, assert_close, bits, config, folder, weights};

fn conditioner(model: &str) -> TextConditioner {
    let config = config(model);
    let weights: Vec<_> = TEXT_FOLDERS[..config.text_encoders.len()]
        .iter()
        .map(|(component, _)| weights(model, component, None))
        .collect();
    TextConditioner::new(&config, &weights).expect(model)
}

fn tokens(model: &str, prompt: &str) -> Vec<PromptTokens> {
    let options = PromptOptions {
        positions: 77,
        max_chunks: 4,
        weighted: true,
    };
    let encoders = config(model).text_encoders.len();
    TEXT_FOLDERS[..encoders]
        .iter()
        .map(|(_, name)| {
            let tokenizer = ClipTokenizer::from_folder(&folder(model).join(name)).expect(model);
            tokenize(&tokenizer, prompt, options).expect("valid")
        })
        .collect()
}

const PROMPT: &str = "a red apple on a white table";

#[test]
fn one_encoders_last_state_conditions_sd_1_and_2() {
    for model in ["sd15-tiny", "sd21-tiny"] {
        let states = conditioner(model)
            .encode(&tokens(model, PROMPT), 0)
            .expect("valid");
        let expected = Goldens::of(model)
            .get("text.last")
            .narrow(0, 0, 1)
            .expect("a row");
        assert_close(&states.context, &expected, 1e-5, model);
        assert!(states.pooled.is_none());
    }
}

#[test]
fn fault_7_two_encoders_penultimate_states_condition_sdxl() {
    let model = "sdxl-tiny";
    let states = conditioner(model)
        .encode(&tokens(model, PROMPT), 0)
        .expect("valid");
    let goldens = Goldens::of(model);
    let first_row = |name: &str| goldens.get(name).narrow(0, 0, 1).expect("a row");
    let (first, second) = (
        first_row("text.penultimate"),
        first_row("text_2.penultimate"),
    );
    let width = first.dim(2).expect("rank 3");
    let context = &states.context;
    let part = |start, length| context.narrow(2, start, length).expect("a part");
    assert_close(&part(0, width), &first, 1e-5, "first encoder");
    let rest = context.dim(2).expect("rank 3") - width;
    assert_close(&part(width, rest), &second, 1e-5, "second encoder");
    let pooled = states.pooled.expect("for SDXL");
    assert_close(&pooled, &first_row("text_2.embeds"), 1e-5, "pooled");
}

#[test]
fn chunks_of_a_long_prompt_are_encoded_each_by_itself() {
    let model = "sd15-tiny";
    let conditioner = conditioner(model);
    let long = conditioner
        .encode(&tokens(model, "a cat BREAK (a dog:1.4)"), 0)
        .expect("valid");
    assert_eq!(long.context.dim(1).expect("rank 3"), 2 * 77);
    for (place, prompt) in ["a cat", "(a dog:1.4)"].into_iter().enumerate() {
        let alone = conditioner
            .encode(&tokens(model, prompt), 0)
            .expect("valid");
        let part = long.context.narrow(1, 77 * place, 77).expect("a chunk");
        assert_eq!(bits(&part), bits(&alone.context), "{prompt}");
    }
    let plain = conditioner
        .encode(&tokens(model, "a dog"), 0)
        .expect("valid");
    let weighted = long.context.narrow(1, 77, 77).expect("a chunk");
    assert_ne!(bits(&plain.context), bits(&weighted));
}
