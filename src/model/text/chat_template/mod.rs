//! Chat templates: Jinja that came with a model (never with a request), rendered within a fuel limit.
//!
//! The environment is the one that Hugging Face's `apply_chat_template` gives its templates: blocks
//! trimmed, loop controls, Python's string and dict methods, `raise_exception`, `strftime_now`, a
//! `tojson` that doesn't escape for HTML, and the `generation` tag (which marks the assistant's words
//! for training; here it only groups). Values print as Python prints them.
//!
//! Not here: turning messages with content parts into the plain ones that most templates expect.

mod python;
mod strftime;

pub(crate) use strftime::format_utc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Map;

/// Instructions that one rendering may execute: some hundred thousand messages' worth, or a tenth of
/// a second. A template may come from anywhere, so it must not be able to loop for ever.
const MAX_FUEL: u64 = 5_000_000;

/// Depth of nested blocks and macro calls.
const MAX_RECURSION: usize = 100;

/// Length that a message of `raise_exception` is cut to, in characters: a template may put a whole
/// message of the chat in it.
const MAX_RAISED_CHARS: usize = 200;

/// The name of the one template in its environment. It has no extension, so nothing is escaped.
const NAME: &str = "chat template";

/// Why a template cannot be used or rendered.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub String);

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// Syntax errors, with the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        Self::with_clock(source, bos, eos, strftime::seconds_since_1970)
    }

    /// [`new`](Self::new) with a clock of the caller's: `strftime_now` takes the seconds since 1970
    /// (UTC) from it.
    ///
    /// # Errors
    /// Syntax errors, with the line.
    pub fn with_clock(
        source: &str,
        bos: &str,
        eos: &str,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, TemplateError> {
        let mut environment = environment();
        environment.add_function("strftime_now", move |format: &str| {
            strftime::format_utc(format, clock())
                .map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(NAME, group_generations(source))
            .map_err(|error| {
                TemplateError(format!(
                    "the chat template is broken in line {}: {}",
                    error.line().unwrap_or_default(),
                    error.detail().unwrap_or("syntax error")
                ))
            })?;
        Ok(ChatTemplate {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The prompt for `messages` (objects with `role` and `content`, as in OpenAI's API).
    /// `variables` are further names for the template (`chat_template_kwargs`, `tools`).
    ///
    /// # Errors
    /// What the template itself raises (`raise_exception`), or too much fuel.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        // As in `apply_chat_template`: these are always there, if only as none.
        let absent = ["tools", "documents"].map(|name| (name.to_owned(), Value::from(())));
        let special = [("bos_token", &self.bos), ("eos_token", &self.eos)]
            .map(|(name, text)| (name.to_owned(), Value::from(text)));
        let given = variables
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        let own = [
            ("messages".to_owned(), Value::from(Serde(messages))),
            (
                "add_generation_prompt".to_owned(),
                Value::from(add_generation_prompt),
            ),
        ];
        let context = Value::from_pairs(absent.into_iter().chain(special).chain(given).chain(own));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| describe(&error))
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the delimiters are the usual ones"),
    );
    environment.set_fuel(Some(MAX_FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment
        .set_formatter(|out, _, value| out.write_str(&python::display(value)).map_err(Error::from));
    environment.add_test("iterable", is_iterable);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment
}

/// Jinja2's `iterable`: unlike minijinja's, not true of none.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The `tojson` of `apply_chat_template`: Python's `json.dumps(x, ensure_ascii=False, ..)`.
fn to_json(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let invalid = |message: &'static str| Error::new(ErrorKind::InvalidOperation, message);
    let separators = match arguments
        .get::<Option<Vec<String>>>("separators")?
        .as_deref()
    {
        None => None,
        Some([comma, colon]) => Some((comma.clone(), colon.clone())),
        Some(_) => return Err(invalid("tojson takes two separators")),
    };
    let layout = python::JsonLayout {
        indent: arguments.get("indent")?,
        separators,
        sorts_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    // The text is never escaped beyond JSON, which is what `ensure_ascii=False` asks for.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    if value.is_undefined() {
        return Err(invalid("tojson of an undefined value"));
    }
    let json =
        serde_json::to_value(value).map_err(|_| invalid("tojson of something else than data"))?;
    Ok(Value::from(layout.dump(&json)))
}

/// What a template raised on purpose.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &str) -> Result<Value, Error> {
    let message = message.chars().take(MAX_RAISED_CHARS).collect();
    Err(Error::from(ErrorKind::InvalidOperation).with_source(Raised(message)))
}

/// An error without what the chat says: what the template raised, or the kind of failure.
fn describe(error: &Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError(format!(
                "the chat template refuses these messages: {message}"
            ));
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError(format!(
            "the chat template took more than {MAX_FUEL} instructions for these messages"
        ));
    }
    let line = error.line().unwrap_or_default();
    TemplateError(format!(
        "the chat template failed on these messages in line {line}: {}",
        error.kind()
    ))
}

/// Makes `generation` tags plain groups.
fn group_generations(source: &str) -> String {
    let mut grouped = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        grouped.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_matches(|character: char| {
            "{%}+-".contains(character) || character.is_whitespace()
        });
        match name {
            "generation" => grouped.push_str(&tag.replace(name, "if true")),
            "endgeneration" => grouped.push_str(&tag.replace(name, "endif")),
            _ => grouped.push_str(tag),
        }
        rest = after;
    }
    grouped.push_str(rest);
    grouped
}

#[cfg(test)]
mod tests;
