//! CLIP's tokenizer: lower case, byte-pair encoding of words, a window of 77 tokens.
//!
//! From `tokenizer.json`, or from the `vocab.json` and `merges.txt` of older folders, whose pipeline is
//! then put together as transformers' `CLIPTokenizer` does.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::Split;
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

use super::config::clip::ClipConfig;
use super::config::fields::read_object;
use crate::model::ModelError;

/// Words that the `tokenizers` crate remembers: none, since its entries would add up over the threads of a
/// blocking pool and never be freed.
const WORD_CACHE_CAPACITY: usize = 0;
/// What a text is cut into before its words are encoded: special tokens, English endings, words, single
/// digits, runs of other signs. OpenAI's CLIP.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The beginning where the files name none.
const START: &str = "<|startoftext|>";
/// The end, the padding and the unknown where the files name none.
const END: &str = "<|endoftext|>";

/// A CLIP tokenizer.
pub struct ClipTokenizer {
    pipeline: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl ClipTokenizer {
    /// From a tokenizer's folder, such as `tokenizer` or `tokenizer_2` of a diffusers model.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let settings = read_if_there(folder, "tokenizer_config.json")?;
        let map = read_if_there(folder, "special_tokens_map.json")?;
        let named = |name: &str, default: &str| {
            let text = |object: &Map<String, Value>| token_text(object.get(name)?);
            text(&settings)
                .or_else(|| text(&map))
                .unwrap_or_else(|| default.to_string())
        };
        let (bos, eos) = (named("bos_token", START), named("eos_token", END));
        let pad = named("pad_token", &eos);
        let mut pipeline = match folder.join("tokenizer.json").is_file() {
            true => whole_pipeline(&folder.join("tokenizer.json"))?,
            false => pipeline_of_parts(folder, &named("unk_token", END))?,
        };
        let specials = [bos, eos, pad];
        // Whatever is named special is one token wherever it stands, as in transformers: where a model pads with
        // "!", so is the exclamation mark of a prompt.
        let added = specials
            .iter()
            .filter(|text| pipeline.token_to_id(text).is_some())
            .map(|text| AddedToken::from(text.as_str(), true).normalized(false));
        let added: Vec<AddedToken> = added.collect();
        pipeline
            .add_special_tokens(added)
            .map_err(in_folder(folder))?;
        let id = |text: &str| {
            pipeline.token_to_id(text).ok_or_else(|| {
                ModelError::Load(format!(
                    "{}: the token {text:?} is not in the vocabulary",
                    folder.display()
                ))
            })
        };
        let (bos, eos, pad) = (id(&specials[0])?, id(&specials[1])?, id(&specials[2])?);
        Ok(ClipTokenizer {
            pipeline,
            bos,
            eos,
            pad,
        })
    }

    /// From a tokenizer's folder, for this text encoder.
    ///
    /// # Errors
    /// As [`Self::from_folder`], or the encoder does not know all tokens.
    pub fn for_encoder(folder: &Path, encoder: &ClipConfig) -> Result<Self, ModelError> {
        let tokenizer = Self::from_folder(folder)?;
        check_vocabulary(folder, &tokenizer.pipeline, encoder.vocab_size)?;
        Ok(tokenizer)
    }

    /// The tokens of a text, without beginning, end and padding. As many as it takes.
    ///
    /// # Errors
    /// The text cannot be encoded: a character that the vocabulary has no bytes for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .pipeline
            .encode_fast(text, false)
            .map_err(|error| ModelError::Load(format!("cannot encode the prompt: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token before every chunk.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The token after every chunk.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token that fills a chunk.
    pub fn pad(&self) -> u32 {
        self.pad
    }
}

/// Whether an encoder with so many embeddings knows all tokens: an id behind the last would fail a whole pass.
pub(super) fn check_vocabulary(
    folder: &Path,
    pipeline: &Tokenizer,
    embeddings: usize,
) -> Result<(), ModelError> {
    let ids = pipeline.get_vocab(true).into_values();
    match ids.max().filter(|id| *id as usize >= embeddings) {
        None => Ok(()),
        Some(id) => Err(ModelError::Load(format!(
            "{}: there is a token {id}; the text encoder's vocab_size is {embeddings}",
            folder.display()
        ))),
    }
}

fn in_folder<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> ModelError {
    move |error| ModelError::Load(format!("{}: {error}", path.display()))
}

/// The object in this file; an empty one if there is no such file.
fn read_if_there(folder: &Path, name: &str) -> Result<Map<String, Value>, ModelError> {
    let path = folder.join(name);
    match path.is_file() {
        true => read_object(&path),
        false => Ok(Map::new()),
    }
}

/// A token is named by its text, or described by an object that has it.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(text.to_string())
}

fn whole_pipeline(path: &Path) -> Result<Tokenizer, ModelError> {
    let bytes = fs::read(path).map_err(in_folder(path))?;
    let mut pipeline = Tokenizer::from_bytes(bytes).map_err(in_folder(path))?;
    pipeline.with_truncation(None).map_err(in_folder(path))?;
    pipeline.with_padding(None);
    let mut model = pipeline.get_model().clone();
    model.resize_cache(WORD_CACHE_CAPACITY);
    pipeline.with_model(model);
    Ok(pipeline)
}

fn pipeline_of_parts(folder: &Path, unknown: &str) -> Result<Tokenizer, ModelError> {
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    for path in [&vocabulary, &merges] {
        if !path.is_file() {
            return Err(ModelError::Load(format!(
                "{} holds neither tokenizer.json nor vocab.json with merges.txt",
                folder.display()
            )));
        }
    }
    let (vocabulary, merges) =
        BPE::read_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy())
            .map_err(in_folder(folder))?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .cache_capacity(WORD_CACHE_CAPACITY)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_string())
        .unk_token(unknown.to_string())
        .build()
        .map_err(in_folder(folder))?;
    let mut pipeline = Tokenizer::new(model);
    let spaces = Replace::new(
        tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_string()),
        " ",
    )
    .map_err(in_folder(folder))?;
    pipeline
        .with_normalizer(Some(Normalizers::new(vec![
            NormalizerWrapper::NFC(NFC),
            NormalizerWrapper::Replace(spaces),
            NormalizerWrapper::Lowercase(Lowercase),
        ])))
        .map_err(in_folder(folder))?;
    let words = Split::new(
        tokenizers::pre_tokenizers::split::SplitPattern::Regex(WORDS.to_string()),
        SplitDelimiterBehavior::Removed,
        true,
    )
    .map_err(in_folder(folder))?;
    pipeline.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ])));
    Ok(pipeline)
}
