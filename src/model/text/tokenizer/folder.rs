//! A tokenizer from a model folder in Hugging Face's layout.
//!
//! `tokenizer.json` cuts texts and says what tokens stand for; the other files, each of which may be
//! missing, say which tokens frame a text and hold the chat template.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

use super::vocabulary::Vocabulary;
use super::{Encoder, TextTokenizer, TokenizerError, WORD_CACHE_CAPACITY, byte_level};

/// Builds the tokenizer of the model in `folder`.
pub(super) fn read(folder: &Path) -> Result<TextTokenizer, TokenizerError> {
    let pipeline = pipeline(folder)?;
    let tokenizer_config = read_json(folder, "tokenizer_config.json")?.unwrap_or_default();
    let special_tokens = read_json(folder, "special_tokens_map.json")?.unwrap_or_default();
    let named = |name: &str| {
        token_text(&tokenizer_config[name]).or_else(|| token_text(&special_tokens[name]))
    };
    let bos_text = named("bos_token");
    let eos_text = named("eos_token");

    let (vocabulary, strips_leading_space) = vocabulary(&pipeline)?;
    let end_tokens = end_tokens(folder, &pipeline, eos_text.as_deref(), &vocabulary)?;
    let prefix = missing_beginning(&pipeline, &tokenizer_config, bos_text.as_deref())?;
    let chat_template = match read_file(folder, "chat_template.jinja")? {
        Some(template) => Some(template),
        None => chat_template(&tokenizer_config["chat_template"]),
    };
    Ok(TextTokenizer {
        encoder: Encoder::Pipeline(Box::new(pipeline)),
        vocabulary,
        prefix: prefix.into_iter().collect(),
        suffix: Vec::new(),
        strips_leading_space,
        end_tokens,
        bos_text,
        eos_text,
        chat_template,
    })
}

fn pipeline(folder: &Path) -> Result<Tokenizer, TokenizerError> {
    let text = read_file(folder, "tokenizer.json")?.ok_or_else(|| {
        TokenizerError(format!(
            "there is no tokenizer.json in {}",
            folder.display()
        ))
    })?;
    let broken = |error| TokenizerError(format!("tokenizer.json: {error}"));
    let mut pipeline = Tokenizer::from_bytes(text).map_err(broken)?;
    // Some files carry the settings of a training run.
    pipeline.with_truncation(None).map_err(broken)?;
    pipeline.with_padding(None);
    let mut model = pipeline.get_model().clone();
    model.resize_cache(WORD_CACHE_CAPACITY);
    pipeline.with_model(model);
    Ok(pipeline)
}

/// Ids end below this: one stray number must not cost gigabytes.
const MAX_VOCABULARY: usize = 1 << 24;

/// What every id stands for, and whether a text loses its leading space in decoding.
fn vocabulary(pipeline: &Tokenizer) -> Result<(Vocabulary, bool), TokenizerError> {
    let mut texts = Vec::new();
    for (text, id) in pipeline.get_vocab(true) {
        let id = id as usize;
        if id >= MAX_VOCABULARY {
            return Err(TokenizerError(format!(
                "tokenizer.json has a token with id {id}; ids must be below {MAX_VOCABULARY}"
            )));
        }
        if id >= texts.len() {
            texts.resize(id + 1, String::new());
        }
        texts[id] = text;
    }
    let decoder = pipeline
        .get_decoder()
        .ok_or_else(|| TokenizerError("tokenizer.json has no decoder".to_owned()))?;
    let (bytes, strips_leading_space) = decode_each(decoder, texts)?;

    let added = pipeline.get_added_tokens_decoder();
    let mut vocabulary = Vocabulary::default();
    for (id, bytes) in (0..).zip(bytes) {
        let special = added.get(&id).is_some_and(|token| token.special);
        vocabulary.push(&bytes, special);
    }
    Ok((vocabulary, strips_leading_space))
}

