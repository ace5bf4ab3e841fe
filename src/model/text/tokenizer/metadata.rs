//! GGUF metadata by key, with errors that name the key.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use super::TokenizerError;

/// A file's metadata.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a>(&'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    pub(super) fn new(metadata: &'a HashMap<String, Value>) -> Self {
        Metadata(metadata)
    }

    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TokenizerError(format!("{key} is no string"))),
        }
    }

    pub(super) fn flag(self, key: &str) -> Result<Option<bool>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(TokenizerError(format!("{key} is no boolean"))),
        }
    }

    /// A token id within the vocabulary.
    pub(super) fn id(self, key: &str, vocab_size: u32) -> Result<Option<u32>, TokenizerError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let id = integer(value, key)?;
        match u32::try_from(id) {
            Ok(id) if id < vocab_size => Ok(Some(id)),
            _ => Err(TokenizerError(format!(
                "{key} is {id}, outside the vocabulary of {vocab_size} tokens"
            ))),
        }
    }

    pub(super) fn array(self, key: &str) -> Result<Option<&'a [Value]>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(TokenizerError(format!("{key} is no array"))),
        }
    }

    pub(super) fn texts(
        self,
        key: &'static str,
    ) -> Result<impl Iterator<Item = Result<&'a str, TokenizerError>>, TokenizerError> {
        let values = self
            .array(key)?
            .ok_or_else(|| TokenizerError(format!("the file lacks {key}")))?;
        Ok(values.iter().map(move |value| match value {
            Value::String(text) => Ok(text.as_str()),
            _ => Err(TokenizerError(format!(
                "{key} holds something else than strings"
            ))),
        }))
    }

    pub(super) fn numbers(self, key: &str, len: u32) -> Result<Vec<f32>, TokenizerError> {
        let values = self
            .array(key)?
            .ok_or_else(|| TokenizerError(format!("the file lacks {key}")))?;
        if values.len() != len as usize {
            return Err(TokenizerError(format!(
                "{key} has {} entries for {len} tokens",
                values.len()
            )));
        }
        values
            .iter()
            .map(|value| match value {
                Value::F32(number) if !number.is_nan() => Ok(*number),
                Value::I32(number) => Ok(*number as f32),
                _ => Err(TokenizerError(format!(
                    "{key} holds something else than numbers"
                ))),
            })
            .collect()
    }
}

/// An integer of any width: converters disagree.
pub(super) fn integer(value: &Value, key: &str) -> Result<i64, TokenizerError> {
    match *value {
        Value::U8(number) => Ok(number.into()),
        Value::I8(number) => Ok(number.into()),
        Value::U16(number) => Ok(number.into()),
        Value::I16(number) => Ok(number.into()),
        Value::U32(number) => Ok(number.into()),
        Value::I32(number) => Ok(number.into()),
        Value::I64(number) => Ok(number),
        Value::U64(number) => i64::try_from(number)
            .map_err(|_| TokenizerError(format!("{key} holds {number}, which is too large"))),
        _ => Err(TokenizerError(format!("{key} is no integer"))),
    }
}
