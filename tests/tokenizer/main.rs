//! Tokenizers against references: llama.cpp's and Hugging Face's ids for a few thousand texts, made
//! by `tests/goldens/make_tokenizer_goldens.py`. See `tests/fixtures/tokenizer/README.md`.

mod fixtures;
mod streaming;
mod templates;

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value;
use fixtures::Fixtures;
use girandole::model::text::tokenizer::TextTokenizer;
use proptest::prelude::*;
use serde::Deserialize;

/// Texts, and their ids under one tokenizer.
#[derive(Deserialize)]
struct Cases {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
}

/// Texts, and their ids under several variants of a tokenizer.
#[derive(Deserialize)]
struct Variants {
    texts: Vec<String>,
    ids: BTreeMap<String, Vec<Vec<u32>>>,
}

#[derive(Deserialize)]
struct FolderCases {
    #[serde(flatten)]
    encoded: Cases,
    decoded: Vec<String>,
    decoded_special: Vec<String>,
}

/// Every text's ids are the reference's; reports the first few that are not.
fn assert_ids(
    name: &str,
    tokenizer: &TextTokenizer,
    texts: &[String],
    ids: &[Vec<u32>],
    frame: bool,
) {
    assert_eq!(texts.len(), ids.len(), "{name}");
    let wrong: Vec<_> = texts
        .iter()
        .zip(ids)
        .map(|(text, ids)| {
            (
                text,
                tokenizer
                    .encode(text, frame)
                    .expect("any text can be encoded"),
                ids,
            )
        })
        .filter(|(_, found, ids)| &found != ids)
        .collect();
    let shown = &wrong[..wrong.len().min(5)];
    assert!(
        wrong.is_empty(),
        "{name}: {} of {} differ: {shown:#?}",
        wrong.len(),
        texts.len()
    );
}

#[test]
fn smollm2_equals_llama_cpp() {
    let tokenizer = Fixtures::open().gguf_tokenizer("smollm2.gguf");
    let cases: Cases = Fixtures::open().json("smollm2.json");
    assert_eq!(cases.texts.len(), 3000);
    assert_ids("smollm2", &tokenizer, &cases.texts, &cases.ids, true);
    for (text, ids) in cases.texts.iter().zip(&cases.ids) {
        assert_eq!(&tokenizer.decode(ids, false).expect("known ids"), text);
    }
}

#[test]
fn smollm2_knows_its_special_tokens() {
    let tokenizer = Fixtures::open().gguf_tokenizer("smollm2.gguf");
    assert_eq!(tokenizer.vocab_size(), 49_152);
    // End of text and end of turn: the file names only the second.
    assert_eq!(tokenizer.end_tokens(), [0, 2]);
    assert_eq!(tokenizer.bos_text(), Some("<|im_start|>"));
    assert_eq!(tokenizer.eos_text(), Some("<|im_end|>"));
    assert!(
        tokenizer
            .chat_template_source()
            .is_some_and(|source| source.contains("<|im_start|>"))
    );
    assert!(
        tokenizer.is_special(1) && !tokenizer.is_special(4093) && !tokenizer.is_special(u32::MAX)
    );
    assert_eq!(tokenizer.token_bytes(1), b"<|im_start|>");
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");

    let text_of =
        |ids: &[u32]| -> Vec<Vec<u8>> { ids.iter().map(|&id| tokenizer.token_bytes(id)).collect() };
    let prompt = tokenizer
        .encode("<|im_start|>user\nHello 42<|im_end|>", true)
        .expect("any text");
    let pieces: Vec<&[u8]> = vec![
        b"<|im_start|>",
        b"user",
        b"\n",
        b"Hello",
        b" ",
        b"4",
        b"2",
        b"<|im_end|>",
    ];
    assert_eq!(text_of(&prompt), pieces);
    assert_eq!(
        tokenizer.decode(&prompt, true).as_deref().ok(),
        Some("user\nHello 42")
    );
    // An emoji that is no token of its own: its tokens are bytes, together the character.
    let emoji = tokenizer.encode("🜁", false).expect("any text");
    assert!(emoji.len() > 1);
    assert_eq!(text_of(&emoji).concat(), "🜁".as_bytes());

    let outside = tokenizer
        .decode(&[49_152], true)
        .expect_err("no such token");
    assert!(outside.to_string().contains("49152"));
}

#[test]
fn every_pre_tokenizer_equals_its_reference() {
    let cases: Variants = Fixtures::open().json("byte-level.json");
    assert!(cases.ids.len() >= 14);
    for (name, ids) in &cases.ids {
        let tokenizer = Fixtures::open().gguf_tokenizer_with("byte-level.gguf", |metadata| {
            metadata.insert("tokenizer.ggml.pre".to_owned(), Value::String(name.clone()));
        });
        assert_ids(name, &tokenizer, &cases.texts, ids, false);
        for (text, ids) in cases.texts.iter().zip(ids) {
            assert_eq!(
                &tokenizer.decode(ids, false).expect("known ids"),
                text,
                "{name}"
            );
        }
    }
}

