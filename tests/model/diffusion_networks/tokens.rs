//! CLIP's tokenizer against transformers', and prompts in chunks.

use girandole::job::PromptTokens;
use girandole::model::diffusion::prompt::{PromptError, PromptOptions, pad_to_chunks, tokenize};
use girandole::model::diffusion::tokenizer::ClipTokenizer;
use serde_json::Value;

use super::fixture::{Goldens, MODELS, fixtures, folder};

const OPTIONS: PromptOptions = PromptOptions {
    positions: 77,
    max_chunks: 4,
    weighted: true,
};

fn tokenizer(model: &str, name: &str) -> ClipTokenizer {
    ClipTokenizer::from_folder(&folder(model).join(name)).expect(model)
}

#[test]
fn tokens_equal_transformers_whatever_the_files() {
    let text = std::fs::read_to_string(fixtures().join("clip_tokens.json")).expect("the fixture");
    let goldens: Value = serde_json::from_str(&text).expect("JSON");
    let prompts = goldens["prompts"].as_array().expect("a list");
    assert!(prompts.len() >= 200);
    // One folder has vocabulary and merges, the other a whole pipeline and another padding, "!".
    for (model, special) in [("sd15-tiny", None), ("sd21-tiny", Some('!'))] {
        let tokenizer = tokenizer(model, "tokenizer");
        for prompt in prompts {
            let text = prompt["text"].as_str().expect("a text");
            if special.is_some_and(|special| text.contains(special)) {
                continue;
            }
            let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).expect("ids");
            let mut found = vec![tokenizer.bos()];
            found.extend(tokenizer.encode(text).expect("valid"));
            found.push(tokenizer.eos());
            assert_eq!(found, ids, "{model}: {text:?}");
        }
    }
    // As transformers has it: a padding token is special in the middle of a text, too.
    for (model, name) in [("sd21-tiny", "tokenizer"), ("sdxl-tiny", "tokenizer_2")] {
        let found = tokenizer(model, name).encode("!!! wow!").expect("valid");
        assert_eq!(found, [0, 0, 0, 549, 342, 0], "{model}");
    }
    let found = tokenizer("sd15-tiny", "tokenizer").encode("!!! wow!");
    assert_eq!(found.expect("valid"), [0, 0, 256, 549, 342, 256]);
}

#[test]
fn chunks_of_unweighted_prompts_equal_transformers() {
    for (model, name, prefix) in MODELS
        .map(|model| (model, "tokenizer", "text"))
        .into_iter()
        .chain([("sdxl-tiny", "tokenizer_2", "text_2")])
    {
        let tokenizer = tokenizer(model, name);
        let golden = Goldens::of(model).ids(&format!("{prefix}.ids"));
        for (prompt, expected) in ["a red apple on a white table", ""]
            .into_iter()
            .zip(&golden)
        {
            let tokens = tokenize(&tokenizer, prompt, OPTIONS).expect("valid");
            assert_eq!(tokens.chunks.len(), 1);
            assert_eq!(&tokens.chunks[0].tokens, expected, "{model} {name}");
            assert_eq!(tokens.chunks[0].weights, [1.0; 77]);
        }
    }
}

/// Each chunk's tokens between beginning and end, with their weights.
fn inside(tokens: &PromptTokens, tokenizer: &ClipTokenizer) -> Vec<Vec<(u32, f32)>> {
    tokens
        .chunks
        .iter()
        .map(|chunk| {
            assert_eq!((chunk.tokens.len(), chunk.weights.len()), (77, 77));
            assert_eq!(chunk.tokens[0], tokenizer.bos());
            let end = chunk.tokens.iter().position(|id| *id == tokenizer.eos());
            let end = end.expect("every chunk has an end");
            assert!(
                chunk.tokens[end + 1..]
                    .iter()
                    .all(|id| *id == tokenizer.pad())
            );
            let pairs = chunk
                .tokens
                .iter()
                .copied()
                .zip(chunk.weights.iter().copied());
            pairs.take(end).skip(1).collect()
        })
        .collect()
}

#[test]
fn long_and_weighted_prompts_become_chunks() {
    // Its padding is another token than its end.
    let tokenizer = tokenizer("sd21-tiny", "tokenizer");
    let a = tokenizer.encode("a").expect("valid");
    assert_eq!(a.len(), 1);
    let tokenized = |prompt: &str| tokenize(&tokenizer, prompt, OPTIONS).expect("valid");
    let long = inside(&tokenized(&"a ".repeat(76)), &tokenizer);
    assert_eq!(long, [vec![(a[0], 1.0); 75], vec![(a[0], 1.0)]]);
    let exact = inside(&tokenized(&"a ".repeat(75)), &tokenizer);
    assert_eq!(exact, [vec![(a[0], 1.0); 75]]);
    let weighted = inside(&tokenized("a (a:1.5) BREAK [a]"), &tokenizer);
    assert_eq!(
        weighted,
        [
            vec![(a[0], 1.0), (a[0], 1.5)],
            vec![(a[0], (1.0 / 1.1) as f32)]
        ]
    );
    let plain = PromptOptions {
        weighted: false,
        ..OPTIONS
    };
    let plain = tokenize(&tokenizer, "(a:1.5)", plain).expect("valid");
    let literal = tokenizer.encode("(a:1.5)").expect("valid");
    assert_eq!(inside(&plain, &tokenizer)[0].len(), literal.len());

    let error = tokenize(&tokenizer, &"a ".repeat(301), OPTIONS).expect_err("too long");
    assert!(matches!(
        error,
        PromptError::TooLong {
            chunks: 5,
            most: 4,
            ..
        }
    ));
    let mut padded = tokenized("a");
    pad_to_chunks(&mut padded, 3, &tokenizer, 77);
    assert_eq!(
        inside(&padded, &tokenizer),
        [vec![(a[0], 1.0)], vec![], vec![]]
    );
}

#[test]
fn a_broken_folder_is_named() {
    let empty = tempfile::tempdir().expect("a folder");
    let error = ClipTokenizer::from_folder(empty.path())
        .err()
        .expect("empty");
    assert!(error.to_string().contains("vocab.json"), "{error}");
    std::fs::write(empty.path().join("tokenizer.json"), "{").expect("written");
    let error = ClipTokenizer::from_folder(empty.path())
        .err()
        .expect("broken");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}
