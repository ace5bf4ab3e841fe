//! Text to token ids and back, from a `tokenizer.json` or from GGUF metadata.

use std::path::Path;

/// What is wrong with a tokenizer or its input.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);

/// A model's tokenizer with its special tokens.
pub struct TextTokenizer {}

impl TextTokenizer {
    /// From a GGUF file's metadata.
    ///
    /// # Errors
    /// An unknown kind or pre-tokenizer, or inconsistent metadata.
    pub fn from_gguf(
        _content: &candle_core::quantized::gguf_file::Content,
    ) -> Result<Self, TokenizerError> {
        todo!()
    }
    /// From a model folder: `tokenizer.json`, with `tokenizer_config.json`, `generation_config.json`
    /// and `config.json` for the special tokens, where they are there.
    ///
    /// # Errors
    /// Missing or broken files.
    pub fn from_folder(_folder: &Path) -> Result<Self, TokenizerError> {
        todo!()
    }
    /// One token per byte (ids 0..=255) and an end-of-text token (256): for scripted and dummy
    /// models. `vocab_size` of at least 257; larger ids decode to nothing.
    pub fn bytes(_vocab_size: u32) -> Self {
        todo!()
    }
    /// Token ids. `add_special` adds the beginning-of-text token where the model wants one. Special
    /// tokens written out in `text` are recognised.
    ///
    /// # Errors
    /// See [`TokenizerError`].
    pub fn encode(&self, _text: &str, _add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        todo!()
    }
    /// The text of token ids.
    ///
    /// # Errors
    /// See [`TokenizerError`].
    pub fn decode(&self, _ids: &[u32], _skip_special: bool) -> Result<String, TokenizerError> {
        todo!()
    }
    /// One token's own bytes (a byte-fallback token is one byte; a special token is its name).
    pub fn token_bytes(&self, _id: u32) -> Vec<u8> {
        todo!()
    }
    /// Whether the token is special.
    pub fn is_special(&self, _id: u32) -> bool {
        todo!()
    }
    /// Number of token ids.
    pub fn vocab_size(&self) -> u32 {
        todo!()
    }
    /// Tokens that end a text by the model's own account (end-of-text, end-of-turn).
    pub fn end_tokens(&self) -> &[u32] {
        todo!()
    }
    /// Text of the beginning-of-text token, if there is one.
    pub fn bos_text(&self) -> Option<&str> {
        todo!()
    }
    /// Text of the end-of-text token, if there is one.
    pub fn eos_text(&self) -> Option<&str> {
        todo!()
    }
    /// The chat template that came with the model.
    pub fn chat_template_source(&self) -> Option<&str> {
        todo!()
    }
}
