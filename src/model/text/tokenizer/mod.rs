//! Text to token ids and back, from a `tokenizer.json` or from GGUF metadata.
//!
//! Encoding is the `tokenizers` crate's for byte-level vocabularies and `tokenizer.json` files, and
//! our own [`sentencepiece`] for GGUF's SentencePiece kind. Decoding is one rule for all: every token
//! stands for fixed bytes ([`TextTokenizer::token_bytes`]), and a text is those bytes one after the
//! other. So a stream of tokens can be decoded piece by piece, and a byte that is no UTF-8 is seen as
//! such instead of being replaced too early.
//!
//! Not here: holding back half characters and stop strings ([`super::detokenize`]), and rendering
//! chats ([`super::chat_template`]).

mod byte_level;
mod folder;
mod gguf;
mod metadata;
mod pretokenizer;
mod sentencepiece;
mod vocabulary;

use std::path::Path;

use sentencepiece::SentencePiece;
use vocabulary::Vocabulary;

/// Words that the `tokenizers` crate remembers per thread and tokenizer. None: it saves a third of the
/// encoding time at best, and its entries, though bounded in number, add up over the threads of a
/// blocking pool and are never freed.
const WORD_CACHE_CAPACITY: usize = 0;

/// What is wrong with a tokenizer or its input.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);

/// A model's tokenizer with its special tokens.
pub struct TextTokenizer {
    encoder: Encoder,
    vocabulary: Vocabulary,
    /// Put before and after a text by `encode` with `add_special`, unless the encoder does it.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Encoding puts a space before a text, so decoding takes one off its start.
    strips_leading_space: bool,
    end_tokens: Vec<u32>,
    bos_text: Option<String>,
    eos_text: Option<String>,
    chat_template: Option<String>,
}

/// What cuts a text into tokens.
enum Encoder {
    /// One token per byte.
    Bytes,
    /// The `tokenizers` crate's pipeline.
    Pipeline(Box<tokenizers::Tokenizer>),
    /// SentencePiece's byte-pair encoding by scores.
    SentencePiece(Box<SentencePiece>),
}

impl TextTokenizer {
    /// From a GGUF file's metadata.
    ///
    /// # Errors
    /// An unknown kind or pre-tokenizer, or inconsistent metadata.
    pub fn from_gguf(
        content: &candle_core::quantized::gguf_file::Content,
    ) -> Result<Self, TokenizerError> {
        gguf::read(&content.metadata)
    }

    /// From a model folder: `tokenizer.json`, with `tokenizer_config.json`, `generation_config.json`
    /// and `config.json` for the special tokens, where they are there.
    ///
    /// # Errors
    /// Missing or broken files.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        folder::read(folder)
    }

    /// One token per byte (ids 0..=255) and an end-of-text token (256): for scripted and dummy
    /// models. `vocab_size` of at least 257; larger ids decode to nothing.
    pub fn bytes(vocab_size: u32) -> Self {
        const END_OF_TEXT: u32 = 256;
        let mut vocabulary = Vocabulary::default();
        for byte in 0..=u8::MAX {
            vocabulary.push(&[byte], false);
        }
        vocabulary.push(b"<|endoftext|>", true);
        for _ in vocabulary.len()..vocab_size {
            vocabulary.push(b"", false);
        }
        TextTokenizer {
            encoder: Encoder::Bytes,
            vocabulary,
            prefix: Vec::new(),
            suffix: Vec::new(),
            strips_leading_space: false,
            end_tokens: vec![END_OF_TEXT],
            bos_text: None,
            eos_text: Some("<|endoftext|>".to_owned()),
            chat_template: None,
        }
    }

    /// Token ids. `add_special` adds the beginning-of-text token where the model wants one. Special
    /// tokens written out in `text` are recognised (not by the tokenizer of [`bytes`](Self::bytes)).
    ///
    /// # Errors
    /// See [`TokenizerError`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        if add_special {
            ids.extend(&self.prefix);
        }
        match &self.encoder {
            Encoder::Bytes => ids.extend(text.bytes().map(u32::from)),
            Encoder::Pipeline(pipeline) => {
                let encoding = pipeline
                    .encode_fast(text, add_special)
                    .map_err(|error| TokenizerError(format!("cannot encode the text: {error}")))?;
                ids.extend(encoding.get_ids());
            }
            Encoder::SentencePiece(pieces) => pieces.encode(text, &mut ids),
        }
        if add_special {
            ids.extend(&self.suffix);
        }
        Ok(ids)
    }

    /// The text of token ids. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            if id >= self.vocab_size() {
                return Err(TokenizerError(format!(
                    "token id {id} is outside the vocabulary of {} tokens",
                    self.vocab_size()
                )));
            }
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.vocabulary.bytes(id));
            }
        }
        let text = match bytes.strip_prefix(b" ") {
            Some(stripped) if self.strips_leading_space => stripped,
            _ => &bytes,
        };
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// One token's own bytes (a byte-fallback token is one byte; a special token is its name).
    /// Empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.vocabulary.bytes(id).to_vec()
    }

    /// Whether the token is special.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> u32 {
        self.vocabulary.len()
    }

    /// Tokens that end a text by the model's own account (end-of-text, end-of-turn).
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Text of the beginning-of-text token, if there is one.
    pub fn bos_text(&self) -> Option<&str> {
        self.bos_text.as_deref()
    }

    /// Text of the end-of-text token, if there is one.
    pub fn eos_text(&self) -> Option<&str> {
        self.eos_text.as_deref()
    }

    /// The chat template that came with the model.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The token's bytes, without a copy. Empty for an id outside the vocabulary.
    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Whether decoding takes one space off the start of a text.
    pub(super) fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }
}
