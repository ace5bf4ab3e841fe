//! The messages of a chat, made ready for chat templates, which know plain texts only.

use serde_json::{Map, Value};

use crate::intake::{Invalid, InvalidKind, shortened};

/// What a message may carry. All of it is handed to the model's chat template.
const FIELDS: [&str; 6] = [
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
];

/// Checks `messages` and turns contents that are lists of text parts into one text each, one part
/// to a line.
///
/// # Errors
/// A wrong type, an unknown role or field, or a part that is no text, by its place.
pub(super) fn normalized(messages: Value) -> Result<Value, Invalid> {
    let Value::Array(messages) = messages else {
        return Err(Invalid::value("messages", "must be a list of messages"));
    };
    messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| normalized_message(&format!("messages[{index}]"), message))
        .collect::<Result<Vec<Value>, Invalid>>()
        .map(Value::Array)
}

fn normalized_message(place: &str, message: Value) -> Result<Value, Invalid> {
    let Value::Object(mut message) = message else {
        return Err(Invalid::value(place, "must be an object"));
    };
    message.retain(|_, value| !value.is_null());
    check_fields(place, &message)?;
    let role = role(place, message.get("role"))?;
    let content = match message.get_mut("content").map(Value::take) {
        // An assistant's message may consist of tool calls alone.
        None if role == "assistant" => String::new(),
        None => {
            let field = format!("{place}.content");
            return Err(Invalid::new(InvalidKind::Missing, field, "is required"));
        }
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => joined(place, parts)?,
        Some(_) => {
            return Err(Invalid::value(
                format!("{place}.content"),
                "must be a string or a list of text parts",
            ));
        }
    };
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), content.into());
    Ok(Value::Object(message))
}

fn check_fields(place: &str, message: &Map<String, Value>) -> Result<(), Invalid> {
    for (name, value) in message {
        let field = || format!("{place}.{}", shortened(name));
        match name.as_str() {
            "name" | "tool_call_id" | "reasoning_content" if !value.is_string() => {
                return Err(Invalid::value(field(), "must be a string"));
            }
            "tool_calls" if !value.is_array() => {
                return Err(Invalid::value(field(), "must be a list"));
            }
            known if FIELDS.contains(&known) => {}
            "audio" | "function_call" | "refusal" => {
                return Err(Invalid::new(
                    InvalidKind::Unsupported,
                    field(),
                    "is not supported by this service",
                ));
            }
            _ => {
                return Err(Invalid::new(
                    InvalidKind::Unknown,
                    field(),
                    "is not a field of a message",
                ));
            }
        }
    }
    Ok(())
}

/// The role as templates know it: OpenAI's newer `developer` is what open models call `system`.
fn role(place: &str, role: Option<&Value>) -> Result<&'static str, Invalid> {
    match role.and_then(Value::as_str) {
        Some("system" | "developer") => Ok("system"),
        Some("user") => Ok("user"),
        Some("assistant") => Ok("assistant"),
        Some("tool") => Ok("tool"),
        _ => Err(Invalid::value(
            format!("{place}.role"),
            "must be one of system, developer, user, assistant and tool",
        )),
    }
}

fn joined(place: &str, parts: Vec<Value>) -> Result<String, Invalid> {
    let texts: Result<Vec<String>, Invalid> = parts
        .into_iter()
        .enumerate()
        .map(|(index, part)| part_text(&format!("{place}.content[{index}]"), part))
        .collect();
    Ok(texts?.join("\n"))
}

fn part_text(place: &str, mut part: Value) -> Result<String, Invalid> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") => {}
        Some(_) => {
            return Err(Invalid::new(
                InvalidKind::Unsupported,
                format!("{place}.type"),
                "is not supported by this service, except as \"text\"",
            ));
        }
        None => return Err(Invalid::value(place, "must be an object with a type")),
    }
    let known = |key: &String, value: &Value| key == "type" || key == "text" || value.is_null();
    let fields = part.as_object().into_iter().flatten();
    if let Some((key, _)) = fields.into_iter().find(|(key, value)| !known(key, value)) {
        return Err(Invalid::new(
            InvalidKind::Unknown,
            format!("{place}.{key}"),
            "is not a field of a text part",
        ));
    }
    match part.get_mut("text").map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Invalid::value(format!("{place}.text"), "must be a string")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_become_one_text_and_developers_systems() {
        let messages = json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "user", "content": "c", "name": "d"},
        ]);
        assert_eq!(
            normalized(messages),
            Ok(json!([
                {"role": "system", "content": "a\nb"},
                {"role": "assistant", "tool_calls": [], "content": ""},
                {"role": "user", "content": "c", "name": "d"},
            ]))
        );
    }

    #[test]
    fn faults_are_named_by_their_place() {
        let user = |content: Value| json!([{"role": "user", "content": content}]);
        for (messages, field) in [
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (
                json!([{"role": "wizard", "content": "x"}]),
                "messages[0].role",
            ),
            (json!([{"role": "user"}]), "messages[0].content"),
            (user(json!(3)), "messages[0].content"),
            (user(json!(["x"])), "messages[0].content[0]"),
            (
                user(
                    json!([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]),
                ),
                "messages[0].content[1].type",
            ),
            (
                user(json!([{"type": "text", "text": "x", "cache_control": {}}])),
                "messages[0].content[0].cache_control",
            ),
            (
                user(json!([{"type": "text"}])),
                "messages[0].content[0].text",
            ),
            (
                json!([{"role": "user", "content": "x", "audio": {"id": "y"}}]),
                "messages[0].audio",
            ),
            (
                json!([{"role": "user", "content": "x", "colour": "red"}]),
                "messages[0].colour",
            ),
            (
                json!([{"role": "user", "content": "x", "name": 3}]),
                "messages[0].name",
            ),
        ] {
            let invalid = normalized(messages.clone()).expect_err("faulty");
            assert_eq!(invalid.field, field, "{messages}");
            assert!(invalid.message.starts_with(field), "{invalid}");
        }
    }
}
