//! A tokenizer from a model folder in Hugging Face's layout.

use std::path::Path;

use super::{TextTokenizer, TokenizerError};

pub(super) fn read(_folder: &Path) -> Result<TextTokenizer, TokenizerError> {
    todo!()
}
