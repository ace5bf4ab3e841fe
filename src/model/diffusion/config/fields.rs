//! Reading numbers and names out of a component's JSON, with errors that name the file and the field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::ModelError;

/// A component's JSON object, and what to call it in an error.
///
/// A field may be absent or null, but not of the wrong type.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    file: &'a str,
    object: &'a Map<String, Value>,
}

/// Reads a JSON file that holds an object.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let broken = |what: String| ModelError::Load(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
    match serde_json::from_str(&text).map_err(|error| broken(error.to_string()))? {
        Value::Object(object) => Ok(object),
        _ => Err(broken("it is not a JSON object".into())),
    }
}

impl<'a> Fields<'a> {
    /// `file` is what errors call it, such as `unet/config.json`.
    pub fn new(file: &'a str, object: &'a Map<String, Value>) -> Self {
        Fields { file, object }
    }

    /// An error about a field of this file.
    pub fn error(&self, name: &str, what: &str) -> ModelError {
        ModelError::Load(format!("{}: {name} {what}", self.file))
    }

    /// The field's value, unless it is absent or null.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether it is there and null, where that does not mean absent.
    pub fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    fn read<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        self.value(name)
            .map(|value| {
                read(value).ok_or_else(|| self.error(name, &format!("is {value}, not {kind}")))
            })
            .transpose()
    }

    /// A whole number in this range.
    ///
    /// # Errors
    /// It is something else.
    pub fn count(
        &self,
        name: &str,
        default: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        let count = self
            .read(name, "a whole number", as_count)?
            .unwrap_or(default);
        self.check_range(name, count, &range)?;
        Ok(count)
    }

    /// A whole number in this range that has no default.
    ///
    /// # Errors
    /// It is absent or something else.
    pub fn needed_count(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        let count = self
            .read(name, "a whole number", as_count)?
            .ok_or_else(|| self.error(name, "is missing"))?;
        self.check_range(name, count, &range)?;
        Ok(count)
    }

    fn check_range(
        &self,
        name: &str,
        count: usize,
        range: &std::ops::RangeInclusive<usize>,
    ) -> Result<(), ModelError> {
        if range.contains(&count) {
            return Ok(());
        }
        let (least, most) = (range.start(), range.end());
        Err(self.error(name, &format!("is {count}; it must be {least} to {most}")))
    }

    /// One whole number for each of `len` blocks: a list of that length, or one number for all.
    ///
    /// # Errors
    /// It is something else, or a number is outside the range.
    pub fn count_per_block(
        &self,
        name: &str,
        default: usize,
        len: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Vec<usize>, ModelError> {
        let counts = match self.value(name) {
            None => vec![default; len],
            Some(Value::Array(list)) => {
                let counts: Option<Vec<usize>> = list.iter().map(as_count).collect();
                let counts = counts
                    .ok_or_else(|| self.error(name, "holds something that is no whole number"))?;
                if counts.len() != len {
                    let found = counts.len();
                    return Err(self.error(name, &format!("has {found} entries for {len} blocks")));
                }
                counts
            }
            Some(single) => {
                let count = as_count(single).ok_or_else(|| {
                    self.error(
                        name,
                        &format!("is {single}, not a whole number or a list of them"),
                    )
                })?;
                vec![count; len]
            }
        };
        for &count in &counts {
            self.check_range(name, count, &range)?;
        }
        Ok(counts)
    }

    /// A list of at least one and at most `most` whole numbers.
    ///
    /// # Errors
    /// It is absent or something else.
    pub fn needed_counts(
        &self,
        name: &str,
        most: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Vec<usize>, ModelError> {
        let len = match self.value(name) {
            Some(Value::Array(list)) => list.len(),
            Some(_) => return Err(self.error(name, "is not a list")),
            None => return Err(self.error(name, "is missing")),
        };
        self.check_range(name, len, &(1..=most)).map_err(|_| {
            self.error(
                name,
                &format!("has {len} entries; supported are 1 to {most}"),
            )
        })?;
        self.count_per_block(name, 0, len, range)
    }

    /// A finite number.
    ///
    /// # Errors
    /// It is something else.
    pub fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.read(name, "a finite number", |value| {
            value.as_f64().filter(|number| number.is_finite())
        })
    }

    /// A finite number above zero.
    ///
    /// # Errors
    /// It is something else.
    pub fn positive(&self, name: &str, default: f64) -> Result<f64, ModelError> {
        let number = self.number(name)?.unwrap_or(default);
        if number > 0.0 {
            return Ok(number);
        }
        Err(self.error(name, &format!("is {number}; it must be above 0")))
    }

    /// True or false.
    ///
    /// # Errors
    /// It is something else.
    pub fn switch(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        let switch = self.read(name, "true or false", Value::as_bool)?;
        Ok(switch.unwrap_or(default))
    }

    /// A text.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        self.read(name, "a text", Value::as_str)
    }

    /// A list of texts.
    ///
    /// # Errors
    /// It is absent or something else.
    pub fn needed_texts(&self, name: &str) -> Result<Vec<&'a str>, ModelError> {
        self.read(name, "a list of texts", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })?
        .ok_or_else(|| self.error(name, "is missing"))
    }

    /// Fails unless the field is absent, null, or one of the values that change nothing.
    ///
    /// # Errors
    /// Names the value, and what is supported.
    pub fn refuse_unless(&self, name: &str, supported: &[Value]) -> Result<(), ModelError> {
        let Some(value) = self.value(name) else {
            return Ok(());
        };
        let equal = |other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(value), Some(other)) => value == other,
            _ => value == other,
        };
        // A list that says the same for every block is that one value.
        let fits = supported.iter().any(|supported| {
            equal(supported)
                || value.as_array().is_some_and(|list| {
                    !list.is_empty() && list.iter().all(|item| item == supported)
                })
        });
        if fits {
            return Ok(());
        }
        let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
        let supported = match supported.as_slice() {
            [] => "null".to_string(),
            list => list.join(", "),
        };
        Err(self.error(
            name,
            &format!("is {value}, which is not supported; supported: {supported}"),
        ))
    }
}

fn as_count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}