/// The bytes that each token stands for. A decoder works on a text's tokens at once; here it must be
/// one that treats each on its own, but for a space at the start of the text.
fn decode_each(
    decoder: &DecoderWrapper,
    mut texts: Vec<String>,
) -> Result<(Vec<Vec<u8>>, bool), TokenizerError> {
    let steps = match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
        single => std::slice::from_ref(single),
    };
    let mut bytes_of: fn(&str) -> Vec<u8> = |text| text.as_bytes().to_vec();
    let mut strips_leading_space = false;
    for step in steps {
        match step {
            DecoderWrapper::ByteLevel(_) => bytes_of = byte_level::bytes_of,
            DecoderWrapper::ByteFallback(_) => bytes_of = fallback_bytes,
            DecoderWrapper::Fuse(_) => {}
            DecoderWrapper::Replace(replace) => {
                texts = replace
                    .decode_chain(texts)
                    .map_err(|error| TokenizerError(format!("tokenizer.json: {error}")))?;
            }
            DecoderWrapper::Metaspace(metaspace) => {
                let space = metaspace.get_replacement();
                texts
                    .iter_mut()
                    .for_each(|text| *text = text.replace(space, " "));
                strips_leading_space = metaspace.get_prepend_scheme() != PrependScheme::Never;
            }
            DecoderWrapper::Strip(strip) if (strip.content, strip.stop) == (' ', 0) => {
                strips_leading_space = strip.start > 0;
            }
            DecoderWrapper::Strip(_)
            | DecoderWrapper::BPE(_)
            | DecoderWrapper::WordPiece(_)
            | DecoderWrapper::CTC(_)
            | DecoderWrapper::Sequence(_) => {
                return Err(TokenizerError(
                    "tokenizer.json has a decoder that can't stream; supported are ByteLevel, \
                     Metaspace, and sequences of Replace, ByteFallback, Fuse and Strip"
                        .to_owned(),
                ));
            }
        }
    }
    let bytes = texts.iter().map(|text| bytes_of(text)).collect();
    Ok((bytes, strips_leading_space))
}

/// `<0x0A>` stands for that byte, anything else for itself.
fn fallback_bytes(text: &str) -> Vec<u8> {
    match byte_level::named_byte(text) {
        Some(byte) => vec![byte],
        None => text.as_bytes().to_vec(),
    }
}

/// Every end token that a file names, by id or by text.
fn end_tokens(
    folder: &Path,
    pipeline: &Tokenizer,
    eos_text: Option<&str>,
    vocabulary: &Vocabulary,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        let config = read_json(folder, file)?.unwrap_or_default();
        let named = match &config["eos_token_id"] {
            Value::Null => &[],
            Value::Array(ids) => ids.as_slice(),
            single => std::slice::from_ref(single),
        };
        for id in named {
            let id = id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|&id| id < vocabulary.len())
                .ok_or_else(|| {
                    TokenizerError(format!(
                        "{file}: eos_token_id {id} is outside the vocabulary of {} tokens",
                        vocabulary.len()
                    ))
                })?;
            ids.push(id);
        }
    }
    ids.extend(eos_text.and_then(|text| pipeline.token_to_id(text)));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The beginning-of-text token, if `tokenizer_config.json` wants one and `tokenizer.json`, which
/// most models leave it to, adds none.
fn missing_beginning(
    pipeline: &Tokenizer,
    tokenizer_config: &Value,
    bos_text: Option<&str>,
) -> Result<Option<u32>, TokenizerError> {
    if tokenizer_config["add_bos_token"] != Value::Bool(true) {
        return Ok(None);
    }
    let Some(beginning) = bos_text.and_then(|text| pipeline.token_to_id(text)) else {
        return Ok(None);
    };
    let frame = pipeline
        .encode_fast("", true)
        .map_err(|error| TokenizerError(format!("tokenizer.json: {error}")))?;
    Ok(Some(beginning).filter(|beginning| !frame.get_ids().contains(beginning)))
}

/// A token's text, written plainly or as an object with its settings.
fn token_text(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token["content"].as_str())
        .map(ToOwned::to_owned)
}

/// One template, or the one named "default" of several, or the first of them.
fn chat_template(setting: &Value) -> Option<String> {
    let template = match setting {
        Value::Array(named) => {
            let default = named.iter().find(|each| each["name"] == "default");
            &default.or(named.first())?["template"]
        }
        single => single,
    };
    template.as_str().map(ToOwned::to_owned)
}

fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, TokenizerError> {
    read_file(folder, name)?
        .map(|text| {
            serde_json::from_str(&text).map_err(|error| TokenizerError(format!("{name}: {error}")))
        })
        .transpose()
}

fn read_file(folder: &Path, name: &str) -> Result<Option<String>, TokenizerError> {
    match fs::read_to_string(folder.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError(format!("cannot read {name}: {error}"))),
    }
}
