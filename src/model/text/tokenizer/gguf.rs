//! A tokenizer from a GGUF file's metadata (`tokenizer.ggml.*`).
//!
//! The keys' meaning is documented by the GGUF specification; where it is silent, llama.cpp is the
//! reference (`src/llama-vocab.cpp`).

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

use super::metadata::{Metadata, integer};
use super::pretokenizer::PreTokenizer;
use super::sentencepiece::{Piece, PieceKind, SentencePiece, Spaces};
use super::vocabulary::Vocabulary;
use super::{Encoder, TextTokenizer, TokenizerError, byte_level};

/// Texts of tokens that end a turn or a text. Many files name only one end token by id, and chat
/// models end their turns with another; so these are looked up by their text, as llama.cpp does.
const END_TEXTS: [&str; 12] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn from_code(code: i64) -> Result<Self, TokenizerError> {
        match code {
            // 0 is "undefined" in the specification; files that have it mean plain tokens.
            0 | 1 => Ok(TokenType::Normal),
            2 => Ok(TokenType::Unknown),
            3 => Ok(TokenType::Control),
            4 => Ok(TokenType::UserDefined),
            5 => Ok(TokenType::Unused),
            6 => Ok(TokenType::Byte),
            _ => Err(TokenizerError(format!(
                "tokenizer.ggml.token_type holds {code}; types are 0 to 6"
            ))),
        }
    }

    /// Left out of a text with `skip_special`.
    fn is_special(self) -> bool {
        matches!(self, TokenType::Control | TokenType::Unknown)
    }

    /// Recognised as a whole where it is written out.
    fn is_added(self) -> bool {
        self.is_special() || self == TokenType::UserDefined
    }
}

/// Builds the tokenizer that `metadata` describes.
pub(super) fn read(metadata: &HashMap<String, Value>) -> Result<TextTokenizer, TokenizerError> {
    let metadata = Metadata::new(metadata);
    match metadata.text("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level_tokenizer(metadata),
        Some("llama") => sentencepiece_tokenizer(metadata),
        Some(other) => Err(TokenizerError(format!(
            "tokenizer.ggml.model is {other:?}; supported are \"gpt2\" (byte-level) and \"llama\" \
             (SentencePiece)"
        ))),
        None => Err(TokenizerError(
            "the file has no tokenizer (no tokenizer.ggml.model)".to_owned(),
        )),
    }
}

/// Kind "gpt2": byte-pair encoding by ranked merges, on bytes, within what a pre-tokenizer cut.
fn byte_level_tokenizer(metadata: Metadata<'_>) -> Result<TextTokenizer, TokenizerError> {
    let tokens = Tokens::read(metadata)?;
    let pre_tokenizer = PreTokenizer::named(metadata.text("tokenizer.ggml.pre")?)?;
    let mut pipeline = Tokenizer::new(bpe_model(metadata, &tokens, pre_tokenizer.ignore_merges)?);
    pipeline.with_pre_tokenizer(Some(pre_tokenizer.splitter()?));
    pipeline
        .add_tokens(tokens.added().map(|(_, token_type, text)| {
            AddedToken::from(text, token_type.is_special()).normalized(false)
        }))
        .map_err(|error| TokenizerError(format!("cannot add the special tokens: {error}")))?;

    let mut vocabulary = Vocabulary::default();
    for (_, token_type, text) in tokens.iter() {
        if token_type.is_added() {
            vocabulary.push(text.as_bytes(), token_type.is_special());
        } else {
            vocabulary.push(&byte_level::bytes_of(text), false);
        }
    }
    let special_ids = SpecialIds {
        beginning: metadata.id("tokenizer.ggml.bos_token_id", tokens.len())?,
        end: metadata.id("tokenizer.ggml.eos_token_id", tokens.len())?,
        adds_beginning: pre_tokenizer.adds_beginning,
    };
    assemble(
        metadata,
        &tokens,
        Encoder::Pipeline(Box::new(pipeline)),
        vocabulary,
        special_ids,
        false,
    )
}

