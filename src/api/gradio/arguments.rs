//! From the arguments of a call to a draft.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::endpoints::{Endpoint, Task};
use super::files::{FilePath, MOUNT};
use super::uploads::Uploads;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::openai::read_chat;
use crate::intake::image::{FieldNames, PreviewDraft};
use crate::intake::picture_file::PictureFile;
use crate::intake::{
    ChatPrompt, Draft, Fields, ImageDraft, Invalid, InvalidKind, Prompt, TextDraft,
};

/// Arguments by position, under the names of the endpoint's parameters.
///
/// # Errors
/// More arguments than parameters.
pub(super) fn by_position(
    endpoint: &Endpoint,
    data: Vec<Value>,
) -> Result<Map<String, Value>, Invalid> {
    let (given, most) = (data.len(), endpoint.parameters.len());
    if given > most {
        let message = format!("holds {given} values; /{} takes {most}", endpoint.api_name);
        return Err(Invalid::value("data", message));
    }
    let names = endpoint.parameters.iter().map(|one| one.name.to_owned());
    Ok(names.zip(data).collect())
}

/// What is asked for, unchecked but for the types.
///
/// # Errors
/// A missing or unknown argument, one of a wrong type, a file that is not there.
pub(super) async fn draft(
    state: &Arc<AppState>,
    caller: &Caller,
    endpoint: &Endpoint,
    mut arguments: Map<String, Value>,
) -> Result<Draft, ApiError> {
    for value in arguments.values_mut() {
        whole(value);
    }
    let picture = match endpoint.task {
        Task::ImageToImage => {
            let given = arguments.remove("image").unwrap_or_default();
            Some(picture(state, caller, given).await?)
        }
        _ => None,
    };
    let mut fields = Fields::of(arguments);
    let draft = match endpoint.task {
        Task::Chat => Draft::Text(text(&mut fields, chat)?),
        Task::Generate => Draft::Text(text(&mut fields, |fields| {
            fields
                .string("prompt")?
                .map(Prompt::Text)
                .ok_or_else(|| missing("prompt"))
        })?),
        Task::TextToImage | Task::ImageToImage => Draft::Image(image(&mut fields, picture)?),
    };
    fields.finish()?;
    Ok(draft)
}

/// Sliders and Python's floats say 512.0 and mean 512.
fn whole(value: &mut Value) {
    const EXACT: f64 = (1u64 << 53) as f64;
    if value.is_f64()
        && let Some(number) = value.as_f64()
        && number.fract() == 0.0
        && number.abs() < EXACT
    {
        *value = json!(number as i64);
    }
}

fn missing(name: &str) -> Invalid {
    Invalid::new(InvalidKind::Missing, name, "is required")
}

fn text(
    fields: &mut Fields,
    prompt: impl FnOnce(&mut Fields) -> Result<Prompt, Invalid>,
) -> Result<TextDraft, Invalid> {
    let mut draft = TextDraft::new(prompt(fields)?);
    draft.max_tokens = fields.count("max_tokens")?;
    draft.temperature = fields.number("temperature")?;
    draft.top_p = fields.number("top_p")?;
    draft.seed = seed(fields)?;
    Ok(draft)
}

/// As in Gradio's demos, -1 asks for a fresh one.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Invalid> {
    const FRESH: u64 = u64::MAX;
    Ok(fields.seed("seed")?.filter(|seed| *seed != FRESH))
}

/// The system's message, what was said before, the user's message.
fn chat(fields: &mut Fields) -> Result<Prompt, Invalid> {
    let message = fields
        .string("message")?
        .ok_or_else(|| missing("message"))?;
    let system = fields.string("system_message")?.unwrap_or_default();
    let history = history(fields.take("history"))?;
    let mut messages = Vec::with_capacity(history.len() + 2);
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.extend(history);
    messages.push(json!({"role": "user", "content": message}));
    Ok(Prompt::Chat(ChatPrompt::new(messages.into())))
}

/// Gradio's messages are OpenAI's, with notes for its own page that no model reads.
fn history(given: Option<Value>) -> Result<Vec<Value>, Invalid> {
    const NOTES: [&str; 2] = ["metadata", "options"];
    let mut messages = given.unwrap_or_else(|| json!([]));
    for message in messages.as_array_mut().into_iter().flatten() {
        if let Some(members) = message.as_object_mut() {
            members.retain(|name, _| !NOTES.contains(&name.as_str()));
        }
    }
    let chat = read_chat(messages, &mut Fields::of(Map::new())).map_err(|invalid| Invalid {
        field: invalid.field.replacen("messages", "history", 1),
        message: invalid.message.replacen("messages", "history", 1),
        ..invalid
    })?;
    match chat.messages {
        Value::Array(messages) => Ok(messages),
        _ => Ok(Vec::new()),
    }
}

fn image(fields: &mut Fields, source: Option<PictureFile>) -> Result<ImageDraft, Invalid> {
    let prompt = fields.string("prompt")?.ok_or_else(|| missing("prompt"))?;
    Ok(ImageDraft {
        negative_prompt: fields.string("negative_prompt")?,
        width: fields.count("width")?,
        height: fields.count("height")?,
        n: fields.count("count")?,
        steps: fields.count("steps")?,
        guidance_scale: fields.number("guidance_scale")?,
        schedule: fields.string("schedule")?,
        seed: seed(fields)?,
        strength: fields.number("strength")?,
        source,
        previews: PreviewDraft::Latest,
        names: FieldNames {
            n: "count",
            ..FieldNames::default()
        },
        ..ImageDraft::new(prompt)
    })
}

/// The file that an argument means: an upload, a picture that was drawn here, or one in Base64.
async fn picture(
    state: &Arc<AppState>,
    caller: &Caller,
    given: Value,
) -> Result<PictureFile, ApiError> {
    const FIELD: &str = "image";
    let (path, url) = match &given {
        Value::Null => return Err(missing(FIELD).into()),
        Value::String(text) => (Some(text.as_str()), None),
        Value::Object(file) => {
            let text = |name: &str| file.get(name).and_then(Value::as_str);
            (text("path"), text("url"))
        }
        _ => (None, None),
    };
    // A file of ours may come back by its address: what is behind the mount is its path.
    let known = [path, url].into_iter().flatten().find_map(|text| {
        let (_, behind) = text.split_once(MOUNT).unwrap_or(("", text));
        FilePath::parse(behind)
    });
    if let Some(path) = known {
        let file = path.read(state, caller).await.map_err(|error| ApiError {
            field: Some(FIELD.into()),
            message: format!(
                "{FIELD} is a file that is not here, or not any longer: upload it again"
            ),
            ..error
        })?;
        return Ok(PictureFile::new(file.bytes));
    }
    let text = url
        .filter(|url| url.starts_with("data:"))
        .or(path)
        .or(url)
        .ok_or_else(|| Invalid::value(FIELD, "must be a file: its path, or its data in Base64"))?;
    if text.starts_with(Uploads::FOLDER) {
        return Err(Invalid::value(FIELD, "is no path of a file that was uploaded").into());
    }
    Ok(PictureFile::from_text(FIELD, text)?)
}