#[test]
fn user_defined_and_unused_tokens_are_not_special() {
    let tokenizer = Fixtures::open().gguf_tokenizer("byte-level.gguf");
    let ids = tokenizer
        .encode("<|begin|><tool><unused0>", false)
        .expect("any text");
    assert!(tokenizer.is_special(ids[0]));
    assert_eq!(tokenizer.token_bytes(ids[1]), b"<tool>");
    assert!(!tokenizer.is_special(ids[1]));
    // An unused token is not recognised: its text is plain.
    assert!(ids.len() > 3);
    assert_eq!(
        tokenizer.decode(&ids, true).as_deref().ok(),
        Some("<tool><unused0>")
    );
    let unused = tokenizer.vocab_size() - 1;
    assert_eq!(tokenizer.token_bytes(unused), b"<unused0>");
    assert!(!tokenizer.is_special(unused));
}

#[test]
fn sentencepiece_equals_llama_cpp() {
    let cases: Variants = Fixtures::open().json("sentencepiece.json");
    let tokenizer = |change: fn(&mut fixtures::Metadata)| {
        Fixtures::open().gguf_tokenizer_with("sentencepiece.gguf", change)
    };
    let check = |name: &str, tokenizer: &TextTokenizer, frame| {
        assert_ids(name, tokenizer, &cases.texts, &cases.ids[name], frame);
    };
    let prefix = tokenizer(|_| {});
    check("prefix", &prefix, false);
    check("framed", &prefix, true);
    let plain = tokenizer(|metadata| {
        metadata.insert(
            "tokenizer.ggml.add_space_prefix".to_owned(),
            Value::Bool(false),
        );
    });
    check("plain", &plain, false);
    let phi3 = tokenizer(|metadata| {
        metadata.insert(
            "general.architecture".to_owned(),
            Value::String("phi3".to_owned()),
        );
    });
    check("phi3", &phi3, false);
}

#[test]
fn sentencepiece_texts_survive_up_to_their_spaces() {
    let cases: Variants = Fixtures::open().json("sentencepiece.json");
    let plain = Fixtures::open().gguf_tokenizer_with("sentencepiece.gguf", |metadata| {
        metadata.insert(
            "tokenizer.ggml.add_space_prefix".to_owned(),
            Value::Bool(false),
        );
    });
    let prefix = Fixtures::open().gguf_tokenizer("sentencepiece.gguf");
    for text in &cases.texts {
        // A `▁` written out is a space to this vocabulary; that is its known loss.
        let known = text.replace('▁', " ");
        let survivor = |tokenizer: &TextTokenizer| {
            let ids = tokenizer.encode(text, false).expect("any text");
            tokenizer.decode(&ids, false).expect("own ids")
        };
        assert_eq!(survivor(&plain), known);
        let has_added = ["<s>", "</s>", "<unk>", "<|", "<tool>", "    "]
            .iter()
            .any(|name| text.contains(name));
        if !has_added {
            assert_eq!(survivor(&prefix), known);
        }
    }
    assert_eq!(prefix.token_bytes(8), [0x00]);
    assert_eq!(prefix.token_bytes(8 + 0xFF), [0xFF]);
    assert_eq!(
        prefix
            .decode(&[1, 8 + 0xC3, 8 + 0xA9], true)
            .as_deref()
            .ok(),
        Some("é")
    );
}

#[test]
fn extra_white_space_is_removed_where_the_file_says_so() {
    let tokenizer = Fixtures::open().gguf_tokenizer_with("sentencepiece.gguf", |metadata| {
        metadata.insert(
            "tokenizer.ggml.remove_extra_whitespaces".to_owned(),
            Value::Bool(true),
        );
    });
    let ids = tokenizer
        .encode("  all  human   beings ", false)
        .expect("any text");
    assert_eq!(
        tokenizer.decode(&ids, false).as_deref().ok(),
        Some("all human beings")
    );
}

#[test]
fn folders_equal_hugging_face() {
    for name in ["byte-level", "sentencepiece"] {
        let folder = Fixtures::open().folder(&format!("folder-{name}"));
        let tokenizer = TextTokenizer::from_folder(folder.path()).expect(name);
        let cases: FolderCases = Fixtures::open().json(&format!("folder-{name}.json"));
        let Cases { texts, ids } = &cases.encoded;
        assert_ids(name, &tokenizer, texts, ids, true);
        for ((ids, decoded), with_special) in
            ids.iter().zip(&cases.decoded).zip(&cases.decoded_special)
        {
            assert_eq!(
                &tokenizer.decode(ids, true).expect("known ids"),
                decoded,
                "{name}"
            );
            assert_eq!(
                &tokenizer.decode(ids, false).expect("known ids"),
                with_special,
                "{name}"
            );
        }
    }
}