fn bpe_model(
    metadata: Metadata<'_>,
    tokens: &Tokens<'_>,
    ignore_merges: bool,
) -> Result<BPE, TokenizerError> {
    let vocabulary = tokens
        .iter()
        .map(|(id, _, text)| (text.to_owned(), id))
        .collect::<Vocab>();
    let merges = metadata
        .texts("tokenizer.ggml.merges")?
        .map(split_merge)
        .collect::<Result<Vec<_>, _>>()?;
    BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(ignore_merges)
        .cache_capacity(super::WORD_CACHE_CAPACITY)
        .build()
        .map_err(|error| TokenizerError(format!("tokenizer.ggml.merges: {error}")))
}

/// A merge is written as its two parts with a space between; a part may itself start with one.
fn split_merge(merge: Result<&str, TokenizerError>) -> Result<(String, String), TokenizerError> {
    let merge = merge?;
    merge
        .char_indices()
        .skip(1)
        .find(|&(_, character)| character == ' ')
        .map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()))
        .ok_or_else(|| TokenizerError("tokenizer.ggml.merges: a merge is no pair".to_owned()))
}

/// Kind "llama": SentencePiece's byte-pair encoding by scores, with byte fallback.
fn sentencepiece_tokenizer(metadata: Metadata<'_>) -> Result<TextTokenizer, TokenizerError> {
    let tokens = Tokens::read(metadata)?;
    let scores = metadata.numbers("tokenizer.ggml.scores", tokens.len())?;
    // The defaults of the kind, for files that leave the ids out (Llama's own vocabulary).
    let id_or = |key: &str, default: u32| -> Result<Option<u32>, TokenizerError> {
        let id = metadata.id(key, tokens.len())?;
        Ok(id.or((default < tokens.len()).then_some(default)))
    };
    let unknown = id_or("tokenizer.ggml.unknown_token_id", 0)?;
    let spaces = Spaces {
        prefix: metadata
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true),
        collapse: metadata
            .flag("tokenizer.ggml.remove_extra_whitespaces")?
            .unwrap_or(false),
    };
    // Phi-3's special tokens swallow the white space after them; its GGUF files don't say so.
    let strips_right = metadata.text("general.architecture")? == Some("phi3");

    let mut vocabulary = Vocabulary::default();
    let mut pieces = Vec::with_capacity(tokens.len() as usize);
    for ((_, token_type, text), &score) in tokens.iter().zip(&scores) {
        let (kind, bytes) = match token_type {
            TokenType::Normal => (PieceKind::Normal, text.replace('▁', " ").into_bytes()),
            TokenType::Byte => {
                let byte = byte_level::named_byte(text).ok_or_else(|| {
                    TokenizerError(format!("{text:?} is marked as a byte token but names none"))
                })?;
                (PieceKind::Byte(byte), vec![byte])
            }
            TokenType::Unused => (PieceKind::Unused, text.replace('▁', " ").into_bytes()),
            TokenType::Control | TokenType::Unknown | TokenType::UserDefined => {
                let kind = if strips_right && !["<unk>", "<s>", "<|endoftext|>"].contains(&text) {
                    PieceKind::AddedStrippingRight
                } else {
                    PieceKind::Added
                };
                (kind, text.as_bytes().to_vec())
            }
        };
        vocabulary.push(&bytes, token_type.is_special());
        pieces.push(Piece { text, score, kind });
    }
    let encoder = SentencePiece::new(&pieces, unknown, spaces)?;
    let special_ids = SpecialIds {
        beginning: id_or("tokenizer.ggml.bos_token_id", 1)?,
        end: id_or("tokenizer.ggml.eos_token_id", 2)?,
        adds_beginning: true,
    };
    assemble(
        metadata,
        &tokens,
        Encoder::SentencePiece(Box::new(encoder)),
        vocabulary,
        special_ids,
        spaces.prefix,
    )
}

