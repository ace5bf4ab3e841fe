//! A JSON object that is read field by field, so that a wrong type is reported by name and no
//! field passes unread.

use serde_json::{Map, Value};

use super::{Invalid, InvalidKind};

/// The fields of a request's body. Each is taken out as it is read; [`Fields::finish`] refuses
/// what is left. `null` means absent.
#[derive(Debug)]
pub struct Fields {
    members: Map<String, Value>,
    /// Put before each name in errors: `stream_options.` within `stream_options`.
    prefix: String,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// The body is no JSON object. A value that is no JSON (`NaN`, `1e999`) is reported under its
    /// name.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(members)) => Ok(Fields::of(members)),
            Ok(_) => Err(Invalid::new(
                InvalidKind::Body,
                "",
                "the body must be a JSON object",
            )),
            Err(error) => Err(syntax_error(body, &error)),
        }
    }

    /// The members of an object that has been parsed already.
    pub fn of(members: Map<String, Value>) -> Self {
        Fields {
            members,
            prefix: String::new(),
        }
    }

    /// What errors call a field.
    pub fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn wrong<T>(&self, name: &str, message: &str) -> Result<T, Invalid> {
        Err(Invalid::value(self.full_name(name), message))
    }

    /// The field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// True or false.
    ///
    /// # Errors
    /// Another type.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => self.wrong(name, "must be true or false"),
        }
    }

    /// Any finite number.
    ///
    /// # Errors
    /// Another type.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => self.wrong(name, "must be a number"),
            },
        }
    }

    /// A whole number of either sign.
    ///
    /// # Errors
    /// Another type, a fraction, or more than 64 bits.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => self.wrong(name, "must be a whole number of at most 64 bits"),
            },
        }
    }

    /// A whole number, not negative.
    ///
    /// # Errors
    /// Another type, a fraction, a negative number, or more than 64 bits.
    pub fn count(&mut self, name: &str) -> Result<Option<u64>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => self.wrong(
                    name,
                    "must be a whole number, not negative, of at most 64 bits",
                ),
            },
        }
    }

    /// A seed: 64 bits, of either sign; a negative one stands for its two's complement.
    ///
    /// # Errors
    /// Another type, a fraction, or more than 64 bits.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match (value.as_u64(), value.as_i64()) {
                (Some(number), _) => Ok(Some(number)),
                (None, Some(number)) => Ok(Some(number.cast_unsigned())),
                (None, None) => self.wrong(name, "must be a whole number of at most 64 bits"),
            },
        }
    }

    /// A string.
    ///
    /// # Errors
    /// Another type.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(name, "must be a string"),
        }
    }

    /// A string, or several.
    ///
    /// # Errors
    /// Another type, also within the list.
    pub fn string_or_strings(&mut self, name: &str) -> Result<Option<Vec<String>>, Invalid> {
        let items = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) => return Ok(Some(vec![text])),
            Some(Value::Array(items)) => items,
            Some(_) => return self.wrong(name, "must be a string or a list of strings"),
        };
        let texts: Option<Vec<String>> = items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Some(text),
                _ => None,
            })
            .collect();
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => self.wrong(name, "must be a string or a list of strings"),
        }
    }

    /// A list of whole numbers, none negative.
    ///
    /// # Errors
    /// Another type, also within the list.
    pub fn counts(&mut self, name: &str) -> Result<Option<Vec<u64>>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => match items.iter().map(Value::as_u64).collect() {
                Some(numbers) => Ok(Some(numbers)),
                None => self.wrong(name, "must be a list of whole numbers, none negative"),
            },
            Some(_) => self.wrong(name, "must be a list of whole numbers"),
        }
    }

    /// An object of numbers.
    ///
    /// # Errors
    /// Another type, also within the object.
    pub fn numbers_by_name(&mut self, name: &str) -> Result<Option<Vec<(String, f64)>>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(members)) => {
                let numbers = members
                    .into_iter()
                    .map(|(key, value)| value.as_f64().map(|number| (key, number)))
                    .collect();
                match numbers {
                    Some(numbers) => Ok(Some(numbers)),
                    None => self.wrong(name, "must be an object of numbers"),
                }
            }
            Some(_) => self.wrong(name, "must be an object of numbers"),
        }
    }

    /// An object, as it is.
    ///
    /// # Errors
    /// Another type.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members)),
            Some(_) => self.wrong(name, "must be an object"),
        }
    }

    /// An object to be read field by field in turn.
    ///
    /// # Errors
    /// Another type.
    pub fn nested(&mut self, name: &str) -> Result<Option<Fields>, Invalid> {
        let prefix = format!("{}.", self.full_name(name));
        Ok(self.object(name)?.map(|members| Fields { members, prefix }))
    }

    /// A field that has no meaning here unless it has one of the `accepted` values, all of which
    /// ask for nothing.
    ///
    /// # Errors
    /// Any other value, as [`InvalidKind::Unsupported`].
    pub fn only(&mut self, name: &str, accepted: &[Value]) -> Result<(), Invalid> {
        match self.take(name) {
            Some(value) if !accepted.contains(&value) => {
                let message = match accepted {
                    [] => "is not supported by this service".to_owned(),
                    [one] => format!("is not supported by this service, except as {one}"),
                    several => {
                        let list: Vec<String> = several.iter().map(Value::to_string).collect();
                        format!(
                            "is not supported by this service, except as {}",
                            list.join(" or ")
                        )
                    }
                };
                Err(Invalid::new(
                    InvalidKind::Unsupported,
                    self.full_name(name),
                    message,
                ))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a field that has not been read.
    ///
    /// # Errors
    /// The first of them, as [`InvalidKind::Unknown`].
    pub fn finish(self) -> Result<(), Invalid> {
        match self.members.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(Invalid::new(
                InvalidKind::Unknown,
                shortened(&self.full_name(name)),
                "is not a field of this request",
            )),
        }
    }
}

/// A name that came from outside, short enough to be repeated.
pub fn shortened(name: &str) -> String {
    const LONGEST_NAME_CHARS: usize = 64;
    name.chars().take(LONGEST_NAME_CHARS).collect()
}

/// What a body's syntax error is about. Python clients write `NaN` and `Infinity`, which are no
/// JSON: the field that holds them is still worth naming.
fn syntax_error(body: &[u8], error: &serde_json::Error) -> Invalid {
    let place = format!("line {} column {}", error.line(), error.column());
    match name_before(body, offset_of(body, error.line(), error.column())) {
        Some(name) => Invalid::value(
            shortened(&name),
            format!("has a value that is no JSON, at {place}"),
        ),
        None => Invalid::new(
            InvalidKind::Body,
            "",
            format!("the body is no JSON: the fault is at {place}"),
        ),
    }
}

/// The byte offset of a line and column, both counted from 1.
fn offset_of(body: &[u8], line: usize, column: usize) -> usize {
    let line_start = body
        .iter()
        .enumerate()
        .filter(|&(_, &byte)| byte == b'\n')
        .map(|(index, _)| index + 1)
        .nth(line.saturating_sub(2))
        .filter(|_| line > 1)
        .unwrap_or(0);
    (line_start + column.saturating_sub(1)).min(body.len())
}

/// The member name whose value begins at or just before `offset`: `"name" :` and then perhaps the
/// start of a number.
fn name_before(body: &[u8], offset: usize) -> Option<String> {
    let head = &body[..offset];
    let value_start = head
        .iter()
        .rposition(|byte| !(byte.is_ascii_alphanumeric() || b"+-.".contains(byte)))?;
    let before_value = head[..=value_start].trim_ascii_end();
    let before_colon = before_value.strip_suffix(b":")?.trim_ascii_end();
    let before_quote = before_colon.strip_suffix(b"\"")?;
    let opening = before_quote.iter().rposition(|&byte| byte == b'"')?;
    let name = std::str::from_utf8(&before_quote[opening + 1..]).ok()?;
    // Within a text that is cut short this may be what a client says and no name: fields have plain ones.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_plain)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(body: &str) -> (InvalidKind, String) {
        let invalid = Fields::parse(body.as_bytes()).expect_err(body);
        (invalid.kind, invalid.field)
    }

    #[test]
    fn values_that_are_no_json_are_reported_by_name() {
        for (body, field) in [
            (r#"{"temperature": NaN}"#, "temperature"),
            (r#"{"top_p":Infinity,"n":1}"#, "top_p"),
            (r#"{"n": 1, "min_p" : -Infinity}"#, "min_p"),
            (r#"{"n": 1e999}"#, "n"),
            ("{\n  \"n\": 1,\n  \"seed\": nan\n}", "seed"),
            (r#"{"max_tokens": }"#, "max_tokens"),
        ] {
            assert_eq!(
                fault_of(body),
                (InvalidKind::Value, field.to_owned()),
                "{body}"
            );
        }
    }

    #[test]
    fn a_broken_text_is_not_quoted() {
        let body = r#"{"prompt": "he wrote \"my deepest secret\": "#;
        assert_eq!(fault_of(body), (InvalidKind::Body, String::new()));
    }

    #[test]
    fn bodies_that_are_no_object_are_refused_as_a_whole() {
        for body in ["", "[]", "3", "{", r#"{"a" 1}"#, "\u{feff}{}", "{\"a\":1}x"] {
            assert_eq!(fault_of(body), (InvalidKind::Body, String::new()), "{body}");
        }
    }

    #[test]
    fn a_type_is_refused_by_name() {
        fn check<T>(
            json: &str,
            read: impl Fn(&mut Fields, &str) -> Result<T, Invalid>,
            accepted: bool,
        ) {
            let body = format!("{{\"x\":{json}}}");
            let mut fields = Fields::parse(body.as_bytes()).expect("an object");
            match read(&mut fields, "x") {
                Ok(_) => assert!(accepted, "{json} was taken"),
                Err(invalid) => {
                    assert!(!accepted, "{json} was refused: {invalid}");
                    assert_eq!(invalid.field, "x");
                    assert!(invalid.message.starts_with("x "), "{invalid}");
                }
            }
        }
        check("true", Fields::boolean, true);
        check("1", Fields::boolean, false);
        check("\"true\"", Fields::boolean, false);
        check("-1.5", Fields::number, true);
        check("\"1\"", Fields::number, false);
        check("[1]", Fields::number, false);
        check("true", Fields::number, false);
        check("0", Fields::count, true);
        check("-1", Fields::count, false);
        check("1.0", Fields::count, false);
        check("18446744073709551616", Fields::count, false);
        check("-1", Fields::integer, true);
        check("1e3", Fields::integer, false);
        check("-9223372036854775808", Fields::seed, true);
        check("18446744073709551615", Fields::seed, true);
        check("18446744073709551616", Fields::seed, false);
        check("0.5", Fields::seed, false);
        check("\"a\"", Fields::string_or_strings, true);
        check("[\"a\", \"b\"]", Fields::string_or_strings, true);
        check("[\"a\", null]", Fields::string_or_strings, false);
        check("[[\"a\"]]", Fields::string_or_strings, false);
        check("[1, 2]", Fields::counts, true);
        check("[1, -2]", Fields::counts, false);
        check("1", Fields::counts, false);
        check("{\"5\": 1}", Fields::numbers_by_name, true);
        check("{\"5\": \"1\"}", Fields::numbers_by_name, false);
        check("[1]", Fields::numbers_by_name, false);
    }

    #[test]
    fn what_is_not_read_is_refused_unless_null() {
        let mut fields =
            Fields::parse(br#"{"a": 1, "b": null, "c": {"d": 2}}"#).expect("an object");
        assert_eq!(fields.count("a"), Ok(Some(1)));
        let nested = fields.nested("c").expect("an object").expect("present");
        assert_eq!(nested.finish().expect_err("unread").field, "c.d");
        assert_eq!(fields.finish(), Ok(()));
    }

    #[test]
    fn a_field_may_be_accepted_only_with_neutral_values() {
        let mut fields = Fields::parse(br#"{"a": "none", "b": "auto"}"#).expect("an object");
        assert_eq!(fields.only("a", &["none".into()]), Ok(()));
        let invalid = fields.only("b", &["none".into()]).expect_err("not neutral");
        assert_eq!(invalid.kind, InvalidKind::Unsupported);
        assert_eq!(
            invalid.message,
            "b is not supported by this service, except as \"none\""
        );
    }
}
