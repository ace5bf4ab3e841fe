//! Detokenizing token by token gives what decoding the whole gives.

use std::sync::Arc;

use girandole::job::TextJob;
use girandole::model::text::detokenize::Detokenizer;
use girandole::model::text::tokenizer::TextTokenizer;
use proptest::prelude::*;

use crate::fixtures::{self, Fixtures};

/// The pieces of `ids`, one per token and one for the end; and whether a stop string ended them.
fn stream(tokenizer: &Arc<TextTokenizer>, job: &TextJob, ids: &[u32]) -> (Vec<String>, bool) {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), job);
    let mut pieces = Vec::new();
    for &id in ids {
        let piece = detokenizer.push(id, true);
        pieces.push(piece.text);
        if piece.stopped {
            return (pieces, true);
        }
    }
    pieces.push(detokenizer.finish());
    (pieces, false)
}

fn sentencepiece() -> Arc<TextTokenizer> {
    Arc::new(Fixtures::open().gguf_tokenizer("sentencepiece.gguf"))
}

#[test]
fn every_golden_text_streams_as_it_decodes() {
    #[derive(serde::Deserialize)]
    struct Texts {
        texts: Vec<String>,
    }
    let cases: Texts = Fixtures::open().json("sentencepiece.json");
    for tokenizer in [fixtures::smollm2(), sentencepiece()] {
        // The beginning-of-text token alone: the row's text starts a text.
        let mut job = TextJob::greedy([1], 1);
        for skip_special_tokens in [true, false] {
            job.skip_special_tokens = skip_special_tokens;
            for text in &cases.texts {
                let ids = tokenizer.encode(text, false).expect("any text");
                let (pieces, _) = stream(&tokenizer, &job, &ids);
                if skip_special_tokens {
                    let whole = tokenizer.decode(&ids, true).expect("own ids");
                    assert_eq!(pieces.concat(), whole);
                } else {
                    // After "<s>" a first space is part of the text.
                    let whole = tokenizer
                        .decode(&[&[1], ids.as_slice()].concat(), false)
                        .expect("own ids");
                    let beginning = tokenizer.decode(&[1], false).expect("a known id");
                    assert_eq!(format!("{beginning}{}", pieces.concat()), whole);
                }
            }
        }
    }
}

#[test]
fn a_row_that_goes_on_after_a_text_keeps_its_first_space() {
    let tokenizer = sentencepiece();
    let ids = |text: &str| tokenizer.encode(text, false).expect("any text");
    let answer = ids("human");
    let after = |prompt: Vec<u32>| {
        stream(&tokenizer, &TextJob::greedy(prompt, 1), &answer)
            .0
            .concat()
    };
    assert_eq!(after(vec![1]), "human");
    assert_eq!(after(ids("All")), " human");
}

#[test]
fn a_stop_string_is_found_across_tokens() {
    let tokenizer = fixtures::smollm2();
    let ids = tokenizer
        .encode("one two 🙂three four", false)
        .expect("any text");
    let run = |stop: &str, include_stop_str_in_output| {
        let job = TextJob {
            stop: Arc::from([stop.to_owned()]),
            include_stop_str_in_output,
            ..TextJob::greedy([0], 1)
        };
        let (pieces, stopped) = stream(&tokenizer, &job, &ids);
        (pieces.concat(), stopped)
    };
    assert_eq!(run("wo 🙂th", false), ("one t".to_owned(), true));
    assert_eq!(run("wo 🙂th", true), ("one two 🙂th".to_owned(), true));
    assert_eq!(
        run("fourth", false),
        ("one two 🙂three four".to_owned(), false)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any tokens, in any order: half characters, special tokens, anything.
    #[test]
    fn any_tokens_stream_as_they_decode(ids in prop::collection::vec(0_u32..49_152, 0..40)) {
        let tokenizer = fixtures::smollm2();
        let (pieces, _) = stream(&tokenizer, &TextJob::greedy([0], 1), &ids);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).expect("known ids"));
    }

    #[test]
    fn a_stream_ends_where_the_first_stop_string_does(
        ids in prop::collection::vec(0_u32..49_152, 1..30),
        stops in prop::collection::vec((0_usize..200, 1_usize..6), 1..4),
    ) {
        let tokenizer = fixtures::smollm2();
        let whole = tokenizer.decode(&ids, true).expect("known ids");
        let characters: Vec<char> = whole.chars().collect();
        // Stop strings cut from the text itself, so that most are found.
        let stop: Vec<String> = stops
            .into_iter()
            .map(|(start, len)| characters.iter().skip(start).take(len).collect())
            .filter(|stop: &String| !stop.is_empty())
            .collect();
        let first = stop
            .iter()
            .filter_map(|stop| whole.find(stop).map(|start| (start + stop.len(), start)))
            .min();
        let job = TextJob { stop: Arc::from(stop), ..TextJob::greedy([0], 1) };
        let (pieces, stopped) = stream(&tokenizer, &job, &ids);
        // An unfinished character at the very end is only known to be one when the row ends, and
        // no stop string is looked for in what stands for it.
        if let (Some((end, start)), false) = (first, whole.ends_with('\u{FFFD}')) {
            prop_assert!(stopped, "{}", end);
            prop_assert_eq!(pieces.concat(), &whole[..start]);
        } else if first.is_none() {
            prop_assert_eq!(pieces.concat(), whole);
        }
    }
}
