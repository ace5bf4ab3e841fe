//! Values as Python writes them: `str(x)` for what a template prints, `json.dumps(x)` for `tojson`.

use minijinja::Value;
use minijinja::value::ValueKind;

/// `str(value)`: a string is itself, an undefined value is nothing.
pub(super) fn display(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number => match (value.is_integer(), f64::try_from(value.clone())) {
            (false, Ok(number)) => float(number),
            _ => value.to_string(),
        },
        ValueKind::String => quoted(&value.to_string()),
        ValueKind::Seq => format!("[{}]", joined(value, |item| repr(&item))),
        ValueKind::Map => {
            let entry = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&item))
            };
            format!("{{{}}}", joined(value, entry))
        }
        _ => value.to_string(),
    }
}

fn joined(value: &Value, write: impl Fn(Value) -> String) -> String {
    let items: Vec<String> = value.try_iter().into_iter().flatten().map(write).collect();
    items.join(", ")
}

/// A string in single quotes, or in double ones if that saves escaping.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if character == quote => out.extend(['\\', quote]),
            '\0'..='\x1F' | '\x7F'..='\u{A0}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
    out
}

/// `repr` of a float: as Rust writes it, but for the exponent's form.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
    }
}

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Default)]
pub(super) struct JsonLayout {
    /// Each item on a line of its own, indented by so many spaces a level.
    pub(super) indent: Option<usize>,
    /// Between items, and between key and value.
    pub(super) separators: Option<(String, String)>,
    pub(super) sorts_keys: bool,
}

impl JsonLayout {
    /// `json.dumps(value, ensure_ascii=False)` in this layout.
    pub(super) fn dump(&self, value: &serde_json::Value) -> String {
        let mut out = String::new();
        self.write(value, 0, &mut out);
        out
    }

    fn write(&self, value: &serde_json::Value, level: usize, out: &mut String) {
        match value {
            serde_json::Value::Array(items) if !items.is_empty() => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.start_item(index, level + 1, out);
                    self.write(item, level + 1, out);
                }
                self.start_line(level, out);
                out.push(']');
            }
            serde_json::Value::Object(entries) if !entries.is_empty() => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sorts_keys {
                    entries.sort_unstable_by_key(|&(key, _)| key);
                }
                out.push('{');
                for (index, (key, item)) in entries.into_iter().enumerate() {
                    self.start_item(index, level + 1, out);
                    out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                    out.push_str(self.separators.as_ref().map_or(": ", |(_, colon)| colon));
                    self.write(item, level + 1, out);
                }
                self.start_line(level, out);
                out.push('}');
            }
            serde_json::Value::Number(number) if number.is_f64() => {
                out.push_str(&float(number.as_f64().unwrap_or(f64::NAN)));
            }
            other => out.push_str(&other.to_string()),
        }
    }

    fn start_item(&self, index: usize, level: usize, out: &mut String) {
        if index > 0 {
            let comma = match (&self.separators, self.indent) {
                (Some((comma, _)), _) => comma,
                (None, Some(_)) => ",",
                (None, None) => ", ",
            };
            out.push_str(comma);
        }
        self.start_line(level, out);
    }

    fn start_line(&self, level: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent * level));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_as_in_python() {
        let check = |json: &str, printed: &str| {
            let value: serde_json::Value = serde_json::from_str(json).expect("valid JSON");
            assert_eq!(
                display(&Value::from(minijinja::value::Serde(&value))),
                printed
            );
        };
        check("null", "None");
        check("[true, false, 1, -2.0]", "[True, False, 1, -2.0]");
        check(
            "[1e16, 1e-7, 0.0001, 12345678.5]",
            "[1e+16, 1e-07, 0.0001, 12345678.5]",
        );
        check(r#""it's""#, "it's");
        check(
            r#"{"b": "it's", "a": [], "c": {}}"#,
            r#"{'b': "it's", 'a': [], 'c': {}}"#,
        );
        check(r#"["a\"b'\n\\\u0001é"]"#, "['a\"b\\'\\n\\\\\\x01é']");
    }

    #[test]
    fn json_is_laid_out_as_in_python() {
        let value = serde_json::json!({"b": [1, 2.0, "é<'\n"], "a": {}, "c": [], "d": null});
        let check = |layout: JsonLayout, dumped: &str| assert_eq!(layout.dump(&value), dumped);
        check(
            JsonLayout::default(),
            r#"{"b": [1, 2.0, "é<'\n"], "a": {}, "c": [], "d": null}"#,
        );
        check(
            JsonLayout {
                separators: Some((",".to_owned(), ":".to_owned())),
                sorts_keys: true,
                ..JsonLayout::default()
            },
            r#"{"a":{},"b":[1,2.0,"é<'\n"],"c":[],"d":null}"#,
        );
        check(
            JsonLayout {
                indent: Some(2),
                ..JsonLayout::default()
            },
            "{\n  \"b\": [\n    1,\n    2.0,\n    \"é<'\\n\"\n  ],\n  \"a\": {},\n  \"c\": [],\n  \"d\": null\n}",
        );
    }
}