/// The ids that frame a text, as far as the file or its kind gives them.
struct SpecialIds {
    beginning: Option<u32>,
    end: Option<u32>,
    /// Whether the kind wants the beginning token, unless the file says otherwise.
    adds_beginning: bool,
}

/// The parts that all kinds share: framing, end tokens, chat template.
fn assemble(
    metadata: Metadata<'_>,
    tokens: &Tokens<'_>,
    encoder: Encoder,
    vocabulary: Vocabulary,
    special_ids: SpecialIds,
    strips_leading_space: bool,
) -> Result<TextTokenizer, TokenizerError> {
    let adds_beginning = metadata
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(special_ids.adds_beginning);
    let adds_end = metadata
        .flag("tokenizer.ggml.add_eos_token")?
        .unwrap_or(false);
    let prefix = special_ids.beginning.filter(|_| adds_beginning);
    let suffix = special_ids.end.filter(|_| adds_end);

    let named_ids = [
        special_ids.end,
        metadata.id("tokenizer.ggml.eot_token_id", tokens.len())?,
        metadata.id("tokenizer.ggml.eom_token_id", tokens.len())?,
    ];
    let mut end_tokens: Vec<u32> = named_ids.into_iter().flatten().collect();
    end_tokens.extend(
        tokens
            .iter()
            .filter(|(_, _, text)| END_TEXTS.contains(text))
            .map(|(id, ..)| id),
    );
    end_tokens.sort_unstable();
    end_tokens.dedup();

    let text_of = |id: u32| tokens.texts[id as usize].to_owned();
    Ok(TextTokenizer {
        encoder,
        vocabulary,
        prefix: prefix.into_iter().collect(),
        suffix: suffix.into_iter().collect(),
        strips_leading_space,
        end_tokens,
        bos_text: special_ids.beginning.map(text_of),
        eos_text: special_ids.end.map(text_of),
        chat_template: metadata
            .text("tokenizer.chat_template")?
            .map(ToOwned::to_owned),
    })
}

/// The vocabulary as the file lists it.
struct Tokens<'a> {
    texts: Vec<&'a str>,
    types: Vec<TokenType>,
}

impl<'a> Tokens<'a> {
    fn read(metadata: Metadata<'a>) -> Result<Self, TokenizerError> {
        let texts = metadata
            .texts("tokenizer.ggml.tokens")?
            .collect::<Result<Vec<_>, _>>()?;
        if texts.is_empty() {
            return Err(TokenizerError("tokenizer.ggml.tokens is empty".to_owned()));
        }
        let mut types = match metadata.array("tokenizer.ggml.token_type")? {
            Some(codes) => codes
                .iter()
                .map(|code| TokenType::from_code(integer(code, "tokenizer.ggml.token_type")?))
                .collect::<Result<Vec<_>, _>>()?,
            None => vec![TokenType::Normal; texts.len()],
        };
        if types.len() != texts.len() {
            return Err(TokenizerError(format!(
                "tokenizer.ggml.token_type has {} entries for {} tokens",
                types.len(),
                texts.len()
            )));
        }
        for (text, token_type) in texts.iter().zip(&mut types) {
            // Some converters mark an end-of-turn token as a plain one, which it can't be.
            if END_TEXTS.contains(text) {
                *token_type = TokenType::Control;
            }
        }
        Ok(Tokens { texts, types })
    }

    fn len(&self) -> u32 {
        u32::try_from(self.texts.len()).expect("token ids are 32-bit numbers")
    }

    fn iter(&self) -> impl Iterator<Item = (u32, TokenType, &'a str)> {
        (0..)
            .zip(self.types.iter().zip(&self.texts))
            .map(|(id, (&token_type, &text))| (id, token_type, text))
    }

    fn added(&self) -> impl Iterator<Item = (u32, TokenType, &'a str)> {
        self.iter()
            .filter(|(_, token_type, text)| token_type.is_added() && !text.is_empty())
    }
}
