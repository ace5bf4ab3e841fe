//! The body of an image request: JSON, or a form.

use axum::body::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::api::form::{self, Part};
use crate::intake::picture_file::PictureFile;
use crate::intake::{Fields, Invalid, InvalidKind, shortened};

/// A body's fields; files of a form apart.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) fields: Fields,
    files: Vec<(String, PictureFile)>,
    /// By which a repetition is known.
    pub(super) identity: Bytes,
}

/// Fields of a form that are texts, even where they look like numbers.
const TEXTS: [&str; 15] = [
    "prompt",
    "negative_prompt",
    "model",
    "size",
    "quality",
    "style",
    "background",
    "moderation",
    "output_format",
    "response_format",
    "user",
    "input_fidelity",
    "scheduler",
    "image",
    "mask",
];

impl Body {
    /// Reads a body of this type: a form or JSON.
    ///
    /// # Errors
    /// Neither.
    pub(super) fn parse(content_type: &str, body: &Bytes) -> Result<Self, Invalid> {
        if form::is_form(content_type) {
            return Body::of_form(form::parse(content_type, body)?);
        }
        Ok(Body {
            fields: Fields::parse(body)?,
            files: Vec::new(),
            identity: body.clone(),
        })
    }

    fn of_form(parts: Vec<Part>) -> Result<Self, Invalid> {
        let mut members = Map::new();
        let mut files = Vec::new();
        // Not the body itself: clients draw another boundary whenever they send it.
        let mut identity = Sha256::new();
        for part in parts {
            for piece in [part.name.as_bytes(), &part.content[..]] {
                identity.update((piece.len() as u64).to_le_bytes());
                identity.update(piece);
            }
            if part.is_file {
                // Several files are sent as a list.
                let name = part.name.trim_end_matches("[]").to_owned();
                files.push((name, PictureFile::new(part.content)));
                continue;
            }
            let text = String::from_utf8(part.content.to_vec())
                .map_err(|_| Invalid::value(&part.name, "is no UTF-8"))?;
            insert(&mut members, &part.name, value_of(&part.name, text))?;
        }
        Ok(Body {
            fields: Fields::of(members),
            files,
            identity: Bytes::copy_from_slice(&identity.finalize()),
        })
    }

    /// The files of this name.
    pub(super) fn files(&mut self, name: &str) -> Vec<PictureFile> {
        let (wanted, others) = std::mem::take(&mut self.files)
            .into_iter()
            .partition(|(known, _)| known == name);
        self.files = others;
        let wanted: Vec<(String, PictureFile)> = wanted;
        wanted.into_iter().map(|(_, file)| file).collect()
    }

    /// Refuses what has not been read.
    pub(super) fn finish(self) -> Result<(), Invalid> {
        match self.files.first() {
            None => self.fields.finish(),
            Some((name, _)) => {
                let name = shortened(name);
                let message = "is not a file of this request";
                Err(Invalid::new(InvalidKind::Unknown, name, message))
            }
        }
    }
}

/// A form knows texts only: what is a number or a word of JSON is taken as one, unless it is a text.
fn value_of(name: &str, text: String) -> Value {
    if TEXTS.contains(&name) {
        return Value::String(text);
    }
    match serde_json::from_str(&text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text),
    }
}

/// Puts a form's field in its place: `a[b]` is member `b` of object `a`.
fn insert(members: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), Invalid> {
    let inner = name
        .strip_suffix(']')
        .and_then(|name| name.split_once('['))
        .filter(|(_, inner)| !inner.is_empty());
    let taken = match inner {
        None => members.insert(name.trim_end_matches("[]").to_owned(), value),
        Some((outer, inner)) => match members.entry(outer).or_insert_with(|| json!({})) {
            Value::Object(object) => object.insert(inner.to_owned(), value),
            other => Some(other.take()),
        },
    };
    match taken {
        None => Ok(()),
        Some(_) => {
            let name = shortened(name);
            Err(Invalid::value(name, "is given twice"))
        }
    }
}