#[test]
fn a_folders_other_files_name_the_special_tokens() {
    let folder = Fixtures::open().folder("folder-byte-level");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("a writable folder")
    };
    let read = || TextTokenizer::from_folder(folder.path());
    let bare = read().expect("tokenizer.json is enough");
    assert_eq!(
        (
            bare.bos_text(),
            bare.eos_text(),
            bare.chat_template_source()
        ),
        (None, None, None)
    );
    assert!(bare.end_tokens().is_empty());

    let id = |text: &str| {
        *bare
            .encode(text, false)
            .expect("any text")
            .last()
            .expect("one token")
    };
    let (end_of_turn, end) = (id("<|eot_id|>"), id("<|end|>"));
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<|begin|>", "lstrip": false}, "eos_token": "<|end|>", "add_bos_token": true,
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
    );
    write("config.json", &format!(r#"{{"eos_token_id": {end}}}"#));
    write(
        "generation_config.json",
        &format!(r#"{{"eos_token_id": [{end_of_turn}, {end}]}}"#),
    );
    let full = read().expect("valid files");
    assert_eq!(full.bos_text(), Some("<|begin|>"));
    assert_eq!(full.eos_text(), Some("<|end|>"));
    assert_eq!(full.chat_template_source(), Some("D"));
    let mut ends = [end_of_turn, end];
    ends.sort_unstable();
    assert_eq!(full.end_tokens(), ends);
    // tokenizer.json adds the beginning already: it is not added twice.
    assert_eq!(full.encode("a", true).ok(), bare.encode("a", true).ok());

    write("chat_template.jinja", "J");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": "S", "eos_token": null}"#,
    );
    assert_eq!(
        read().expect("valid files").chat_template_source(),
        Some("J")
    );
    std::fs::remove_file(folder.path().join("chat_template.jinja")).expect("it was just written");
    assert_eq!(
        read().expect("valid files").chat_template_source(),
        Some("S")
    );

    let refused = |name: &str, text: &str, message: &str| {
        let before = std::fs::read(folder.path().join(name)).expect("there is one");
        write(name, text);
        let error = read().err().expect(name).to_string();
        assert!(error.contains(name) && error.contains(message), "{error}");
        std::fs::write(folder.path().join(name), before).expect("a writable folder");
    };
    refused("config.json", r#"{"eos_token_id": 99999}"#, "99999");
    refused("generation_config.json", r#"{"eos_token_id": [-1]}"#, "-1");
    refused("tokenizer_config.json", "{", "EOF");
    refused("tokenizer.json", "{}", "");
    std::fs::remove_file(folder.path().join("tokenizer.json")).expect("it is there");
    assert!(
        read()
            .err()
            .expect("no tokenizer")
            .to_string()
            .contains("no tokenizer.json")
    );
}

#[test]
fn broken_metadata_is_refused_by_name() {
    let refused = |file: &str, change: &dyn Fn(&mut fixtures::Metadata), message: &str| {
        let mut content = Fixtures::open().gguf(file);
        change(&mut content.metadata);
        let error = TextTokenizer::from_gguf(&content)
            .err()
            .expect(message)
            .to_string();
        assert!(error.contains(message), "{error}");
    };
    let set = |key: &'static str, value: Value| {
        move |metadata: &mut fixtures::Metadata| {
            metadata.insert(key.to_owned(), value.clone());
        }
    };
    let text = |text: &str| Value::String(text.to_owned());
    for kind in ["t5", "bert", "rwkv"] {
        refused(
            "byte-level.gguf",
            &set("tokenizer.ggml.model", text(kind)),
            kind,
        );
    }
    refused(
        "byte-level.gguf",
        &|metadata| metadata.clear(),
        "no tokenizer",
    );
    refused(
        "byte-level.gguf",
        &set("tokenizer.ggml.pre", text("nosuch")),
        "nosuch",
    );
    refused(
        "byte-level.gguf",
        &set("tokenizer.ggml.eos_token_id", Value::U32(5000)),
        "5000",
    );
    refused(
        "byte-level.gguf",
        &set("tokenizer.ggml.tokens", Value::Array(Vec::new())),
        "empty",
    );
    refused(
        "byte-level.gguf",
        &set("tokenizer.ggml.merges", Value::Array(vec![text("a")])),
        "merges",
    );
    refused(
        "byte-level.gguf",
        &set(
            "tokenizer.ggml.merges",
            Value::Array(vec![text("a nosuch")]),
        ),
        "nosuch",
    );
    refused(
        "byte-level.gguf",
        &set(
            "tokenizer.ggml.token_type",
            Value::Array(vec![Value::I32(1)]),
        ),
        "token_type",
    );
    refused(
        "byte-level.gguf",
        &set("tokenizer.ggml.add_bos_token", text("yes")),
        "add_bos_token",
    );
    refused(
        "sentencepiece.gguf",
        &set("tokenizer.ggml.scores", Value::Array(Vec::new())),
        "scores",
    );
    refused(
        "sentencepiece.gguf",
        &|metadata| {
            metadata.remove("tokenizer.ggml.scores");
        },
        "scores",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn byte_level_texts_survive(text in any::<String>(), special in 0_usize..3) {
        let name = ["", "<|im_end|>", "<repo_name>"][special];
        let text = format!("{text}{name}{text}");
        let tokenizer = fixtures::smollm2();
        let ids = tokenizer.encode(&text, true).expect("any text");
        prop_assert_eq!(tokenizer.decode(&ids, false).expect("own ids"), text);
    }
}
